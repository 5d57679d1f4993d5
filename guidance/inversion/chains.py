"""A whole deterministic sampling run as a differentiable function of its first state, with the graph of one network evaluation in memory at a time."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from ..gradients import plain_context, rms
from ..samplers.cfgpp import signal
from .edict import steps_of


def pull(function, z, slope, context=None, blocks=False, more=()):
    """(function(z), J^T slope for z, and for each tensor in `more`), leaving no graph behind.

    slope: a tensor like the result, or a function of it that makes one. It is brought to unit size, sample by sample, for the way back, so that half precision neither overflows nor vanishes.
    """
    with (context or plain_context)(checkpoint=blocks):
        leaf = z.detach().clone().requires_grad_(True)
        out = function(leaf)
        given = (slope(out.detach()) if callable(slope) else slope).detach().to(out)
        size = rms(given)
        unit = torch.where(size > 0, given / size.clamp(min=1e-30), torch.zeros_like(given))
        found = torch.autograd.grad(out, (leaf, *more), unit, allow_unused=True)
    scaled = [torch.zeros_like(t) if g is None else g * size.to(g).view(-1, *[1] * (g.ndim - 1)) for t, g in zip((leaf, *more), found)]
    return out.detach(), *(g.detach() for g in scaled)


class NotRepeatable(ValueError):
    """A prediction came out otherwise the second time."""


REPEAT = ("The way back did not meet the states of the way there: a method on the MODEL remembers earlier steps or draws at random, or the precision is too low "
          "(difference {difference:.2g} of the state's size). Take such methods off the MODEL, or choose the other kind of memory.")


def _near(a, b, tolerance):
    difference = float((rms((a - b).float()) / rms(b.float()).clamp(min=1e-12)).max())
    if not difference <= tolerance:
        raise NotRepeatable(REPEAT.format(difference=difference))


@dataclass
class Plain:
    """Euler steps over falling levels; of each step the state is kept (a latent), its prediction is made again on the way back.

    predict(z, i) is the model's clean estimate at level i, context that of differentiable evaluations, blocks: whether blocks of the network are recomputed too.
    """

    predict: Any
    sigmas: Any
    flow: bool = False
    context: Any = None
    blocks: bool = False
    states: list = field(default_factory=list)

    memory = "checkpoint"

    @property
    def last(self):
        """Coefficient of the clean latent in the last state."""
        return signal(float(self.sigmas[-1]), self.flow)

    def forward(self, x, report=None, enter=None):
        """The last state; report(i, x, estimate) after each prediction; enter(i, x) changes the state that step i begins with."""
        self.states = []
        for i in range(len(self.sigmas) - 1):
            x = x if enter is None else enter(i, x)
            self.states.append(x)
            with torch.no_grad():
                denoised = self.predict(x, i)
            if report is not None:
                report(i, x, denoised)
            x = x + (x - denoised) / self.sigmas[i] * (self.sigmas[i + 1] - self.sigmas[i])      # in the operations of the host's Euler
        self.states.append(x)
        return x

    def backward(self, slope, report=None, estimates=None, leave=None, more=None):
        """The slope at the first state of a function with this one at the last. estimates(i, D) -> the slope that the estimate of step i adds, or None; leave(i, g) the adjoint of `enter`;
        more(i) -> (tensors, take): further leaves of step i, whose slopes are given to take(slopes). Frees the states."""
        g = slope
        for i in reversed(range(len(self.sigmas) - 1)):
            ratio = float(self.sigmas[i + 1]) / float(self.sigmas[i])
            x, following = self.states[i], self.states.pop()
            tensors, take = ((), None) if more is None else more(i)

            def wanted(denoised):
                if leave is None:
                    _near(x + (1 - ratio) * (denoised.to(x) - x), following, 0.02)
                own = None if estimates is None else estimates(i, denoised)
                return (1 - ratio) * g if own is None else (1 - ratio) * g + own.to(g)
            _, through, *slopes = pull(lambda z: self.predict(z, i), x, wanted, self.context, self.blocks, tensors)
            g = ratio * g + through.to(g)
            g = g if leave is None else leave(i, g)
            if take is not None:
                take(slopes)
            if report is not None:
                report(i)
        return g


@dataclass
class Coupled(Plain):
    """The pair of EDICT; nothing is kept: each step is undone on the way back."""

    mix: float = 0.93

    memory = "invertible"

    def _steps(self):
        return steps_of(self.sigmas, self.mix, self.flow)

    def _velocity(self, i, s):
        return lambda z: (z - self.predict(z, i).to(z)) / s

    def forward(self, pair, report=None, enter=None):
        with torch.no_grad():
            for i, step in enumerate(self._steps()):
                pair = step.down(pair, self._velocity(i, step.s))
                if report is not None:
                    report(i, pair[0], pair[0])
        return pair

    def backward(self, pair, slopes, report=None):
        """(pair, slopes) at the first level, from those at the last."""
        steps = self._steps()
        for i in reversed(range(len(steps))):
            velocity = self._velocity(i, steps[i].s)
            pair, slopes = steps[i].up_with_slopes(pair, slopes, lambda z, g: pull(velocity, z, g, self.context, self.blocks))
            if report is not None:
                report(i)
        return pair, slopes
