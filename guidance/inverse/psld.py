"""PSLD: posterior sampling with latent diffusion."""
from __future__ import annotations

from typing import Any

import torch

from ..frozen import frozen
from ..method import param, socket
from . import levels
from .dps import MEASURED
from .problem import distance, per_sample
from .solver import Solver


@frozen(eq=False)
class LatentPosteriorSampling(Solver):
    """Diffusion Posterior Sampling for latents, which also holds the latent where decoder and encoder agree on the measured picture.

    Paper: Rout, Raoof, Daras, Caramanis, Dimakis, Shakkottai, "Solving Linear Inverse Problems Provably via Posterior Sampling with Latent Diffusion Models",
    arXiv 2307.00619.

        x' = step(x) - c(s) c(s') grad_x ( scale |y - A u| + gluing |D - Enc(A+ y + u - A+ A u)| ),   u = Dec(D),  c = sqrt(a^2 + s^2)

    D: clean estimate; y, A: measurement and operator of pictures (the first norm in [-1, 1], the second of latents; neither squared, per picture); x, s: state
    and noise level, primes: the next level; a = 1 in k-units, 1 - s on flow models. The paper writes A^T where A+ stands; they are the same for masks, and for
    other operators only A+ A is the projection that its derivation needs. An operator on latents has no autoencoder to glue: the second term is |A+ (y - A D)|
    then.

    gluing 0: Diffusion Posterior Sampling. Defaults: the authors' ratio, gluing a tenth of scale (for a box that is missing both ten times smaller), at 1000
    steps and eta 0. The scale here is for a few tens of steps, about 1 in k-units and 4 on flow models; so large steps stay in the noise at eta 0 and spoil it,
    so eta is 1. Cost: backward through network, decoder and encoder.
    """

    node_id = "LodestarLatentPosteriorSampling"
    title = "Latent Posterior Sampling"
    paper = "Rout et al., Solving Linear Inverse Problems Provably via Posterior Sampling with Latent Diffusion Models (PSLD), arXiv 2307.00619"
    aliases = ("PSLD", "inverse problem")
    evaluations = "0 (backward pass through the active branches, the decoder and the encoder)"

    measurement: Any = socket("LODESTAR_MEASUREMENT", MEASURED)
    scale: float = param(1.0, "Step along the gradient of the measurement.", 0.0, 1000.0, 0.1)
    gluing: float = param(0.1, "Step along the gradient of what the autoencoder does not keep of the measured picture.", 0.0, 1000.0, 0.01)
    eta: float = param(1.0, "Fresh noise per step. 0: deterministic, 1: ancestral.", 0.0, 1.0, 0.01)

    def neutral(self):
        return self.scale == 0 and self.gluing == 0

    def advance(self, point):
        problem = point.problem

        def loss(denoised):
            value = self.scale * distance(problem, denoised) if self.scale else 0.0
            return value + self.gluing * glue(problem, denoised) if self.gluing else value

        denoised, g = point.descend(loss)
        return point.go(denoised, point.noise_of(denoised), self.eta, levels.paper_shift(point.s, point.s_next, point.flow) * g)


def glue(problem, denoised):
    """|D - Enc(A+ y + u - A+ A u)|, u = Dec(D), per sample."""
    u = problem.picture(denoised)
    fixed = u + problem.correction(u)
    back = fixed if problem.decode is None else problem.encode(fixed)
    return torch.linalg.vector_norm(per_sample(denoised - back.to(denoised), denoised.shape[0]), dim=1)
