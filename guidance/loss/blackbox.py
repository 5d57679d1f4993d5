"""Losses that give values only: what a file, a reader or any program says of a picture. For the particle samplers."""
from __future__ import annotations

import io
from typing import Any

import torch

from ..frozen import frozen
from ..method import param
from .base import Loss
from .picture import PictureLoss

DIRECTIONS = ("smaller", "larger")


def pixels(u, m):
    """[n] arrays [height, width, 3] of bytes of pictures u under masks m: grey where a mask hides them."""
    seen = u.detach().float().cpu().clamp(0, 1)
    m = m.detach().float().cpu()
    return [p.movedim(0, -1).numpy() for p in ((seen * m + 0.5 * (1 - m)) * 255).round().to(torch.uint8)]


@frozen(eq=False)
class JpegSize(PictureLoss):
    """How large the picture is as a JPEG file: led to smaller files it becomes plain, to larger ones rich in detail.

        value = +- 8 bytes of the file / pixels        bits per pixel; + for smaller, - for larger

    A file's size has no gradient. quality 95 counts fine grain too, lower ones only what such a file keeps. A mask turns what it hides grey. The compressibility reward of SVDD and its kin.
    """

    title = "JPEG Size Loss"
    spaces = ("rgb", "small")
    own_node = True
    differentiable = False

    direction: str = param("smaller", "What is wanted: a smaller file, or a larger one.", choices=DIRECTIONS)
    quality: int = param(95, "Quality of the file, as in other programs: 100 is the best.", 1, 100, 1)

    def measure(self, u, m, context):
        from PIL import Image
        sign, found = 1.0 if self.direction == "smaller" else -1.0, []
        for picture in pixels(u, m):
            data = io.BytesIO()
            Image.fromarray(picture).save(data, "JPEG", quality=int(self.quality))
            found.append(sign * 8 * data.tell() / (picture.shape[0] * picture.shape[1]))
        return u.new_tensor(found)


@frozen(eq=False)
class QRReadable(PictureLoss):
    """Whether a QR reader reads the picture: 0 where it does, 1 where it does not.

        value = 0 if ZXing reads a code, and it says `text` where that is given;  else 1

    Needs the package zxing-cpp. It says nothing until a code can nearly be read: add the QR Code Loss (Combine Losses), whose share of wrong modules leads there.
    """

    title = "QR Readable Loss"
    spaces = ("rgb",)
    own_node = True
    differentiable = False

    text: str = param("", "What the code has to say; empty: any text.")

    def measure(self, u, m, context):
        from .qr_code import read
        seen = u.detach().float() * m + (1 - m)      # white around it, as a quiet zone
        return u.new_tensor([float(not t or bool(self.text) and t != self.text) for t in read(seen.movedim(1, -1), self.title)])


@frozen(eq=False)
class ValuesOnly(Loss):
    """A loss whose gradient is not used."""

    loss: Any = None
    differentiable = False

    @property
    def title(self):
        return f"{self.loss.title} without gradient"

    def active(self, step):
        return self.loss.active(step)

    def value(self, denoised, context):
        with torch.no_grad():
            return self.loss.value(denoised.detach(), context).detach()
