"""DAPS: clean pictures are drawn from the posterior around the model's picture, and noised to the next level, which need not be near the last state."""
from __future__ import annotations

import math
from typing import Any

import torch

from ..frozen import frozen
from ..method import param, socket
from . import levels
from .dps import MEASURED
from .problem import per_sample
from .resample import way
from .solver import Solver, at, euler, slope

WIDTHS = ("noise", "unit prior")


@frozen(eq=False)
class DecoupledPosteriorSampling(Solver):
    """At every level the model's picture is found by a few steps, a clean picture is drawn from the posterior around it, and noised to the next level. No backward pass through the network.

    Paper: Zhang, Chu, Berner, Meng, Anandkumar, Song, "Improving Diffusion Inverse Problem Solving with Decoupled Noise Annealing", arXiv 2407.01521.

        m = the model's picture after `ahead` Euler steps from x down to level 0
        u ~ exp( -|u - m|^2 / (2 r^2) - |y - A u|^2 / (2 noise^2) ),   r = s / a (noise) or s / sqrt(a^2 + s^2) (unit prior)
        x' = a' u + s' z

    y, A: measurement and operator, of pictures in [-1, 1] or of latents; x, s: state and noise level, primes: the next level; a = 1 in k-units, 1 - s on flow models; z fresh
    noise. Linear operators on latents draw u exactly, in the directions of A's singular vectors. Others by `rounds` steps of Langevin's dynamics from m,
    u <- u + l grad log p + sqrt(2 l) z, l = rate / (1 / r^2 + L / noise^2), L the largest curvature of the misfit (of a few power steps at the start).

    spread: the noise of the draw times it. 1 is the formula, and exact where r is the estimate's own deviation (unit prior, for standard Gaussians). In pictures that deviation is far below r where
    nothing is measured, and a full draw would leave noise there that no later step takes out; the released code's short runs of Langevin's dynamics move by about 0.1 in all, too.
    The released code takes the misfit without its half, and a learning rate per task in place of L. A measurement without noise is taken with a noise of 0.01 (`least`).
    Defaults: 5 steps ahead (the authors'; 2 for latents), width noise; 100 rounds are the authors', here 20. Cost: `ahead` evaluations a step in place of one; for
    pictures `rounds` backward passes of the decoder.
    """

    node_id = "LodestarDecoupledPosteriorSampling"
    title = "Decoupled Posterior Sampling"
    paper = "Zhang et al., Improving Diffusion Inverse Problem Solving with Decoupled Noise Annealing (DAPS), arXiv 2407.01521"
    aliases = ("DAPS", "Langevin", "inverse problem")
    evaluations = "ahead - 1"
    backward = False

    measurement: Any = socket("LODESTAR_MEASUREMENT", MEASURED)
    ahead: int = param(5, "Steps down to a clean picture at each level.", 1, 50, 1)
    rounds: int = param(20, "Steps of Langevin's dynamics, where u cannot be drawn exactly.", 1, 1000, 1)
    spread: float = param(0.1, "How much of the draw's own noise is taken; 1: all of it.", 0.0, 1.0, 0.05)
    rate: float = param(0.5, "Their length, as a share of the largest that is stable.", 0.001, 1.0, 0.01)
    width: str = param("noise", "How far clean pictures lie around the model's: noise, as the paper; unit prior: as in data of variance one.", choices=WIDTHS, advanced=True)
    least: float = param(0.01, "Least noise of the measurement.", 0.0001, 1.0, 0.001, advanced=True)

    def run(self, evaluate, x, sigmas, problem, flow=False, draw=None, callback=None, context=None):
        draw = draw or levels.noise_source(x, 0)
        problem = self.prepared(problem, x)
        stiff = None
        for i in range(len(sigmas) - 1):
            point = at(evaluate, x, sigmas, i, problem, flow, draw, context)
            clean = euler(evaluate, x, way(sigmas, i, self.ahead))
            if callback is not None:
                callback(i, x, sigmas[i], clean)
            r = math.sqrt(point.rho2) if self.width == "unit prior" else point.s / max(point.a, levels.LEAST_SIGNAL)
            if problem.decode is None and problem.operator.linear:
                u = self.exact(clean, r, problem, draw)
            else:
                stiff = curvature(problem, clean, draw) if stiff is None else stiff
                u = self.walked(clean, r, problem, stiff, draw)
            x = point.a_next * u + (point.s_next * draw() if point.s_next else 0.0)
        return x

    def noise(self, problem):
        return max(problem.deviation, self.least)

    def exact(self, clean, r, problem, draw):
        """A draw of u: the mean, and noise of each singular direction's own size."""
        v, prior = self.noise(problem) ** 2, r * r
        mean = clean + prior * problem.operator.solve(problem.residual(clean), prior, v, clean)
        if self.spread == 0:
            return mean
        return mean + self.spread * problem.operator.shaped(draw(), lambda s: (prior * v / (prior * s * s + v)).sqrt())

    def walked(self, clean, r, problem, stiff, draw):
        v = self.noise(problem) ** 2
        step = (self.rate / (1 / (r * r) + stiff / v)).view(-1, *[1] * (clean.ndim - 1)).to(clean)
        u = clean
        for _ in range(self.rounds):
            g = slope(lambda t: half(problem, t), u, problem)
            u = u - step * (g.to(u) / v + (u - clean) / (r * r)) + self.spread * (2 * step).sqrt() * draw()
        return u


def half(problem, u):
    """|y - A u|^2 / 2, per sample."""
    return 0.5 * per_sample(problem.residual(problem.picture(u)), u.shape[0]).square().sum(1)


def curvature(problem, u, draw, rounds=5, step=1e-2):
    """The largest curvature of the misfit at u [batch], by power steps on differences of its gradient; half more for what they miss."""
    start, found = slope(lambda t: half(problem, t), u, problem), u.new_ones(u.shape[0])
    v = draw().to(u)
    for _ in range(rounds):
        v = v / per_sample(v, u.shape[0]).norm(dim=1).clamp(min=1e-12).view(-1, *[1] * (u.ndim - 1))
        v = (slope(lambda t: half(problem, t), u + step * v, problem) - start).to(u) / step
        found = per_sample(v, u.shape[0]).norm(dim=1)
    return 1.5 * found.clamp(min=1e-6)
