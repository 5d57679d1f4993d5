"""DPS: diffusion posterior sampling."""
from __future__ import annotations

from typing import Any

from ..frozen import frozen
from ..method import param, socket
from . import levels
from .problem import distance, misfit
from .solver import Solver

MEASURED = "What is known of the picture."
FORMS = ("published", "likelihood")


@frozen(eq=False)
class DiffusionPosteriorSampling(Solver):
    """Each step is followed by a step down the gradient of how far the clean estimate's measurement is from the given one.

    Paper: Chung, Kim, Mccann, Klasky, Ye, "Diffusion Posterior Sampling for General Noisy Inverse Problems", arXiv 2209.14687.

        published: x' = step(x) - scale c(s) c(s') grad_x |y - A D(x)|            c = sqrt(a^2 + s^2); the norm is not squared, per picture
        likelihood: D' = D + scale (s^2 / a) g,  g = -grad_x |y - A D(x)|^2 / (2 noise^2)

    D: clean estimate; y, A: measurement and operator, of pictures in [-1, 1] or of latents; x, s: state and noise level, primes: the next level; a = 1 in
    k-units, 1 - s on flow models. The published form is the code's, whose scale is twice the paper's zeta'. It acts at every step, so with fewer steps it is
    weaker: the authors take 1000 steps, with k steps multiply by about 1000 / k as long as the picture stays clean. The likelihood form does not depend on the
    number of steps, but takes the clean estimate for certain and so trusts the measurement too much; Pseudoinverse-Guided Diffusion does not.

    Any operator with a gradient, linear or not; any loss that the estimate can be given to is reached by Universal Guidance. Defaults: eta 1 (the authors' DDPM
    step); scale 1 for a few tens of steps on latents (about 4 on flow models), the authors' is 0.3 to 1 at 1000 steps on pixels; at eta 0 so large steps stay
    in the noise and spoil it. Latents: the gradient goes through the decoder; Latent Posterior Sampling (PSLD) keeps the estimate consistent
    there. Limits: not exact, see docs/effects/exactness.md. Cost: about 3 steps each, and the decoder's backward for pictures.
    """

    node_id = "LodestarDiffusionPosteriorSampling"
    title = "Diffusion Posterior Sampling"
    paper = "Chung et al., Diffusion Posterior Sampling for General Noisy Inverse Problems (DPS), arXiv 2209.14687"
    aliases = ("DPS", "inverse problem")
    evaluations = "0 (backward pass through the active branches: about 2 more)"

    measurement: Any = socket("LODESTAR_MEASUREMENT", MEASURED)
    scale: float = param(1.0, "Step along the gradient; 0 switches it off.", 0.0, 1000.0, 0.1)
    eta: float = param(1.0, "Fresh noise per step. 0: deterministic, 1: ancestral.", 0.0, 1.0, 0.01)
    form: str = param("published", "The paper's step behind each step, or the likelihood's score (needs the noise level).", choices=FORMS, advanced=True)

    def neutral(self):
        return self.scale == 0

    def loss(self, point):
        """loss(D) [batch] of this step."""
        measure = distance if self.form == "published" else misfit
        return lambda denoised: measure(point.problem, denoised)

    def advance(self, point):
        denoised, g = point.descend(self.loss(point))
        if self.form == "published":
            shift = self.scale * levels.paper_shift(point.s, point.s_next, point.flow) * g
            return point.go(denoised, point.noise_of(denoised), self.eta, shift)
        return point.go(denoised + self.scale * point.score * g, None, self.eta)
