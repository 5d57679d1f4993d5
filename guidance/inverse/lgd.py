"""LGD-MC: the likelihood averaged over clean pictures around the estimate."""
from __future__ import annotations

import math

import torch

from ..frozen import frozen
from ..method import param
from .dps import DiffusionPosteriorSampling
from .problem import distance, misfit


@frozen(eq=False)
class LossGuidedDiffusion(DiffusionPosteriorSampling):
    """Diffusion Posterior Sampling with the loss averaged over random clean pictures around the estimate, since the estimate is not certain.

    Paper: Song, Zhang, Yin, Mardani, Liu, Kautz, Chen, Vahdat, "Loss-Guided Diffusion Models for Plug-and-Play Controllable Generation", ICML 2023.

        L(D) = -log mean_i exp(-l(D + spread rho z_i)),  rho^2 = s^2 / (a^2 + s^2)

    l is |y - A u| (form "published"), with the step of Diffusion Posterior Sampling behind it, or |y - A u|^2 / (2 noise^2) (form "likelihood"), entering as a
    score. z_i: `samples` fresh draws; x, s, a: state, noise level, signal coefficient (1 in k-units, 1 - s on flow models). With samples 1 and spread 0 it is
    Diffusion Posterior Sampling; with a quadratic l and many samples the likelihood is that of a measurement with noise^2 + rho^2 A A^T, as
    Pseudoinverse-Guided Diffusion has it in closed form.

    Defaults: 10 samples and spread 1 as in the paper's Monte-Carlo form; eta 1. Cost: one backward pass through the network, `samples` losses (and decoder
    passes, for pictures).
    """

    node_id = "LodestarLossGuidedDiffusion"
    title = "Loss-Guided Diffusion"
    paper = "Song et al., Loss-Guided Diffusion Models for Plug-and-Play Controllable Generation (LGD-MC), ICML 2023"
    aliases = ("LGD", "LGD-MC")

    samples: int = param(10, "How many clean pictures around the estimate.", 1, 64, 1)
    spread: float = param(1.0, "How far around it, in standard deviations of a standard Gaussian prior. 0: the estimate alone.", 0.0, 4.0, 0.05)

    def loss(self, point):
        measure = distance if self.form == "published" else misfit
        radius = self.spread * math.sqrt(point.rho2)
        around = [radius * point.draw().float() for _ in range(self.samples)] if radius else [0.0]

        def value(denoised):
            each = torch.stack([measure(point.problem, denoised + offset) for offset in around])
            return math.log(len(around)) - torch.logsumexp(-each, 0)
        return value
