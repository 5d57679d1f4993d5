"""Rotary position embeddings of the host's networks in one form, so that an edit can undo and redo them."""
from __future__ import annotations

from dataclasses import replace

import torch

from ..frozen import frozen


@frozen
class Rotation:
    """The turn of each token's queries: cosines and sines [1 or rows, 1 or heads, tokens, pairs]. split: a pair is (i, i + half), else (2 i, 2 i + 1)."""

    cos: torch.Tensor
    sin: torch.Tensor
    split: bool = False

    def rows(self, start, stop):
        """The turns of rows start:stop."""
        if self.cos.shape[0] == 1:
            return self
        return replace(self, cos=self.cos[start:stop], sin=self.sin[start:stop])

    def turn(self, x, tokens=slice(None), back=False):
        """x [rows, heads, n, width] turned as the queries of `tokens` are, or turned back."""
        cos, sin = self.cos[:, :, tokens].float(), self.sin[:, :, tokens].float()
        if back:
            sin = -sin
        pairs = x.float().unflatten(-1, (2, -1)).transpose(-1, -2) if self.split else x.float().unflatten(-1, (-1, 2))
        a, b = pairs.unbind(-1)
        turned = torch.stack((cos * a - sin * b, sin * a + cos * b), -1)
        return (turned.transpose(-1, -2) if self.split else turned).flatten(-2).to(x.dtype)


def read(pe, q, split=False):
    """The Rotation behind what a block calls its rotary embedding, for queries q [rows, heads, tokens, width]; None where there is none or its form is not known.

    pe: matrices [..., pairs, 2, 2] (Flux, Wan, Qwen-Image, Lumina, Hunyuan, HiDream; Cosmos, whose pairs are split), (matrices, split) or
    (cosines, sines[, split]) (LTX).
    """
    if isinstance(pe, (tuple, list)):
        if len(pe) == 2 and isinstance(pe[1], bool):
            return _of_matrices(pe[0], q, pe[1])
        if len(pe) in (2, 3) and all(isinstance(t, torch.Tensor) for t in pe[:2]):
            return _of_cosines(pe[0], pe[1], q, bool(len(pe) == 3 and pe[2]))
        return None
    return _of_matrices(pe, q, split) if isinstance(pe, torch.Tensor) else None


def _of_matrices(t, q, split):
    if t.ndim < 4 or t.shape[-2:] != (2, 2):
        return None
    return _checked(_ordered(t[..., 0, 0], q), _ordered(t[..., 1, 0], q), q, split)


def _of_cosines(cos, sin, q, split):
    if cos.ndim == 3 and cos.shape[-1] == q.shape[1] * q.shape[3]:      # over all heads, each value twice
        cos, sin = (t.unflatten(-1, (q.shape[1], q.shape[3]))[..., ::2] for t in (cos, sin))
    return _checked(_ordered(cos, q), _ordered(sin, q), q, split)


def _ordered(t, q):
    """[1 or rows, 1 or heads, tokens, pairs], None where no axis holds the tokens."""
    while t.ndim < 4:
        t = t[None]
    while t.ndim > 4 and 1 in t.shape[:-1]:
        t = t.squeeze(t.shape.index(1))
    if t.ndim != 4:
        return None
    for axis in (2, 1, 0):
        if t.shape[axis] == q.shape[2]:
            return t.movedim(axis, 2)
    return None


def _checked(cos, sin, q, split):
    if cos is None or cos.shape[3] * 2 != q.shape[3] or cos.shape[0] not in (1, q.shape[0]) or cos.shape[1] not in (1, q.shape[1]):
        return None
    return Rotation(cos, sin, split)
