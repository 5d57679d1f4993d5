"""DDA: a picture is made anew by the model from its noised state, and led by its own coarse structure."""
from __future__ import annotations

from typing import Any

from ..frozen import frozen
from ..method import param, socket
from . import levels
from .operators.separable import SuperResolution
from .problem import Measurement, distance
from .solver import Solver

FORMS = ("gradient", "replace")


@frozen(eq=False)
class DiffusionDrivenAdaptation(Solver):
    """Draws a noised picture anew in the model's own manner, led by the low-pass part of the picture it came from: what is foreign to the model goes, the structure stays.

    Paper: Gao, Zhang, Liu, Darrell, Shelhamer, Wang, "Back to the Source: Diffusion-Driven Test-Time Adaptation", arXiv 2207.03442; replace: Choi, Kim, Jeong, Gwon, Yoon,
    "ILVR: Conditioning Method for Denoising Diffusion Probabilistic Models", arXiv 2108.02938.

        gradient:  x' = step(x) - scale c c' grad_x |low(y) - low(D(x))|           c = sqrt(a^2 + s^2); the norm is not squared, per picture
        replace:   x' = step(x) - low(step(x)) + low(a' y + s' z)

    low: means over factor x factor cells of the latent, and back to its size; y: the source; D: clean estimate; x, s: state and noise level, primes: the next level; a = 1 in k-units, 1 - s on
    flow models; z fresh noise. Start from the noised source: give its latent to the sampler and a part of the schedule (SplitSigmas, or a scheduler's denoise); the noisier the start, the less
    of the source's details is left. low(y) and low(D) are compared as means, |low| = their norm times the factor.

    Defaults: eta 1, factor 4 and scale 6 as in the paper's pictures of 256 pixels with 50 of 100 steps; a latent cell is 8 pixels, so the factor is 2 here. The paper also adapts a classifier's
    answer from both pictures; here the picture is what comes out. Cost: gradient: a backward pass through the network; replace: none.
    """

    node_id = "LodestarDiffusionDrivenAdaptation"
    title = "Diffusion-Driven Adaptation"
    paper = "Back to the Source: Diffusion-Driven Test-Time Adaptation (DDA), arXiv 2207.03442"
    aliases = ("DDA", "ILVR", "purification", "low-pass")
    evaluations = "0 (gradient: backward pass through the active branches, about 2 more)"

    source: Any = socket("LATENT", "The latent of the picture that is drawn anew.")
    factor: int = param(2, "Means over so many cells of the latent are kept; the larger, the freer.", 1, 64, 1)
    scale: float = param(6.0, "Step along the gradient; 0 switches it off.", 0.0, 1000.0, 0.5)
    form: str = param("gradient", "By a gradient through the network, or by replacing the low-pass part (ILVR).", choices=FORMS)
    eta: float = param(1.0, "Fresh noise per step. 0: deterministic, 1: ancestral.", 0.0, 1.0, 0.01)

    @property
    def measurement(self):
        z = self.source["samples"]
        low = SuperResolution(self.factor)
        return Measurement(low, low.measure(z))

    @property
    def backward(self):
        return self.form == "gradient"

    def neutral(self):
        return self.scale == 0

    def advance(self, point):
        problem = point.problem
        if self.form == "replace":
            moved = self.plain(point)
            y = problem.first(moved)
            kept = point.a_next * y + (point.s_next * problem.operator.project(point.draw()) if point.s_next else 0.0)
            return moved - problem.operator.project(moved) + kept
        # the repeated means have factor times the means' norm
        denoised, g = point.descend(lambda d: self.factor * distance(problem, d))
        return point.go(denoised, point.noise_of(denoised), self.eta, self.scale * levels.paper_shift(point.s, point.s_next, point.flow) * g)
