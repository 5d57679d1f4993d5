"""Colours: histograms, moments, or all of a picture's colours as a distribution."""
from __future__ import annotations

from typing import Any

import torch

from ..frozen import frozen
from ..method import param, socket
from .picture import PictureLoss

MODES = ("histogram", "moments", "sliced")
DIRECTIONS = 16


def shares(u, m, bins):
    """[n, channels, bins]: the share of the marked cells in each bin of [0, 1], by triangles, so that a value counts for the two bins that it lies between."""
    centres = torch.linspace(0, 1, bins, device=u.device, dtype=u.dtype)[None, None, :, None]
    near = (1 - (u.clamp(0, 1).flatten(2)[:, :, None] - centres).abs() * (bins - 1)).clamp(min=0)
    w = m.flatten(2)[:, :, None]
    return (near * w).sum(-1) / w.sum(-1).clamp(min=1e-6)


def moments(u, m):
    """Means [n, c] and covariances [n, c, c] of the colours of the marked cells."""
    v, w = u.flatten(2), m.flatten(2) / m.flatten(2).sum(-1, keepdim=True).clamp(min=1e-6)
    centre = (v * w).sum(-1)
    away = v - centre[..., None]
    return centre, (away * w) @ away.transpose(1, 2)


def quantiles(u, m, count, directions):
    """[n, directions, count]: the colours of the marked cells along directions [directions, c], sorted, at evenly spaced shares."""
    along = torch.einsum("dc,ncp->ndp", directions, u.flatten(2))
    order = along.argsort(-1)
    weight = m.flatten(2).expand(-1, along.shape[1], -1).gather(-1, order)
    share = weight.cumsum(-1) / weight.sum(-1, keepdim=True).clamp(min=1e-6)
    wanted = (torch.arange(count, device=u.device, dtype=u.dtype) + 0.5) / count
    at = torch.searchsorted(share.contiguous(), wanted.expand(*share.shape[:-1], -1).contiguous()).clamp(max=share.shape[-1] - 1)
    return along.gather(-1, order).gather(-1, at)


@frozen(eq=False)
class ColourDistribution(PictureLoss):
    """How far the picture's colours are from a target's, wherever they are: a palette without a layout.

        histogram: mean over channels and bins of |H(u) - H(y)|, H the cumulative soft histogram (earth mover's distance)
        moments:   |mu - mu_y|^2 + |C - C_y|_F^2                                   mean and covariance of the colours
        sliced:    mean (q(u) - q(y))^2, q the sorted colours along 16 random directions (sliced Wasserstein distance)

    Values outside [0, 1] have no gradient in the histogram. The mask chooses the cells of the picture; `target_mask` those of the target.
    """

    title = "Colour Loss"
    spaces = ("rgb", "small")

    image: Any = socket("IMAGE", "The picture whose colours are wanted, of any size.")
    mode: str = param("sliced", "What is compared: histograms of the channels, mean and covariance, or sorted colours along many directions.", choices=MODES)
    bins: int = param(32, "Bins of a histogram; sorted colours are compared at so many places.", 2, 256, 1, advanced=True)
    target_mask: Any = socket("MASK", "Which part of the target counts.", optional=True)

    def measure(self, u, m, context):
        y = self.wanted(u)
        n = y.new_ones(y.shape[0], 1, *y.shape[-2:])
        if self.target_mask is not None:
            n = self._each(torch.nn.functional.interpolate(self.target_mask.to(y)[:, None], y.shape[-2:], mode="area"), y, "target_mask")
        if self.mode == "histogram":
            return (shares(u, m, self.bins).cumsum(-1) - shares(y, n, self.bins).cumsum(-1)).abs().mean((1, 2))
        if self.mode == "moments":
            (a, c), (b, d) = moments(u, m), moments(y, n)
            return (a - b).square().sum(1) + (c - d).square().sum((1, 2))
        directions = torch.randn(DIRECTIONS, u.shape[1], generator=torch.Generator().manual_seed(0)).to(u)
        directions = directions / directions.norm(dim=1, keepdim=True)
        return (quantiles(u, m, self.bins, directions) - quantiles(y, n, self.bins, directions)).square().mean((1, 2))
