"""Universal Guidance with all its parts, as a sampler: forward, backward, self-recurrence."""
from __future__ import annotations

from typing import Any

import torch

from ...frozen import frozen
from ...gradients import NORMALISERS, normalised
from ...inverse.solver import slope
from ...method import param, socket
from .base import LossSolver


def optimised(loss, start, steps, rate, problem, rule="adam", limit=0.0):
    """start + delta, delta from `steps` of Adam (or plain descent) on loss(start + delta) [batch]; samples whose loss is below `limit` stay where they are."""
    delta, m, v = torch.zeros_like(start), torch.zeros_like(start), torch.zeros_like(start)
    for i in range(1, steps + 1):
        g = slope(loss, start + delta, problem).to(delta)
        if limit:
            with torch.no_grad():
                done = loss(start + delta) < limit
            g = torch.where(done.view(-1, *[1] * (g.ndim - 1)), torch.zeros_like(g), g)
        if rule == "adam":
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g.square()
            g = (m / (1 - 0.9 ** i)) / ((v / (1 - 0.999 ** i)).sqrt() + 1e-8)
        delta = delta - rate * g
    return start + delta


@frozen(eq=False)
class UniversalGuidanceSampler(LossSolver):
    """Universal Guidance with its backward part and self-recurrence, for losses that one gradient a step does not reach.

    Paper: Bansal et al., "Universal Guidance for Diffusion Models", arXiv 2302.07121.

        forward:  D1 = D + scale (s^2 / a) g,   g = -grad_x loss(D(x))                  through the network; the paper's eps' = eps + s sqrt(1 - abar) grad
        backward: D2 = D1 + delta,  delta = argmin loss(D1 + delta) by `backward_steps` of Adam      of the clean estimate alone
        x' = a' D2 + s' n,  n = (x - a D2) / s,   eta of it fresh;      noised again to s and repeated, `repeats` times in all

    x, s: state and level, primes: the next level; a = 1 in k-units, 1 - s on flow models. `normalise` as in the node Universal Guidance, which is the forward part for any sampler.
    Defaults: the authors' backward rate 0.01; their scales depend on the loss (faces 20000, segmentation 400, style 6), so here it is unit rms with 1. They repeat 2 to 10 times at 250 to 500
    steps. Cost: times the repeats; forward: backward pass through the active branches; backward: its steps through the loss alone.
    """

    node_id = "LodestarUniversalGuidanceSampler"
    title = "Universal Guidance Sampler"
    paper = "Universal Guidance"
    aliases = ("UGD", "self-recurrence", "backward guidance")
    evaluations = "0 (backward pass through the active branches: about 2 more; times the repeats)"

    loss: Any = socket("LODESTAR_LOSS", "What to minimise.")
    scale: float = param(1.0, "Strength of the forward part; 0 switches it off.", 0.0, 1e6, 0.01)
    backward_steps: int = param(0, "Steps of the backward part; 0 switches it off.", 0, 500, 1)
    backward_rate: float = param(0.01, "Step size of the backward part.", 0.0, 10.0, 0.001)
    repeats: int = param(1, "How often each step is made, noised again in between.", 1, 30, 1)
    eta: float = param(0.0, "Fresh noise per step. 0: deterministic, 1: ancestral.", 0.0, 1.0, 0.01)
    normalise: str = param("unit rms", "unit rms makes the scale independent of the loss; none uses the gradient as it is.", choices=NORMALISERS[:2], advanced=True)
    enough: float = param(0.0, "Backward part: pictures whose loss is below this stay as they are.", 0.0, 1e6, 0.00001, advanced=True)

    def neutral(self):
        return self.scale == 0 and self.backward_steps == 0

    @property
    def backward(self):
        return self.scale != 0

    def led(self, point, loss):
        if self.scale:
            denoised, g = point.descend(loss)
            move = point.score * g if self.normalise == "none" else point.rho2 * normalised(g, self.normalise)
            x0 = denoised + self.scale * move
        else:
            x0 = point.predict()
        if self.backward_steps:
            x0 = optimised(loss, x0, self.backward_steps, self.backward_rate, point.problem, limit=self.enough)
        return point.go(x0, None, self.eta)
