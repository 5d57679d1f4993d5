"""PiGDM: pseudo-inverse guided diffusion."""
from __future__ import annotations

from typing import Any

import torch

from ..frozen import frozen
from ..method import param, socket
from .dps import MEASURED
from .problem import per_sample
from .solver import Solver

FORMS = ("score", "published")


@frozen(eq=False)
class PseudoinverseGuidance(Solver):
    """Follows the likelihood of the measurement with the clean estimate's own uncertainty in it, solved exactly for linear operators.

    Paper: Song, Vahdat, Mardani, Kautz, "Pseudoinverse-Guided Diffusion Models for Inverse Problems", ICLR 2023.

        v = A^T (rho^2 A A^T + noise^2)^-1 (y - A D),  rho^2 = s^2 / (a^2 + s^2);    without noise: v = A+ (y - A D) / rho^2
        g = J^T v,  J = dD / dx, by one backward pass
        score: D' = D + scale k d,  d = (s^2 / a) g, with the noise of D'              where x0 is a standard Gaussian, D' = E[x0 | x, y] exactly
               k = min(1, <r, m> / (h |m|^2)),  r = y - A D,  m = A(D + d) - A D,  h d the way of the state in this step
        published: x' = step(x) + scale a a' rho^2 g                                   the paper's listing; with many steps it ends on the measurement

    D: clean estimate; y, A: measurement and operator, of pictures in [-1, 1] or of latents; x, s: state and noise level, primes: the next level; a = 1 in
    k-units, 1 - s on flow models. Operators without an adjoint (JPEG, quantisation, low light) take v = (A+ y - A+ A D) / rho^2, as the paper does for JPEG.

    Defaults: scale 1; eta 1 as in the paper (its authors' later code: 0). The score form is ours: the published gain does not shrink with the step, see
    docs/effects/exactness.md. k keeps a step from going beyond where the residual is least along d: it is 1 where the model's uncertainty is at most rho^2, and
    with many steps; but pictures have directions of far larger variance, in which a few large steps would overshoot and the sampling diverge. Limits: rho^2 is
    that of latents or pixels of variance one. Through a decoder A A^T stands for the operator alone. Cost: one backward pass through the network.
    """

    node_id = "LodestarPseudoinverseGuidance"
    title = "Pseudoinverse-Guided Diffusion"
    paper = "Song et al., Pseudoinverse-Guided Diffusion Models for Inverse Problems (PiGDM), ICLR 2023"
    aliases = ("PiGDM", "PGDM", "inverse problem")
    evaluations = "0 (backward pass through the active branches: about 2 more)"

    measurement: Any = socket("LODESTAR_MEASUREMENT", MEASURED)
    scale: float = param(1.0, "Strength; 1 is the likelihood itself, 0 switches it off.", 0.0, 100.0, 0.05)
    eta: float = param(1.0, "Fresh noise per step. 0: deterministic, 1: ancestral.", 0.0, 1.0, 0.01)
    form: str = param("score", "A change of the score, or the paper's step.", choices=FORMS, advanced=True)

    def neutral(self):
        return self.scale == 0

    def advance(self, point):
        problem, rho2 = point.problem, point.rho2

        def loss(denoised):
            u = problem.picture(denoised)
            with torch.no_grad():
                v = direction(problem, u.detach(), rho2)
            return -problem.unit * per_sample(v * u, denoised.shape[0]).sum(1)

        denoised, g = point.descend(loss)
        if self.form == "score":
            d = point.score * g
            return point.go(denoised + self.scale * reach(problem, denoised, d, point.lever(self.eta)) * d, None, self.eta)
        return point.go(denoised, point.noise_of(denoised), self.eta, self.scale * point.a * point.a_next * rho2 * g)


def reach(problem, denoised, d, lever):
    """k, per sample: 1, or less where the step would go beyond the place along d that has the least residual; `lever`: the state moves by lever d.

    The change along d is that of a step of at most 1 (root mean square): operators that cut pictures off, and decoders, tell nothing of longer ones.
    """
    batch = denoised.shape[0]
    with torch.no_grad():
        t = 1 / per_sample(d, batch).square().mean(1).sqrt().clamp(min=1).view(-1, *[1] * (d.ndim - 1))
        before = problem.residual(problem.picture(denoised))
        change = per_sample(before - problem.residual(problem.picture(denoised + t * d)), batch) / t.flatten(1)
        k = (per_sample(before, batch) * change).sum(1) / (lever * change.square().sum(1)).clamp(min=1e-20)
    return k.clamp(0, 1).to(d).view(-1, *[1] * (d.ndim - 1))


def direction(problem, u, rho2):
    """v, in the units of the residual."""
    if not problem.operator.linear:
        return problem.unit * problem.correction(u) / rho2
    return problem.operator.solve(problem.residual(u), rho2, problem.deviation**2, u)
