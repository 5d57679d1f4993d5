"""Adaptive Projected Guidance."""
from __future__ import annotations

import torch

from ..frozen import frozen
from ..method import Rule, dot, norm, param, window

_start, _end = window("APG replaces CFG")


def split(d, c):
    """d as (parallel to c, orthogonal to c), per sample over all non-batch axes, in float32."""
    d, c = d.float(), c.float()
    square = dot(c, c)
    along = torch.where(square > 0, dot(d, c) / square.clamp_min(1e-30), torch.zeros_like(square)) * c
    return along, d - along


@frozen
class AdaptiveProjectedGuidance(Rule):
    """Guides along what is new in the conditional prediction and leaves out what only makes it larger, so that high scales do not oversaturate.

    Paper: Sadat, Hilliges, Weber, "Eliminating Oversaturation and Artifacts of High Guidance Scales in Diffusion Models", arXiv 2410.02416.

        d = c - u
        m <- d + momentum m,  d = m                     only where momentum is not 0; m = 0 at the start of a run
        d <- d min(1, norm_threshold / |d|)             only where norm_threshold > 0
        p = <d, c> / <c, c> c,  o = d - p
        result = c + (w - 1) (o + eta p)

    c, u: conditional and unconditional x0 predictions; w: the sampler's cfg; inner products and norms per sample over all non-batch axes (video: over the
    frames too) in float32. eta = 1, norm_threshold = 0, momentum = 0 is CFG: the node is then switched off.

    Defaults: eta 0 as in the paper. The paper's thresholds belong to a model's latent size (per model 2.5 to 15, momentum -0.5 or -0.75: SD 2.1 7.5 and
    -0.75, SDXL 15 and -0.5, EDM2 2.5 and -0.75, DiT 5 and -0.5), since the norm of a difference grows with the square root of the number of its values.
    Here 10 and -0.5 stand for latents of unit variance of 4 to 16 thousand values (SD, SDXL, the bundled models). Video and large pictures need more.

    Cost: no evaluation; a few passes over the latent. Flow models: the same, since it acts on x0 predictions.
    Samplers with several network calls a step keep one momentum per call, so that each is fed once a step. Outside its window the rule is CFG, and the
    momentum starts anew on entering it. Limits: with momentum, equal prompts give c only where they were equal at every earlier step; a packed
    audio-video latent counts as one vector.
    """

    node_id = "LodestarAdaptiveProjectedGuidance"
    title = "Adaptive Projected Guidance"
    family = "rules"
    paper = "Eliminating Oversaturation and Artifacts of High Guidance Scales (APG)"
    aliases = ("APG",)
    evaluations = "0"

    eta: float = param(0.0, "How much of the part parallel to the conditional prediction is kept. 0: none (the paper), 1: all, as CFG.", -10.0, 10.0, 0.01)
    norm_threshold: float = param(
        10.0, "Longest guidance vector of a picture; longer ones are shortened. 0: no limit. Paper: 7.5 for SD 2.1, 15 for SDXL.", 0.0, 10000.0, 0.1)
    momentum: float = param(
        -0.5, "How much of the earlier guidance is added; negative pushes away from it. 0: none. Paper: -0.5 to -0.75.", -0.99, 0.99, 0.01)
    start_percent: float = _start
    end_percent: float = _end

    def neutral(self):
        return self.eta == 1.0 and self.norm_threshold == 0.0 and self.momentum == 0.0

    def combine(self, step, c, u, w, state):
        if self.neutral():
            return u + (c - u) * w
        d = (c - u).float()
        if self.momentum != 0.0:
            # one buffer per call of a step; a gap (the window, a closed gate) forgets it; a call repeated at the same step (steering) counts once
            index, before, now = state.get(step.call, (None, None, None))
            if index != step.index:
                before = now if index is not None and step.index - index == 1 else None
            if before is not None and before.shape == d.shape:
                d = d + self.momentum * before.to(d)
            state[step.call] = (step.index, before, d.detach().clone())
        if self.norm_threshold > 0.0:
            d = d * (self.norm_threshold / norm(d).clamp_min(1e-12)).clamp_max(1.0)
        along, across = split(d, c)
        return (c.float() + (w - 1.0) * (across + self.eta * along)).to(c.dtype)
