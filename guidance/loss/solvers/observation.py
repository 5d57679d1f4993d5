"""Observation self-guidance: the model's own posterior mean leads the sampler's steps."""
from __future__ import annotations

from typing import Any

import torch

from ...frozen import frozen
from ...gradients import gradient
from ...inverse import levels
from ...method import Step, param, socket
from .base import LossSolver

FORMS = ("DDPM", "DDIM")


@frozen(eq=False)
class ObservationSelfGuidance(LossSolver):
    """Leads an unconditional model by observed values: an ancestral step, and then a step down the gradient of the loss at the new state, as large as the step's own noise.

    Paper: Kollovieh et al., "Predict, Refine, Synthesize: Self-Guiding Diffusion Models for Probabilistic Time Series Forecasting" (TSDiff), arXiv 2307.11494.

        DDPM: y = step_1(x);   x' = y - scale up^2 (c / c') grad_w loss(D(w, s)),   w = (c / c') y                up: the step's fresh noise, c = sqrt(a^2 + s^2)
        DDIM: D' = D - scale (s^2 / a) grad_x loss(D(x));   x' = step_0(x, D')

    x, s: state and level, primes: the next level; a = 1 in k-units, 1 - s on flow models. w is the new state at the old level, in the paper's scaled coordinates y itself; up^2 is the variance of its
    reverse step. Quantile Loss over a batch gives its probabilistic forecasts; a picture's known pixels are observed in the same way.
    Defaults: DDPM, scale 0.1 (released: 1 to 8 by data set, 100 steps, 100 samples, series of a few hundred values. Quantile Loss is a sum: half of a 128 px picture's latent are 2048 values, and of eight
    pictures of the bundled model in 20 steps at CFG 4 scale 1 throws several off, 0.25 one, 0.1 none, so that larger pictures want less; without a prompt 1 holds). Its refinement of another model's prediction is Refine by Loss without the network, or sampling from a low denoise; its Langevin form is left out.
    Cost: DDPM: a second evaluation with its backward pass; DDIM: a backward pass.
    """

    node_id = "LodestarObservationSelfGuidance"
    title = "Observation Self-Guidance"
    paper = "Predict, Refine, Synthesize (TSDiff)"
    aliases = ("TSDiff", "forecast", "imputation", "quantile")
    evaluations = "DDPM 1, DDIM 0 (and a backward pass through the active branches, about 2)"

    loss: Any = socket("LODESTAR_LOSS", "What to minimise: Quantile Loss, or any.")
    scale: float = param(0.1, "Strength of the gradient; 0 switches it off. Smaller for more observed values.", 0.0, 1e6, 0.01)
    form: str = param("DDPM", "DDPM: ancestral steps, led at the new state. DDIM: deterministic ones, led by the score.", choices=FORMS)
    eta = 0.0

    def neutral(self):
        return self.scale == 0 and self.form == "DDIM"

    def advance(self, point):
        loss = point.problem.at(point) if self.scale else None
        if self.form == "DDIM":
            if loss is None:
                return self.plain(point)
            denoised, g = point.descend(loss)
            return point.go(denoised + self.scale * point.score * g, None)
        denoised = point.predict()
        y = point.go(denoised, point.noise_of(denoised), 1.0)
        up = levels.ancestral(point.s, point.s_next, 1.0, point.flow)[1] if point.s_next > 0 else 0.0
        if loss is None or not up:
            return y
        ratio = levels.amplitude(point.s, point.flow) / levels.amplitude(point.s_next, point.flow)
        w = ratio * y
        g = gradient(Step(w, torch.full((w.shape[0],), point.s), point.flow), point.evaluate, loss, "network", point.context).direction
        point.finite(g)
        return y + self.scale * up * up * ratio * g
