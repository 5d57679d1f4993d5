"""Negative-Away Steer Attention."""
from __future__ import annotations

from typing import Any

import torch

from ..frozen import frozen
from ..method import Edit, Prompt, param, socket, window
from .edits import AttentionEdit

_start, _end = window()


def steered(plus, minus, scale, renormalise=False):
    """Z = Z+ - scale Z-; with `renormalise` brought back to the norm of Z+ (over all heads of a token). plus, minus [rows, heads, tokens, head_dim]."""
    p, m = plus.float(), minus.float()
    out = p - scale * m
    if renormalise:
        before = torch.linalg.vector_norm(p, dim=(1, 3), keepdim=True)
        after = torch.linalg.vector_norm(out, dim=(1, 3), keepdim=True)
        out = out * (before / after.clamp(min=1e-6))
    return out.to(plus.dtype)


@frozen
class SteerAway(AttentionEdit):
    """The edit: the attention to `negative`, with the same queries, is taken off the attention to the positive text."""

    negative: Any = None
    scale: float = 0.3
    renormalise: bool = False

    kinds = ("cross",)

    def default_layers(self, geometry):
        return "all"

    def apply(self, site, q, k, v, attend):
        plus = attend(q, k, v)
        pair = site.extra["tokens"].get(self) if site.extra else None
        return plus if pair is None else steered(plus, site.extra["plain"](q, *pair), self.scale, self.renormalise)


@frozen
class NegativeAwaySteerAttention(Edit):
    """A negative prompt for models of one or few steps: what attention reads from it is subtracted.

    Z+ = attn(q, K+, V+), Z- = attn(q, K-, V-) with the same q;  Z = Z+ - scale Z-

    It acts on the head outputs of every text cross-attention, before the output projection, for the positive prompt's rows. Z shrinks where both texts say the same; `renormalise`
    (not in the paper) brings each token back to the norm of Z+. An empty negative prompt is not neutral: leave the node out instead.
    Defaults: scale 0.3, within the 0.1 to 0.5 that one-step models take (no code is released; the paper's own value could not be checked).
    Limits: cross-attention only (U-Nets, Wan, LTX, Cosmos); for joint attention use Normalized Attention Guidance, its normalised relative.
    Cost: one more cross-attention per layer.
    """

    node_id = "LodestarNegativeAwaySteerAttention"
    title = "Negative-Away Steer Attention"
    family = "attention"
    paper = "SNOOPI (NASA)"
    aliases = ("NASA", "SNOOPI")
    evaluations = "0 (one more cross-attention a layer)"

    negative: Any = socket("CONDITIONING", "What to move away from; enters inside attention, independent of the sampler's negative prompt.")
    scale: float = param(0.3, "How much of the attention to the negative prompt is subtracted; 0 switches the node off.", 0.0, 1.0, 0.01)
    start_percent: float = _start
    end_percent: float = _end
    renormalise: bool = param(False, "Brings every token back to its norm before the subtraction.", advanced=True)
    layers: str = param("all", "Layers whose attention to the text is edited, e.g. all, output.", advanced=True)

    def neutral(self):
        return self.scale == 0

    def edits(self, step):
        prompt = self.negative if isinstance(self.negative, Prompt) else Prompt(self.negative, "negative of Negative-Away Steer Attention")
        return (SteerAway(self.layers, prompt, self.scale, self.renormalise),)
