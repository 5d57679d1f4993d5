"""CoPaint: at every level the state itself is optimised until its clean estimate agrees with what is known; with a tractable posterior mixed in at the start."""
from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from ..frozen import frozen
from ..method import BadInput, param, socket
from . import levels, tractable
from .dps import MEASURED
from .problem import latent_mask, per_sample
from .solver import Solver


@frozen(eq=False)
class TractableSteering(Solver):
    """Inpainting (and other measurements) by optimising the state at each level until its clean estimate agrees; in the first steps the estimate is mixed with a Gaussian's exact posterior.

    Paper: Liu, Niepert, Van den Broeck, "Image Inpainting via Tractable Steering of Diffusion Models", arXiv 2401.03349; the optimisation: Zhang, Ji, Zhang, Yu, Jaakkola, Chang,
    "Towards Coherent Image Inpainting Using Denoising Diffusion Implicit Models" (CoPaint).

        v = x / c,  `rounds` times:  v <- v - rate_i grad_v ( |y - A D|^2 + keep |v - v_0|^2 ),   only where that falls; else rate_i is 0.8 of it, and again
        rate_i = rate rise^i / sqrt(abar_0 / abar_i),   keep_i = keep 1.01^i                      c = sqrt(a^2 + s^2), abar = a^2 / c^2, abar_0 that of the last level
        with a posterior, in the first `share` of the schedule:  D' = (D k / v_d + m (1 - k) / v_m) / (k / v_d + (1 - k) / v_m),   k from `start` towards 1
        x' = step of D'

    D: clean estimate; y, A: measurement and operator, of pictures in [-1, 1] or of latents; m, v_m: mean and variance of the latent given what is known, under the Gaussian of the node Fit Gaussian
    Prior; v_d = s^2 / c^2 the estimate's own; x, s: state and noise level; a = 1 in k-units, 1 - s on flow models. k = start + (1 - start) (1 - exp(-2 i / steps)).

    The paper's posterior is that of a probabilistic circuit over the codes of a VQ encoder, whose weights are trained for a week; they are out of reach of a graph. The Gaussian is the tractable model
    that a graph can fit, with the same mixture of posteriors; it knows layouts and colours, not shapes. The last factor of rate is the released code's, from the noisiest level on.
    Defaults: rate 0.02, rise 1.012, keep 0.0001, 2 rounds, eta 0, start 0.8 (the released configuration, 250 steps). Cost: `rounds` + 1 evaluations a step and as many backward passes through
    the network.
    """

    node_id = "LodestarTractableSteering"
    title = "Tractable Steering"
    paper = "Image Inpainting via Tractable Steering of Diffusion Models"
    aliases = ("CoPaint", "Tiramisu", "inpainting")
    evaluations = "rounds (and as many backward passes through the active branches)"

    measurement: Any = socket("LODESTAR_MEASUREMENT", MEASURED)
    posterior: Any = socket("LODESTAR_GAUSSIAN", "A Gaussian of latents, of Fit Gaussian Prior. Without one the state is optimised alone (CoPaint).", optional=True)
    rate: float = param(0.02, "Step along the gradient; 0 switches the optimisation off.", 0.0, 10.0, 0.01)
    rounds: int = param(2, "Steps of the optimisation at each level.", 1, 50, 1)
    keep: float = param(0.0001, "Weight of staying near the state as it was.", 0.0, 1000.0, 0.0001, advanced=True)
    rise: float = param(1.012, "Factor of the rate from one step to the next.", 1.0, 2.0, 0.001, advanced=True)
    tries: int = param(3, "How often a step that makes it worse is tried again, shorter.", 1, 20, 1, advanced=True)
    start: float = param(0.8, "Share of the model in the mixture at the first step.", 0.0, 1.0, 0.01)
    share: float = param(0.2, "In so much of the schedule, from its start, the posterior is mixed in.", 0.0, 1.0, 0.01)
    eta: float = param(0.0, "Fresh noise per step. 0: deterministic, 1: ancestral.", 0.0, 1.0, 0.01)

    def neutral(self):
        return self.rate == 0 and (self.posterior is None or self.start == 1 or self.share == 0)

    def prepared(self, problem, like):
        if self.posterior is None or self.neutral():
            return problem
        if tuple(like.shape[1:]) != self.posterior.shape:
            raise BadInput(self.title, "posterior", list(self.posterior.shape), f"The latents that are sampled are {list(like.shape[1:])}; fit it to pictures of their size.")
        seen = problem if problem.decode is None else latent_mask(problem, like)
        if not seen.operator.linear or seen.operator.gram(like) is None:
            raise BadInput(self.title, "operator", seen.operator.title, "The Gaussian's posterior is computed for masks and averages; leave the posterior out, or take such an operator.")
        problem.tractable = self.posterior.conditional(seen.operator, seen.measured(like.shape[0]).to(like), seen.noise)
        return problem

    def advance(self, point):
        if self.rate:
            point.x = self.settled(point)
        denoised = point.predict()
        x0 = denoised
        if self.posterior is not None and point.index < self.share * point.total and self.start < 1:
            k = self.start + (1 - self.start) * (1 - math.exp(-2 * point.index / point.total))
            mean, variance = (t.to(denoised) for t in point.problem.tractable)
            x0 = tractable.mixed(denoised, max(point.rho2, 1e-8), mean, variance, k)
        return point.go(x0, None, self.eta)

    def settled(self, point):
        """The state after the optimisation, per sample."""
        c, begun, problem, batch = levels.amplitude(point.s, point.flow), point.x, point.problem, point.x.shape[0]
        rate = point.x.new_full((batch,), self.rate * self.rise**point.index * math.sqrt(max(1 - point.rho2, levels.LEAST_SIGNAL**2)))
        keep = self.keep * 1.01**point.index
        wide = lambda t: t.view(-1, *[1] * (begun.ndim - 1))
        fit = lambda d: per_sample(problem.residual(problem.picture(d)), batch).square().sum(1)
        total = lambda value, x: value + keep * per_sample((x - begun) / c, batch).square().sum(1)
        x = begun
        for _ in range(self.rounds):
            at = replace(point, x=x)
            denoised, g = at.descend(fit)
            with torch.no_grad():
                before = total(fit(denoised), x)
            way = c * g - 2 * keep * (x - begun) / c      # -grad_v
            done = torch.zeros(batch, dtype=torch.bool, device=x.device)
            for _ in range(self.tries):
                tried = x + c * wide(torch.where(done, torch.zeros_like(rate), rate)) * way
                with torch.no_grad():
                    better = (total(fit(replace(point, x=tried).predict()), tried) < before) & ~done
                x = torch.where(wide(better), tried, x)
                done = done | better
                if bool(done.all()):
                    break
                rate = torch.where(done, rate, 0.8 * rate)
            if not bool(done.any()):
                break
        return x
