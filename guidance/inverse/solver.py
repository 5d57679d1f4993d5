"""The loop that the measurement solvers share: one guided first-order step after the other."""
from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..frozen import frozen
from ..gradients import LOSS_SCALE, gradient, plain_context
from ..method import Method, Step
from . import levels


@dataclass
class Point:
    """One step of the loop, from level s to s_next: what a solver may look at, and the moves that it may make.

    x [batch, channel, (frame,) height, width]; evaluate(x) the model's clean estimate at level s; draw() fresh noise like x; context: of differentiable evaluations.
    """

    x: torch.Tensor
    s: float
    s_next: float
    flow: bool
    evaluate: Any
    draw: Any
    problem: Any = None
    index: int = 0
    total: int = 1
    context: Any = None
    seen: Any = None      # what `evaluate` gave last

    @property
    def a(self):
        return levels.signal(self.s, self.flow)

    @property
    def a_next(self):
        return levels.signal(self.s_next, self.flow)

    @property
    def rho2(self):
        return levels.spread(self.s, self.flow)

    @property
    def score(self):
        """s^2 / a: how far the clean estimate moves per unit of the score."""
        return self.s * self.s / max(self.a, levels.LEAST_SIGNAL)

    def predict(self):
        """The clean estimate D(x)."""
        with torch.no_grad():
            self.seen = self.evaluate(self.x)
        return self.seen

    def descend(self, loss):
        """(D, g): the clean estimate and -grad_x of the sum of loss(D) [batch], through the network."""
        step = Step(self.x, torch.full((self.x.shape[0],), self.s), self.flow)
        found = gradient(step, self.evaluate, loss, "network", self.context)
        self.seen = found.denoised
        self.finite(found.direction)
        return found.denoised, found.direction

    def slope(self, loss, denoised):
        """grad_D of the sum of loss(D) [batch]: no backward pass through the network."""
        found = slope(loss, denoised if denoised.dtype == torch.float64 else denoised.float(), self.problem)
        self.finite(found)
        return found.to(denoised)

    def finite(self, t):
        if not bool(torch.isfinite(t).all()):
            raise ValueError(f"The gradient of the measurement is not finite at sigma {self.s:.4g}; lower the scale, or use a wider dtype.")

    def noise_of(self, denoised):
        """n = (x - a D) / s."""
        return (self.x - self.a * denoised) / self.s

    def lever(self, eta):
        """How far the next state moves per unit that the clean estimate does, where the noise is recomputed from it."""
        down = levels.ancestral(self.s, self.s_next, eta, self.flow)[0]
        return self.a_next - down * self.a / self.s

    def go(self, x0, noise, eta=0.0, shift=None):
        """a' x0 + down noise + up z (+ shift), down^2 + up^2 = s'^2; `noise` None: that of x0 itself, so that x0 is the estimate of a changed score."""
        out = self.a_next * x0
        if self.s_next > 0:
            down, up = levels.ancestral(self.s, self.s_next, eta, self.flow)
            out = out + down * (self.noise_of(x0) if noise is None else noise)
            if up:
                out = out + up * self.draw()
        return out if shift is None else out + shift


@frozen(eq=False)
class Solver(Method):
    """Base of the solvers: `advance(point)` gives the state at the next level. A solver with another course of its own replaces `run`."""

    family = "inverse"
    backward: ClassVar[bool] = True      # whether it differentiates through the network
    compares: ClassVar[bool] = False     # whether it asks for the difference of the two prompts' predictions

    def advance(self, point):
        raise NotImplementedError

    def prepared(self, problem, like):
        """The problem as this solver needs it."""
        return problem

    def run(self, evaluate, x, sigmas, problem, flow=False, draw=None, callback=None, context=None):
        """The loop over falling levels. evaluate(x, sigma [batch]) is the model; callback(i, x, sigma, denoised) after each step."""
        draw = draw or levels.noise_source(x, 0)
        problem = self.prepared(problem, x)
        if self.neutral() and getattr(self, "eta", 0.0) == 0:
            return euler(evaluate, x, sigmas, callback)
        listed = [float(s) for s in sigmas]
        for i in range(len(listed) - 1):
            repeats = self.times(i, len(listed) - 1)
            for r in range(repeats):
                point = at(evaluate, x, sigmas, i, problem, flow, draw, context)
                moved = self.plain(point) if self.neutral() else self.advance(point)
                if r + 1 < repeats:
                    x = levels.renoise(moved, listed[i + 1], listed[i], flow, draw())
            if callback is not None:
                callback(i, x, sigmas[i], point.seen)
            x = moved
        return x

    def times(self, index, total):
        """How often step `index` is made, noised again in between."""
        return int(getattr(self, "repeats", 1))

    def plain(self, point):
        """The step of the model alone."""
        x0 = point.predict()
        return point.go(x0, point.noise_of(x0), self.eta)


@contextlib.contextmanager
def _light():
    with torch.inference_mode(False), torch.enable_grad():
        yield


def slope(loss, at, problem):
    """The gradient of the sum of loss(at) [batch]; decoders may update tensors in place."""
    with _light() if problem.decode is None else plain_context():
        leaf = at.detach().clone().requires_grad_(True)
        return torch.autograd.grad(loss(leaf).sum() * LOSS_SCALE, leaf)[0] / LOSS_SCALE      # decoders may be in half precision


def at(evaluate, x, sigmas, i, problem, flow, draw, context, s_next=None):
    """The Point of step i."""
    sigma = sigmas[i]
    return Point(x, float(sigma), float(sigmas[i + 1]) if s_next is None else s_next, flow, lambda x: evaluate(x, sigma * x.new_ones(x.shape[0])), draw, problem, i,
                 len(sigmas) - 1, context)


def euler(evaluate, x, sigmas, callback=None):
    """The plain Euler sampler, in the host's own operations."""
    for i in range(len(sigmas) - 1):
        with torch.no_grad():
            denoised = evaluate(x, sigmas[i] * x.new_ones(x.shape[0]))
        if callback is not None:
            callback(i, x, sigmas[i], denoised)
        x = x + (x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
    return x
