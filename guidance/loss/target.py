"""Target-Image loss: how far the clean estimate is from a picture or a latent."""
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from ..frozen import frozen
from ..method import BadInput
from .base import Loss

REDUCTIONS = ("sum", "mean", "norm")


@frozen(eq=False)
class TargetImage(Loss):
    """weight * reduce( m |u - y|^p ), u the estimate (latent or decoded), y the target; per sample.

    target [n, channel, h, w]: in the model's latent space (space "latent") or a picture in [0, 1] (space "rgb", decoded by the VAE with gradient).
    mask [n or 1, h, w] in [0, 1] or None. power 2 is the squared error, 1 the absolute one. reduction: "sum", "mean" (over the masked cells),
    "norm" (the un-squared Euclidean norm, as DPS and FreeDoM use). factor N > 1 compares averages over N x N cells: a rough layout of colour.
    """

    title = "Target Image Loss"
    target: Any = None
    mask: Any = None
    space: str = "latent"
    power: float = 2.0
    reduction: str = "sum"
    weight: float = 1.0
    factor: int = 1
    decoder: Any = None

    def value(self, denoised, context):
        u = context.picture(self.decoder, denoised) if self.space == "rgb" else denoised
        y = self.target.to(device=u.device, dtype=u.dtype)
        if y.shape[1:] != u.shape[1:]:
            raise BadInput(self.title, "target size", list(y.shape[1:]), f"The sampled {'picture' if self.space == 'rgb' else 'latent'} is {list(u.shape[1:])}; give a target of that size.")
        y = y.expand(u.shape[0], *y.shape[1:]) if y.shape[0] == 1 else y
        if y.shape[0] != u.shape[0]:
            raise BadInput(self.title, "target batch", y.shape[0], f"Give one target, or one for each of the {u.shape[0]} samples.")
        m = torch.ones_like(u[:, :1])
        if self.mask is not None:
            m = self.mask.to(u)[:, None]
            m = F.interpolate(m, u.shape[-2:], mode="area")
            m = m if m.ndim == u.ndim else m.unsqueeze(2)
        if self.factor > 1:
            u, y, m = (_pool(t, self.factor) for t in (u, y, m.expand(u.shape[0], *m.shape[1:])))
        error = (u - y).abs()
        if self.reduction == "norm":
            return self.weight * ((m * error.square()).flatten(1).sum(1) + 1e-12).sqrt()
        total = (m * (error.square() if self.power == 2 else error.clamp(min=1e-12).pow(self.power))).flatten(1).sum(1)
        if self.reduction == "mean":
            total = total / (m.expand_as(u).flatten(1).sum(1)).clamp(min=1e-6)
        return self.weight * total


def _pool(t, n):
    shape = t.shape
    flat = t.flatten(0, -4) if t.ndim > 4 else t
    pooled = F.avg_pool2d(flat, n, ceil_mode=True)
    return pooled.view(*shape[:-2], *pooled.shape[-2:]) if t.ndim > 4 else pooled
