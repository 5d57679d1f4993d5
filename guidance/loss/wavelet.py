"""Wavelet target: the difference to a picture, weighted by frequency band."""
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from ..frozen import frozen
from ..method import param, socket
from .picture import PictureLoss


def haar(u):
    """Orthonormal Haar bands (LL, LH, HL, HH) of [n, c, h, w], each [n, c, h/2, w/2]; odd sides are mirrored by one row."""
    u = F.pad(u, (0, u.shape[-1] % 2, 0, u.shape[-2] % 2), mode="replicate")
    p, q, r, s = u[..., ::2, ::2], u[..., ::2, 1::2], u[..., 1::2, ::2], u[..., 1::2, 1::2]
    return (p + q + r + s) / 2, (p - q + r - s) / 2, (p + q - r - s) / 2, (p - q - r + s) / 2


@frozen(eq=False)
class WaveletTarget(PictureLoss):
    """How far the picture is from a target in each band of a Haar wavelet: rough layout, or details, as the weights say.

        loss = 1/N sum over bands b of  omega_b |b(u) - b(y)|^2,    N the number of values of u

    LL = (p+q+r+s)/2, LH = (p-q+r-s)/2, HL = (p+q-r-s)/2, HH = (p-q-r+s)/2 of each 2 x 2 block, `levels` times on LL. With all weights 1 it is the mean squared error, whatever the
    levels (Parseval). `low` weighs the last LL, `high` all other bands; `fall` multiplies `high` once more at each finer level.
    Paper: the losses of Xiao et al., "Frequency-Aware Guidance for Blind Image Restoration via Diffusion Models", arXiv 2411.12450, compare wavelet bands of the measurement.
    """

    title = "Wavelet Target Loss"
    pointwise = True

    image: Any = socket("IMAGE", "The picture to come close to.")
    levels: int = param(2, "How often the low band is split again.", 1, 8, 1)
    low: float = param(1.0, "Weight of the lowest band: rough colours and layout.", 0.0, 1000.0, 0.05)
    high: float = param(1.0, "Weight of the other bands: edges and details.", 0.0, 1000.0, 0.05)
    fall: float = param(1.0, "Factor of that weight at each finer level.", 0.0, 10.0, 0.05, advanced=True)

    def measure(self, u, m, context):
        rest, total = (u - self.wanted(u)) * m.sqrt(), 0.0
        for level in range(self.levels):
            rest, *details = haar(rest)
            factor = self.high * self.fall ** (self.levels - 1 - level)
            total = total + factor * sum(d.square().flatten(1).sum(1) for d in details)
        return (total + self.low * rest.square().flatten(1).sum(1)) / (m.flatten(1).sum(1) * u.shape[1]).clamp(min=1e-6)
