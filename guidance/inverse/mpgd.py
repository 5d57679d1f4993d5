"""MPGD: the clean estimate moves down the gradient of the measurement, without a backward pass through the network."""
from __future__ import annotations

from typing import Any

from ..frozen import frozen
from ..method import param, socket
from . import levels
from .dps import MEASURED
from .problem import distance
from .solver import Solver


@frozen(eq=False)
class ManifoldPreservingGuidance(Solver):
    """Moves the clean estimate towards the measurement and keeps the noise that was predicted: no backward pass through the network.

    Paper: He, Murata, Lai, Takida, Uesaka, Kim, Liao, Mitsufuji, Kolter, Salakhutdinov, Ermon, "Manifold Preserving Guided Diffusion", arXiv 2311.16424.

        D' = D - scale (c / a) grad_D |y - A D|,   c = sqrt(a^2 + s^2)              |.| not squared, per picture
        x' = a' D' + down n + up z,   n = (x - a D) / s the noise of D

    D: clean estimate; y, A: measurement and operator, of pictures in [-1, 1] or of latents; x, s: state and noise level, primes: the next level; a = 1 in
    k-units, 1 - s on flow models; z: fresh noise, up^2 + down^2 = s'^2. c / a is the paper's 1 / sqrt(abar). The gradient goes through the VAE's decoder where
    the operator acts on pictures: latents of a latent diffusion model are taken for the manifold itself, as the paper's form for them does.

    Any operator with a gradient, linear or not. repeats: each step that many times, noised again in between. Defaults: scale 0.5 for a few tens of steps on
    latents, eta 0 (DDIM); the authors' scale for linear problems is 0.3 to 10 at 100 steps on pixels. It acts at every step, so its strength grows with the
    number of steps. Limits: not exact, see docs/effects/exactness.md. Cost: no backward pass through the network; for pictures one pass of the decoder and its
    backward.
    """

    node_id = "LodestarManifoldPreservingGuidance"
    title = "Manifold Preserving Guidance"
    paper = "He et al., Manifold Preserving Guided Diffusion (MPGD), arXiv 2311.16424"
    aliases = ("MPGD", "inverse problem")
    evaluations = "0 (times the repeats)"
    backward = False

    measurement: Any = socket("LODESTAR_MEASUREMENT", MEASURED)
    scale: float = param(0.5, "Step along the gradient; 0 switches it off.", 0.0, 1000.0, 0.05)
    eta: float = param(0.0, "Fresh noise per step. 0: deterministic, 1: ancestral.", 0.0, 1.0, 0.01)
    repeats: int = param(1, "How often each step is made, noised again in between.", 1, 20, 1, advanced=True)

    def neutral(self):
        return self.scale == 0

    def advance(self, point):
        denoised = point.predict()
        slope = point.slope(lambda d: distance(point.problem, d), denoised)
        reach = self.scale * levels.amplitude(point.s, point.flow) / max(point.a, levels.LEAST_SIGNAL)
        return point.go(denoised - reach * slope, point.noise_of(denoised), self.eta)
