"""GeoGuide: steps of constant length along the gradient."""
from __future__ import annotations

import math
from typing import Any

from ...frozen import frozen
from ...gradients import normalised
from ...inverse import levels
from ...method import param, socket
from .base import LossSolver


@frozen(eq=False)
class GeoGuide(LossSolver):
    """Each step is moved by a constant length along the gradient of the loss, so that guidance does not fade in the last steps.

    Paper: Poleski et al., "GeoGuide: Geometric guidance of diffusion models", arXiv 2407.12889.

        x' = DDIM_eta(x, D) + c' (sqrt(N) / T) scale g / |g|,   g = -grad_x loss(D(x))           c' = sqrt(a'^2 + s'^2)

    N: values of a picture's latent, T: steps of the run; x, s: state and level, primes: the next level; a = 1 in k-units, 1 - s on flow models. The moves of a run have the length scale
    sqrt(N) together, whatever the loss's factor. `through` network: g through the network; estimate: -grad_D loss, no backward pass.
    Defaults: scale 0.15, eta 1 (the authors', unconditional models with a classifier of noisy pictures; 0.025 for class-conditional ones). Cost: a backward pass through the active branches.
    """

    node_id = "LodestarGeoGuide"
    title = "GeoGuide"
    paper = "GeoGuide"
    aliases = ("geometric guidance", "classifier guidance")
    evaluations = "0 (backward pass through the active branches: about 2 more; estimate: 0)"

    loss: Any = socket("LODESTAR_LOSS", "What to minimise.")
    scale: float = param(0.15, "Length of all moves together, as a share of the picture's own length; 0 switches it off.", 0.0, 100.0, 0.01)
    eta: float = param(1.0, "Fresh noise per step. 0: deterministic, 1: ancestral.", 0.0, 1.0, 0.01)
    through: str = param("network", "Where the gradient comes from: through the network, or of the clean estimate alone.", choices=("network", "estimate"))

    def neutral(self):
        return self.scale == 0

    @property
    def backward(self):
        return self.through == "network"

    def led(self, point, loss):
        if self.through == "network":
            denoised, g = point.descend(loss)
        else:
            denoised = point.predict()
            g = -point.slope(loss, denoised)
        length = levels.amplitude(point.s_next, point.flow) * math.sqrt(g[0].numel()) / point.total * self.scale
        return point.go(denoised, point.noise_of(denoised), self.eta, length * normalised(g, "unit length"))
