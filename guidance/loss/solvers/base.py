"""What the loss-guided samplers share: a loss in place of a measurement, and sizes of steps."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ...frozen import frozen
from ...inverse import levels
from ...inverse.solver import Solver
from ...method import BadInput, Step
from ..base import VALUES_ONLY, LossContext


@dataclass
class LossProblem:
    """A loss as the loop sees it. sigmas: the run's levels; percent_to_sigma converts the windows of losses (None: they always count)."""

    loss: Any
    sigmas: Any = None
    flow: bool = False
    percent_to_sigma: Any = None
    title: str = "Loss"
    inward: Any = lambda latent: latent      # brings a LATENT of the graph into the model's space
    gap: Any = None      # w (D_c - D_u) of the last evaluation, where there were both, for solvers that say `compares`
    decode = True      # losses may hold decoders: their gradients are taken where networks may update tensors in place

    def step(self, point):
        return Step(point.x, torch.full((point.x.shape[0],), point.s), self.flow, self.sigmas, point.index, percent_to_sigma=self.percent_to_sigma)

    def at(self, point):
        """loss(denoised) -> [batch] of a step."""
        step = self.step(point)
        if self.percent_to_sigma is not None and not self.loss.active(step):
            return None
        return lambda denoised: self.loss.value(denoised, LossContext(step))


def rises(sigmas, flow):
    """[steps]: alpha_t = abar(s) / abar(s') of each step, abar = a^2 / (a^2 + s^2): near 0 in the noise, near 1 at the end."""
    bars = [1 - levels.spread(float(s), flow) for s in sigmas]
    return [bars[i] / max(bars[i + 1], 1e-12) for i in range(len(bars) - 1)]


@frozen(eq=False)
class LossSolver(Solver):
    """Base of the samplers that are led by a loss."""

    family = "loss"

    def problem(self, sigmas, flow, percent_to_sigma=None):
        """The LossProblem of a run; BadInput for a loss without a gradient."""
        if not self.loss.differentiable:
            raise BadInput(self.title, "loss", self.loss.title, VALUES_ONLY)
        return LossProblem(self.loss, sigmas, flow, percent_to_sigma, self.title)

    def advance(self, point):
        loss = point.problem.at(point)
        if loss is None:
            return self.plain(point)
        return self.led(point, loss)

    def led(self, point, loss):
        """The state at the next level, led by loss(denoised) -> [batch]."""
        raise NotImplementedError
