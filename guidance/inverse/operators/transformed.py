"""Operators that keep some coefficients of an orthonormal transform: A = K T, A^T = A+ = T^T K."""
from __future__ import annotations

import functools
import math

import torch

from ...frozen import frozen
from ...method import param
from .base import Operator


class Transformed(Operator):
    """y holds the kept coefficients at their places, zeros elsewhere. `turn` is the transform, `turn_back` its transpose, `keep(u)` zeros and ones."""

    def turn(self, u):
        raise NotImplementedError

    def turn_back(self, y):
        raise NotImplementedError

    def keep(self, u):
        raise NotImplementedError

    def forward(self, u):
        return self.turn(u) * self.keep(u)

    def transposed(self, y, like):
        return self.turn_back(y * self.keep(y))

    def gram(self, like):
        return 1.0

    def settle(self, y):
        return y * self.keep(y)


@functools.lru_cache(32)
def _cosines(size):
    """The orthonormal cosine transform (DCT-II) of one axis."""
    with torch.inference_mode(False):
        k, n = torch.arange(size, dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64)[None]
        matrix = torch.cos(math.pi * (n + 0.5) * k / size) * math.sqrt(2.0 / size)
        matrix[0] /= math.sqrt(2.0)
        return matrix


@frozen
class RandomProjection(Transformed):
    """Fewer random projections than pixels are known (compressed sensing).

    y = K C S u,  A^T = A+ = S C^T K,  S random signs, C the cosine transform of rows and columns, K a random choice of `share` of the coefficients

    No matrix of the picture's size is stored. y is shown at the places of its coefficients and looks like noise; a picture file would round it and cut it to
    [0, 1], so wire it. Each channel and frame has signs and choices of its own. Pseudo-inverse: exact.
    """

    node_id = "LodestarRandomProjectionOperator"
    title = "Random Projection Operator"
    aliases = ("compressed sensing",)

    share: float = param(0.25, "How many projections, as a share of the number of pixels.", 0.001, 1.0, 0.001)
    seed: int = param(0, "Of signs and choice.", 0, 2**32 - 1, 1)

    def _drawn(self, u, salt):
        generator = torch.Generator().manual_seed((int(self.seed) * 1_000_003 + salt) % (1 << 63))
        return torch.rand(u.shape[1:], generator=generator).to(u.device)

    def turn(self, u):
        signs = (self._drawn(u, 1) < 0.5).to(u.dtype) * 2 - 1
        rows, columns = (_cosines(int(n)).to(u) for n in u.shape[-2:])
        return rows @ (u * signs) @ columns.mT

    def turn_back(self, y):
        signs = (self._drawn(y, 1) < 0.5).to(y.dtype) * 2 - 1
        rows, columns = (_cosines(int(n)).to(y) for n in y.shape[-2:])
        return (rows.mT @ y @ columns) * signs

    def keep(self, u):
        return (self._drawn(u, 2) < self.share).to(u.dtype)


KEPT = ("coarse", "details", "all")


@frozen
class Wavelet(Transformed):
    """Some bands of a Haar wavelet transform are known.

    y = K H u,  A^T = A+ = H^T K

    H: `levels` times, pairs along both axes become (p + q) / sqrt 2 and (p - q) / sqrt 2, sums in front; then again on the sums. Orthonormal for any size: of an odd
    number of values the last one is passed on to the sums as it is. Kept: "coarse" (the sums that are left), "details" (all but those), or "all". Pseudo-inverse: exact.
    """

    node_id = "LodestarWaveletOperator"
    title = "Wavelet Operator"
    aliases = ("Haar", "frequency bands")

    levels: int = param(3, "How many times the sums are split again.", 1, 10, 1)
    kept: str = param("coarse", "Which bands are known.", choices=KEPT)

    def _sizes(self, shape):
        """[(height, width)] of what each level splits."""
        height, width = shape[-2:]
        found = []
        for _ in range(self.levels):
            found.append((height, width))
            height, width = (height + 1) // 2, (width + 1) // 2
        return found, (height, width)

    def turn(self, u):
        out = u.clone()
        for height, width in self._sizes(u.shape)[0]:
            part = out[..., :height, :width]
            out[..., :height, :width] = _haar(_haar(part).mT).mT
        return out

    def turn_back(self, y):
        out = y.clone()
        for height, width in reversed(self._sizes(y.shape)[0]):
            part = out[..., :height, :width]
            out[..., :height, :width] = _haar_back(_haar_back(part).mT).mT
        return out

    def keep(self, u):
        height, width = self._sizes(u.shape)[1]
        coarse = torch.zeros(u.shape[-2:], dtype=u.dtype, device=u.device)
        coarse[:height, :width] = 1
        return {"coarse": coarse, "details": 1 - coarse, "all": torch.ones_like(coarse)}[self.kept]


def _haar(t):
    """One level along the last axis: sums (with the odd value out), then differences."""
    n = t.shape[-1]
    even = n - n % 2
    p, q = t[..., 0:even:2], t[..., 1:even:2]
    return torch.cat([(p + q) / math.sqrt(2.0), t[..., even:], (p - q) / math.sqrt(2.0)], -1)


def _haar_back(t):
    n = t.shape[-1]
    half, odd = n // 2, n % 2
    p, q = t[..., :half], t[..., half + odd:]
    pairs = torch.stack([p + q, p - q], -1).flatten(-2) / math.sqrt(2.0)
    return torch.cat([pairs, t[..., half:half + odd]], -1)
