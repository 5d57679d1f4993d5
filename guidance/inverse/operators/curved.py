"""Operators that are not linear: JPEG, quantisation, low light. Where they have an A+, it is one with A A+ A u = A u."""
from __future__ import annotations

import io
import math

import torch
import torch.nn.functional as F

from ...frozen import frozen
from ...method import param
from .base import Operator, flat

BRIGHTNESS = ((16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55), (14, 13, 16, 24, 40, 57, 69, 56), (14, 17, 22, 29, 51, 87, 80, 62),
              (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92), (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99))
COLOUR = ((17, 18, 24, 47, 99, 99, 99, 99), (18, 21, 26, 66, 99, 99, 99, 99), (24, 26, 56, 99, 99, 99, 99, 99), (47, 66, 99, 99, 99, 99, 99, 99), *((99,) * 8,) * 4)
LEAST = 0.05     # of a picture in [0, 1]; below it the slope of a power is next to 0 or without bound
TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


class Curved(Operator):
    linear = False
    spaces = ("rgb",)


def _straight(value, through):
    """`value`, with the gradient of `through`."""
    return through + (value - through).detach()


def _table(rows, quality, like):
    scale = 5000.0 / quality if quality < 50 else 200.0 - 2.0 * quality
    table = torch.tensor(rows, dtype=like.dtype, device=like.device)
    return ((table * scale + 50) / 100).floor().clamp(1, 255)


def _cosines8(like):
    k, n = torch.arange(8, dtype=like.dtype, device=like.device)[:, None], torch.arange(8, dtype=like.dtype, device=like.device)[None]
    matrix = torch.cos(math.pi * (n + 0.5) * k / 8) / 2
    matrix[0] /= math.sqrt(2.0)
    return matrix


@frozen
class Jpeg(Curved):
    """The picture was compressed as a JPEG.

    y = decode(round(DCT_8x8(YCbCr u) / table) * table)

    differentiable: computed here, rounding passes the gradient straight through, colour at full or half resolution; sizes that 8 (or 16) does not divide are filled up
    with the border's values. real: a JPEG file is written and read (values are cut to [0, 1]); its gradient is that of the identity.
    Not linear. A+ y = y: compressing a decoded picture again changes it little (differentiable at full colour resolution: not at all).
    """

    node_id = "LodestarJPEGOperator"
    title = "JPEG Operator"
    aliases = ("compression artefacts",)

    quality: int = param(20, "As in other programs: 100 is the best.", 1, 100, 1)
    codec: str = param("differentiable", "Computed with a gradient, or a real file.", choices=("differentiable", "real"))
    half_colour: bool = param(False, "Colour at half resolution (4:2:0).")

    def forward(self, u):
        rows, back = flat(u)
        if self.codec == "real":
            return back(_straight(self._file(rows), rows))
        return back(self._computed(rows))

    def inverted(self, y, like):
        return y

    def _file(self, rows):
        import numpy
        from PIL import Image
        out = []
        for picture in rows.detach().float().cpu():
            pixels = (picture.clamp(0, 1) * 255).round().byte().movedim(0, -1).numpy()
            data = io.BytesIO()
            Image.fromarray(pixels).save(data, "JPEG", quality=int(self.quality), subsampling=2 if self.half_colour else 0)
            out.append(torch.from_numpy(numpy.asarray(Image.open(data)).copy()).movedim(-1, 0).float() / 255)
        return torch.stack(out).to(rows)

    def _computed(self, rows):
        height, width = rows.shape[-2:]
        block = 16 if self.half_colour else 8
        filled = F.pad(rows, (0, -width % block, 0, -height % block), mode="replicate")
        matrix = torch.tensor(TO_YCC, dtype=rows.dtype, device=rows.device)
        ycc = torch.einsum("ij,njhw->nihw", matrix, filled * 255) - torch.tensor([128.0, 0, 0], dtype=rows.dtype, device=rows.device).view(3, 1, 1)
        bright, colour = ycc[:, :1], ycc[:, 1:]
        if self.half_colour:
            colour = F.avg_pool2d(colour, 2)
        bright, colour = self._rounded(bright, BRIGHTNESS), self._rounded(colour, COLOUR)
        if self.half_colour:
            colour = F.interpolate(colour, scale_factor=2, mode="nearest")
        ycc = torch.cat([bright + 128, colour], 1)
        rgb = torch.einsum("ij,njhw->nihw", torch.linalg.inv(matrix.double()).to(rows), ycc) / 255
        return rgb[..., :height, :width]

    def _rounded(self, planes, table):
        cosines, table = _cosines8(planes), _table(table, self.quality, planes)
        n, c, height, width = planes.shape
        blocks = planes.view(n, c, height // 8, 8, width // 8, 8).transpose(3, 4)
        coefficients = cosines @ blocks @ cosines.mT / table
        blocks = cosines.mT @ (_straight(coefficients.round(), coefficients) * table) @ cosines
        return blocks.transpose(3, 4).reshape(n, c, height, width)


@frozen
class Quantisation(Curved):
    """The picture has few shades.

    y = round(u (levels - 1)) / (levels - 1), for each channel

    Rounding passes the gradient straight through. Not linear. A+ y = y, and rounding again changes nothing.
    """

    node_id = "LodestarQuantisationOperator"
    title = "Quantisation Operator"
    aliases = ("posterise", "bit depth")

    levels: int = param(4, "Number of shades of each channel.", 2, 256, 1)

    def forward(self, u):
        return _straight((u * (self.levels - 1)).round() / (self.levels - 1), u)

    def inverted(self, y, like):
        return y


def exposed(u, gain, gamma):
    """clip(gain max(u, 0)^gamma, 0, 1); gain, gamma: numbers, or tensors that fit u. The gradient goes straight through the cuts, in u with the slope at u or LEAST, whichever is greater."""
    still = u.detach()
    light = gain * (still.clamp(min=0) if isinstance(gamma, (int, float)) and gamma == 1 else still.clamp(min=1e-6).pow(gamma))
    cut = light.clamp(0, 1)
    if not torch.is_grad_enabled():
        return cut
    with torch.no_grad():
        slope = gain * gamma * still.clamp(min=LEAST).pow(gamma - 1)
    return _straight(cut, light + slope * (u - still))


@frozen
class LowLight(Curved):
    """The picture is under- or over-exposed.

    y = clip(gain * max(u, 0)^gamma, 0, 1),  A+ y = (y / gain)^(1 / gamma)

    gain below 1 is too dark, above 1 too bright: what is cut off at 1 is lost. The gradient goes straight through both cuts, with a slope as if u were at least LEAST:
    an estimate beyond what y tells of comes back, where without one a pixel once black stays black. Not linear. A A+ A u = A u exactly.
    """

    node_id = "LodestarLowLightOperator"
    title = "Low Light Operator"
    aliases = ("exposure", "gamma", "HDR")

    gain: float = param(0.25, "Factor of the brightness.", 0.01, 16.0, 0.01)
    gamma: float = param(1.0, "Power: above 1 darkens the shadows.", 0.2, 5.0, 0.05)

    def forward(self, u):
        return exposed(u, self.gain, self.gamma)

    def inverted(self, y, like):
        return (y.clamp(0, 1) / self.gain).pow(1 / self.gamma)
