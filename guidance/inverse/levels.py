"""Conversions between noise levels, done once: x = a x0 + s n, with a = 1 in k-units and 1 - s on flow models.

Papers write in variance-preserving coordinates x_vp = x / c, c = sqrt(a^2 + s^2), where abar = a^2 / c^2. A gradient with respect to x_vp is c times one with respect to x.
"""
from __future__ import annotations

import math

from ..samplers.cfgpp import ancestral, noise_source, signal

LEAST_SIGNAL = 0.05      # a is taken to be at least this where something is divided by it: the first step of flow models

__all__ = ["LEAST_SIGNAL", "ancestral", "amplitude", "noise_source", "paper_shift", "renoise", "signal", "spread"]


def amplitude(s, flow):
    """c = sqrt(a^2 + s^2)."""
    return math.hypot(signal(s, flow), s)


def spread(s, flow):
    """rho^2 = s^2 / (a^2 + s^2): the variance of x0 given x, where x0 is a standard Gaussian; the papers' 1 - abar."""
    return s * s / amplitude(s, flow) ** 2


def paper_shift(s, s_next, flow):
    """c(s) c(s_next): the papers' x_next -= zeta grad_{x_vp} L, in these coordinates x_next -= zeta c c' grad_x L."""
    return amplitude(s, flow) * amplitude(s_next, flow)


def renoise(x, s_low, s, flow, noise):
    """From level s_low up to s: (a / a_low) x + sqrt(s^2 - (a / a_low)^2 s_low^2) noise."""
    ratio = signal(s, flow) / signal(s_low, flow)
    return ratio * x + math.sqrt(max(0.0, s * s - (ratio * s_low) ** 2)) * noise
