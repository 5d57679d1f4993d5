"""Value Constraint: the clean estimate is kept between bounds, channel by channel, where a mask says so."""
from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch

from ..cover import cover
from ..frozen import frozen
from ..method import BadInput, Finish, param, socket, window

SPACES = ("colour", "latent")
_start, _end = window("the bounds hold")


def parse_bounds(text, node, field, none):
    """Floats of "0.5", "0.2, -, 1": one for all channels or one for each; "-" (or nothing at all) is no bound, `none`."""
    if not text.strip():
        return (none,)
    try:
        found = tuple(none if part.strip() == "-" else float(part) for part in text.split(","))
    except ValueError:
        found = (math.nan,)
    if any(v != v for v in found):
        raise BadInput(node, field, text, 'Write one number for all channels, or one for each, separated by commas; "-" for a channel without a bound.')
    return found


@frozen(eq=False)
class ValueConstraint(Finish):
    """Keeps the clean estimate between hard bounds at every step: forbidden colours or values cannot appear where the mask is.

        latent: D' = min(max(D, lower), upper)                              each value of the cells that the mask covers by half or more
        colour: D' = D + (min(max(c, lower), upper) - c) (F^T F)^-1 F^T,    c = D F + b the rough colours of the latent format; the least change of D that brings c inside
    which is the paper's  eps' = max(eps, (x - sqrt(abar) u) / sqrt(1 - abar))  for an upper bound u, written for the clean estimate: the noise is recomputed from D', in every parametrisation.

    Exact and free: no gradient, no network. Values inside the bounds are not touched; a second time changes nothing. Where the last step ends at level 0 (all of the host's schedules, deterministic or not) the result lies inside the
    bounds: of its latent, or of its rough colours; a decoder's picture may be beyond them by what the rough map is off. The network sees the constrained state at the next step, so the rest of the picture fits to it.
    The paper: piano rolls in [0, 1] with the upper bound 1/2 on out-of-key notes, so that rounding removes them, at every step. No code is released; the formula is the paper's (arXiv 2410.08435, from memory), its form for D
    derived.
    Limits: methods that come behind it in the graph, and masked sampling's kept part, may leave the bounds again. Frames of a video and sound by their own masks.
    """

    node_id = "LodestarValueConstraint"
    title = "Value Constraint"
    family = "rules"
    paper = "Efficient Fine-Grained Guidance for Symbolic Music"
    aliases = ("FGG", "hard constraint", "forbidden colours", "projection", "clamp")
    evaluations = "0"

    space: str = param("colour", "colour: bounds of red, green, blue in [0, 1], by the latent format's rough map. latent: bounds of the LATENT's own channels.", choices=SPACES)
    lower: str = param("", 'Least values: one number for all channels, or one for each, as in "0.2, -, -"; - or nothing: no bound.')
    upper: str = param("", 'Greatest values, in the same way: "0.5, 1, 1" allows no strong red.')
    region: Any = socket("MASK", "Where the bounds hold; everywhere without it.", optional=True)
    start_percent: float = _start
    end_percent: float = _end
    colours: Any = None      # the rough map, of the MODEL
    inward: Any = None       # brings LATENTs into the model's space

    @property
    def bounds(self):
        return parse_bounds(self.lower, self.title, "lower", -math.inf), parse_bounds(self.upper, self.title, "upper", math.inf)

    def validate(self):
        low, high = self.bounds
        if len(low) > 1 and len(high) > 1 and len(low) != len(high):
            raise BadInput(self.title, "upper", self.upper, f"There are {len(low)} lower bounds; give as many, or one for all.")
        for a, b in zip(low * max(1, len(high) // len(low)), high * max(1, len(low) // len(high))):
            if a > b:
                raise BadInput(self.title, "lower", self.lower, f"{a:g} is above its upper bound {b:g}.")
        return super().validate()

    def neutral(self):
        return all(math.isinf(v) for side in self.bounds for v in side) or (self.region is not None and not bool((self.region > 0).any()))

    def fitted(self, facts):
        count = max(map(len, self.bounds))
        channels = 3 if self.space == "colour" else facts.channels
        if channels is not None and count not in (1, channels):
            raise BadInput(self.title, "upper" if len(self.bounds[1]) == count else "lower", f"{count} numbers", f"Give one for all, or one for each of the {channels} channels ({self.space}).")
        return dataclasses.replace(self, inward=facts.inward, colours=facts.rough(self.title) if self.space == "colour" else None)

    def finish(self, step, denoised, predictions, state):
        inside = None if self.region is None else cover(self.region, denoised, self.title, "region") >= 0.5
        axes = [1] * (denoised.ndim - 2)
        if self.space == "latent":
            out = denoised
            for side, pick in zip(self.bounds, (torch.maximum, torch.minimum)):
                if not all(map(math.isinf, side)):
                    bound = self.inward(torch.tensor(side, dtype=torch.float32).expand(denoised.shape[1]).reshape(1, -1, *axes))      # the model's own scale
                    out = pick(out, bound.to(denoised))
        else:
            out = self._colours(denoised, axes)
        return out if inside is None else torch.where(inside, out, denoised)

    def _colours(self, denoised, axes):
        factors, bias = self.colours.factors.to(denoised.device), self.colours.bias.to(denoised.device).view(1, -1, *axes)
        c = torch.einsum("nc...,ck->nk...", denoised.float(), factors) + bias
        low, high = (torch.tensor(side, device=denoised.device).expand(3).reshape(1, 3, *axes) * 2 - 1 for side in self.bounds)      # the map's colours are in [-1, 1]
        off = torch.minimum(torch.maximum(c, low), high) - c
        back = torch.linalg.solve(factors.T @ factors, factors.T)      # [3, channels]
        moved = torch.einsum("nk...,kc->nc...", off, back).to(denoised.dtype)
        return torch.where((off != 0).any(1, keepdim=True), denoised + moved, denoised)
