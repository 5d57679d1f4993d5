"""FK steering: particles that are weighed by a loss, and the good ones multiplied."""
from __future__ import annotations

from typing import Any

import torch

from ..frozen import frozen
from ..method import param, socket, window
from .base import GIVES, ParticleSolver
from .swarm import effective

POTENTIALS = ("difference", "max", "sum")
_start, _end = window("particles are weighed")


@frozen(eq=False)
class ParticleSteering(ParticleSolver):
    """Samples several particles of each picture and multiplies, on the way, those that a loss likes: it needs values only, so anything that can be measured can steer.

    Paper: Singhal et al., "A General Framework for Inference-time Scaling and Steering of Diffusion Models" (FK steering), arXiv 2501.06848.

        r_i = -loss(D_i)        D_i: clean estimate of a particle at the i-th weighing
        log w += L_i - L_{i-1}, where                     L: what its line of ancestors has been given, at first 0
            difference  L_i = strength r_i
            max         L_i = L_{i-1} + strength max_{j <= i} r_j          sum         L_i = L_{i-1} + strength sum_{j <= i} r_j
            and L = strength r at the last step, whichever it is
        if 1 / sum w_k^2 <= resample_below K:   particles are drawn anew by their weights (systematic), w = 1
        x' = DDIM_eta(x, D)

    so that the finished particles with their weights stand for p(x) exp(-strength loss(x)), p being what the sampler makes without steering; exactly so for many particles, whatever the
    estimates on the way are worth. Weights that did not lead to a resampling are kept until the next (the released code drops them); it is drawn before the step, so that copies part at once.
    The release's last weight of max and sum takes the best value on the way in place of the last one.

    particles 1 is the plain sampler, strength 0 with "best" the best of so many. Fresh noise (eta) is what tells copies apart: with eta 0 they stay equal.
    Defaults: 4 particles, weighed every 5 steps, difference, eta 1 (the authors'); strength: theirs is 10 for rewards of about 1: it holds for losses that differ by about 0.1 to 1 between particles.
    `give` best: the least loss; drawn: one by its weight, a sample of the formula above; all: every particle, those of the first picture first, in no order.
    Cost: particles times the network, and the loss (and decoding) of each at every weighing. The noise of a particle does not depend on how particles are put into calls.
    max and above all sum tilt far more on the way than at the end, and leave it to the last weights to take that back: sum had not converged with 256 particles (docs/effects/particles.md).
    Limits: a loss must tell the estimates apart early enough, while particles still differ; methods on the MODEL that remember earlier steps do so by place, not by ancestor.
    """

    node_id = "LodestarParticleSteering"
    title = "Particle Steering"
    paper = "FK Steering: A General Framework for Inference-time Scaling and Steering of Diffusion Models"
    aliases = ("FK steering", "sequential Monte Carlo", "best of n", "black-box guidance")
    evaluations = "particles - 1"

    loss: Any = socket("LODESTAR_LOSS", "What to make small; values are enough.")
    particles: int = param(4, "Particles of each picture; 1 is the plain sampler.", 1, 4096, 1)
    strength: float = param(10.0, "How strongly the loss weighs: the factor of its value in the exponent. 0: not at all.", 0.0, 1e6, 0.1)
    potential: str = param("difference", "What a particle is weighed by: its progress since the last time, the best value so far, or the sum of its values.", choices=POTENTIALS)
    every: int = param(5, "Steps from one weighing to the next.", 1, 1000, 1)
    resample_below: float = param(0.5, "Particles are drawn anew when their effective number is not above this share of them; 1: at every weighing.", 0.0, 1.0, 0.01)
    give: str = param("best", "What is handed on: the particle with the least loss, one drawn by its weight, or all of them.", choices=GIVES)
    eta: float = param(1.0, "Fresh noise per step. 0: deterministic, 1: ancestral.", 0.0, 1.0, 0.01)
    start_percent: float = _start
    end_percent: float = _end
    chunk: int = param(0, "Particles per network call; 0: as many as fit into the memory.", 0, 4096, 1, advanced=True)

    def neutral(self):
        return self.particles == 1

    def swim(self, swarm, problem, callback):
        x = swarm.start(self.particles)
        logs = torch.zeros(self.particles, swarm.batch, dtype=torch.float64)
        spent, kept, values = logs.clone(), None, None
        last = swarm.steps - 1
        for i in range(swarm.steps):
            point = swarm.point(x, i)
            denoised = point.predict()
            if self.particles > 1 and (i == last or self.due(swarm, problem, i)):
                values = swarm.values(problem, x, i, denoised)
                total, kept = self.potentials(-values, spent, kept, i == last)
                logs = logs + total - spent
                if i == last:
                    swarm.record.note(i, point.s, values, effective(logs))
                else:
                    logs, (x, denoised, spent, kept) = self.weighed(swarm, i, logs, [x, denoised, total, kept], values, self.resample_below)
                    point = swarm.point(x, i)
            moved = point.go(denoised, point.noise_of(denoised), self.eta)
            if i < last:
                callback(i, x[:swarm.batch], swarm.sigmas[i], denoised[:swarm.batch])
            x = moved
        values = torch.zeros_like(logs) if values is None else values
        swarm.final = logs
        both = self.given(swarm, torch.stack([x, denoised], 1), values, logs, self.give).unbind(1)
        callback(last, both[0], swarm.sigmas[last], both[1])
        return both[0]

    def due(self, swarm, problem, i):
        step = swarm.step(problem, swarm.x, i)
        inside = problem.percent_to_sigma is None or step.inside(self.start_percent, self.end_percent)
        return inside and (i + 1) % self.every == 0 and swarm.active(problem, i)

    def potentials(self, reward, spent, kept, last):
        """(L, what is kept of the way) of rewards [count, batch]."""
        kept = reward if kept is None else torch.maximum(kept, reward) if self.potential == "max" else kept + reward if self.potential == "sum" else reward
        if last or self.potential == "difference":
            return self.strength * reward, kept
        return spent + self.strength * kept, kept
