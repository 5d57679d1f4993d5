"""Dreamguider: guidance without a backward pass, whose step sizes find themselves."""
from __future__ import annotations

from typing import Any

import torch

from ...frozen import frozen
from ...method import param, socket
from .base import LossSolver


def length(t):
    """Euclidean length per sample, shaped to broadcast."""
    return t.float().square().sum(tuple(range(1, t.ndim)), keepdim=True).sqrt()


class Distance:
    """Distance over gradients: eta_i = max_k |u_k - u_0| / sqrt(sum_k |g_k|^2), per sample; the first distance is rate (1 + |u_0|)."""

    def __init__(self, rate):
        self.rate, self.start, self.far, self.total = rate, None, None, 0.0

    def step(self, u, g):
        if self.start is None:
            self.start = u.detach().clone()
            self.far = self.rate * (1 + length(u))
        self.far = torch.maximum(self.far, length(u - self.start))
        self.total = self.total + length(g).square()
        return self.far / (self.total + 1e-8).sqrt()


@frozen(eq=False)
class Dreamguider(LossSolver):
    """Leads by the gradient of the clean estimate alone, with step sizes that find themselves: no backward pass through the network, and nothing to tune.

    Paper: Nair, Patel, "Dreamguider: Improved Training free Diffusion-based Conditional Generation", arXiv 2406.02549.

        h = grad_D loss(D);   x' = DDIM_eta(x, D) - strength eta_i w h
        w = late a' rho^2 + early (1 - rho^2) rho^2                    rho^2 = s^2 / (a^2 + s^2)
        eta_i = max_k |D_k - D_0| / sqrt(sum_k |w h_k|^2)                 distance over gradients, per picture: a factor of the loss changes nothing but the first steps

    D: clean estimate; x, s: state and level, primes: the next level; a = 1 in k-units, 1 - s on flow models. The paper has two branches, one through the clean estimate and one through
    the predicted noise, both multiples of h, and augments estimate and target alike (a loss's own matter here). No code is released: w has their two parts with their behaviour
    (late: near the end, early: in the middle), not their constants.
    Defaults: late 1, early 1, first step 0.001 (the rule's own). Cost: the gradient of the loss.
    """

    node_id = "LodestarDreamguider"
    title = "Dreamguider"
    paper = "Dreamguider"
    aliases = ("no backpropagation", "distance over gradients")
    evaluations = "0"
    backward = False

    loss: Any = socket("LODESTAR_LOSS", "What to minimise.")
    strength: float = param(1.0, "Factor of the steps; 0 switches it off.", 0.0, 100.0, 0.05)
    late: float = param(1.0, "Weight of the part through the clean estimate.", 0.0, 10.0, 0.05)
    early: float = param(1.0, "Weight of the part through the predicted noise.", 0.0, 10.0, 0.05)
    eta: float = param(1.0, "Fresh noise per step. 0: deterministic, 1: ancestral.", 0.0, 1.0, 0.01)
    first: float = param(0.001, "The first step, as a share of the estimate's own length.", 0.0, 1.0, 0.0001, advanced=True)

    def neutral(self):
        return self.strength == 0

    def problem(self, sigmas, flow, percent_to_sigma=None):
        made = super().problem(sigmas, flow, percent_to_sigma)
        made.rule = Distance(self.first)
        return made

    def led(self, point, loss):
        denoised = point.predict()
        rho2 = point.rho2
        g = (self.late * point.a_next * rho2 + self.early * (1 - rho2) * rho2) * point.slope(loss, denoised)
        move = self.strength * point.problem.rule.step(denoised, g) * g
        return point.go(denoised, point.noise_of(denoised), self.eta, -move.to(denoised.dtype))
