"""Trajectory Score Matching (Dreamer XL)."""
from __future__ import annotations

import math

from ..frozen import frozen
from ..method import param
from .ism import IntervalScoreMatching


@frozen(eq=False)
class TrajectoryScoreMatching(IntervalScoreMatching):
    """Trajectory Score Matching: Interval Score Matching whose comparison comes from the same way up, nearer to the end of the interval, so that the inversion's errors cancel better.

        x_s as in Interval Score Matching,   x_s -> x_t and x_s -> x_m, both with n^(x_s, empty),   m = s + (t - s) sqrt(1 - gamma^2)
        gradient of z:  W(t) ( n^(x_t, y) - n^(x_m, empty) )

    gamma 1 gives m = s: Interval Score Matching; gamma 0 gives m = t.
    Defaults: gamma 0.3 (released code), the others as in Interval Score Matching. The released code makes numbers that are none 0; here they are an error.
    Limits: as Interval Score Matching; on latents take SGD.
    Paper: Miao et al., arXiv 2405.11252. Cost: one prediction of the inverse prompt more than Interval Score Matching.
    """

    node_id = "LodestarTrajectoryScoreMatching"
    title = "Trajectory Score Matching"
    paper = "Dreamer XL (TSM)"
    aliases = ("TSM", "Dreamer XL")
    evaluations = "0 (a guided prediction and up to 7 more per iteration)"

    gamma: float = param(0.3, "Where in the interval the comparison is: 1 at its beginning (Interval Score Matching), 0 at its end.", 0.0, 1.0, 0.05)

    def target(self, moment, x_s, s, s_time, t, t_time, below):
        middle = max(s, moment.prior.sigma(s_time + (t_time - s_time) * math.sqrt(1 - self.gamma ** 2)))
        if self.gamma == 1 or middle <= s:
            return super().target(moment, x_s, s, s_time, t, t_time, below)
        x_m = moment.move(x_s, s, middle, below)
        return moment.noise_of(x_m, middle, self.predicted(moment, x_m, middle))
