"""Closed-form models: Gaussian mixtures whose denoiser is exact, conditional and unconditional, in k-units and for flow matching."""

from __future__ import annotations

import math

import torch
from lodestar.guidance.method import NEGATIVE, Step


class Mixture:
    """Isotropic Gaussians with means [k, *shape], variances [k] and weights [k]; the data x0 is one of their samples.

    A condition is a tuple of component numbers (the prompt "class 0"); None is the whole mixture (no prompt).
    """

    def __init__(self, means, variances, weights=None, flow=False):
        self.means = torch.as_tensor(means)
        self.variances = torch.as_tensor(variances, dtype=self.means.dtype)
        k = len(self.means)
        self.weights = torch.full((k,), 1.0 / k, dtype=self.means.dtype) if weights is None else torch.as_tensor(weights, dtype=self.means.dtype)
        self.flow = flow

    def __call__(self, x, sigma, condition=None):
        """E[x0 | x] at noise levels sigma [batch], exactly."""
        keep = list(range(len(self.means))) if condition is None else list(condition)
        mu, v, w = self.means[keep].to(x), self.variances[keep].to(x), self.weights[keep].to(x)
        axes = [1] * (x.ndim - 1)
        s = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(x.shape[0]).view(-1, 1, *axes)
        a = 1 - s if self.flow else torch.ones_like(s)
        if len(keep) == 1:
            s, a = s[:, 0], a[:, 0]
            return mu + a * v / (a * a * v + s * s) * (x - a * mu)
        v = v.view(1, -1, *axes)
        spread = a * a * v + s * s
        away = x[:, None] - a * mu[None]
        logits = w.log() - 0.5 * (away**2 / spread + spread.log()).flatten(2).sum(2)
        means = mu[None] + a * v / spread * away
        return (logits.softmax(1).view(*logits.shape, *axes) * means).sum(1)

    def log_density(self, x, sigma, condition=None):
        """log p(x) at noise level sigma, up to a constant per dimension."""
        keep = list(range(len(self.means))) if condition is None else list(condition)
        mu, v, w = self.means[keep].to(x), self.variances[keep].to(x), self.weights[keep].to(x)
        a = 1 - sigma if self.flow else 1.0
        spread = a * a * v + sigma * sigma
        away = (x[:, None] - a * mu[None]).flatten(2)
        w = w / w.sum()
        return torch.logsumexp(w.log() - 0.5 * ((away**2).sum(2) / spread + away.shape[2] * (2 * math.pi * spread).log()), 1)

    def evaluate(self, positive=(0,), negative=None, others=()):
        """`evaluate` of guidance.engine.predict; others: {Branch: denoiser(x, sigma)}."""
        others = dict(others)

        def evaluate(branches, x, sigma):
            return {b: others[b](x, sigma) if b in others else self(x, sigma, negative if b == NEGATIVE else positive) for b in branches}

        return evaluate


def mixture(flow=False, shape=(2, 4, 4), components=3, seed=0, dtype=torch.float64):
    """A mixture of a few Gaussians that overlap a little."""
    g = torch.Generator().manual_seed(seed)
    return Mixture(0.5 * torch.randn(components, *shape, generator=g, dtype=dtype), torch.linspace(0.05, 0.3, components), flow=flow)


def gaussian(mean=0.5, variance=0.3, shape=(2, 4, 4), flow=False, dtype=torch.float64):
    """One Gaussian: D(x, s) = mu + a v / (a^2 v + s^2) (x - a mu)."""
    return Mixture(torch.full((1, *shape), mean, dtype=dtype), [variance], flow=flow)


def state(model, batch=3, sigma=1.0, seed=1):
    """A noisy state of the model's data at noise level sigma."""
    g = torch.Generator().manual_seed(seed)
    k = torch.randint(len(model.means), (batch,), generator=g)
    shape = (batch, *model.means.shape[1:])
    x0 = model.means[k] + model.variances[k].sqrt().view(-1, *[1] * (len(shape) - 1)) * torch.randn(shape, generator=g, dtype=model.means.dtype)
    noise = torch.randn(shape, generator=g, dtype=model.means.dtype)
    return ((1 - sigma) * x0 if model.flow else x0) + sigma * noise


def levels(flow=False, steps=10, zero=True):
    """A falling schedule, evenly spaced on flow models and as Karras' (rho 7, 14.6 to 0.03) in k-units."""
    if flow:
        out = torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64)
        return out if zero else out[:-1]
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    out = (14.6 ** (1 / 7) + ramp * (0.03 ** (1 / 7) - 14.6 ** (1 / 7))) ** 7
    return torch.cat([out, torch.zeros(1, dtype=torch.float64)]) if zero else out


def percent_to_sigma(flow=False):
    """As the host's: of a schedule that is linear on flow models and logarithmic in k-units."""
    def convert(percent):
        if flow:
            return 1.0 - percent
        if percent <= 0:
            return 999999999.9
        return 0.0 if percent >= 1 else math.exp(math.log(14.6) * (1 - percent) + math.log(0.03) * percent)
    return convert


def a_step(x, sigma=1.0, flow=False, index=0, call=0, sigmas=None):
    """A Step with one noise level for the whole batch."""
    return Step(x, torch.full((x.shape[0],), float(sigma)), flow, sigmas, index, call, percent_to_sigma(flow))


def euler(x, sigmas, predict):
    """The Euler sampler over predict(x, sigma [batch]); it keeps its steps in the model's precision."""
    for s, s_next in zip(sigmas[:-1], sigmas[1:]):
        x = x + (s_next - s) * (x - predict(x, s * x.new_ones(x.shape[0]))) / s
    return x
