"""Normalized Attention Guidance."""
from __future__ import annotations

from typing import Any

import torch

from ..frozen import frozen
from ..method import Edit, Prompt, param, socket, window
from .edits import AttentionEdit

_start, _end = window()


def normalised(plus, minus, scale, tau, alpha, norm="L1"):
    """Z = Z+ + alpha (Z' - Z+), Z' the extrapolation Z+ + scale (Z+ - Z-) cut to tau times the norm of Z+.

    plus, minus [rows, heads, tokens, head_dim]; norms are over all heads of a token. Equal inputs come back bit-equal.
    """
    p, m = plus.float(), minus.float()
    away = p + scale * (p - m)
    order = 1 if norm == "L1" else 2
    before = torch.linalg.vector_norm(p, order, dim=(1, 3), keepdim=True)
    after = torch.linalg.vector_norm(away, order, dim=(1, 3), keepdim=True)
    ratio = after / (before + 1e-6)
    factor = torch.where(ratio > tau, tau / ratio.clamp(min=1e-12), torch.ones_like(ratio))
    return (p + alpha * (away * factor - p)).to(plus.dtype)


@frozen
class NegativeAttention(AttentionEdit):
    """The edit: attention to the positive text is pushed away from attention to `negative` with the same queries."""

    negative: Any = None
    scale: float = 4.0
    tau: float = 2.5
    alpha: float = 0.25
    norm: str = "L1"

    kinds = ("cross", "joint")

    def default_layers(self, geometry):
        return "all"

    def combine(self, plus, minus):
        return normalised(plus, minus, self.scale, self.tau, self.alpha, self.norm)

    def apply(self, site, q, k, v, attend):
        plus = attend(q, k, v)
        pair = site.extra["tokens"].get(self) if site.extra else None
        if pair is None:
            return plus
        return self.combine(plus, site.extra["plain"](q, *pair))


@frozen
class NormalizedAttentionGuidance(Edit):
    """A negative prompt that works inside attention, also where CFG is off or the model is distilled.

    Z+ = attn(q, K+, V+), Z- = attn(q, K-, V-) with the same q;  Z' = Z+ + scale (Z+ - Z-)
    r = |Z'| / |Z+| per token (L1 over all heads);  Z' <- Z' min(r, tau) / r;  Z = Z+ + alpha (Z' - Z+)

    U-Nets, Wan, LTX, Cosmos: every text cross-attention; attention to the tokens of a start picture is left alone. Joint attention (Flux, SD3, Qwen ...): a second
    text stream runs beside the first, both share one image stream, whose head outputs are combined; the pooled text stays the positive's. Only the positive
    prompt's rows are edited. The published nag_scale is scale + 1.
    Defaults: scale 4, tau 2.5, alpha 0.25 (paper, Flux). SD and SDXL few-step models: scale 2, alpha 0.5. Video models in other packs: scale 11.
    Limits: not on HiDream; on Lumina 2 and Z-Image the negative may not have more tokens than the positive prompt.
    Cost: one more cross-attention per layer; joint attention doubles the positive rows.
    """

    node_id = "LodestarNormalizedAttentionGuidance"
    title = "Normalized Attention Guidance"
    family = "attention"
    paper = "Normalized Attention Guidance (NAG)"
    aliases = ("NAG",)
    evaluations = "0 (cross-attention: one more cross-attention a layer; joint attention: the positive rows twice)"

    negative: Any = socket("CONDITIONING", "What to move away from; enters inside attention, independent of the sampler's negative prompt.")
    scale: float = param(4.0, "How far attention is pushed from the negative prompt; 0 switches the node off.", 0.0, 50.0, 0.1)
    tau: float = param(2.5, "Largest growth of a token's norm.", 1.0, 20.0, 0.1)
    alpha: float = param(0.25, "Share of the pushed result that is mixed in; 0 switches the node off.", 0.0, 1.0, 0.01)
    start_percent: float = _start
    end_percent: float = _end
    layers: str = param("all", "Layers whose attention to the text is edited, e.g. all, output, double.*.", advanced=True)
    norm: str = param("L1", "Norm of a token: L1 as in the paper, L2 as in the first released Flux code.", choices=("L1", "L2"), advanced=True)

    def neutral(self):
        return self.scale == 0 or self.alpha == 0

    def edits(self, step):
        prompt = self.negative if isinstance(self.negative, Prompt) else Prompt(self.negative, "negative of Normalized Attention Guidance")
        return (NegativeAttention(self.layers, prompt, self.scale, self.tau, self.alpha, self.norm),)
