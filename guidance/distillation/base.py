"""What a distillation guidance is: from a clean latent z to the direction in which it becomes likelier, without a backward pass through the network."""
from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import Any

import torch

from ..frozen import frozen
from ..inverse import levels
from ..method import BadInput, Method, param, socket

COURSES = ("random", "linear", "square root", "cosine")
SDS, UNIFORM, ISM, STRONG_LOW, FANTASIA = "s^2 / (a^2 + s^2)", "1", "s / a", "a / sqrt(a^2 + s^2)", "a s^2 / (a^2 + s^2)^1.5"
WEIGHTS = (SDS, UNIFORM, ISM, STRONG_LOW, FANTASIA)


def weight(s, flow, kind):
    """W(s), the factor of a residual in units of noise."""
    a = levels.signal(s, flow)
    rho2, share = levels.spread(s, flow), a / levels.amplitude(s, flow)
    return {SDS: rho2, UNIFORM: 1.0, ISM: s / max(a, levels.LEAST_SIGNAL), STRONG_LOW: share, FANTASIA: share * rho2}[kind]


def drawn(shape, *numbers):
    """Standard normal [*shape] that belongs to these numbers: whatever is drawn before or beside it."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(random.Random(repr(numbers)).getrandbits(62)))


@dataclass
class Moment:
    """One iteration as a guidance sees it. z [rows, ...]: the clean latent in the model's space (of a video that an image model sees: its frames as rows), without
    gradient; index of total iterations; entries: numbers of the batch's entries, which their noise belongs to; memory: the guidance's own, of this run.

    prior: the model. `flow`; `sigma(level)`; `guided(x, s, cfg)`, the guided prediction with every method on the MODEL; `plain(x, s, name)`, that of one prompt ("positive",
    "negative", "inverse"); `encode` and `decode` between pictures and latents, or None.
    """

    prior: Any
    z: torch.Tensor
    index: int = 0
    total: int = 1
    seed: int = 0
    entries: tuple = (0,)
    number: int = 0
    memory: dict = field(default_factory=dict)
    shown: Any = None      # () -> the picture [n, 3, height, width] that z is of

    def noise(self, turn=0):
        """The noise [rows, ...] of a turn of this iteration: each entry's own."""
        each = self.z.shape[0] // len(self.entries)
        parts = [drawn((each, *self.z.shape[1:]), self.seed, e, self.index, self.number, turn) for e in self.entries]
        return torch.cat(parts).to(self.z) * getattr(self.prior, "noise_scale", 1.0)

    def uniform(self):
        """A number in [0, 1] for the whole batch."""
        return random.Random(repr((self.seed, self.index, self.number))).random()

    def signal(self, s):
        return levels.signal(s, self.prior.flow)

    def noised(self, z, s, noise):
        """x = a z + s n."""
        return self.signal(s) * z + s * noise

    def noise_of(self, x, s, denoised):
        """n^ = (x - a D) / s."""
        return (x - self.signal(s) * denoised) / s

    def move(self, x, s, s_next, denoised):
        """x at another level with the same estimate and noise: a' D + s' n^, an exact DDIM step up or down."""
        return self.signal(s_next) * denoised + s_next * self.noise_of(x, s, denoised)


@dataclass
class Pull:
    """What a guidance says: latent, the gradient with respect to z; picture, with respect to the picture (or None); seen, the clean estimate, for previews."""

    latent: torch.Tensor
    seen: torch.Tensor
    picture: Any = None


@frozen(eq=False)
class ScoreGuidance(Method):
    """Base of the guidances: `pull(moment)`."""

    family = "distillation"

    model: Any = socket("MODEL", "The model whose taste is distilled. What is on it acts: guidance nodes of this pack and others, LoRAs.")
    positive: Any = socket("CONDITIONING", "What the result is to show. ControlNets on it act.")
    negative: Any = socket("CONDITIONING", "The negative prompt.")
    cfg: float = param(7.5, "Guidance scale.", 0.0, 200.0, 0.5)
    course: str = param("random", "How the noise level goes from t_max to t_min over the iterations; random: any level between them, each time.", choices=COURSES)
    t_max: float = param(0.98, "Highest noise level, as a share of the model's timesteps (1 is pure noise).", 0.0, 1.0, 0.01)
    t_min: float = param(0.02, "Lowest noise level (0 is the clean picture).", 0.0, 1.0, 0.01)
    weighting: str = param(SDS, "Weight W of a noise level, with the signal a = 1 and the noise s (flow models: a = 1 - s). With Adam only the ratio between levels counts.", choices=WEIGHTS, advanced=True)
    draws: int = param(1, "Noises that are averaged at each iteration.", 1, 64, 1, advanced=True)
    sigmas: Any = socket("SIGMAS", "Noise levels to go through in this order, spread over the iterations, in place of the course.", optional=True)
    vae: Any = socket("VAE", "The model's VAE, where pictures are optimised or compared.", optional=True)

    def validate(self):
        super().validate()
        if self.t_max < self.t_min:
            raise BadInput(self.title, "t_min", self.t_min, f"It must not be above t_max ({self.t_max:g}).")
        if self.sigmas is not None and not any(float(s) > 0 for s in self.sigmas):
            raise BadInput(self.title, "sigmas", [float(s) for s in self.sigmas], "Connect a schedule with a level above 0.")
        return self

    def parts(self):
        """[(guidance, weight, number of its noise)]: itself."""
        return [(self, 1.0, 0)]

    def time(self, moment):
        """t in [0, 1] of this iteration: 0 clean, 1 noise."""
        way = moment.index / max(1, moment.total - 1)
        way = {"random": moment.uniform, "linear": lambda: way, "square root": lambda: math.sqrt(way), "cosine": lambda: (1 - math.cos(math.pi * way)) / 2}[self.course]()
        return self.t_max - (self.t_max - self.t_min) * way

    def level(self, moment):
        """The noise level s of this iteration."""
        if self.sigmas is not None:
            listed = [float(s) for s in self.sigmas if float(s) > 0]
            return listed[min(len(listed) - 1, moment.index * len(listed) // max(1, moment.total))]
        return moment.prior.sigma(self.time(moment))

    def pull(self, moment):
        """The mean Pull over the draws."""
        found = [self.once(moment, turn) for turn in range(self.draws)]
        if len(found) == 1:
            return found[0]
        mean = lambda parts: None if parts[0] is None else torch.stack(parts).mean(0)
        return Pull(mean([f.latent for f in found]), found[-1].seen, mean([f.picture for f in found]))

    def once(self, moment, turn):
        """One draw; noise of its own is that of turn, turn + draws, turn + 2 draws ..."""
        raise NotImplementedError

    def factor(self, moment, s):
        """W a / s: the weight of an error of the clean estimate; no division by a small signal."""
        return 1.0 if self.weighting == ISM else weight(s, moment.prior.flow, self.weighting) * moment.signal(s) / s

    def error(self, moment, s, target):
        """W (a / s) (z - target): the weighted residual n^ - n of a clean estimate `target`."""
        return self.factor(moment, s) * (moment.z - target)
