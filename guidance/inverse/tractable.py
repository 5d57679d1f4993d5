"""A Gaussian of latents whose conditional given a part is known in closed form, and how it is mixed with the model's estimate."""
from __future__ import annotations

import torch

from ..frozen import frozen


@frozen(eq=False)
class GaussianPrior:
    """z = mean + directions w + e:  w standard normal [k], e of variance `rest`; latents [channel, (frame,) height, width] in the model's units.

    mean [d]; directions [k, d], each with its standard deviation in it; rest: what the directions leave, per value.
    """

    mean: torch.Tensor
    directions: torch.Tensor
    rest: float
    shape: tuple

    def __deepcopy__(self, memo):
        return self

    def conditional(self, operator, y, noise):
        """(mean, variance) [batch, *shape] of z given y = A z + noise [batch, ...], exactly for the mean; A A^T is one number (masks, averages), and the variance of what averages see is an upper bound."""
        batch, like, g = y.shape[0], y.new_zeros(1, *self.shape), operator.gram(y.new_zeros(1, *self.shape))
        seen = lambda v: operator.settle(operator.measure(v.to(y).view(-1, *self.shape)))
        w, r = seen(self.directions).flatten(1), (operator.settle(y) - seen(self.mean))
        v = self.rest * g + noise**2 + 1e-8
        covariance = torch.linalg.inv((torch.eye(len(w)).to(y) + w @ w.T / v).double()).to(y)
        found = (r.flatten(1) @ w.T / v) @ covariance                                           # [batch, k]
        left = (r.flatten(1) - found @ w).view(r.shape)
        mean = (self.mean.to(y) + found @ self.directions.to(y)).view(batch, *self.shape) + self.rest / v * operator.adjoint(left, y.new_zeros(batch, *self.shape))
        kept = operator.settle(torch.ones_like(like)) if operator.measure(like).shape == like.shape else torch.zeros_like(like)
        # the directions' part, as the measurement sees it: what it says of e beside w
        spread = torch.einsum("kd,kl,ld->d", self.directions.to(y), covariance, self.directions.to(y)).view(1, *self.shape)
        variance = spread * (1 - self.rest / v * kept).square() + self.rest * (1 - self.rest / v * kept)
        return mean, variance.clamp(min=1e-8).expand(batch, *self.shape)


def fitted(latents, components, least=1e-4):
    """The GaussianPrior of latents [n, ...], n > 1: their principal components, and one variance for the rest."""
    rows = latents.flatten(1).double()
    mean = rows.mean(0)
    _, s, v = torch.linalg.svd(rows - mean, full_matrices=False)
    variances = s.square() / (len(rows) - 1)
    k = min(components, int((variances > 1e-10 * variances[0].clamp(min=1e-30)).sum()))
    rest = max(least, float(variances[k:].sum()) / max(1, rows.shape[1] - k))
    scales = (variances[:k] - rest).clamp(min=0).sqrt()
    return GaussianPrior(mean.float(), (v[:k] * scales[:, None]).float(), rest, tuple(latents.shape[1:]))


def mixed(denoised, variance, mean, other, share):
    """The mean of p^share q^(1 - share) for Gaussians p (denoised, variance: a number) and q (mean, other)."""
    p, q = share / variance, (1 - share) / other
    return (denoised * p + mean * q) / (p + q)
