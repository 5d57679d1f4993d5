"""Edges: the outlines of a picture or a sketch."""
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from ..frozen import frozen
from ..method import param, socket
from .picture import PictureLoss, gray, mean


def sobel(u):
    """Strength [n, 1, h, w] of the edges of gray pictures, sqrt(gx^2 + gy^2 + 1e-12), borders mirrored."""
    kernel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], device=u.device, dtype=u.dtype)
    found = F.conv2d(F.pad(gray(u), (1, 1, 1, 1), mode="replicate"), torch.stack((kernel, kernel.T))[:, None])
    return (found.square().sum(1, keepdim=True) + 1e-12).sqrt()


@frozen(eq=False)
class EdgeTarget(PictureLoss):
    """How far the picture's outlines are from those of a target picture, or from a sketch.

        e = Sobel strength of the luminance;  soft: sigmoid(5 (e - 0.4));   loss = mean of  v (e(u) - e(y))^2
        v = 1 on the target's lines (strength above a tenth) and `elsewhere` beside them

    A sketch's strokes are the lines themselves: white on black. Defaults: soft lines, 0.1 elsewhere (Frame Guidance's line loss).
    """

    title = "Edge Loss"
    pointwise = True

    image: Any = socket("IMAGE", "The picture whose outlines are wanted, or a sketch.")
    sketch: bool = param(False, "The image is a sketch: lines already, white on black. Else its edges are taken.")
    soft: bool = param(True, "Turns strengths into lines: weak edges count as none, strong ones alike.")
    elsewhere: float = param(0.1, "Weight beside the wanted lines, where none should be.", 0.0, 1.0, 0.01)

    def measure(self, u, m, context):
        lines = (lambda e: torch.sigmoid(5 * (e - 0.4))) if self.soft else (lambda e: e)
        y = self.wanted(u)
        wanted = gray(y) if self.sketch else sobel(y)
        strokes = wanted > 0.1
        aim = wanted if self.sketch else lines(wanted)
        v = torch.where(strokes, torch.ones_like(wanted), torch.full_like(wanted, self.elsewhere))
        return mean(v * (lines(sobel(u)) - aim).square(), m)
