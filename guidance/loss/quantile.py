"""Quantile loss: a batch spreads over the pictures that agree with what was observed."""
from __future__ import annotations

from typing import Any

import torch

from ..frozen import frozen
from ..method import param, socket
from .picture import PictureLoss


@frozen(eq=False)
class Quantile(PictureLoss):
    """The pinball loss of observed values: each picture of a batch of N aims at another quantile, so that together they spread as the data do.

        e = y - u;    loss = sum m max( q e, (q - 1) e ),    q = i / (N + 1) for picture i = 1 .. N            m: where it was observed

    spread 0: every picture at q = 1/2, half the absolute error. Mean instead of sum where `total` is off. A batch split over several runs has the quantiles of each.
    Paper: Kollovieh et al., "Predict, Refine, Synthesize: Self-Guiding Diffusion Models for Probabilistic Time Series Forecasting" (TSDiff), arXiv 2307.11494.
    """

    title = "Quantile Loss"
    pointwise = True
    own_node = True

    image: Any = socket("IMAGE", "What was observed, as large as what is sampled.")
    spread: float = param(1.0, "How far the pictures of a batch are spread: 1 over all quantiles, 0 all at the middle.", 0.0, 1.0, 0.05)
    total: bool = param(True, "The sum over the observed values; off: their mean.", advanced=True)

    def value(self, denoised, context):
        u = denoised if self.space == "latent" else context.picture(self.decoder, denoised)
        u = u.movedim(2, 1).flatten(0, 1) if u.ndim == 5 else u
        n, many = denoised.shape[0], u.shape[0] // denoised.shape[0]
        q = 0.5 + self.spread * (torch.arange(1, n + 1, device=u.device, dtype=u.dtype) / (n + 1) - 0.5)
        q = q.repeat_interleave(many).view(-1, 1, 1, 1)
        e, m = self.wanted(u) - u, self.weights(u)
        found = (torch.maximum(q * e, (q - 1) * e) * m).flatten(1).sum(1).view(n, many).sum(1)
        found = found if self.total else found / (m.flatten(1).sum(1).view(n, many).sum(1) * u.shape[1]).clamp(min=1e-6)
        return self.weight * context.factor(self.schedule) * found

    def measure(self, u, m, context):      # one picture alone: the middle
        return ((self.wanted(u) - u).abs() * m).flatten(1).sum(1) / 2
