"""Operators that keep some values and lose the others: A = A^T = A+ = multiplication by a mask of zeros and ones."""
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from ...frozen import frozen
from ...method import BadInput, param, socket
from .base import Operator


class Masked(Operator):
    """A = A^T = A+ = multiplication by `keep(u)`, zeros and ones that broadcast against u."""

    def keep(self, u):
        raise NotImplementedError

    def forward(self, u):
        return u * self.keep(u)

    def transposed(self, y, like):
        return y * self.keep(y)

    def gram(self, like):
        return 1.0

    def settle(self, y):
        return y * self.keep(y)


@frozen(eq=False)
class Inpainting(Masked):
    """Part of the picture is missing.

    y = k u,  A^T = A+ = k,  k = 0 where the mask is above one half and 1 elsewhere

    The mask is white where the picture is to be made anew, as ComfyUI's masks for inpainting are. It may have another size than the picture: where several of its
    cells fall on one (a mask of pixels, latents), one missing cell makes the whole missing. One mask for all, or one per picture of the batch or frame of the video.
    Pseudo-inverse: exact.
    """

    node_id = "LodestarInpaintingOperator"
    title = "Inpainting Operator"
    aliases = ("mask operator", "hole")

    mask: Any = socket("MASK", "White where the picture is missing.")

    def keep(self, u):
        hole = (torch.as_tensor(self.mask).to(u) > 0.5).to(u.dtype)
        hole = (hole[None] if hole.ndim == 2 else hole)[:, None]
        size = u.shape[-2:]
        if hole.shape[-2:] != size:
            smaller = hole.shape[-2] >= size[0] and hole.shape[-1] >= size[1]
            hole = F.adaptive_max_pool2d(hole, size) if smaller else F.interpolate(hole, size, mode="nearest")
        if u.ndim == 5:
            frames = hole.shape[0] == u.shape[2] and hole.shape[0] != u.shape[0]
            hole = hole.movedim(0, 1)[None] if frames else hole[:, :, None]
        if hole.shape[0] not in (1, u.shape[0]):
            raise BadInput(self.title, "mask", f"{hole.shape[0]} masks", f"Give one mask, or one for each of the {u.shape[0]} pictures.")
        return 1 - hole


@frozen
class MissingTraces(Masked):
    """Whole columns or rows are missing, as traces of a seismic section or lines of a scan.

    y = k u,  A^T = A+ = k,  k zeros and ones that depend on the column (or row) alone

    random: each line is missing with probability `share`, drawn from the seed; regular: every n-th line is kept, n = 1 / (1 - share) rounded.
    Pseudo-inverse: exact.
    """

    node_id = "LodestarMissingTracesOperator"
    title = "Missing Traces Operator"
    aliases = ("missing lines", "seismic", "trace interpolation")

    share: float = param(0.5, "Share of the lines that are missing.", 0.0, 0.95, 0.01)
    lines: str = param("columns", "Which lines are missing.", choices=("columns", "rows"))
    pattern: str = param("random", "Lines drawn by chance, or every n-th one kept.", choices=("random", "regular"))
    seed: int = param(0, "Of the random lines.", 0, 2**32 - 1, 1)

    def keep(self, u):
        n = u.shape[-1] if self.lines == "columns" else u.shape[-2]
        if self.pattern == "regular":
            kept = torch.arange(n) % max(1, round(1 / (1 - self.share))) == 0
        else:
            kept = torch.rand(n, generator=torch.Generator().manual_seed(int(self.seed))) >= self.share
        kept = kept.to(u)
        return kept if self.lines == "columns" else kept[:, None]
