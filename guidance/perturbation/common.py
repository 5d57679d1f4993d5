"""What the perturbation methods share."""
from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from ..method import POSITIVE, Term, param


def rescaled(base, delta, cond, share):
    """delta', so that base + delta' has its standard deviation brought `share` of the way to cond's, per sample."""
    if not share:
        return delta
    result = base + delta
    axes = tuple(range(1, base.ndim))
    factor = cond.std(axes, keepdim=True) / result.std(axes, keepdim=True).clamp(min=1e-8)
    return result * (share * factor + 1 - share) - base


def rescaling():
    """The field `rescale` of the methods that push away from a degraded prediction."""
    return param(0.0, "Share of the standard deviation brought back to the conditional prediction's, against oversaturation.", 0.0, 1.0, 0.01)


class Push(Term):
    """Base of the methods with result = base + scale (cond - ptb): `branch` is the degraded prediction; `scale` and `rescale` are fields."""

    @property
    def branch(self):
        raise NotImplementedError

    def neutral(self):
        return self.scale == 0

    def branches(self, step):
        return (POSITIVE, self.branch)

    def delta(self, step, base, predictions, state):
        cond = predictions[POSITIVE]
        return rescaled(base, self.scale * (cond - predictions[self.branch]), cond, self.rescale)


def gaussian(sigma, size, like):
    """Normalised Gaussian weights [size] in the dtype and on the device of `like`; size is odd."""
    at = torch.arange(size, dtype=torch.float32) - size // 2
    weights = torch.exp(-0.5 * (at / sigma) ** 2)
    return (weights / weights.sum()).to(like)


def kernel_size(sigma, largest):
    """Width of a Gaussian kernel: 3 sigma to each side, odd, and at most the first odd width that spans what it blurs, as in the published code."""
    size = math.ceil(6 * sigma)
    size += 1 - size % 2
    return min(size, largest + 1 - largest % 2)


def blur2d(x, sigma, sizes=None):
    """x [n, channels, height, width] blurred by a Gaussian of `sigma` cells, borders mirrored. sizes: (kernel height, width), None for 3 sigma to each side."""
    if sigma <= 0:
        return x
    c = x.shape[1]
    kh, kw = sizes or (kernel_size(sigma, x.shape[2]), kernel_size(sigma, x.shape[3]))
    x = F.pad(x, (kw // 2, kw // 2, kh // 2, kh // 2), mode="reflect")
    if kh > 1:
        x = F.conv2d(x, gaussian(sigma, kh, x).view(1, 1, kh, 1).expand(c, 1, kh, 1), groups=c)
    if kw > 1:
        x = F.conv2d(x, gaussian(sigma, kw, x).view(1, 1, 1, kw).expand(c, 1, 1, kw), groups=c)
    return x
