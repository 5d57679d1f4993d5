"""Colourisation: the picture is known in gray."""
from __future__ import annotations

import torch

from ...frozen import frozen
from .base import Operator

GRAY = (0.299, 0.587, 0.114)


@frozen
class Colourisation(Operator):
    """The picture is known in gray only.

    y = w u = 0.299 red + 0.587 green + 0.114 blue,  A^T y = w y,  A+ y = w y / |w|^2

    Pseudo-inverse: exact.
    """

    node_id = "LodestarColourisationOperator"
    title = "Colourisation Operator"
    aliases = ("grayscale", "colorization")
    spaces = ("rgb",)

    @staticmethod
    def _weights(like, ndim):
        return torch.tensor(GRAY, dtype=like.dtype, device=like.device).view(1, 3, *[1] * (ndim - 2))

    def forward(self, u):
        return (u * self._weights(u, u.ndim)).sum(1, keepdim=True)

    def transposed(self, y, like):
        return y * self._weights(y, y.ndim)

    def inverted(self, y, like):
        return self.transposed(y, like) / sum(w * w for w in GRAY)

    def gram(self, like):
        return sum(w * w for w in GRAY)

    def show(self, y):
        return y.expand(y.shape[0], 3, *y.shape[2:])

    def read(self, picture):
        return picture.mean(1, keepdim=True)
