"""Blur by a kernel: a circular convolution, diagonal in the Fourier domain."""
from __future__ import annotations

import math
from typing import Any

import torch

from ...frozen import frozen
from ...method import BadInput, param, socket
from .base import Operator

_cut = param(0.02, "Frequencies that the blur leaves less than this share of count as lost.", 1e-6, 0.5, 0.001, advanced=True)


class Convolution(Operator):
    """A u = F^-1 (K F u) for each channel, K the kernel's transfer function at the picture's size. Pictures continue at the opposite border.

    Pseudo-inverse: regularised. Frequencies with |K| below `cut` of the largest count as 0, so A A+ A u = A u up to that share.
    """

    cut = 0.02

    def kernel(self):
        """[height, width], of sum 1, its middle the origin."""
        raise NotImplementedError

    def _transfer(self, like):
        kernel = self.kernel().to(device=like.device, dtype=like.dtype)
        height, width = like.shape[-2:]
        rows = (torch.arange(kernel.shape[0], device=like.device) - kernel.shape[0] // 2) % height
        columns = (torch.arange(kernel.shape[1], device=like.device) - kernel.shape[1] // 2) % width
        sheet = torch.zeros(height * width, dtype=like.dtype, device=like.device)
        sheet.index_add_(0, (rows[:, None] * width + columns[None]).flatten(), kernel.flatten())      # kernels larger than the picture wrap around
        return torch.fft.rfft2(sheet.view(height, width))

    def _filter(self, u, make):
        size = u.shape[-2:]
        return torch.fft.irfft2(torch.fft.rfft2(u) * make(self._transfer(u)), s=size)

    def forward(self, u):
        return self._filter(u, lambda k: k)

    def transposed(self, y, like):
        return self._filter(y, torch.conj)

    def _kept(self, k):
        strength = k.abs().square()
        return strength, strength >= self.cut**2 * strength.max()

    def inverted(self, y, like):
        def inverse(k):
            strength, kept = self._kept(k)
            return torch.where(kept, k.conj() / strength.clamp(min=1e-30), torch.zeros_like(k))
        return self._filter(y, inverse)

    def spectral(self, u, gain):
        def gains(k):
            strength, kept = self._kept(k)
            return gain(torch.where(kept, strength.sqrt(), torch.zeros_like(strength)))
        return self._filter(u, gains)

    def filtered(self, r, prior, noise, like, rounds=0):
        return self._filter(r, lambda k: k.conj() / (prior * k.abs().square() + noise))


@frozen
class MotionBlur(Convolution):
    """The picture is blurred along a line, as by a moving camera.

    y = u convolved with a line of `length` pixels at `angle` degrees, of sum 1; borders continue at the opposite side

    Pseudo-inverse: regularised. Frequencies that the blur leaves less than `cut` of count as lost.
    """

    node_id = "LodestarMotionBlurOperator"
    title = "Motion Blur Operator"
    aliases = ("camera shake",)

    length: float = param(15.0, "Length of the movement in pixels.", 1.0, 256.0, 0.5)
    angle: float = param(0.0, "Its direction in degrees: 0 is horizontal, 90 vertical.", -180.0, 180.0, 1.0)
    cut: float = _cut

    def kernel(self):
        reach = math.ceil(self.length / 2)
        points = torch.linspace(-0.5, 0.5, 8 * (2 * reach + 1), dtype=torch.float64) * (self.length - 1)
        turned = math.radians(self.angle)
        sheet = torch.zeros(2 * reach + 1, 2 * reach + 1, dtype=torch.float64)
        x, y = points * math.cos(turned) + reach, -points * math.sin(turned) + reach
        for dy in (0, 1):      # each point of the line is shared between the four pixels around it
            for dx in (0, 1):
                column, row = x.floor() + dx, y.floor() + dy
                share = (1 - (x - column).abs()) * (1 - (y - row).abs())
                inside = (column <= 2 * reach) & (row <= 2 * reach)
                sheet.index_put_((row[inside].long(), column[inside].long()), share[inside], accumulate=True)
        return sheet / sheet.sum()


@frozen(eq=False)
class KernelBlur(Convolution):
    """The picture is convolved with a given kernel.

    y = u convolved with the kernel (brightness of its picture, divided by its sum); borders continue at the opposite side

    Pseudo-inverse: regularised. Frequencies that the blur leaves less than `cut` of count as lost.
    """

    node_id = "LodestarKernelBlurOperator"
    title = "Kernel Blur Operator"
    aliases = ("point spread function", "PSF")

    picture: Any = socket("IMAGE", "The kernel: white where light goes, its middle the origin.")
    cut: float = _cut

    def kernel(self):
        sheet = torch.as_tensor(self.picture).double()
        sheet = sheet[0] if sheet.ndim == 4 else sheet
        sheet = sheet[..., :3].mean(-1) if sheet.ndim == 3 else sheet
        total = float(sheet.sum())
        if total <= 0:
            raise BadInput(self.title, "picture", "a black kernel", "Give a kernel with a positive sum.")
        return sheet / total
