"""GenDeg: degradations of a wanted kind and level, drawn by a model that sees the clean picture."""
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from ..frozen import frozen
from ..method import NEGATIVE, BadInput, Branch, Method, Prompt, Term, param, socket

KINDS = ("haze", "rain", "snow", "motion blur", "low light", "raindrops")
AS_TEXT = "as the text says"
PHRASES = dict(zip(KINDS, (" in hazy conditions", " in rainy conditions", " in snowy conditions", " in blurry conditions", " in low-light conditions", " with raindrops in it")))      # the authors'
BINS = 128
HIGHEST = (0.7, 0.4)      # of the mean and of the deviation: the upper ends of the authors' bins
KEYS = ("stats_proj.weight", "stats_proj.bias", "cc_projection.weight", "cc_projection.bias")


@frozen
class DegradationLevel:
    """levels: ((mean, deviation), ...) of |degraded - clean|, one pair for each picture."""

    levels: tuple

    def __deepcopy__(self, memo):
        return self


@frozen(eq=False)
class DegradationGenerator:
    """weights: {key of KEYS: tensor}; phrases: {kind: what is put behind the text}. Compared by identity."""

    weights: Any
    phrases: Any
    name: str = "degradation generator"

    def __deepcopy__(self, memo):
        return self

    @property
    def width(self):
        """Width of a text's states."""
        return self.weights["cc_projection.weight"].shape[0]


def level_of(clean, degraded):
    """Mean and standard deviation [n, 2] of |degraded - clean| over all pixels and colours of pictures [n, 3, h, w] in [0, 1]."""
    off = (degraded.float() - clean.float()).abs().flatten(1)
    return torch.stack((off.mean(1), off.std(1, correction=0)), 1)


def one_hot(levels):
    """[n, 2, BINS + 1] of levels [n, 2]: the bin of each number, the last place where it is NaN (none is wanted)."""
    top = torch.tensor(HIGHEST).to(levels)
    at = (levels / top * BINS).floor().clamp(0, BINS - 1)
    return F.one_hot(torch.where(levels.isnan(), torch.full_like(at, BINS), at).long(), BINS + 1).float()


def conditioned(weights, states, wanted):
    """The conditioning [n, tokens, width] of a text's states [1 or n, tokens, width] and the level's one_hot [n, 2, BINS + 1]: cc_projection([states, stats_proj(wanted)^T])."""
    w = {k: v.to(states) for k, v in weights.items()}
    told = F.linear(wanted.to(states), w["stats_proj.weight"], w["stats_proj.bias"]).transpose(1, 2)
    told = told.repeat(1, -(-states.shape[1] // told.shape[1]), 1)[:, :states.shape[1]]      # longer texts come in chunks of as many tokens
    return F.linear(torch.cat((states.expand(len(told), -1, -1), told), -1), w["cc_projection.weight"], w["cc_projection.bias"])


def parse(weights, node, field, name="degradation generator", phrases=PHRASES):
    """A DegradationGenerator of a file's tensors, of which only KEYS count; BadInput that names the key and what would be right."""
    wrong = lambda what: BadInput(node, field, name, f"{what} {KEYS[0]} [tokens, {BINS + 1}] and {KEYS[2]} [width, width + 2], each with its bias, are expected.")
    missing = [k for k in KEYS if k not in weights]
    if missing:
        raise wrong(f"{', '.join(missing)} missing.")
    tokens, width = weights[KEYS[0]].shape[0], weights[KEYS[2]].shape[0]
    for key, shape in zip(KEYS, ((tokens, BINS + 1), (tokens,), (width, width + 2), (width,))):
        if tuple(weights[key].shape) != shape:
            raise wrong(f"{key} has the shape {list(weights[key].shape)}, where {list(shape)} would be right.")
    return DegradationGenerator({k: weights[k].float() for k in KEYS}, dict(phrases), name)


@frozen
class DegradationSynthesis(Method):
    """Makes a degraded picture of a clean one: haze, rain, snow, motion blur, low light or raindrops, as strong and as unevenly spread as is asked. For pairs that restorers are trained and tested with.

        out = u + s_text (c - i) + s_image (i - u)                   s_text: the sampler's cfg; written in clean estimates
        c: text, level and picture;     i: the picture alone;     u: nothing
        context = P [text, S(bin of mean), S(bin of deviation)]      S: 128 bins and one for "none" -> a number for each token; P: width + 2 -> width

    The model is of InstructPix2Pix's type: its first convolution takes the clean picture's latent beside the noisy one. The level is that of |degraded - clean| over all pixels and colours, in [0, 1]: its mean says how
    strong the degradation is, its standard deviation how unevenly it is spread (haze lies everywhere, rain in lines). Measure Degradation Level reads both from a pair. The text says what there is, the degradation chosen puts the authors' words behind it
    ("... in rainy conditions"); several kinds at once are written into the text.
    Put both prompts and the latent into a KSampler with denoise 1; then Structure Correction, or VAE Decode alone.

    Defaults: s_image 1.5 and cfg 7.5, 100 steps of euler_ancestral as in the released code (the bundled model: cfg 1 to 2, 20 steps); bins up to a mean of 0.7 and a deviation of 0.4 as there. At s_image 1 the host's sampling is not
    touched. Deviations: the authors draw the level from histograms of data sets, here it is given or measured; a text of several chunks has the level in each. The host draws no random latent of the clean picture, as the authors.
    The bundled weights show the mechanism after a short training: they draw the clean picture's things on its own ground, rain and snow (as specks for other kinds too), hardly haze or blur; the level follows what is asked for roughly (12 pictures: correlation of the means 0.53, without a level -0.29)
    (the effects have the figures). The released weights are the ones to use; they were not run here.
    Limits: the released model is SD1.5's, and only the kinds in its training are drawn; the level is a wish, reached about. Identity: a batch is its pictures.
    Paper: Rajagopalan et al., "GenDeg: Diffusion-Based Degradation Synthesis for Generalizable All-in-One Image Restoration", arXiv 2411.17687. Cost: one evaluation more than CFG, none at s_image 1.
    """

    node_id = "LodestarDegradationSynthesis"
    title = "Degradation Synthesis"
    family = "inverse"
    paper = "GenDeg: Diffusion-Based Degradation Synthesis, arXiv 2411.17687"
    aliases = ("GenDeg", "haze", "rain", "snow", "synthesise degradation", "data augmentation", "InstructPix2Pix")
    evaluations = "1"
    planar = True

    clip: Any = socket("CLIP", "The text encoder.")
    vae: Any = socket("VAE", "Encodes the clean pictures.")
    generator: Any = socket("LODESTAR_DEGRADATION_GENERATOR", "How the level is told, from Load Degradation Generator.")
    image: Any = socket("IMAGE", "The clean pictures. Sides should be multiples of 8.")
    text: str = param("", "What is in the picture. The words of the degradation are put behind it.")
    degradation: str = param("haze", "The degradation.", choices=(*KINDS, AS_TEXT))
    mean: float = param(0.15, "Mean of |degraded - clean|, 0 to 0.7: how strong it is. Without effect where level is connected.", 0.0, HIGHEST[0], 0.005)
    deviation: float = param(0.08, "Standard deviation of |degraded - clean|, 0 to 0.4: how unevenly it is spread. Without effect where level is connected.", 0.0, HIGHEST[1], 0.005)
    image_scale: float = param(1.5, "How strongly the clean picture counts; 1 is that of the prediction itself and spares an evaluation.", 0.0, 20.0, 0.1)
    any_level: bool = param(False, "Leave the level to the model: none is asked for.", advanced=True)
    level: Any = socket("LODESTAR_DEGRADATION_LEVEL", "Mean and deviation for each picture of the batch, from Measure Degradation Level.", optional=True)

    def checked(self):
        """The method, or BadInput for what cannot be."""
        self.validate()
        if not isinstance(self.generator, DegradationGenerator):
            raise BadInput(self.title, "generator", type(self.generator).__name__, "Connect Load Degradation Generator.")
        if self.level is not None and not isinstance(self.level, DegradationLevel):
            raise BadInput(self.title, "level", type(self.level).__name__, "Connect Measure Degradation Level.")
        if not isinstance(self.image, torch.Tensor) or self.image.ndim != 4 or self.image.shape[-1] < 3 or not len(self.image):
            raise BadInput(self.title, "image", list(getattr(self.image, "shape", ())) or type(self.image).__name__, "Clean pictures with three colours are wanted.")
        return self

    def prompt(self):
        """The text with the kind's words."""
        return self.text.strip() + ("" if self.degradation == AS_TEXT else self.generator.phrases[self.degradation])

    def wanted(self, n):
        """Levels [n, 2] of n pictures; NaN where none is asked for."""
        if self.any_level:
            return torch.full((n, 2), float("nan"))
        levels = torch.tensor(self.level.levels if self.level is not None else ((self.mean, self.deviation),), dtype=torch.float32)
        return levels[torch.arange(n) % len(levels)]

    def contexts(self, text, empty, n):
        """(conditioning [n, tokens, width] of the text's states and the level, that of no text and no level [1, tokens, width])."""
        for states in (text, empty):
            if states.shape[-1] != self.generator.width:
                raise BadInput(self.title, "clip", f"width {states.shape[-1]}", f"{self.generator.name} is for texts of the width {self.generator.width}: take the text encoder of its model.")
        none = torch.full((1, 2), float("nan"))
        return conditioned(self.generator.weights, text, one_hot(self.wanted(n))), conditioned(self.generator.weights, empty, one_hot(none))


@frozen
class ImageScale(Term):
    """What the clean picture's own scale adds: (scale - 1) (i - u); i: the negative prompt, with the picture; u: `unseen`, the same without it."""

    title = DegradationSynthesis.title
    uses_negative = True

    unseen: Any = socket("CONDITIONING", "The negative prompt without the picture.")
    scale: float = param(1.5, "s_image.", 0.0, 20.0)

    def neutral(self):
        return self.scale == 1.0

    @property
    def branch(self):
        return Branch(self.unseen if isinstance(self.unseen, Prompt) else Prompt(self.unseen, f"no picture of {self.title}"))

    def branches(self, step):
        return NEGATIVE, self.branch

    def delta(self, step, base, predictions, state):
        return (self.scale - 1) * (predictions[NEGATIVE] - predictions[self.branch])
