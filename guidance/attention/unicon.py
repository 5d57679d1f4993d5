"""UniCon: a picture and its condition (depth, edges, pose) as two streams that are denoised side by side, each at a noise level of its own."""
from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from ..frozen import frozen
from ..method import POSITIVE, BadInput, Branch, Edit, Prompt, Term, param, socket
from .edits import AttentionEdit
from .joint_lora import JointLora

MODES = ("image from condition", "condition from image", "both", "noise levels")
CANVAS = "Joint Latent"


@frozen(eq=False)
class Placed:
    """The weights for a model's layers: {layer's name: joint_lora.Block}. Compared by identity."""

    layers: Any
    name: str

    def __deepcopy__(self, memo):
        return self


@frozen
class JointStreams(AttentionEdit):
    """Says that the rows of a call are pairs of streams, first all images, then all conditions (guidance.host.joint_streams puts the weights in place). scale: of what the image sees of the condition
    and the condition of the image; amount: factor on the LoRAs; prompt: the conditions' own text in the positive prompt's rows, or None."""

    weights: Any = None
    scale: tuple = (1.0, 1.0)
    amount: float = 1.0
    prompt: Any = None
    title: str = "UniCon"

    kinds = ()
    everywhere = True

    def default_layers(self, geometry):
        return "all"


@frozen
class Apart(AttentionEdit):
    """Marks a branch in which the streams do not see each other."""

    kinds = ()

    def default_layers(self, geometry):
        return "all"


APART = Branch("positive", (Apart(),))


@frozen
class UniCon(Edit, Term):
    """A picture x and its condition y (depth, edges, pose) are denoised together, each at its own noise level: one set of weights makes pictures from conditions, conditions from pictures, or both.

        t_x, t_y = a noise level for each stream;       x, y pass the same network as two rows of one batch, y with a LoRA of its own
        o_x = attn(Q' n_x, K' n_y, V' n_y),  o_y = attn(Q'' n_y, K'' n_x, V'' n_x)           in every self-attention; ' and '' are the network's own projections with two further LoRAs
        (x, y) <- (x, y) + attn(own) + joint_scale P [o_x, o_y]                               P: a learned projection
        D = CFG + condition_guidance (D_joint - D_apart)                                      apart: without what the streams see of each other

    Joint Latent makes the batch, images first, then conditions, and says by its noise mask how much noise each stream begins with: 0 keeps it as it is given, at the least noise level (a clean condition
    steers the picture; a clean picture gives its condition), 1 samples it, a value between is a coarse hint: held at that level until the sampling has come down to it, then denoised with the other.
    Masks in a stream (inpainting, partial conditions) work the same way. Any sampler can be used. Split Joint Latent takes the result apart.
    Weights: Load UniCon Weights. Condition prompt: the authors put a word in front of the prompt of the condition ("depth_map, ").

    Defaults: joint scale 1, condition guidance 0 (paper). Deviations: streams with noise between 0 and 1 wait for the other one, where the released code moves both in as many steps, at levels of their
    own. Identities: without the joint attention the streams do not know of each other; the order of the pairs does not matter.
    Limits: U-Nets (the weights name their blocks; none are published for others); one condition. Paper: Li et al., arXiv 2410.11439. Cost: the condition's rows, that is twice the batch, and an attention
    more in each block; with condition guidance one more evaluation.
    """

    node_id = "LodestarUniCon"
    title = "UniCon"
    family = "attention"
    paper = "A Simple Approach to Unifying Conditional Generation (UniCon)"
    aliases = ("joint generation", "depth to image", "image to depth", "control", "estimation")
    evaluations = "1 for the conditions' rows (the batch is twice as large); 2 with condition guidance"
    planar = True
    own_levels = True       # streams at noise levels of their own: hosts without wrappers refuse it

    weights: Any = socket("LODESTAR_UNICON", "The pair's weights, from Load UniCon Weights.")
    joint_scale: float = param(1.0, "How strongly the streams see each other; 0: not at all.", 0.0, 2.0, 0.05)
    condition_guidance: float = param(0.0, "Guides away from the prediction in which the streams do not see each other; costs one more evaluation.", 0.0, 20.0, 0.1)
    condition_prompt: Any = socket("CONDITIONING", "The prompt of the conditions, where it is another than the pictures', e.g. with the word that the weights were trained with.", optional=True)
    condition_sees: float = param(1.0, "Factor on the joint scale for what the condition sees of the picture; 0 makes the condition independent of it.", 0.0, 2.0, 0.05, advanced=True)
    lora_scale: float = param(1.0, "Factor on all LoRAs.", 0.0, 2.0, 0.05, advanced=True)

    def neutral(self):
        return self.joint_scale == 0 and self.lora_scale == 0

    def fitted(self, facts):
        if not isinstance(self.weights, JointLora):
            raise BadInput(self.title, "weights", None, "Connect Load UniCon Weights.")
        if any(isinstance(m, UniCon) for m in facts.pipeline.methods):
            raise BadInput(self.title, "model", "a model with UniCon", "One pair of streams can be sampled at a time: remove one of the nodes.")
        return replace(self, weights=Placed(self.weights.fitted(facts.geometry, facts.attention_widths, self.title, facts.network), self.weights.name))

    def edits(self, step):
        prompt = None if self.condition_prompt is None else Prompt(self.condition_prompt, "condition")
        return (JointStreams("", self.weights, (self.joint_scale, self.joint_scale * self.condition_sees), self.lora_scale, prompt, self.title),)

    def branches(self, step):
        return (POSITIVE, APART) if self.condition_guidance else ()

    def delta(self, step, base, predictions, state):
        if not self.condition_guidance:
            return torch.zeros_like(base)
        return self.condition_guidance * (predictions[POSITIVE] - predictions[APART])


def amounts(mode, image_noise, condition_noise):
    """(noise of the image stream, of the condition stream) in [0, 1] of a mode."""
    return {MODES[0]: (1.0, 0.0), MODES[1]: (0.0, 1.0), MODES[2]: (1.0, 1.0)}.get(mode, (image_noise, condition_noise))


def joint_latent(mode, image, condition, image_noise=1.0, condition_noise=0.0):
    """The LATENT of both streams: samples [2 n, ...], images first, and as its noise mask how much noise each place begins with. image, condition: LATENTs (with masks, perhaps), one may be None."""
    noise = amounts(mode, image_noise, condition_noise)
    for name, latent, amount in zip(("image", "condition"), (image, condition), noise):
        if latent is None and amount < 1:
            raise BadInput(CANVAS, name, None, f"This stream begins with noise {amount:g}, so that it needs something to begin with: connect {name}, or choose another mode.")
        samples = None if latent is None else latent.get("samples")
        if latent is not None and (not isinstance(samples, torch.Tensor) or getattr(samples, "is_nested", False) or samples.ndim != 4):
            raise BadInput(CANVAS, name, f"a latent with {getattr(samples, 'ndim', 'no')} axes", "Connect a latent of pictures.")
    if image is None and condition is None:
        raise BadInput(CANVAS, "image", None, "Connect an empty latent for the size, or a picture.")
    given = [None if latent is None else latent["samples"] for latent in (image, condition)]
    like = given[0] if given[0] is not None else given[1]
    if all(t is not None for t in given) and given[0].shape[1:] != given[1].shape[1:]:
        raise BadInput(CANVAS, "condition", f"size {list(given[1].shape[1:])}", f"The image's latent has {list(given[0].shape[1:])} (channels, height, width): bring both pictures to one size.")
    n = max(t.shape[0] for t in given if t is not None)
    parts, masks = [], []
    for name, latent, samples, amount in zip(("image", "condition"), (image, condition), given, noise):
        mask = None if latent is None else latent.get("noise_mask")
        if samples is None or (amount == 1 and mask is None):
            samples = torch.zeros_like(like[:1]) if samples is None else torch.zeros_like(samples)      # nothing of it is to be kept
        if samples.shape[0] not in (1, n):
            raise BadInput(CANVAS, name, f"{samples.shape[0]} pictures", f"The other stream has {n}: give one for all, or one for each.")
        parts.append(samples.expand(n, *samples.shape[1:]))
        masks.append(torch.full((n, 1, *samples.shape[-2:]), float(amount)) if mask is None else amount * _mask(mask, n, samples, name))
    return {"samples": torch.cat(parts).contiguous(), "noise_mask": torch.cat(masks)}


def _mask(mask, n, samples, name):
    """A noise mask as [n, 1, height, width] of the latent's size."""
    mask = mask.float().reshape(-1, 1, *mask.shape[-2:]).cpu()
    if mask.shape[0] not in (1, n):
        raise BadInput(CANVAS, name, f"a noise mask of {mask.shape[0]} pictures", f"There are {n}: give one mask for all, or one for each.")
    mask = torch.nn.functional.interpolate(mask, size=tuple(samples.shape[-2:]), mode="bilinear")
    return mask.clamp(0, 1).expand(n, -1, -1, -1)


def split(latent, node):
    """(image LATENT, condition LATENT) of a joint one, without its noise mask."""
    samples = latent["samples"]
    if samples.shape[0] % 2:
        raise BadInput(node, "samples", f"{samples.shape[0]} pictures", "A joint latent holds as many images as conditions: connect what was sampled of Joint Latent.")
    rest = {k: v for k, v in latent.items() if k not in ("samples", "noise_mask", "batch_index")}
    return tuple({**rest, "samples": half.clone()} for half in samples.chunk(2))


def levels(mask, percent_to_sigma):
    """The noise level at which each place of a noise mask begins: the schedule's at that share of noise; infinite for 1, 0 for 0. Shares are told apart to a thousandth."""
    found = torch.zeros_like(mask, dtype=torch.float32)
    shares = (mask.float() * 1000).round() / 1000
    for share in shares.unique().tolist():
        found[shares == share] = math.inf if share >= 1 else 0.0 if share <= 0 else float(percent_to_sigma(1 - share))
    return found
