"""Steered Diffusion: the clean estimate is led by a measurement, a loss, or both, and the noise is recomputed from it."""
from __future__ import annotations

import math
from typing import Any

from ..frozen import frozen
from ..method import BadInput, param, socket
from . import levels
from .solver import Solver


@frozen(eq=False)
class SteeredDiffusion(Solver):
    """At every step the clean estimate is made to agree with a measurement, or moved down the gradient of a loss, and the noise is recomputed from it.

    Paper: Nair, Cherian, Lohit, Wang, Koike-Akino, Patel, Marks, "Steered Diffusion: A Generalized Framework for Plug-and-Play Conditional Image Synthesis", arXiv 2310.00224.

        with a loss:         D' = D + strength k c g,   g = -grad_x loss(D(x)),  k = sqrt(1 - abar) = s / c,  c = sqrt(a^2 + s^2)
        with a measurement:  D' = D' - scale A+ (A D' - y)
        x' = a' D' + s' n',  n' the noise of D' with a share of fresh noise (eta);  `repeats` times, noised again in between

    D: clean estimate; y, A, A+: measurement, operator, pseudo-inverse; x, s: state and noise level, primes: the next level; a = 1 in k-units, 1 - s on flow models. What
    the measurement sees of the result is exactly what was measured, where it has no noise; with noise A+ is A^T (A A^T + noise^2)^-1 in its place, since what
    an operator loses would drown in the noise.
    Unlike the Null-Space Sampler the noise follows the changed estimate.

    The released code noises again with beta in place of sqrt(beta) between the repeats; here the noise is that of the level. Defaults: eta 1, 100 steps and one repeat, as the
    authors'; their losses' weights are in the files of their tasks. Cost: with a loss a backward pass through the network; a measurement of pictures decodes and
    encodes at every step.
    """

    node_id = "LodestarSteeredDiffusion"
    title = "Steered Diffusion"
    paper = "Steered Diffusion"
    aliases = ("plug-and-play", "inverse problem")
    evaluations = "0 (with a loss: backward pass through the active branches, about 2 more; times the repeats)"

    measurement: Any = socket("LODESTAR_MEASUREMENT", "What is known of the picture.", optional=True)
    loss: Any = socket("LODESTAR_LOSS", "What to minimise.", optional=True)
    scale: float = param(1.0, "Of the measurement: 1, the measured part is replaced; 0: left as it is.", 0.0, 2.0, 0.01)
    strength: float = param(1.0, "Of the loss; 0 switches it off.", 0.0, 1e5, 0.1)
    repeats: int = param(1, "How often each step is made, noised again in between.", 1, 20, 1)
    eta: float = param(1.0, "Fresh noise per step. 0: deterministic, 1: ancestral.", 0.0, 1.0, 0.01)

    def validate(self):
        super().validate()
        if self.measurement is None and self.loss is None:
            raise BadInput(self.title, "measurement", None, "Connect a measurement, a loss, or both.")
        if self.loss is not None and not self.loss.differentiable:
            raise BadInput(self.title, "loss", self.loss.title, "This loss gives values only; use a sampler without gradients (particles).")
        return self

    def neutral(self):
        return (self.measurement is None or self.scale == 0) and not self.backward

    @property
    def backward(self):
        return self.loss is not None and self.strength != 0

    def advance(self, point):
        problem = point.problem
        led = problem.led if self.measurement is not None else problem
        loss = led.at(point) if self.backward else None
        if loss is None:
            x0 = point.predict()
        else:
            denoised, g = point.descend(loss)
            x0 = denoised + self.strength * math.sqrt(point.rho2) * levels.amplitude(point.s, point.flow) * g
        if self.measurement is not None and self.scale:
            noisy = problem.deviation if problem.operator.linear else 0.0
            x0 = problem.corrected(x0, self.scale, (1.0, noisy**2) if noisy else None)
        return point.go(x0, None, self.eta)
