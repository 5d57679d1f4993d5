"""Which of the host's attention functions take a scale of their own: some versions hand it on, others drop it without a word."""
from __future__ import annotations

import torch

_known = {}


def takes_scale(function, like):
    """Whether function(q, k, v, heads, scale=s) computes softmax(s q k) v for queries of this dtype, device and head size; asked once, on sixteen tokens.

    like: [rows, heads, tokens, head_dim]. What is no function of the host's own takes none: it may be another one at every call.
    """
    key = (function, like.dtype, like.device, like.shape[-1])
    if key in _known:
        return _known[key]
    if function is None or not function.__module__.startswith("comfy.") or "<locals>" in function.__qualname__:
        return False
    _known[key] = _asked(function, like)
    return _known[key]


def _asked(function, like):
    width = like.shape[-1]
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 16, width, generator=generator).to(like) for _ in range(3))
    scale = 4.0 * width ** -0.5      # four times the usual one: no approximation of an attention is that far off
    wanted = torch.softmax(q.float() @ k.float().transpose(1, 2) * scale, -1) @ v.float()
    try:
        found = function(q, k, v, 1, scale=scale)
    except (TypeError, RuntimeError, ValueError, NotImplementedError, AssertionError):
        return False
    return found.shape == wanted.shape and bool((found.float() - wanted).norm() <= 0.1 * wanted.norm())
