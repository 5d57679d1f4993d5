"""RAP-SR: a generator learns to tell good pictures from degraded ones by a word of the prompt, so that restoring samples towards the one and away from the other."""
from __future__ import annotations

import math
from typing import Any

import torch

from ..frozen import frozen
from ..method import BadInput, Method, param, socket
from .classifier import noised
from .steps import AdamW

TABLE = 1000
EMPTY = "empty"


@frozen
class RestorationExamples:
    """groups: ((good latents, degraded latents, prompt of the good, prompt of the degraded), ...), as they come in the graph."""

    groups: tuple

    def __deepcopy__(self, memo):
        return self

    def __add__(self, other):
        return RestorationExamples(self.groups + other.groups)


@frozen(eq=False)
class TrainRestorationPrior(Method):
    """Trains a LoRA on good and degraded pictures at once, each with a word of its own in its prompt: in sampling the one goes into the positive prompt, the other into the negative one.

        with chance q:      x = a x0 + s n,   prompt "[X]. what there is"      x0 a good picture
        else:               x = a y0 + s n,   prompt "[V]. what there is"      y0 the same picture degraded, or another one
        with chance e the prompt is empty;  loss = mean ((D(x, s, prompt) - x0) / s)^2       the noise's squared error (of flow models the velocity's)

    D: the clean estimate of the network with its LoRA, W h + B A h; s is drawn evenly over the schedule. The refined prior is for every restorer that works with this model: guidance then leads from "[V]"
    to "[X]". "[X]" and "[V]" are what the authors write; any two words do that the text encoder tells apart and that mean little.
    Examples: Restoration Examples, one for each prompt, chained. The authors' are 5,000 chosen pictures with long captions, degraded as for Real-ESRGAN.

    Defaults: q 0.8, e 0.05 (the released code). Deviations: a LoRA in place of the whole U-Net, AdamW 1e-3 with a cosine to 0 in place of 5e-5, 200 steps of 4 in place of 4000 of 20 with averaged weights; only the
    prior's refinement and its identifiers, not the choice of pictures. Identities: no steps and rate 0 leave the model as it is.
    Limits: no pass is computed again in the backward, so memory is that of training: small batches on large models. What other nodes of this pack put on the model does not take part.
    On the bundled model, which knows clean pictures alone, 40 steps change nothing that eight pictures resolve (docs/effects).
    Paper: Wang et al., "RAP-SR: RestorAtion Prior Enhancement in Diffusion Models for Realistic Image Super-Resolution", arXiv 2412.07149. Cost: an evaluation and its backward for each step.
    """

    node_id = "LodestarTrainRestorationPrior"
    title = "Train Restoration Prior"
    family = "training"
    paper = "RAP-SR"
    aliases = ("RAP-SR", "LoRA training", "quality tuning", "restoration identifier", "negative prompt")
    evaluations = "1 for each step, with its backward"

    examples: Any = socket("LODESTAR_RESTORATION_EXAMPLES", "Good and degraded pictures with their prompts, from Restoration Examples.")
    empty: Any = socket("CONDITIONING", "The empty prompt, for the pictures that have none; without it all have theirs.", optional=True)
    steps: int = param(200, "Steps of the training; 0 leaves the model as it is.", 0, 1000000, 1)
    batch: int = param(4, "Pictures of a step.", 1, 1024, 1)
    rank: int = param(8, "Rank of the LoRA.", 1, 256, 1)
    rate: float = param(1e-3, "Learning rate at first; it falls to 0.", 0.0, 1.0, 1e-5)
    good_share: float = param(0.8, "Share of the steps that see good pictures; the others see degraded ones.", 0.0, 1.0, 0.05)
    empty_share: float = param(0.05, "Share of the steps without a prompt.", 0.0, 1.0, 0.05, advanced=True)
    layers: str = param("attention", "Which linear layers get a LoRA: those of the attention, or all of the network's blocks.", choices=("attention", "all"), advanced=True)
    seed: int = param(0, "Weights at first, order and noise.", 0, 2**63 - 1, 1)

    def validate(self):
        super().validate()
        for good, bad, *_ in self.examples.groups:
            for name, samples in (("good", good), ("degraded", bad)):
                if not isinstance(samples, torch.Tensor) or getattr(samples, "is_nested", False) or samples.ndim not in (4, 5):
                    raise BadInput(self.title, "examples", f"{name} pictures that are no latents of pictures", "Connect encoded pictures (or videos) to Restoration Examples.")
        shapes = {tuple(t.shape[1:2]) for good, bad, *_ in self.examples.groups for t in (good, bad)}
        if len(shapes) > 1:
            raise BadInput(self.title, "examples", f"latents of {' and '.join(str(s[0]) for s in sorted(shapes))} channels", "All must be of one kind.")
        return self

    def names(self):
        """{name: prompt} of all groups."""
        found = {f"{i} {kind}": prompt for i, (_, _, *prompts) in enumerate(self.examples.groups) for kind, prompt in zip(("good", "degraded"), prompts)}
        return found | ({EMPTY: self.empty} if self.empty is not None else {})

    def drawn(self, generator):
        """(number of the group, 0 good or 1 degraded, name of the prompt) of a step: groups by how many pictures they have."""
        q, e = torch.rand(2, generator=generator).tolist()
        kind = int(q >= self.good_share)
        sizes = torch.tensor([float(group[kind].shape[0]) for group in self.examples.groups])
        i = int(torch.multinomial(sizes, 1, generator=generator))
        return i, kind, EMPTY if self.empty is not None and e < self.empty_share else f"{i} {('good', 'degraded')[kind]}"

    def run(self, groups, denoise, parameters, sigma_of, flow=False, tick=None):
        """Trains `parameters` in place; the mean loss of the first and of the last tenth of the steps. groups: [(good, degraded)] in the model's space; denoise(x, sigma, name): the clean estimate;
        sigma_of(percent): the schedule; tick(step, total, loss) after each step."""
        generator, optimiser, losses = torch.Generator().manual_seed(self.seed), AdamW(parameters, 0.0), []
        sigmas = torch.tensor([float(sigma_of((i + 0.5) / TABLE)) for i in range(TABLE)])
        for step in range(self.steps):
            i, kind, name = self.drawn(generator)
            pool = groups[i][kind]
            x0 = pool[torch.randint(len(pool), (self.batch,), generator=generator)]
            x, sigma = noised(x0, sigmas[torch.randint(TABLE, (self.batch,), generator=generator)].to(x0), flow, generator)
            loss = error(denoise(x, sigma, name), x0, sigma)
            optimiser.step(loss, self.rate * 0.5 * (1 + math.cos(math.pi * step / self.steps)))
            losses.append(float(loss.detach()))
            if tick is not None:
                tick(step + 1, self.steps, losses[-1])
        tenth = max(1, len(losses) // 10)
        mean = lambda some: sum(some) / len(some) if some else float("nan")
        return mean(losses[:tenth]), mean(losses[-tenth:])


def error(denoised, x0, sigma):
    """The noise's (of flow models the velocity's) mean squared error."""
    return ((denoised.float() - x0) / sigma.view(-1, *[1] * (x0.ndim - 1))).square().mean()


def fresh(shapes, rank, generator):
    """{layer: (A [rank, in], B [out, rank])} of layers {name: (out, in)}: B is zero."""
    made = {}
    for name, (out, given) in shapes.items():
        r = min(rank, out, given)
        made[name] = (torch.randn(r, given, generator=generator) / given ** 0.5, torch.zeros(out, r))
    return made


def file_of(pairs):
    """The tensors of a LoRA in the layout that hosts read, {key: tensor}; alpha equals the rank."""
    found = {}
    for name, (down, up) in pairs.items():
        found[f"diffusion_model.{name}.lora_down.weight"], found[f"diffusion_model.{name}.lora_up.weight"] = down.detach().half().cpu().contiguous(), up.detach().half().cpu().contiguous()
        found[f"diffusion_model.{name}.alpha"] = torch.tensor(float(down.shape[0]))
    return found
