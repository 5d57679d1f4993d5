"""Steering by energies of attention maps: the sample is moved until the maps are as wanted, then predicted as always.

x' = x - step grad_x E(maps at x), repeated;  the step goes on from D(x') + (x' - x) r / (1 - r), r = s_next / s, which moves the next state of a first-order
sampler to where it would be had it come from x' (exact with Euler and DDIM; others get the same shift in all, spread over their following steps).
"""
from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import torch
import torch.nn.functional as F

from ..frozen import frozen
from ..gradients import gradient, next_ratio
from ..method import Steer
from .capture import onto


class NothingRead(Exception):
    """The network was not run, or not its attention (a step cache): there is no map to steer by."""


def per_sample(weights, batch):
    """Weights [rows, ...] averaged over the conditionings of a picture: [batch, ...]."""
    return weights.unflatten(0, (-1, batch)).mean(0) if weights.shape[0] != batch and weights.shape[0] % batch == 0 else weights


def mean_map(readings, batch):
    """(map [batch, tokens, frames, height, width], Site) averaged over heads and layers, on the largest grid among them."""
    largest = max(readings, key=lambda r: r.site.height * r.site.width).site
    maps = []
    for r in readings:
        a = per_sample(r.weights, batch).mean(1)
        if (r.site.height, r.site.width, r.site.window) != (largest.height, largest.width, largest.window):
            flat = onto(a.transpose(1, 2).flatten(0, 1), r.site.window, largest.height, largest.width)
            a = flat.unflatten(0, (batch, -1)).transpose(1, 2)
        maps.append(a)
    same = all((r.site.height, r.site.width, r.site.window) == (largest.height, largest.width, largest.window) for r in readings)
    return torch.stack(maps).mean(0), largest if same else replace(largest, window=(0.0, 0.0, 1.0, 1.0))


def smoothed(maps):
    """Maps [..., height, width] after a 3 x 3 Gaussian of deviation 0.5."""
    kernel = torch.tensor([-1.0, 0.0, 1.0], device=maps.device).square().mul(-2).exp()
    kernel = (kernel / kernel.sum()).outer(kernel / kernel.sum()).to(maps)
    mode = "reflect" if min(maps.shape[-2:]) > 1 else "replicate"
    flat = F.pad(maps.flatten(0, -3)[:, None], (1, 1, 1, 1), mode=mode)
    return F.conv2d(flat, kernel[None, None])[:, 0].unflatten(0, maps.shape[:-2])


def sharpened(maps):
    """softmax over the tokens of 100 times the maps [batch, tokens, ...], then smoothed: the maps of Attend-and-Excite. The tokens are the prompt's words alone."""
    return smoothed((100 * maps).softmax(1))


def of_words(maps, content, wanted):
    """The mean map [batch, ...] of the tokens `wanted` among maps [batch, tokens, ...] whose tokens are at the positions `content`."""
    return maps[:, [content.index(t) for t in wanted]].mean(1)


@frozen(eq=False)
class MapSteer(Steer):
    """Base of the methods: `readers` say what is read, `energy` what is minimised, `rounds` how often and how far."""

    route = "network"

    @cached_property
    def readers(self):
        """The observers whose maps `energy` gets."""
        raise NotImplementedError

    def energy(self, readings, step, state):
        """(energy [batch], what the limits of `rounds` are compared with [batch]); `readings` is a list of guidance.attention.capture.Reading for each reader."""
        raise NotImplementedError

    def rounds(self, step):
        """[(iterations, factor, limit)], one after the other: at most so many moves of factor (a tensor that broadcasts against x) times -grad E, for samples
        above the limit."""
        raise NotImplementedError

    def _values(self, step, state, seen):
        readings = [step.maps.pop(r, None) for r in self.readers]
        if not all(readings):
            raise NothingRead
        value, seen["measure"] = self.energy(readings, step, state)
        return value.float()

    def moved(self, step, state):
        """x after the moves; the samples of a batch do not depend on each other."""
        x, found = step.x, None
        try:
            for iterations, factor, limit in self.rounds(step):
                for _ in range(iterations):
                    found = found or self._gradient(step, x, state)
                    above = found.value > limit
                    if not bool(above.any()):
                        break
                    x = torch.where(above.view(-1, *[1] * (x.ndim - 1)), x + (factor * found.direction).to(x.dtype), x)
                    found = None
        except NothingRead:
            pass
        return x

    def _gradient(self, step, x, state):
        for r in self.readers:
            step.maps.pop(r, None)
        seen = {}
        found = gradient(replace(step, x=x), lambda at: step.host.alone(at, self.readers), lambda _: self._values(step, state, seen), "network", step.host)
        found.value = seen["measure"].detach()
        if not bool(torch.isfinite(found.direction).all()):
            raise ValueError(f"{self.title}: the gradient is not finite at sigma {float(step.sigma[0]):.4g}; use a wider dtype.")
        return found

    def steer(self, step, evaluate, state):
        if step.call:      # further calls of one step belong to a sampler of higher order
            return evaluate(step.x)
        x = self.moved(step, state)
        denoised = evaluate(x)
        if x is step.x:
            return denoised
        ratio, _ = next_ratio(step)
        return denoised + (x - step.x) * (ratio / max(1.0 - ratio, 1e-3))
