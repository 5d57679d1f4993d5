"""Spectrum: the amplitudes of a picture's frequencies, wherever things are."""
from __future__ import annotations

from typing import Any

import torch

from ..frozen import frozen
from ..method import BadInput, param, socket
from .picture import PictureLoss


def amplitudes(u):
    """|F u| of the orthonormal Fourier transform over height and width, with a gradient at 0: sqrt(re^2 + im^2 + 1e-12)."""
    z = torch.fft.rfft2(u.float(), norm="ortho")
    return (z.real.square() + z.imag.square() + 1e-12).sqrt()


def radii(u):
    """Distance [h, w // 2 + 1] of each frequency from 0, 1 at the highest along an axis."""
    y, x = torch.fft.fftfreq(u.shape[-2], device=u.device)[:, None], torch.fft.rfftfreq(u.shape[-1], device=u.device)[None]
    return 2 * (x.square() + y.square()).sqrt()


@frozen(eq=False)
class SpectrumTarget(PictureLoss):
    """How far the amplitudes of the picture's frequencies are from those of a target: its texture, not its places.

        loss = mean over the band of  | |F u| - |F y| |           F orthonormal; a picture that is shifted in a circle has the same amplitudes

    `lowest` and `highest` name the band: 0 is the mean, 1 the finest detail along an axis.

    It is the spectrum regulation of Li et al., "DifIISR: A Diffusion Model with Gradient Guidance for Infrared Image Super-Resolution", arXiv 2503.01187, whose other term is a distance of features; the
    released code samples without either, so their weights are not known. On a restoration: Steered Diffusion takes a measurement and this loss at once.
    """

    title = "Spectrum Loss"

    image: Any = socket("IMAGE", "The picture whose texture is wanted; another size is brought to that of the estimate.")
    lowest: float = param(0.0, "Lower end of the band.", 0.0, 1.5, 0.01)
    highest: float = param(1.5, "Upper end of the band.", 0.0, 1.5, 0.01)

    pointwise = True

    def measure(self, u, m, context):
        r = radii(u)
        band = ((r >= self.lowest) & (r <= self.highest)).to(u.dtype)
        if not band.any():
            raise BadInput(self.title, "lowest", self.lowest, f"No frequency lies between {self.lowest} and {self.highest}.")
        difference = (amplitudes(u * m) - amplitudes(self.wanted(u) * m)).abs()
        return (difference * band).mean(1).flatten(1).sum(1) / band.sum()
