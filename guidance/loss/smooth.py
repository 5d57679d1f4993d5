"""Losses without a target: total variation, symmetry, tiles, range."""
from __future__ import annotations

import torch.nn.functional as F

from ..frozen import frozen
from ..method import param
from .picture import PictureLoss, mean

MIRRORS = ("left and right", "top and bottom", "half turn", "tiles")


@frozen(eq=False)
class TotalVariation(PictureLoss):
    """How much neighbouring cells differ: less of it is a smoother picture.

        loss = mean |u(y + 1, x) - u(y, x)| + mean |u(y, x + 1) - u(y, x)|
    """

    title = "Total Variation Loss"

    def measure(self, u, m, context):
        down, right = (u[..., 1:, :] - u[..., :-1, :]).abs(), (u[..., 1:] - u[..., :-1]).abs()
        return mean(down, m[..., 1:, :] * m[..., :-1, :]) + mean(right, m[..., 1:] * m[..., :-1])


@frozen(eq=False)
class Symmetry(PictureLoss):
    """How far the picture is from its mirror image, or from a tile that repeats without a seam.

        loss = mean (u - mirrored u)^2;     tiles: mean of the squared steps over the seam, between opposite borders, beyond those beside them
    """

    title = "Symmetry Loss"

    mirror: str = param(MIRRORS[0], "What the picture is to be alike with itself under.", choices=MIRRORS)

    def measure(self, u, m, context):
        if self.mirror != "tiles":
            axes = {"left and right": (-1,), "top and bottom": (-2,), "half turn": (-2, -1)}[self.mirror]
            return mean((u - u.flip(axes)).square(), m)
        steps = ((u[..., :1] - u[..., -1:]), (u[..., :1, :] - u[..., -1:, :]))
        inner = ((u[..., 1:2] - u[..., :1] + u[..., -1:] - u[..., -2:-1]) / 2, (u[..., 1:2, :] - u[..., :1, :] + u[..., -1:, :] - u[..., -2:-1, :]) / 2)
        return sum((s - i).square().flatten(1).mean(1) for s, i in zip(steps, inner))


@frozen(eq=False)
class RangePenalty(PictureLoss):
    """How far values leave the range of pictures; less of it is less burnt.

        loss = mean relu(|u - 1/2| - 1/2)^2           0 inside [0, 1]
    """

    title = "Range Loss"
    spaces = ("rgb", "small")

    def measure(self, u, m, context):
        return mean(F.relu((u - 0.5).abs() - 0.5).square(), m)
