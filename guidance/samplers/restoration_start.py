"""Where a restoration begins: at the degraded picture itself, or between it and noise."""
from __future__ import annotations

import math
from typing import Any

import torch

from ..frozen import frozen
from ..method import Method, param, socket


@frozen
class RestorationStart(Method):
    """Begins a sampling run at a mixture of the encoded picture and noise that has the size, but not the share of noise, of the schedule's first level: the picture is known from the first step on.

        x = c (sqrt(A) z + sqrt(1 - A) n),    c = sqrt(a^2 + s^2)

    z: the latent that is sampled from (the degraded picture, encoded); n: the run's noise; s: the first noise level, a the signal's coefficient (1 in k-units, 1 - s on flow models); A: the signal's share of
    the variance at the noise level named by `noise` (the schedule's, as a fraction: 1 its first level). The network is told s all the same.

    noise 0: the picture alone (A = 1), for one-step restorers that were trained on it (S3Diff, GuideSR). Below 1: the adjustable noise schedule of Pixel-Aware Stable Diffusion, which fills the
    gap between training, where the noisiest picture still has a trace of the true one, and sampling from bare noise; the authors mix at timestep 900 of 1000, that is 0.9, after they have noised to the
    last one already, which leaves less of the picture than the formula; here it is mixed once. 1: what the host's own samplers begin with where the schedule starts at its first level, but for the trace of z.

    Sampler: what goes on from there; Euler where nothing is connected. Noise masks: what is kept has the run's own noise, as ever. Schedules that end above noise level 0 or start below the first level work
    the same way, from their own first level.
    Paper: Yang et al., "Pixel-Aware Stable Diffusion for Realistic Image Super-Resolution and Personalized Stylization", arXiv 2308.14469 (adjustable noise schedule); Zhang et al., S3Diff, arXiv 2409.17058 (noise 0).
    Cost: none.
    """

    node_id = "LodestarRestorationStart"
    title = "Restoration Start"
    family = "samplers"
    paper = ("Pixel-Aware Stable Diffusion", "Degradation-Guided One-Step SR (S3Diff)")
    aliases = ("adjustable noise schedule", "ANS", "PASD", "S3Diff", "one-step", "super-resolution")
    evaluations = "0"

    noise: float = param(0.9, "Noise level of the mixture as a fraction of the schedule: 0 the picture alone, 0.9 as in PASD, 1 the schedule's first level.", 0.0, 1.0, 0.01)
    sampler: Any = socket("SAMPLER", "The sampler that goes on from there; without one Euler.", optional=True)


def share(sigma, flow):
    """The signal's share of the variance at a noise level."""
    a = 1.0 - sigma if flow else 1.0
    return a * a / (a * a + sigma * sigma)


def start(z, noise, sigma, flow, kept):
    """The state at level sigma: a mixture of z and noise in which z has the share `kept` of the variance."""
    size = math.hypot(1.0 - sigma if flow else 1.0, sigma)
    return size * (math.sqrt(kept) * z + (math.sqrt(1.0 - kept) * noise if kept < 1 else torch.zeros_like(noise)))
