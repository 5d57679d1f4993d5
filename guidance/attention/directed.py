"""Directed Diffusion: attention maps of words strengthened in a box and weakened outside it, in the first steps."""
from __future__ import annotations

import math
from typing import Any

import torch

from ..frozen import frozen
from ..method import Edit, param, socket
from .dense import picture_part
from .matrix import MatrixEdit
from .regions import Regions, columns

TOP = 9.0      # of the factor l, which falls to 0 over the edited steps (released code: ten training levels)


def gaussian(region, height, width, frames=1, window=(0.0, 0.0, 1.0, 1.0)):
    """[frames, height, width]: the density 1 / (2 pi sy sx) exp(...) around the centre of the region's box, deviations half its sides, in cells of the grid."""
    left, top, wide, high = window
    y = (top + (torch.arange(height) + 0.5) / height * high)[:, None]
    x = (left + (torch.arange(width) + 0.5) / width * wide)[None]
    sheets = []
    for t in range(frames):
        bx, by, bw, bh = region.bounds(t / max(1, frames - 1))
        sy, sx = bh / 2, bw / 2
        cells = (sy * height / high) * (sx * width / wide)
        sheets.append(torch.exp(-((y - by - sy) ** 2 / (2 * sy ** 2) + (x - bx - sx) ** 2 / (2 * sx ** 2))) / (2 * math.pi * cells))
    return torch.stack(sheets)


@frozen
class DirectedAttention(MatrixEdit):
    """The edit. inside: the factor strength * l of this step; outside: the factor elsewhere; spread: how much of the Gaussian is added."""

    regions: Any = None
    inside: float = 1.0
    outside: float = 0.01
    spread: float = 1.0
    trailing: int = 15
    weaken_others: bool = False
    renormalise: bool = False

    kinds = ("cross",)
    title = "Directed Diffusion"

    @property
    def mark(self):
        return self.regions.mark

    def default_layers(self, geometry):
        return "all"

    def _columns(self, prompt):
        """[(key positions, numbers of the regions)]: each region's words, and the tokens behind the prompt, which belong to all regions."""
        length = self.regions.length
        behind = [t for _, stop in self.regions.spans for t in range(stop, min(stop + self.trailing, length))]
        groups = [(columns(r.tokens, length, prompt), (i,)) for i, r in enumerate(self.regions)]
        return groups + ([(columns(behind, length, prompt), tuple(range(len(self.regions))))] if behind else [])

    def _fields(self, site, device, tokens):
        """Coverage, and coverage times the Gaussian, of each region [regions, tokens]."""
        def make():
            m = self.regions.at(site, hard=True, tokens=tokens).float()
            g = torch.stack([gaussian(r, site.height, site.width, site.frames, site.window).flatten() for r in self.regions])
            return m.to(device), (m * g).to(device)
        return self.regions.cached(("directed", site.height, site.width, site.frames, site.window, tokens, str(device)), make)

    def weights(self, site, a, part):
        count = site.frames * site.height * site.width
        if part.stop > count:
            self.regions.at(site, tokens=part.stop)      # more queries than the grid has: says so
        _, which = picture_part(site, part, count)
        m, g = (t[:, which] for t in self._fields(site, a.device, count))
        factor = torch.tensor([self.inside * r.weight for r in self.regions], device=a.device)[:, None]
        total = a.sum(-1, keepdim=True) if self.renormalise else None
        out = a * self.outside if self.weaken_others else a.clone()
        for at, members in self._columns(site.prompt):
            members = list(members)
            cover = m[members].amax(0)
            gain = (m[members] * factor[members]).amax(0) + (1 - cover) * self.outside
            out[..., at] = a[..., at] * gain[:, None] + self.spread * g[members].amax(0)[:, None]
        return out * (total / out.sum(-1, keepdim=True).clamp(min=1e-12)) if self.renormalise else out


@frozen
class DirectedDiffusion(Edit):
    """Places the things that words name: in the first steps the words' attention maps are strengthened inside their box and nearly erased outside it.

    A_ij <- A_ij strength l_s + G_i inside the box,  A_ij <- outside A_ij elsewhere, for the tokens j of a region's words and the first `trailing` tokens behind the prompt
    l_s falls evenly from 9 to 0 over the edited steps s; G = the Gaussian density around the box's centre with half its sides as deviations, in cells of the layer

    The tokens behind the prompt carry much of the layout; they belong to all regions together. Rows of A are not brought back to a sum of 1 unless `renormalise` says so. The released
    code also multiplies all other tokens by `outside` (`weaken_others`). With masks the Gaussian sits in the box around them; on video it follows boxes that move.
    Defaults: strength 1, outside 0.01, 15 trailing tokens, a fifth of the steps (released code: 10 of 50).
    Limits: cross-attention only (U-Nets, Wan, LTX, Cosmos): joint attention has no softmax of the text alone.
    Cost: the attention to the text is written out while it acts.
    """

    node_id = "LodestarDirectedDiffusion"
    title = "Directed Diffusion"
    family = "attention"
    paper = "Directed Diffusion"
    aliases = ("attention placement",)
    evaluations = "0 (attention to the text written out in the first steps)"
    planar = True

    regions: Any = socket("LODESTAR_REGIONS", "The regions with their words, from the node Prompt with Regions.")
    strength: float = param(1.0, "How strongly the words' attention grows inside their region.", 0.0, 5.0, 0.05)
    steps: float = param(0.2, "Share of the steps, from the first on, in which attention is edited; 0 switches the node off.", 0.0, 1.0, 0.01)
    trailing: int = param(15, "How many tokens behind the prompt are edited with each region's words.", 0, 512, 1)
    outside: float = param(0.01, "What is left of the words' attention outside their region.", 0.0, 1.0, 0.01)
    gaussian: float = param(1.0, "How much of the Gaussian is added inside the region.", 0.0, 100.0, 0.1, advanced=True)
    weaken_others: bool = param(False, "Multiplies all other tokens by `outside` everywhere too, as the released code does.", advanced=True)
    renormalise: bool = param(False, "Brings every pixel's attention back to its sum.", advanced=True)
    layers: str = param("all", "Layers whose attention to the text is edited, e.g. all, output.", advanced=True)

    def validate(self):
        super().validate()
        if isinstance(self.regions, Regions):
            self.regions.need(self.title, words=True)
        return self

    def neutral(self):
        return self.steps == 0

    def edits(self, step):
        total = max(1, len(step.sigmas) - 1) if step.sigmas is not None else 50
        edited = max(1, round(self.steps * total))
        if step.index >= edited:
            return ()
        level = TOP * (1 - step.index / (edited - 1)) if edited > 1 else TOP
        return (DirectedAttention(self.layers, self.regions, self.strength * level, self.outside, self.gaussian, self.trailing, self.weaken_others, self.renormalise),)
