"""Operators that act along rows and columns: A u = R u C^T with two small matrices, whose singular values are known."""
from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F

from ...frozen import frozen
from ...method import param
from .base import Operator, planes


@functools.lru_cache(64)
def _matrix(operator, size):
    """The matrix of one axis, in float64."""
    with torch.inference_mode(False):
        return operator.axis(size)


@functools.lru_cache(64)
def _decomposed(operator, size):
    """Its singular decomposition u, s, v."""
    with torch.inference_mode(False):
        return torch.linalg.svd(_matrix(operator, size), full_matrices=False)


@functools.lru_cache(64)
def _directions(operator, size):
    """Its singular values (those that count as 0 are 0), one for each value of the axis, and their directions as columns."""
    with torch.inference_mode(False):
        matrix = _matrix(operator, size)
        values, vectors = torch.linalg.eigh(matrix.mT @ matrix)
        s = values.clamp(min=0).sqrt()
        return torch.where(s >= max(operator.cut, 1e-7) * s.max(), s, torch.zeros_like(s)), vectors


@frozen
class Separable(Operator):
    """A u = R u C^T for each channel. `axis(size)` is the matrix of one axis (kept in a cache of both sizes: the dataclass must be hashable)."""

    cut = 0.0      # singular values below this share of an axis' largest one count as 0 in the pseudo-inverse

    def axis(self, size):
        raise NotImplementedError

    def _matrices(self, size, like):
        return [_matrix(self, int(n)).to(like) for n in size]

    def _parts(self, size, like):
        return [[m.to(like) for m in _decomposed(self, int(n))] for n in size]

    @staticmethod
    def _apply(u, left, right):
        flat, back = planes(u)
        return back(left @ flat @ right.mT)

    def forward(self, u):
        return self._apply(u, *self._matrices(u.shape[-2:], u))

    def transposed(self, y, like):
        rows, columns = self._matrices(like.shape[-2:], y)
        return self._apply(y, rows.mT, columns.mT)

    def inverted(self, y, like):
        def back(u, s, v):
            return (v.mT * torch.where(s >= max(self.cut, 1e-12) * s[0], 1 / s.clamp(min=1e-30), torch.zeros_like(s))) @ u.mT
        return self._apply(y, *(back(*parts) for parts in self._parts(like.shape[-2:], y)))

    def spectral(self, u, gain):
        (s, v), (t, q) = ([m.to(u) for m in _directions(self, int(n))] for n in u.shape[-2:])
        return self._apply(self._apply(u, v.mT, q.mT) * gain(s[:, None] * t[None, :]), v, q)

    def filtered(self, r, prior, noise, like, rounds=0):
        (u, s, v), (p, t, q) = self._parts(like.shape[-2:], r)
        both = s[:, None] * t[None, :]
        return self._apply(self._apply(r, u.mT, p.mT) * both / (prior * both.square() + noise), v.mT, q.mT)


KINDS = ("average", "bicubic", "bilinear")


@frozen
class SuperResolution(Separable):
    """The picture is known at a lower resolution only.

    y = R u C^T,  A+ from the singular values of R and C

    average: means over factor x factor pixels (of what there is, at a border that does not divide). bicubic, bilinear: antialiased resizing to ceil(size / factor),
    with the weights of torch's interpolation. Pseudo-inverse: exact (for the average: each pixel repeated).
    """

    node_id = "LodestarSuperResolutionOperator"
    title = "Super-Resolution Operator"
    aliases = ("downsample", "SR")

    factor: int = param(4, "How many times smaller the measured picture is.", 1, 32, 1)
    kind: str = param("average", "Means over squares, or antialiased resizing.", choices=KINDS)

    def axis(self, size):
        small = math.ceil(size / self.factor)
        eye = torch.eye(size, dtype=torch.float64)
        if self.kind == "average":
            where = torch.arange(size) // self.factor
            matrix = torch.zeros(small, size, dtype=torch.float64)
            matrix[where, torch.arange(size)] = 1.0
            return matrix / matrix.sum(1, keepdim=True)
        out = F.interpolate(eye[None, None], (small, size), mode=self.kind, antialias=True, align_corners=False)[0, 0]
        return out / out.sum(1, keepdim=True)

    def gram(self, like):
        even = all(n % self.factor == 0 for n in like.shape[-2:])
        return 1.0 / self.factor**2 if self.kind == "average" and even else None


@frozen
class GaussianBlur(Separable):
    """The picture is blurred by a Gaussian.

    y = G_rows u G_columns^T, each row of G a Gaussian of `sigma` pixels cut at 4 sigma, reflected at the border, of sum 1

    Pseudo-inverse: regularised. Singular values below `cut` of the largest (per axis) count as 0, since what they carry drowns in rounding: A A+ A u = A u up to that share.
    """

    node_id = "LodestarGaussianBlurOperator"
    title = "Gaussian Blur Operator"
    aliases = ("blur",)

    sigma: float = param(3.0, "Width of the blur in pixels.", 0.1, 64.0, 0.1)
    cut: float = param(0.01, "Details that the blur leaves less than this share of count as lost.", 1e-6, 0.5, 0.001, advanced=True)

    def axis(self, size):
        reach = min(math.ceil(4 * self.sigma), 8 * size)
        weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / self.sigma).square())
        weights = weights / weights.sum()
        at = torch.arange(size)[:, None] + torch.arange(-reach, reach + 1)[None]
        at = at % (2 * size)      # reflected with the border repeated: d c b a | a b c d | d c b a
        at = torch.where(at >= size, 2 * size - 1 - at, at)
        matrix = torch.zeros(size, size, dtype=torch.float64)
        return matrix.scatter_add_(1, at, weights.expand(size, -1))
