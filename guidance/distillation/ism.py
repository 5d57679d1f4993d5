"""Interval Score Matching (LucidDreamer), the base of Trajectory Score Matching."""
from __future__ import annotations

from typing import Any

import torch

from ..frozen import frozen
from ..method import param, socket
from .base import ISM, WEIGHTS, Pull, ScoreGuidance, drawn, weight

OFFSET = 0.1      # of the noise that a whole channel of an entry gets beside its own


@frozen(eq=False)
class IntervalScoreMatching(ScoreGuidance):
    """Interval Score Matching: the picture is inverted to a noise level instead of noised at random, and moved by what the prompt makes of the last interval of that way.

        z -> x_s by `steps` DDIM steps up of size `stride`, from max(0, s - steps stride) on,   x_s -> x_t by one more of size `interval`, all with the inverse prompt
        gradient of z:  W(t) ( n^(x_t, y) - n^(x_s, empty) ),   W = s_t / a_t

    y: the prompt, guided at the scale cfg; empty: the inverse prompt, at scale 1. Where the way begins above 0, noise is added as in SDS, with an offset of 0.1 for each channel.
    t is random in [t_min, t_max + warm (0.98 - t_max)], the interval `interval` + warm (`first_interval` - interval); warm falls from 1 to 0 in the first `warm_up` of the iterations.
    With interval 0 and the negative prompt as inverse it is cfg (n^(x, y) - n^(x, negative)); with a perfect denoiser of x_s it is SDS.
    Defaults: cfg 7.5, interval 0.08, first 0.1, stride 0.2, 5 steps, t from 0.02 to 0.5 (Dreamer XL's code, which holds LucidDreamer's; times of 1000), warm-up a third of the iterations.
    Their gradient's factor 0.1 and the flips of the picture are left out; the clip of the picture's gradient is `clip` of Score Distillation.
    Limits: the way up keeps what is no picture, so nothing draws grain out again. On latents of small models it grows with Adam, whose steps are as large for grain as for shapes:
    take SGD at about 0.05 and t from 0.3 to 0.7.
    Papers: Liang et al., arXiv 2311.11284; Miao et al., arXiv 2405.11252. Cost: a guided prediction and up to steps + 1 of the inverse prompt per iteration.
    """

    node_id = "LodestarIntervalScoreMatching"
    title = "Interval Score Matching"
    paper = ("LucidDreamer: Text-to-3D via Interval Score Matching (ISM)", "Dreamer XL (TSM)")
    aliases = ("ISM", "LucidDreamer", "deterministic inversion")
    evaluations = "0 (a guided prediction and up to 6 more per iteration)"

    t_max: float = param(0.5, "Highest noise level after the warm-up, as a share of the model's timesteps (1 is pure noise).", 0.0, 1.0, 0.01)
    weighting: str = param(ISM, "Weight W of a noise level.", choices=WEIGHTS, advanced=True)
    interval: float = param(0.08, "Length of the last interval, as a share of the timesteps.", 0.0, 1.0, 0.005)
    first_interval: float = param(0.1, "Its length in the first iteration.", 0.0, 1.0, 0.005)
    stride: float = param(0.2, "Length of the steps of the inversion before.", 0.0, 1.0, 0.005)
    steps: int = param(5, "Most steps of that inversion; 0: the picture is noised at once.", 0, 100, 1, label="inversion steps")
    warm_up: float = param(0.3, "Share of the iterations in which the highest level comes down from 0.98.", 0.0, 1.0, 0.01)
    inverse: Any = socket("CONDITIONING", "The prompt of the inversion, usually without text; without it the negative prompt.", optional=True)

    def warm(self, moment):
        return 1.0 - min(1.0, moment.index / max(1e-9, self.warm_up * moment.total)) if self.warm_up else 0.0

    def times(self, moment):
        """(t, s) of this iteration, as shares of the timesteps."""
        warm, t = self.warm(moment), self.time(moment)
        if warm and self.t_max < 0.98:
            t = self.t_min + (t - self.t_min) * (0.98 + (self.t_max - 0.98) * (1 - warm) - self.t_min) / max(1e-9, self.t_max - self.t_min)
        length = self.interval + warm * (self.first_interval - self.interval)
        return t, max(0.0, t - length)

    def predicted(self, moment, x, s):
        """The inverse prompt's clean estimate."""
        return moment.prior.plain(x, s, "negative" if self.inverse is None else "inverse")

    def inverted(self, moment, s_time, turn):
        """(x_s, s, D(x_s)) of the way up from z."""
        prior, at = moment.prior, max(0.0, s_time - self.stride * self.steps)
        s = prior.sigma(at)
        z = moment.z
        rows = z.shape[0] // len(moment.entries)
        offset = [drawn((rows, *z.shape[1:2], *[1] * (z.ndim - 2)), moment.seed, e, moment.index, moment.number, turn, "offset") for e in moment.entries]
        noise = moment.noise(turn)
        x = moment.noised(z, s, noise + OFFSET * torch.cat(offset).to(noise))
        denoised = self.predicted(moment, x, s)
        for _ in range(self.steps):
            if at >= s_time:
                break
            at = min(at + self.stride, s_time) if self.stride else s_time
            s_next = prior.sigma(at)
            x, s = moment.move(x, s, s_next, denoised), s_next
            denoised = self.predicted(moment, x, s)
        return x, s, denoised

    def once(self, moment, turn):
        t_time, s_time = self.times(moment)
        x_s, s, below = self.inverted(moment, s_time, turn)
        t = max(s, moment.prior.sigma(t_time))
        x_t = moment.move(x_s, s, t, below)
        denoised = moment.prior.guided(x_t, t, self.cfg)
        target = self.target(moment, x_s, s, s_time, t, t_time, below)
        return Pull(weight(t, moment.prior.flow, self.weighting) * (moment.noise_of(x_t, t, denoised) - target), denoised)

    def target(self, moment, x_s, s, s_time, t, t_time, below):
        """The noise that the guided one is compared with."""
        return moment.noise_of(x_s, s, below)

