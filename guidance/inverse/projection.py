"""The clean estimate is brought into the range of a forward model at every step."""
from __future__ import annotations

from typing import Any

import torch

from ..frozen import frozen
from ..method import param, socket
from .problem import Measurement
from .solver import Solver


@frozen(eq=False)
class EstimateProjection(Solver):
    """At every step the clean estimate is replaced by what a forward model keeps of it: pictures that the forward model can make come out.

    Paper: Tewari, Yin, Cazenavette, Rezchikov, Tenenbaum, Durand, Freeman, Sitzmann, "Diffusion with Forward Models: Solving Stochastic Inverse Problems Without Direct Supervision", arXiv 2306.11719.

        D' = D + strength (F+ F D - D),    x' = a' D' + s' n', n' the noise of D' with a share of fresh noise (eta)

    D: clean estimate, the latent or (with a VAE) the picture; F, F+: operator and pseudo-inverse; x, s: state and noise level, primes: the next level; a = 1 in k-units, 1 - s on flow models.

    The paper trains a denoiser that renders its estimate by a forward model (scenes into views), which needs that model's weights. What carries over is the projection: every estimate passes through a
    forward model on its way, whatever that is: blocks (Super-Resolution), few bands (Wavelet), no colours (Colourisation), few shades (Quantisation), a JPEG. Defaults: strength 1, eta 0. Cost: none beside F; for
    pictures one decoder and two encoder passes.
    """

    node_id = "LodestarEstimateProjection"
    title = "Estimate Projection"
    paper = "Diffusion with Forward Models"
    aliases = ("range of an operator", "projection", "forward model")
    evaluations = "0"
    backward = False

    operator: Any = socket("LODESTAR_OPERATOR", "The forward model; pictures in the range of its pseudo-inverse come out.")
    vae: Any = socket("VAE", "Decodes the estimate, so that the operator acts on pictures; without it on latents.", optional=True)
    strength: float = param(1.0, "1: projected, 0: left as it is.", 0.0, 1.0, 0.01)
    eta: float = param(0.0, "Fresh noise per step. 0: deterministic, 1: ancestral.", 0.0, 1.0, 0.01)

    def neutral(self):
        return self.strength == 0

    @property
    def measurement(self):
        """What binds operator and VAE to the model that samples; nothing is measured."""
        return Measurement(self.operator, None, 0.0, self.vae)

    def advance(self, point):
        problem = point.problem
        denoised = point.predict()
        with torch.no_grad():
            u = problem.picture(denoised)
            fix = self.strength * (problem.operator.project(u) - u)
            x0 = denoised + (fix.to(denoised) if problem.decode is None else (problem.encode(u + fix) - problem.encode(u)).to(denoised))
        return point.go(x0, None, self.eta)

