"""Noisy versions of a given picture, and errors of predictions, in every parametrisation (x = a x0 + s n)."""
from __future__ import annotations

import torch

WEIGHTS = ("noise", "velocity", "data")


def signal(sigma, flow):
    """a at noise levels sigma: 1 in k-units, 1 - sigma on flow models."""
    return 1 - sigma if flow else torch.ones_like(sigma)


def spread(t, like):
    """A value per row [n], shaped to broadcast against `like` [n, ...]."""
    return t.view(-1, *[1] * (like.ndim - 1)).to(like)


def noised(x0, noise, sigma, flow):
    """x = a x0 + s n for each row."""
    return spread(signal(sigma, flow), x0) * x0 + spread(sigma, x0) * noise


def weight(sigma, flow, kind):
    """The factor w(s) [n] with which an error of the clean estimate becomes one of the noise (a / s), the velocity (on flow models 1 / s, else that of the
    variance-preserving form, sqrt(1 + s^2) / s) or of the data itself (1)."""
    sigma = sigma.clamp(min=1e-6)
    if kind == "data":
        return torch.ones_like(sigma)
    if kind == "velocity":
        return 1 / sigma if flow else (1 + sigma * sigma).sqrt() / sigma
    return signal(sigma, flow) / sigma


def noise_of(shape, seed, index):
    """The index-th noise of a seed [1, *shape]: the same whatever is drawn before or beside it."""
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed((seed * 1_000_003 + index) % 2 ** 63))


def levels(count):
    """`count` even places in the schedule (0 clean, 1 noise), each in the middle of its share."""
    return [(i + 0.5) / count for i in range(count)]
