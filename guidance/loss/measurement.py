"""Measurement loss: how far the measurement of the clean estimate is from a given one."""
from __future__ import annotations

from dataclasses import field
from typing import Any

import torch

from ..frozen import frozen
from ..inverse.problem import per_sample
from .base import Loss


@frozen(eq=False)
class MeasurementLoss(Loss):
    """weight * reduce( y - A u ), u the estimate (latent, or the decoded picture in [-1, 1]), y the measurement, A its operator; per sample.

    bind(denoised) makes the inverse.problem.Problem of the measurement for a latent; it is asked once per shape. reduction: "norm" (Euclidean, not squared), "sum" or
    "mean" of squares (over the values that were measured).
    """

    title = "Measurement Loss"
    bind: Any = None
    reduction: str = "norm"
    weight: float = 1.0
    _made: dict = field(default_factory=dict, repr=False)

    def value(self, denoised, context):
        batch = denoised.shape[0]
        key = (tuple(denoised.shape), denoised.device)
        if key not in self._made:
            self._made.clear()
            with torch.no_grad():
                self._made[key] = self.bind(denoised.detach())
        problem = self._made[key]
        r = per_sample(problem.residual(problem.picture(denoised)), batch)
        if self.reduction == "norm":
            return self.weight * torch.linalg.vector_norm(r, dim=1)
        total = r.square().sum(1)
        return self.weight * (total / problem.count(batch) if self.reduction == "mean" else total)
