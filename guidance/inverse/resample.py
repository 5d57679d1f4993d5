"""ReSample: the clean latent is fitted to the measurement every few steps, and the state drawn anew around it."""
from __future__ import annotations

import math
from typing import Any

import torch

from ..frozen import frozen
from ..method import param, socket
from . import levels
from .dps import MEASURED
from .problem import distance, per_sample
from .solver import Solver, at, euler, slope


@frozen(eq=False)
class ReSample(Solver):
    """Every few steps a clean latent is fitted to the measurement exactly, and the state is drawn anew between the fit and where the model is.

    Paper: Song, Kwon, Zhang, Hu, Qu, Shen, "Solving Inverse Problems with Latent Diffusion Models via Hard Data Consistency", arXiv 2307.08123.

        every step: x' = step(x) - scale abar c(s) c(s') grad_x |y - A D(x)|                    abar = a^2 / c^2, c = sqrt(a^2 + s^2)
        every `every`-th step of the second and third part of the schedule: z0 = the model's picture after `ahead` steps down to noise level 0,
            z* = Enc(argmin_u |y - A u|^2 from Dec(z0))  in the second part,   argmin_z |y - A Dec(z)|^2 from z0  in the third
            v' = (g b z* + (1 - b^2) v) / (g + 1 - b^2) + sqrt(g (1 - b^2) / (g + 1 - b^2)) n,   v = x' / c', b = a' / c',   g = strength (1 - b^2) / (1 - abar) (1 - abar / b^2)
        at the end: a last fit of the latent

    D: clean estimate; y, A: measurement and operator, of pictures in [-1, 1] or of latents; x, s: state and noise level, primes: the next level; a = 1 in
    k-units, 1 - s on flow models; n fresh noise. Fits are by Adam and stop where the mean squared error is below the measurement's noise^2 (at least 1e-6), per
    picture. Without a decoder both fits are of the latent.

    Defaults: the authors' strength 40, scale 0.5, 5 steps ahead, learning rates 0.01 and 0.005 with at most 2000 and 500 rounds, every tenth of 500 steps; here
    scale 2, 100 rounds and every second step, for a few tens of steps. scale 0: no backward pass through the network. Cost: `ahead` further evaluations where
    it fits, and the decoder's backward each round.
    """

    node_id = "LodestarReSample"
    title = "ReSample"
    paper = "Song et al., Solving Inverse Problems with Latent Diffusion Models via Hard Data Consistency (ReSample), arXiv 2307.08123"
    aliases = ("hard data consistency", "inverse problem")
    evaluations = "ahead / every (and a backward pass through the active branches, unless scale is 0)"

    measurement: Any = socket("LODESTAR_MEASUREMENT", MEASURED)
    strength: float = param(40.0, "How closely the state follows the fit; 0 leaves it where the model is.", 0.0, 10000.0, 1.0)
    scale: float = param(2.0, "Step along the measurement's gradient at every step; 0 leaves it out.", 0.0, 100.0, 0.05)
    every: int = param(2, "Fits at every so many steps.", 1, 100, 1)
    rounds: int = param(100, "At most so many rounds of Adam per fit.", 1, 5000, 1)
    ahead: int = param(5, "Steps down to a clean picture before each fit.", 1, 50, 1, advanced=True)
    rate: float = param(0.01, "Learning rate of the fit of pictures; of latents half of it.", 0.0001, 1.0, 0.001, advanced=True)

    def run(self, evaluate, x, sigmas, problem, flow=False, draw=None, callback=None, context=None):
        draw = draw or levels.noise_source(x, 0)
        problem = self.prepared(problem, x)
        total = len(sigmas) - 1
        for i in range(total):
            point = at(evaluate, x, sigmas, i, problem, flow, draw, context)
            moved = self.advance(point)
            if callback is not None:
                callback(i, x, sigmas[i], point.seen)
            if 3 * i >= total and i % self.every == 0 and point.s_next > 0 and self.strength > 0:
                clean = euler(evaluate, moved, way(sigmas, i + 1, self.ahead))
                fitted = self.fit_picture(clean, problem) if 3 * i < 2 * total else self.fit_latent(clean, problem)
                moved = drawn_between(moved, fitted, point, self.strength, draw())
            x = moved
        return self.fit_latent(x, problem) if float(sigmas[-1]) == 0 and self.strength > 0 else x

    def advance(self, point):
        """The step of the model, with the small step along the gradient."""
        if self.scale == 0:
            denoised = point.predict()
            return point.go(denoised, point.noise_of(denoised))
        denoised, g = point.descend(lambda d: distance(point.problem, d))
        size = self.scale * (1 - point.rho2) * levels.paper_shift(point.s, point.s_next, point.flow)
        return point.go(denoised, point.noise_of(denoised), 0.0, size * g)

    def fit_picture(self, z, problem):
        if problem.decode is None:
            return self.fit_latent(z, problem)
        with torch.no_grad():
            u = problem.picture(z)
            before = problem.encode(u).to(z)
            u = self.fit(u, lambda u: problem.residual(u), problem, self.rate / problem.unit, z.shape[0])
            return z + problem.encode(u).to(z) - before

    def fit_latent(self, z, problem):
        return self.fit(z, lambda z: problem.residual(problem.picture(z)), problem, self.rate / 2, z.shape[0])

    def fit(self, start, residual, problem, rate, batch):
        """argmin of the mean squared residual from `start` by Adam; a picture that is below the noise stands still."""
        at = start.clone()
        first, second = torch.zeros_like(at), torch.zeros_like(at)
        count, enough = problem.count(batch), max(1e-6, problem.deviation**2)
        last = {}

        def error(at):
            last["e"] = per_sample(residual(at), batch).square().sum(1) / count
            return last["e"]

        for step in range(1, self.rounds + 1):
            found = slope(error, at, problem)
            going = (last["e"].detach() > enough).view(-1, 1)
            if not bool(going.any()):
                break
            first, second = 0.9 * first + 0.1 * found, 0.999 * second + 0.001 * found.square()
            move = rate * first / (1 - 0.9**step) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
            at = at - (per_sample(move, batch) * going).view_as(at)
        return at


def way(sigmas, first, steps):
    """At most so many steps from level `first` of the schedule to 0."""
    rest = sigmas[first:-1] if float(sigmas[-1]) == 0 else sigmas[first:]
    picks = torch.linspace(0, len(rest) - 1, min(steps, len(rest))).round().long()
    return torch.cat([rest[picks.to(rest.device)], rest.new_zeros(1)])


def drawn_between(x, clean, point, strength, noise):
    """A draw from the product of two Gaussians at the next level: around the state x, and around the clean latent as strongly as `strength` says."""
    c = levels.amplitude(point.s_next, point.flow)
    b, left, abar = point.a_next / c, 1 - (point.a_next / c) ** 2, 1 - point.rho2
    if abar >= b * b or b == 0:
        return x
    g = strength * left / (1 - abar) * (1 - abar / (b * b))
    mean = (g * b * clean + left * x / c) / (g + left)
    return c * (mean + math.sqrt(g * left / (g + left)) * noise)
