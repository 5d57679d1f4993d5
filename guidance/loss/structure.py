"""Low frequencies of a given picture at several scales, the coarse ones early and the fine ones late."""
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from ..frozen import frozen
from ..method import BadInput, param, socket
from .picture import PictureLoss, mean


@frozen(eq=False)
class MultiscaleStructure(PictureLoss):
    """How far the picture's averages over blocks of several sizes are from those of a rough restoration, coarse blocks early and fine ones late.

        sum_N w_N mean |avg_N u - avg_N y|^2 / sum_N w_N,     w_N = N^-decay max(0, 1 - |log2 N - l| / 2),    l: from log2 of the largest N to that of the smallest over the steps

    After Ren et al., "Multiscale Structure Guided Diffusion for Deblurring", arXiv 2212.01789: there a regression network's features at 1/2, 1/4 and 1/8 of the size are given to a U-Net that is
    trained with them. Without training, what carries over is the guidance by coarse structure at those scales: y is a feed-forward deblurrer's (or upscaler's) picture, whose details are not to be trusted.
    N = 1 alone compares pixels.
    """

    title = "Multiscale Structure Loss"
    pointwise = True

    image: Any = socket("IMAGE", "A rough restoration, such as a feed-forward network's.")
    scales: str = param("8; 4; 2", "Sizes of the blocks, in pixels (rgb) or cells (small, latent), separated by semicolons.")
    decay: float = param(0.0, "Power by which larger blocks count less.", 0.0, 4.0, 0.1)
    follow: bool = param(True, "Coarse blocks early and fine ones late; off: all of them at every step.")

    def check(self):
        super().check()
        self.sizes
        return self

    @property
    def sizes(self):
        try:
            found = sorted({int(t) for t in self.scales.split(";") if t.strip()}, reverse=True)
        except ValueError:
            found = []
        if not found or found[-1] < 1:
            raise BadInput(self.title, "scales", self.scales, "Write whole numbers from 1, separated by semicolons.")
        return found

    def weighed(self, context):
        """[(N, w_N)] of this step."""
        logs = [torch.tensor(float(n)).log2().item() for n in self.sizes]
        now = logs[0] + (logs[-1] - logs[0]) * context.factor("rising")
        near = lambda l: max(0.0, 1 - abs(l - now) / 2) if self.follow and context.step is not None else 1.0
        return [(n, n**-self.decay * near(l)) for n, l in zip(self.sizes, logs)]

    def measure(self, u, m, context):
        y, weighed = self.wanted(u), self.weighed(context)
        average = lambda t, n: F.avg_pool2d(t, n, ceil_mode=True) if n > 1 else t
        found = [w * mean((average(u, n) - average(y, n)).square(), average(m, n)) for n, w in weighed if w > 0]
        return sum(found) / sum(w for _, w in weighed)
