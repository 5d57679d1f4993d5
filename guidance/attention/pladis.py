"""PLADIS: sparse weights mixed into cross-attention."""
from __future__ import annotations

import torch

from ..frozen import frozen
from ..method import BadInput, Edit, param, window
from .edits import AttentionEdit
from .explicit import logits, query_chunks

_start, _end = window()
NORMALISERS = ("entmax 1.5", "sparsemax")


def _ranks(z):
    """Sorted logits (largest first, the largest 0) and the numbers 1 ... n; what lies more than 2 below the largest can have no weight and is cut there."""
    y = (z - z.amax(-1, keepdim=True)).clamp(min=-2.0)
    return y, y.sort(-1, descending=True).values, torch.arange(1, z.shape[-1] + 1, device=z.device, dtype=z.dtype)


def sparsemax(z):
    """The projection of z on the simplex, over the last axis: max(z - tau, 0) with the tau that makes the sum 1."""
    y, ordered, k = _ranks(z)
    total = ordered.cumsum(-1)
    size = (1 + k * ordered > total).sum(-1, keepdim=True)
    tau = (total.gather(-1, size - 1) - 1) / size
    return (y - tau).clamp(min=0)


def entmax15(z):
    """The 1.5-entmax of z over the last axis: max(z / 2 - tau, 0)^2 with the tau that makes the sum 1."""
    y, ordered, k = _ranks(z / 2)
    mean, square = ordered.cumsum(-1) / k, ordered.square().cumsum(-1) / k
    tau = mean - ((1 - k * (square - mean.square())) / k).clamp(min=0).sqrt()
    size = (tau <= ordered).sum(-1, keepdim=True)
    return (y - tau.gather(-1, size - 1)).clamp(min=0).square()


@frozen
class SparseMix(AttentionEdit):
    """The edit: (1 - amount) attention + amount sparse attention."""

    amount: float = 2.0
    normaliser: str = NORMALISERS[0]

    kinds = ("cross",)
    everywhere = True

    def default_layers(self, geometry):
        return "input, output" if geometry.family == "unet" else "all"

    def apply(self, site, q, k, v, attend):
        dense = attend(q, k, v)
        weights = entmax15 if self.normaliser == NORMALISERS[0] else sparsemax
        out = torch.empty_like(dense)
        for part in query_chunks(*q.shape[:3], k.shape[2], copies=6):
            sparse = weights(logits(q, k, site.mask, part)) @ v.float()
            out[:, :, part] = torch.lerp(dense[:, :, part].float(), sparse, self.amount).to(out.dtype)
        return out


@frozen
class PLADIS(Edit):
    """Pictures that follow the prompt more closely, from cross-attention whose weights are pushed towards sparse ones.

    A = (1 - amount) softmax(z) + amount sparse(z),  z = q k / sqrt(d);  sparse is entmax 1.5 (or sparsemax), both zero for what matters little.
    entmax 1.5: p = max(z/2 - tau, 0)^2, sparsemax: p = max(z - tau, 0), tau such that p sums to 1. Rows of A sum to 1 for every amount; above 1 weak tokens
    get negative weights (intended).

    The dense part runs in the host's attention as always. U-Nets: all cross-attention but the middle's (paper), also in the negative prompt's rows.
    Wan, LTX, Cosmos: all cross-attention. Flux, SD3 and other joint attention: not defined, text and picture share one softmax there.
    Defaults: amount 2, entmax 1.5 (paper, SDXL). Cost: the text's weights once more with a sort over its tokens; no further evaluation.
    """

    node_id = "LodestarPLADIS"
    title = "PLADIS"
    family = "attention"
    paper = "PLADIS: Pushing the Limits of Attention in Diffusion Models at Inference Time by Leveraging Sparsity (arXiv 2503.07677)"
    aliases = ("sparse attention", "entmax", "sparsemax")
    evaluations = "0"

    amount: float = param(2.0, "Share of the sparse weights: 1 is sparse attention alone, more goes beyond it, 0 switches the node off.", 0.0, 4.0, 0.05)
    normaliser: str = param(NORMALISERS[0], "How weights become sparse; sparsemax is the harder one.", choices=NORMALISERS)
    start_percent: float = _start
    end_percent: float = _end
    layers: str = param("", "Layers whose cross-attention is changed. Empty: all but the middle block on U-Nets, all elsewhere.", advanced=True)

    def neutral(self):
        return self.amount == 0

    def fitted(self, facts):
        geometry = facts.geometry
        if geometry.layers and not any("cross" in layer.attentions for layer in geometry.layers):
            raise BadInput(self.title, "model", facts.network, "It needs cross-attention to the text; in this network text and picture share one softmax, or none can be reached.")
        return self

    def edits(self, step):
        return (SparseMix(self.layers, self.amount, self.normaliser),)
