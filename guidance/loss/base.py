"""What a loss is, and sums of losses."""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Loss:
    """Base of all losses: `value(denoised, context) -> [batch]`. Losses add with `+` (LossSum)."""

    differentiable = True
    title = "Loss"

    def __deepcopy__(self, memo):
        return self

    def value(self, denoised, context):
        """One value per sample of the clean estimate denoised [batch, channel, ..., height, width] in the model's latent space, with grad."""
        raise NotImplementedError

    def __add__(self, other):
        return LossSum((*_parts(self), *_parts(other)))


@dataclass(frozen=True)
class LossSum(Loss):
    """The sum of several losses."""

    parts: tuple = ()
    title = "Loss Sum"

    def value(self, denoised, context):
        return sum(part.value(denoised, context) for part in self.parts)


def _parts(loss):
    return loss.parts if isinstance(loss, LossSum) else (loss,)


@dataclass
class LossContext:
    """What a loss may ask for beside the estimate: the step, and `decode(latent) -> picture [batch, 3, h, w] in [0, 1]` (not clamped)."""

    step: object
    decode: object = None
