"""DDRM: each singular direction of the operator has its own step."""
from __future__ import annotations

import math
from typing import Any

import torch

from ..frozen import frozen
from ..method import BadInput, param, socket
from .dps import MEASURED
from .solver import Solver


@frozen(eq=False)
class SpectralSampler(Solver):
    """Restores in the operator's singular directions, each by what the measurement says of it at the present noise level. No gradients.

    Paper: Kawar, Elad, Ermon, Song, "Denoising Diffusion Restoration Models", arXiv 2201.11793.

        for each singular value q of A, with t = noise / q and r' = s' / a', the next state is a' times
        q = 0:     D + r' (sqrt(1 - eta^2) n + eta z)
        r' < t:    D + sqrt(1 - eta^2) r' (y^ - D) / t + eta r' z
        r' >= t:   (1 - mix) D + mix y^ + sqrt(r'^2 - mix^2 t^2) z

    D: clean estimate; y^ = A+ y; n = (x - a D) / s its noise; z fresh noise; x, s: state and noise level, primes: the next level; a = 1 in k-units, 1 - s on flow models. At the
    first level what is seen is y^ with noise up to that level. Linear operators. On pictures only the means are taken in the singular directions: D' = D + Enc(u') - Enc(u), u = Dec(D), and the
    noise is that of q = 0.

    Without noise what was measured is exact at every level. Defaults: eta 0.85, mix 1, 20 to 100 steps, as the authors'. Cost: none beside the filters; for pictures one decoder and
    two encoder passes.
    """

    node_id = "LodestarSpectralSampler"
    title = "Spectral Restoration Sampler"
    paper = "Kawar et al., Denoising Diffusion Restoration Models (DDRM), arXiv 2201.11793"
    aliases = ("DDRM", "singular values", "inverse problem")
    evaluations = "0"
    backward = False

    measurement: Any = socket("LODESTAR_MEASUREMENT", MEASURED)
    eta: float = param(0.85, "Fresh noise per step, where nothing or little is seen. 0: deterministic, 1: all of it is fresh.", 0.0, 1.0, 0.01)
    mix: float = param(1.0, "How much of the measurement is taken where the state is noisier than it; 0: none.", 0.0, 1.0, 0.01)

    def prepared(self, problem, like):
        if not problem.operator.linear:
            raise BadInput(self.title, "operator", problem.operator.title, "This sampler is for linear operators; use the Null-Space Sampler or ReSample.")
        return problem

    def run(self, evaluate, x, sigmas, problem, flow=False, draw=None, callback=None, context=None):
        s = float(sigmas[0])
        a = 1 - s if flow else 1.0
        if problem.decode is None and problem.operator.linear and a > 0:
            begun, t = problem.first(x), lambda q: problem.deviation / q.clamp(min=1e-12)
            seen = lambda q: ((q > 0) & (s / a >= t(q))).to(q)
            x = a * problem.operator.shaped(begun, seen) + problem.operator.shaped(x, lambda q: torch.where(seen(q) > 0, (1 - (t(q) * a / s).square()).clamp(min=0).sqrt(), torch.ones_like(q)))
        return super().run(evaluate, x, sigmas, problem, flow, draw, callback, context)

    def shares(self, q, noise, r):
        """(share of y^, of n, of fresh noise) of singular values q at the level r."""
        t = noise / q.clamp(min=1e-12)
        blind, near = q <= 0, r < t
        zero, keep = torch.zeros_like(q), math.sqrt(1 - self.eta**2)
        measured = torch.where(blind, zero, torch.where(near, keep * r / t.clamp(min=1e-12), torch.full_like(q, self.mix)))
        fresh = torch.where(blind | near, torch.full_like(q, self.eta * r), (r * r - (self.mix * t).square()).clamp(min=0).sqrt())
        return measured, torch.where(blind, torch.full_like(q, keep * r), zero), fresh

    def advance(self, point):
        problem, operator = point.problem, point.problem.operator
        denoised = point.predict()
        r = point.s_next / max(point.a_next, 1e-12)
        which = lambda i: lambda q: self.shares(q, problem.deviation, r)[i]
        if problem.decode is not None:
            with torch.no_grad():
                u = problem.picture(denoised)
                y = operator.pseudo_inverse(problem.measured(u.shape[0]).to(u), u)
                x0 = denoised + (problem.encode(u + operator.shaped(y - u, which(0))) - problem.encode(u)).to(denoised)
            if not point.s_next:
                return x0
            return point.a_next * x0 + point.s_next * (math.sqrt(1 - self.eta**2) * point.noise_of(denoised) + self.eta * point.draw())
        x0 = denoised + operator.shaped(problem.first(denoised) - denoised, which(0))
        if not point.s_next:
            return x0
        return point.a_next * (x0 + operator.shaped(point.noise_of(denoised), which(1)) + operator.shaped(point.draw(), which(2)))
