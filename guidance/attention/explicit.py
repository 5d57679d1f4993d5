"""Attention weights written out, in bounded memory: for what the fused kernels cannot give."""
from __future__ import annotations

import torch

BUDGET = 64 * 2 ** 20      # bytes of one chunk of weights


def query_chunks(rows, heads, queries, keys, copies=1, budget=BUDGET):
    """Slices over the queries, so that `copies` float32 tensors [rows, heads, chunk, keys] stay within the budget."""
    size = max(1, int(budget // max(1, 4 * copies * rows * heads * keys)))
    for start in range(0, queries, size):
        yield slice(start, min(start + size, queries))


def logits(q, k, mask=None, part=slice(None)):
    """q k^T / sqrt(d) + mask of the queries in `part`, float32 [rows, heads, chunk, keys]; mask as guidance.attention.edits.Site has it."""
    z = (q[:, :, part].float() * q.shape[-1] ** -0.5) @ k.float().transpose(-1, -2)
    if mask is not None:
        z = z + (mask if mask.shape[2] == 1 else mask[:, :, part])
    return z
