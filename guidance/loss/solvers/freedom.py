"""FreeDoM: steps along the gradient of a loss as long as CFG's own, repeated where the picture's content is decided."""
from __future__ import annotations

import math
from typing import Any

from ...frozen import frozen
from ...gradients import normalised, rms
from ...inverse import levels
from ...method import param, socket
from .base import LossSolver

FORMS = ("guidance", "signal")
WITHOUT_GUIDANCE = 0.1      # of the noise's own size, where there is no difference of two prompts to go by


@frozen(eq=False)
class FreeDoM(LossSolver):
    """Moves each step along the gradient of a loss by a share of what CFG moves it, and repeats the steps in the stage where the content is decided.

    Paper: Yu, Wang, Zhao, Ghanem, Zhang, "FreeDoM: Training-Free Energy-Guided Conditional Diffusion Model", arXiv 2303.09833.

        x' = step_eta(x, D) + c' d,   g = -grad_x loss(D(x))                                             c' = sqrt(a'^2 + s'^2)
        guidance:  d = scale w rms(n_c - n_u) g / rms(g)           n_c, n_u: noise predicted with and without the prompt, w: the CFG scale
        signal:    d = scale (a / c) c g                           sqrt(abar) times the gradient in the paper's coordinates
        within the stage: the step is made `repeats` times, noised again in between

    x, s: state and level, primes: the next level; a = 1 in k-units, 1 - s on flow models. w (n_c - n_u) is the way from the unguided prediction to the guided one, so methods that
    change CFG count. Without CFG there is nothing to go by, and d has a tenth of the noise's size times scale.
    Defaults: scale 0.2, guidance between 30 % and 70 % of the steps, three repeats between 30 % and 60 % (the released code for Stable Diffusion: 70 % to 30 %, and 70 % to 40 %, of the
    noise levels). The released code for faces takes `signal` over all but the last tenth. Cost: a backward pass through the active branches; times the repeats.
    """

    node_id = "LodestarFreeDoM"
    title = "FreeDoM"
    paper = "Yu et al., FreeDoM: Training-Free Energy-Guided Conditional Diffusion Model, arXiv 2303.09833"
    aliases = ("energy guidance", "time travel")
    evaluations = "0 (backward pass through the active branches: about 2 more; times the repeats)"
    compares = True

    loss: Any = socket("LODESTAR_LOSS", "What to minimise.")
    scale: float = param(0.2, "Length of the moves: as a share of CFG's own, or (form signal) a factor of the gradient; 0 switches it off.", 0.0, 1e5, 0.05)
    start: float = param(0.3, "Where the guidance begins, as a fraction of the steps.", 0.0, 1.0, 0.01)
    end: float = param(0.7, "Where it ends.", 0.0, 1.0, 0.01)
    repeats: int = param(3, "How often each step of the stage is made.", 1, 20, 1)
    stage_start: float = param(0.3, "Where that stage begins, as a fraction of the steps.", 0.0, 1.0, 0.01, advanced=True)
    stage_end: float = param(0.6, "Where it ends.", 0.0, 1.0, 0.01, advanced=True)
    eta: float = param(1.0, "Fresh noise per step. 0: deterministic, 1: ancestral.", 0.0, 1.0, 0.01)
    form: str = param("guidance", "What the moves are measured by: CFG's own difference, or the signal's share.", choices=FORMS, advanced=True)

    def neutral(self):
        return self.scale == 0

    def times(self, index, total):
        return self.repeats if self.scale and self.stage_start <= index / total < self.stage_end else 1

    def led(self, point, loss):
        if not self.start <= point.index / point.total < self.end:
            return self.plain(point)
        denoised, g = point.descend(loss)
        reach = levels.amplitude(point.s_next, point.flow)
        if self.form == "signal":
            return point.go(denoised, point.noise_of(denoised), self.eta, self.scale * reach * point.a * g)
        return point.go(denoised, point.noise_of(denoised), self.eta, self.scale * reach * self.measure(point, denoised) * normalised(g, "unit rms"))

    def measure(self, point, denoised):
        """w rms(n_c - n_u) per sample, shaped to broadcast."""
        gap = point.problem.gap
        if gap is None or gap.shape != denoised.shape:
            return WITHOUT_GUIDANCE * rms(point.noise_of(denoised))
        return rms(gap.to(denoised)) * point.a / point.s
