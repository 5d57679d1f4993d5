"""Blind restoration: the degradation's parameters are estimated together with the picture; with a data term that weighs frequency bands."""
from __future__ import annotations

import dataclasses
from typing import Any

import torch

from ..frozen import frozen
from ..method import BadInput, param, socket
from . import levels
from .estimated import Estimate, Found, Rule, with_estimate
from .problem import per_sample
from .solver import Solver


def bands(r):
    """The four bands [LL, LH, HL, HH] of one orthonormal Haar step of [..., height, width]; odd sizes repeat their border."""
    if r.shape[-1] % 2:
        r = torch.cat([r, r[..., -1:]], -1)
    if r.shape[-2] % 2:
        r = torch.cat([r, r[..., -1:, :]], -2)
    low, high = (r[..., 0::2] + r[..., 1::2]) / 2**0.5, (r[..., 0::2] - r[..., 1::2]) / 2**0.5
    return [(t[..., 0::2, :] + sign * t[..., 1::2, :]) / 2**0.5 for t in (low, high) for sign in (1, -1)]


@frozen(eq=False)
class BlindPosteriorSampling(Solver):
    """Restores a picture whose degradation is known in kind only: a blur's kernel, a Gaussian's width or an exposure is estimated by its own gradient at every step.

    Paper: Xiao et al., "Frequency-Aware Guidance for Blind Image Restoration via Diffusion Models", arXiv 2411.12450; joint estimation after Chung, Kim, Kim, Ye, "Parallel Diffusion Models of Operator and
    Image for Blind Inverse Problems" (BlindDPS).

        L(D, t) = |r| + frequency sum_b w_b |W_b r|,   r = y - A_t D                      W_b: bands of a Haar step, w 1 for LL, `details` for LH, HL, HH
        x' = step(x) - scale c c' grad_x L(D(x), t)                                       c = sqrt(a^2 + s^2); norms are not squared, per picture
        t <- `inner` steps of Adam (rate) on  mean |r|^2 + sparsity sum sqrt(k) / size,   D as it is

    D: clean estimate; y: measurement of a picture in [-1, 1] or of a latent; t: per picture, logits of the kernel k = softmax(t) (size x size, of sum 1), the logarithm of a Gaussian's width, or those of gain and
    gamma. Which of them, and the first guess, is the measurement's operator: Motion Blur and Kernel Blur, Gaussian Blur, Low Light. x, s: state and noise level, primes: the next level; a = 1 in
    k-units, 1 - s on flow models.

    A kernel of sum 1 has always the same absolute sum, so the prior that makes it sparse is of the square roots. BlindDPS gives the kernel a diffusion model of its own; here its prior is that it is a
    kernel. The bands change something because norms are not squared and weights differ: with equal weights and squares they are the spatial term itself. The paper's own weights could not be
    read; 1 and 0.1 are those of a published note. Rate 0: not blind, the frequency-aware term with the operator as it is.
    Defaults: found on the bundled model. Limits: a picture and its kernel are known up to a common shift, its brightness and its exposure up to a common factor, which the model alone tells; kernels much larger than what the first guess can undo are not found. Cost: one backward pass through the network; for
    pictures `inner` + 1 decoder passes.
    """

    node_id = "LodestarBlindPosteriorSampling"
    title = "Blind Posterior Sampling"
    paper = ("Frequency-Aware Guidance for Blind Image Restoration via Diffusion Models, arXiv 2411.12450", "Chung et al., Parallel Diffusion Models of Operator and Image for Blind Inverse Problems (BlindDPS), arXiv 2211.10656")
    aliases = ("blind deblurring", "kernel estimation", "wavelet loss", "BlindDPS")
    evaluations = "0 (backward pass through the active branches: about 2 more)"

    measurement: Any = socket("LODESTAR_MEASUREMENT", "What is known of the picture; its operator is the first guess.")
    scale: float = param(2.0, "Step along the gradient; 0 switches it off.", 0.0, 1000.0, 0.1)
    rate: float = param(0.2, "Learning rate of the degradation's parameters; 0: it is known.", 0.0, 10.0, 0.01)
    inner: int = param(20, "Steps of the degradation's parameters at each level.", 1, 100, 1)
    frequency: float = param(0.0, "Weight of the frequency bands beside the picture's own difference.", 0.0, 1000.0, 0.1)
    details: float = param(0.1, "Weight of the detail bands against the coarse one.", 0.0, 10.0, 0.05, advanced=True)
    sparsity: float = param(0.0, "Weight of the prior that makes the kernel sparse.", 0.0, 100.0, 0.001, advanced=True)
    size: int = param(33, "Height and width of the estimated kernel (odd), in pixels or latent cells.", 3, 255, 2)
    begin: float = param(0.6, "From this fraction of the steps on the parameters are estimated: before it the picture is too rough, and a kernel that fits it leads astray.", 0.0, 1.0, 0.01, advanced=True)
    eta: float = param(1.0, "Fresh noise per step. 0: deterministic, 1: ancestral.", 0.0, 1.0, 0.01)
    found: Any = dataclasses.field(default_factory=Found)

    def neutral(self):
        return self.scale == 0

    def prepared(self, problem, like):
        estimate = Estimate.begun(problem.operator, like.shape[0], self.size | 1, like.float() if like.dtype != torch.float64 else like)
        if estimate is None:
            raise BadInput(self.title, "operator", problem.operator.title, "What can be estimated is a blur (Motion Blur, Kernel Blur, Gaussian Blur) or an exposure (Low Light).")
        if estimate.kind == "exposure" and problem.decode is None:
            raise BadInput(self.title, "operator", problem.operator.title, "An exposure has a meaning for pictures only; measure an image with its VAE.")
        self.found.estimate = estimate
        made = problem if self.rate == 0 else with_estimate(problem, estimate)
        made.rule = Rule(self.rate)
        return made

    def loss(self, problem, denoised):
        batch = denoised.shape[0]
        r = problem.residual(problem.picture(denoised))
        total = torch.linalg.vector_norm(per_sample(r, batch), dim=1)
        if self.frequency:
            for i, band in enumerate(bands(r)):
                total = total + self.frequency * (self.details if i else 1.0) * torch.linalg.vector_norm(per_sample(band, batch), dim=1)
        return total

    def advance(self, point):
        problem = point.problem
        denoised, g = point.descend(lambda d: self.loss(problem, d))
        if self.rate and point.index >= self.begin * point.total:
            self.learn(problem, denoised)
        return point.go(denoised, point.noise_of(denoised), self.eta, self.scale * levels.paper_shift(point.s, point.s_next, point.flow) * g)

    def learn(self, problem, denoised):
        """Moves the parameters towards what makes the picture's measurement agree."""
        estimate = self.found.estimate
        with torch.no_grad():
            u = problem.picture(denoised).to(estimate.theta.dtype)
            y = problem.measured(u.shape[0]).to(u)
        with torch.inference_mode(False), torch.enable_grad():
            u, y, batch = u.clone(), y.clone(), estimate.theta.shape[0]
            for _ in range(self.inner):
                theta = estimate.theta.detach().clone().requires_grad_(True)
                value = per_sample(problem.unit * (y - estimate.measure(u, theta)), batch).square().mean(1)
                if self.sparsity:
                    value = value + self.sparsity * estimate.sparsity(theta)
                g, = torch.autograd.grad(value.sum(), theta)
                estimate.theta = problem.rule.move(theta.detach(), g)
