"""DDNM: the part of the picture that the measurement sees is replaced, the rest is the model's."""
from __future__ import annotations

import math
from typing import Any

from ..frozen import frozen
from ..method import param, socket
from .dps import MEASURED
from .solver import Solver


@frozen(eq=False)
class NullSpaceSampler(Solver):
    """At every step the clean estimate is made to agree with the measurement, changing nothing that the measurement does not see. No gradients.

    Paper: Wang, Yu, Zhang, "Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model", arXiv 2212.00490.

        D' = D - l A+ (A D - y)
        x' = a' D' + s' (eta z + sqrt(1 - eta^2) n),   n = (x - a D) / s the noise of D
        noise in the measurement (DDNM+): t = a' noise |A+|;  if s' >= t: l = 1, and the noise of the seen part is sqrt(s'^2 - t^2) in place of s';  else l = s' / t, and it is 0

    D: clean estimate; y, A, A+: measurement, operator, pseudo-inverse; x, s: state and noise level, primes: the next level; a = 1 in k-units, 1 - s on flow
    models; z: fresh noise. |A+| is 1 / sqrt(g) where A A^T = g (mask: 1, averages of n x n: n). The published simplified form scales all the noise; here only
    that of the seen part A+ A is, so that the rest stays at the level that the model expects. Where A has no such number (blur, bicubic), and for pictures, l
    A+ is A^T (s'^2 A A^T + (a' noise)^2)^-1 s'^2 in place of it: what A loses is not drowned in the measurement's noise. Without noise the result has A x0 = A
    A+ y exactly. repeats: each step that many times, noised again in between (the paper's time travel of length 1). scale: l is multiplied by it.

    Operators on pictures act through the VAE: D' = D + Enc(u - l A+ (A u - y)) - Enc(u), u = Dec(D), every `every`-th step and at the last one. Operators that
    are not linear take A+ y - A+ A u. Defaults: eta 0.85, 1 repeat, as the authors'. Cost: none beside A and A+; for pictures one decoder and two encoder
    passes.
    """

    node_id = "LodestarNullSpaceSampler"
    title = "Null-Space Sampler"
    paper = "Wang et al., Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model (DDNM), arXiv 2212.00490"
    aliases = ("DDNM", "DDNM+", "inverse problem")
    evaluations = "0 (times the repeats)"
    backward = False

    measurement: Any = socket("LODESTAR_MEASUREMENT", MEASURED)
    scale: float = param(1.0, "1: the measured part is replaced, 0: nothing happens.", 0.0, 2.0, 0.01)
    eta: float = param(0.85, "Fresh noise per step. 0: deterministic, 1: all of it is fresh.", 0.0, 1.0, 0.01)
    repeats: int = param(1, "How often each step is made, noised again in between.", 1, 20, 1, advanced=True)
    every: int = param(1, "For operators on pictures: corrects at every so many steps, since each time it decodes and encodes.", 1, 100, 1, advanced=True)

    def neutral(self):
        return self.scale == 0

    def advance(self, point):
        problem, s, eta = point.problem, point.s_next, self.eta
        denoised = point.predict()
        noisy, g = point.a_next * problem.deviation, gain(problem, denoised)
        damping, weight, kept = None, 1.0, 1.0
        if g is not None:
            weight, kept = balance(s, noisy * g)
        elif noisy and problem.operator.linear:
            damping, weight = (s * s, noisy * noisy), float(s > 0)
        x0 = denoised
        if weight and (problem.decode is None or point.index % self.every == 0 or s == 0):
            x0 = problem.corrected(denoised, self.scale * weight, damping)
        if s == 0:
            return x0
        noise = s * math.sqrt(1 - eta * eta) * point.noise_of(denoised)
        if eta:
            noise = noise + s * eta * point.draw()
        if kept < 1:
            noise = noise - (1 - kept) * problem.operator.project(noise)
        return point.a_next * x0 + noise


def balance(s, t):
    """(l, share of the seen part's noise that is kept) at the next level s, where the correction brings noise of standard deviation t."""
    if t == 0 or s >= t:
        return 1.0, math.sqrt(1 - (t / s) ** 2) if t else 1.0
    return s / t, 0.0


def gain(problem, like):
    """|A+|: how much larger the measurement's noise is in A+ y; None where it differs from one component to another, and for pictures."""
    g = problem.operator.gram(like) if problem.decode is None and problem.operator.linear else None
    return None if g is None else 1 / math.sqrt(g)
