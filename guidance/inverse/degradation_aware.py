"""DADiff: null-space restoration whose pseudo-inverse is a restoring network, and whose operator may be a network too."""
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from ..frozen import frozen
from ..method import param, socket
from .dps import MEASURED
from .solver import Solver


@frozen(eq=False)
class DegradationAwareSampler(Solver):
    """Restores with a network in place of the operator's pseudo-inverse, such as an upscaler: what the network makes of the degraded estimate is replaced by what it makes of the measurement.

    Paper: Lu et al., "Boosting Diffusion Guidance via Learning Degradation-Aware Models for Blind Super Resolution" (DADiff), arXiv 2501.08819.

        y' = A(R(y))  (perturb), else y
        D' = D + scale (R(y') - R(A(D)));    x' = a' D' + s' (eta z + sqrt(1 - eta^2) n),   n = (x - a D) / s the noise of D

    D: clean estimate, as a picture in [0, 1] through the VAE; y, A: measurement and operator; R: the restorer, a network from degraded to restored pictures, whose result is brought to the size of
    D; x, s: state and noise level, primes: the next level; a = 1 in k-units, 1 - s on flow models. Perturbing takes away what operator and restorer cannot represent together. With an R that is the
    exact pseudo-inverse and scale 1 it is the Null-Space Sampler without noise in the measurement.

    The paper learns A and R together, for a degradation that is not known; the weights are not of a size for a graph. Here A is any operator (Super-Resolution, bicubic, is the usual guess), and R any upscale
    model that the host loads, or without one the pack's small upscaler, twice as large each time it is applied. The released code compares pictures in [0, 1] but moves ones in [-1, 1], so its
    scale 0.3 is 0.15 here. Measurements of pictures, not of latents. Defaults: scale 0.15, eta 1, perturb, 100 steps, as the authors'. Cost: per step two passes of R and of the encoder, one of the decoder.
    """

    node_id = "LodestarDegradationAwareSampler"
    title = "Degradation-Aware Sampler"
    paper = "Boosting Diffusion Guidance: Degradation-Aware Models (DADiff), arXiv 2501.08819"
    aliases = ("DADiff", "blind super-resolution", "upscale model")
    evaluations = "0"
    backward = False

    measurement: Any = socket("LODESTAR_MEASUREMENT", MEASURED)
    restorer: Any = socket("UPSCALE_MODEL", "The network that restores: an upscaler, or one that sharpens. Without one the pack's small upscaler.", optional=True)
    scale: float = param(0.15, "How much of the difference is taken; 0 switches it off.", 0.0, 2.0, 0.01)
    perturb: bool = param(True, "Restores and degrades the measurement once before it is used.")
    eta: float = param(1.0, "Fresh noise per step. 0: deterministic, 1: all of it is fresh.", 0.0, 1.0, 0.01)

    def neutral(self):
        return self.scale == 0

    def restored(self, y, like):
        """R(y), of the size of `like`."""
        with torch.no_grad():
            out = self.restorer(y.float(), like.shape[-2:])
            return (out if out.shape[-2:] == like.shape[-2:] else F.interpolate(out, like.shape[-2:], mode="bicubic", antialias=True)).to(like)

    def advance(self, point):
        problem, operator = point.problem, point.problem.operator
        denoised = point.predict()
        with torch.no_grad():
            u = problem.picture(denoised)
            if getattr(problem, "wanted", None) is None or problem.wanted.shape != u.shape:
                y = problem.measured(u.shape[0]).to(u)
                problem.wanted = self.restored(operator.measure(self.restored(y, u)) if self.perturb else y, u)
            fix = self.scale * (problem.wanted - self.restored(operator.measure(u), u))
            x0 = denoised + (fix.to(denoised) if problem.decode is None else (problem.encode(u + fix) - problem.encode(u)).to(denoised))
        if point.s_next == 0:
            return x0
        noise = (1 - self.eta**2) ** 0.5 * point.noise_of(denoised)
        return point.a_next * x0 + point.s_next * (noise + self.eta * point.draw() if self.eta else noise)
