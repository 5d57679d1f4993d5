"""TFG: training-free guidance as one method with others as its corners."""
from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from ...frozen import frozen
from ...inverse import levels
from ...method import param, socket
from .base import LossSolver, rises

SCHEDULES = ("increase", "decrease", "constant")
PRESETS = {"own values": {},      # other methods as corners: what each sets, the rest stays as it is entered
           "DPS": {"mu": 0.0, "smoothing": 0.0, "samples": 1, "repeats": 1},
           "LGD": {"mu": 0.0, "smoothing": 1.0, "smoothing_schedule": "decrease", "samples": 10, "repeats": 1},
           "FreeDoM": {"mu": 0.0, "smoothing": 0.0, "samples": 1, "repeats": 3},
           "MPGD": {"rho": 0.0, "smoothing": 0.0, "samples": 1, "iterations": 1, "repeats": 1},
           "UGD": {"smoothing": 0.0, "samples": 1}}


def weights(schedule, sigmas, flow):
    """[steps] with mean 1: s_i T / sum s with s = alpha_t (increase), 1 - alpha_t (decrease), 1 (constant)."""
    s = [{"increase": a, "decrease": 1 - a, "constant": 1.0}[schedule] for a in rises(sigmas, flow)]
    return [v * len(s) / max(sum(s), 1e-12) for v in s]


def smoothed(loss, deviation, count, draw):
    """log mean_i exp(-loss(z + deviation xi_i)) per sample as a function of z, with the same xi [count] each time."""
    if deviation == 0 or count < 1:
        return lambda z: -loss(z)
    noise = [draw() for _ in range(count)]

    def found(z):
        n = torch.stack(noise, 1).to(z).flatten(0, 1)
        values = loss(z.repeat_interleave(count, 0) + deviation * n).view(-1, count)
        return torch.logsumexp(-values, 1) - math.log(count)
    return found


@frozen(eq=False)
class TrainingFreeGuidance(LossSolver):
    """Leads the picture by any loss, with a gradient through the network, one of the clean estimate alone, a smoothed loss, and repeated steps; other methods are its special cases.

    Paper: Ye et al., "TFG: Unified Training-Free Guidance for Diffusion Models", arXiv 2409.15761.

        f(z) = log mean_i exp(-loss(z + sigma_t xi_i))                      sigma_t = smoothing sqrt(1 - abar) (or smoothing), xi: `samples` draws of noise, the same within a step
        D_t = rho_t grad_x f(D(x))                                          variance guidance, through the network
        z <- D,  `iterations` times:  z <- z + mu_t grad_z f(z);   D_0 = z - D     mean guidance, no backward through the network
        x' = DDIM_eta(x, D) + rho-term c^2 (a' / a) D_t + a' D_0                 c^2 = a^2 + s^2; the noise is that of the unchanged D
        and back up to s by fresh noise, `repeats` times in all

    rho_t, mu_t: rho, mu times a schedule with mean 1 over the run: alpha_t = abar / abar' rising (increase), 1 - alpha_t (decrease), or constant. x, s: state and level, primes: the next level;
    a = 1 in k-units, 1 - s on flow models.
    Corners, in the menu `preset`: DPS: mu 0, no smoothing, 1 repeat; LGD: mu 0, smoothing 1 of 10 samples; FreeDoM: mu 0, 3 repeats; MPGD: rho 0, 1 iteration; UGD: no smoothing, both gradients (with the
    noise of the unchanged estimate). What a preset does not set stays as entered. Training-Free Guidance Search finds rho, mu and smoothing for a task.

    Defaults: rho 1, mu 0.25, smoothing 0.01, 1 sample, 4 iterations, 1 repeat, eta 1, schedules increase, increase, decrease (the authors' scripts; rho 0.25 to 4, mu 0.25 to 8 by task). They hold
    for losses of the size of a log-probability. Cost: rho: a backward pass through the active branches; mu: `iterations` gradients of the loss; times the repeats.
    """

    node_id = "LodestarTrainingFreeGuidance"
    title = "Training-Free Guidance"
    paper = "TFG: Unified Training-Free Guidance"
    aliases = ("TFG", "unified guidance")
    evaluations = "0 (rho: backward pass through the active branches, about 2 more; times the repeats)"

    loss: Any = socket("LODESTAR_LOSS", "What to minimise.")
    rho: float = param(1.0, "Strength of the gradient through the network; 0 switches it off.", 0.0, 1e5, 0.05)
    mu: float = param(0.25, "Strength of the gradient of the clean estimate alone; 0 switches it off.", 0.0, 1e5, 0.05)
    smoothing: float = param(0.01, "Standard deviation of the noise over which the loss is averaged; 0: not at all.", 0.0, 10.0, 0.01)
    samples: int = param(1, "How many draws of that noise.", 1, 64, 1, advanced=True)
    iterations: int = param(4, "Steps along the gradient of the clean estimate.", 1, 100, 1)
    repeats: int = param(1, "How often each step is made, noised again in between.", 1, 20, 1)
    eta: float = param(1.0, "Fresh noise per step. 0: deterministic, 1: ancestral.", 0.0, 1.0, 0.01)
    rho_schedule: str = param("increase", "How rho changes over the steps.", choices=SCHEDULES, advanced=True)
    mu_schedule: str = param("increase", "How mu changes over the steps.", choices=SCHEDULES, advanced=True)
    smoothing_schedule: str = param("decrease", "decrease: the smoothing falls with the noise; constant: it stays.", choices=("decrease", "constant"), advanced=True)
    preset: str = param("own values", "Another method as a special case; it sets some of the values.", choices=tuple(PRESETS), advanced=True)

    def validate(self):
        super().validate()
        return replace(self, preset="own values", **PRESETS[self.preset]) if self.preset != "own values" else self

    def neutral(self):
        return self.rho == 0 and self.mu == 0

    @property
    def backward(self):
        return self.rho != 0

    def problem(self, sigmas, flow, percent_to_sigma=None):
        made = super().problem(sigmas, flow, percent_to_sigma)
        made.rho, made.mu = ([strength * w for w in weights(schedule, sigmas, flow)] for strength, schedule in ((self.rho, self.rho_schedule), (self.mu, self.mu_schedule)))
        return made

    def led(self, point, loss):
        rho, mu = point.problem.rho[point.index], point.problem.mu[point.index]
        deviation = self.smoothing * (math.sqrt(point.rho2) if self.smoothing_schedule == "decrease" else 1.0)
        f = smoothed(loss, deviation, self.samples, point.draw)
        if rho:
            denoised, g = point.descend(lambda d: -f(d))
            shift = rho * levels.amplitude(point.s, point.flow) ** 2 * (point.a_next / max(point.a, levels.LEAST_SIGNAL)) * g
        else:
            denoised, shift = point.predict(), 0.0
        if mu:
            z = denoised
            for _ in range(self.iterations):
                z = z - mu * point.slope(lambda d: -f(d), z)
            shift = shift + point.a_next * (z - denoised)
        return point.go(denoised, point.noise_of(denoised), self.eta, shift)
