"""What a loss is, sums of losses, and what a loss may ask for."""
from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from ..frozen import frozen
from ..method import progress

VALUES_ONLY = "This loss gives values only; use a sampler that needs no gradient: Particle Steering, SVDD Sampler, Free2Guide."
SCHEDULES = ("constant", "rising", "falling", "cosine", "noise")


@frozen
class Loss:
    """Base of all losses: `value(denoised, context) -> [batch]`. Losses add with `+` (LossSum)."""

    differentiable = True
    title = "Loss"

    def __deepcopy__(self, memo):
        return self

    def value(self, denoised, context):
        """One value per sample of the clean estimate denoised [batch, channel, ..., height, width] in the model's latent space, with grad."""
        raise NotImplementedError

    def active(self, step):
        """Whether it acts at a step; the default reads the fields start_percent and end_percent."""
        return step is None or step.inside(getattr(self, "start_percent", 0.0), getattr(self, "end_percent", 1.0))

    def __add__(self, other):
        return LossSum((*_parts(self), *_parts(other)))


@frozen
class LossSum(Loss):
    """The sum of several losses."""

    parts: tuple = ()
    title = "Loss Sum"

    @property
    def differentiable(self):
        return all(part.differentiable for part in self.parts)

    def value(self, denoised, context):
        found = [part.value(denoised, context) for part in self.parts if part.active(context.step)]
        return sum(found) if found else zero(denoised)

    def active(self, step):
        return any(part.active(step) for part in self.parts)


@frozen
class LossMax(LossSum):
    """The largest of several losses, for each sample: only the worst one is worked on."""

    title = "Loss Max"

    def value(self, denoised, context):
        found = [part.value(denoised, context) for part in self.parts if part.active(context.step)]
        return torch.stack(found).amax(0) if found else zero(denoised)


def zero(denoised):
    """A value of 0 for each sample that depends on denoised, so that its gradient is 0 and not an error."""
    return (denoised * 0).flatten(1).sum(1)


def _parts(loss):
    return loss.parts if type(loss) is LossSum else (loss,)


@dataclass
class LossContext:
    """What a loss may ask for beside the estimate: the step, and pictures, each decoded once for all losses of a step."""

    step: Any = None
    _pictures: dict = field(default_factory=dict, repr=False)

    def picture(self, decoder, denoised):
        """decoder(denoised), [pictures, 3, height, width] in about [0, 1], not clamped."""
        return self.once(getattr(decoder, "key", id(decoder)), denoised, lambda: decoder(denoised))

    def once(self, key, of, make):
        """make(), made once for all who ask about the tensor `of` by the same key."""
        key = key, id(of)
        if key not in self._pictures:
            self._pictures[key] = of, make()      # the tensor is kept, so that no other one takes its identity
        return self._pictures[key][1]

    def factor(self, schedule):
        """The factor of one of SCHEDULES at this step: 1; from 0 to 1; from 1 to 0; (1 - cos) / 2 of the way; the share of noise s^2 / (a^2 + s^2)."""
        if schedule == "constant" or self.step is None:
            return 1.0
        if schedule == "noise":
            s, a = float(self.step.s.flatten()[0]), float(self.step.a.flatten()[0])
            return s * s / (a * a + s * s)
        way = progress(self.step)
        return {"rising": way, "falling": 1.0 - way, "cosine": (1 - math.cos(math.pi * way)) / 2}[schedule]


@frozen
class Scaled(Loss):
    """factor * loss."""

    loss: Any = None
    factor: float = 1.0

    @property
    def title(self):
        return self.loss.title

    @property
    def differentiable(self):
        return self.loss.differentiable

    def active(self, step):
        return self.factor != 0 and self.loss.active(step)

    def value(self, denoised, context):
        return self.factor * self.loss.value(denoised, context)


def scaled(loss, factor):
    """factor * loss, the loss itself for a factor of 1."""
    return loss if factor == 1 else Scaled(loss, factor)
