"""Ensemble Kalman guidance: a measurement without gradients, by how an ensemble's pictures and their measurements vary together."""
from __future__ import annotations

from typing import Any

import torch

from ..frozen import frozen
from ..inverse.problem import per_sample
from ..method import param, socket
from .base import ParticleSolver

KARRAS, LOWEST = 7.0, 0.002


def ladder(s, steps, flow, like):
    """Levels from s to 0 in so many steps: Karras' (rho 7, down to 0.002, then 0), evenly spread ones on flow models."""
    if flow or steps == 1:
        return torch.linspace(s, 0.0, steps + 1, dtype=torch.float64).to(like)
    low = min(LOWEST, s / 2)
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    return torch.cat([(s ** (1 / KARRAS) + ramp * (low ** (1 / KARRAS) - s ** (1 / KARRAS))) ** KARRAS, torch.zeros(1, dtype=torch.float64)]).to(like)


def move(x, residual, scale):
    """x [n, d] after one Kalman step with residuals y - A u [n, m]: x_i - scale / |C| sum_j C_ij (x_j - mean x), C_ij = r_i . (r_j - mean r) / n."""
    residual = residual.double()
    c = residual @ (residual - residual.mean(0)).T / len(x)
    size = torch.linalg.matrix_norm(c)
    if float(size) == 0:
        return x
    away = x.double() - x.double().mean(0)
    return (x.double() - scale / size * (c @ away)).to(x)


@frozen(eq=False)
class EnsembleKalmanGuidance(ParticleSolver):
    """Restores a picture from a measurement whose operator need not have a gradient: an ensemble of particles tells how the measurement changes with the picture.

    Paper: Zheng et al., "Ensemble Kalman Diffusion Guidance: A Derivative-free Method for Inverse Problems" (EnKG), arXiv 2409.20175.

        u_i = D(x_i), or `inner` Euler steps of x_i to level 0          r_i = y - A u_i
        C_ij = r_i . (r_j - mean r) / K                                 x_i <- x_i - scale / |C| sum_j C_ij (x_j - mean x)
        `updates` times, with u anew each time; then the plain Euler step of every x_i

    |C|: Frobenius norm; x: particles of one entry at one level. Particles stay in the span of their ensemble, so a small ensemble can only fit little. Nothing but A itself is used: JPEG files, renderers,
    quantisation do. On flow models the same: covariances do not mind the parametrisation.
    Defaults: 2 updates, none in the first and last twentieth of the steps (the authors'); 16 particles and inner 1, the clean estimate, where theirs are 1024 and up to 20 Euler steps
    (min(inner, 1 + remaining steps / 4)). Their scale is 2: a particle moves by about scale / sqrt(K) of the ensemble's spread, so that 0.25 is the same for 16 particles.
    `give` best: the particle with the least |r|; mean: the ensemble's mean; all: every particle, those of the first entry first.
    Cost: particles times (1 + updates times the inner steps) network evaluations a step. Limits: ensembles without fresh noise shrink; the authors call pictures a proof of concept.
    """

    node_id = "LodestarEnsembleKalmanGuidance"
    title = "Ensemble Kalman Guidance"
    paper = "Ensemble Kalman Diffusion Guidance"
    aliases = ("EnKG", "derivative-free inverse problem", "black-box operator")
    evaluations = "particles (1 + updates x inner) - 1"

    measurement: Any = socket("LODESTAR_MEASUREMENT", "What is known of the picture; its operator needs no gradient.")
    particles: int = param(16, "Particles of each picture.", 2, 4096, 1)
    scale: float = param(0.25, "Size of the updates; 0 switches them off. Smaller for fewer particles: each moves by about this over the square root of their number, in units of the ensemble's spread.", 0.0, 1000.0, 0.05)
    updates: int = param(2, "Updates at each step.", 1, 20, 1)
    inner: int = param(1, "Euler steps at most to a particle's picture; 1 takes the clean estimate.", 1, 50, 1)
    skip_first: float = param(0.05, "Share of the steps without updates at the start.", 0.0, 1.0, 0.01)
    skip_last: float = param(0.05, "Share of the steps without updates at the end.", 0.0, 1.0, 0.01)
    give: str = param("best", "What is handed on: the particle nearest to the measurement, the ensemble's mean, or all of them.", choices=("best", "mean", "all"))
    chunk: int = param(0, "Particles per network call; 0: as many as fit into the memory.", 0, 4096, 1, advanced=True)

    def neutral(self):
        return self.scale == 0

    def swim(self, swarm, problem, callback):
        x = swarm.start(self.particles)
        total = swarm.steps
        for i in range(total):
            point = swarm.point(x, i)
            if self.skip_first * total < i < total - int(self.skip_last * total):
                for _ in range(self.updates):
                    point = swarm.point(x, i)
                    pictures = self.pictures(swarm, point, min(1 + (total - i) // 4, self.inner))
                    x = self.updated(swarm, x, self.residuals(swarm, problem, pictures))
                point = swarm.point(x, i)
            denoised = point.predict()
            moved = point.go(denoised, point.noise_of(denoised))
            if i + 1 < total:
                callback(i, x[:swarm.batch], swarm.sigmas[i], denoised[:swarm.batch])
            x = moved
        values = self.residuals(swarm, problem, denoised).square().sum(2).sqrt()
        swarm.record.note(total - 1, point.s, values)
        both = self.handed(swarm, torch.stack([x, denoised], 1), values).unbind(1)
        callback(total - 1, both[0], swarm.sigmas[total - 1], both[1])
        return both[0]

    def handed(self, swarm, x, values):
        if self.give == "mean":
            return x.view(-1, swarm.batch, *x.shape[1:]).mean(0)
        return self.given(swarm, x, values, None, self.give)

    def pictures(self, swarm, point, steps):
        """The clean pictures of all particles [count * batch, ...], by so many Euler steps."""
        if steps <= 1:
            return point.predict()
        z, levels = point.x, ladder(point.s, steps, swarm.flow, swarm.sigmas)
        for k in range(steps):
            denoised = swarm.predict(z, levels[k] * z.new_ones(z.shape[0]))
            z = z + (levels[k + 1] - levels[k]) * (z - denoised) / levels[k]
        return z

    def residuals(self, swarm, problem, pictures):
        """y - A u [count, batch, values], particle by particle."""
        return torch.stack([per_sample(problem.residual(problem.picture(u)), swarm.batch) for u in pictures.split(swarm.batch)])

    def updated(self, swarm, x, residuals):
        flat = x.flatten(1).view(-1, swarm.batch, x[0].numel())
        return torch.stack([move(flat[:, b], residuals[:, b], self.scale) for b in range(swarm.batch)], 1).view_as(x)
