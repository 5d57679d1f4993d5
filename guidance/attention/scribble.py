"""Scribble Guidance: the attention of words is laid along strokes."""
from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F

from ..frozen import frozen
from ..method import BadInput, param, progress, socket
from .capture import MapGraph, SelfGraph
from .energy import MapSteer, mean_map, sharpened
from .excite import variance_preserving
from .layout import all_tokens


def stretched(maps):
    """Maps [batch, height, width] from their least value (0) to their largest (1)."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return (maps - low) / (high - low).clamp(min=1e-6)


def moments(mass):
    """Centroid [batch, 2] (x, y in fractions of the picture) and axis [batch, 2] = (cos, sin) of twice the angle times the elongation in [0, 1], of masses
    [batch, height, width]: theta = atan2(2 mu11, mu20 - mu02) / 2; a mass without a direction has the axis 0."""
    height, width = mass.shape[-2:]
    total = mass.sum((-2, -1)).clamp(min=1e-8)
    x = (torch.arange(width, device=mass.device, dtype=mass.dtype) + 0.5) / width
    y = (torch.arange(height, device=mass.device, dtype=mass.dtype) + 0.5) / height
    cx, cy = (mass * x).sum((-2, -1)) / total, (mass * y[:, None]).sum((-2, -1)) / total
    dx, dy = x - cx[:, None], y - cy[:, None]
    mu20 = (mass * dx[:, None, :].square()).sum((-2, -1)) / total
    mu02 = (mass * dy[:, :, None].square()).sum((-2, -1)) / total
    mu11 = (mass * dx[:, None, :] * dy[:, :, None]).sum((-2, -1)) / total
    axis = torch.stack((mu20 - mu02, 2 * mu11), 1) / (mu20 + mu02).clamp(min=1e-8)[:, None]
    return torch.stack((cx, cy), 1), axis


def turn(a, b):
    """The angle [batch] in [0, pi/2] between two axes (turned by pi an axis is the same), 0 where one of them has none."""
    size = a.norm(dim=1) * b.norm(dim=1)
    cross, dot = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0], (a * b).sum(1)
    clear = size > 1e-3
    angle = torch.atan2(torch.where(clear, cross.abs(), torch.zeros_like(cross)), torch.where(clear, dot, torch.ones_like(dot)))
    return angle / 2


def moment_loss(maps, mask, angle_weight, high=0.5):
    """Distance of the centroids in fractions of the picture + angle_weight d^2 [batch], d the angle between the axes; of maps [batch, h, w] where they are at
    least `high` of their range, and masks [batch, h, w]."""
    own = stretched(maps)
    centre, axis = moments(own * (own.detach() >= high))
    wanted, direction = moments(mask)
    return (centre - wanted).square().sum(1).add(1e-12).sqrt() + angle_weight * turn(axis, direction).square()


def focal_loss(maps, mask, alpha=0.25, gamma=2.0):
    """Focal cross-entropy [batch] between maps [batch, h, w] in [0, 1] and a 0/1 mask, over all cells."""
    p = maps.clamp(1e-6, 1 - 1e-6)
    right = torch.where(mask > 0.5, p, 1 - p)
    weight = torch.where(mask > 0.5, torch.full_like(p, alpha), torch.full_like(p, 1 - alpha))
    return -(weight * (1 - right) ** gamma * right.log()).flatten(1).mean(1)


def self_loss(rows, mask):
    """Cross-entropy [batch] between the mean self-attention of a stroke's cells, stretched, and the stroke; rows [batch, cells, h, w], mask [batch, h, w]."""
    chosen = mask.flatten(1)
    mean = (rows * chosen[:, :, None, None]).sum(1) / chosen.sum(1).clamp(min=1e-6)[:, None, None]
    return F.binary_cross_entropy(stretched(mean).clamp(1e-6, 1 - 1e-6), mask, reduction="none").flatten(1).mean(1)


def grown(mask, rows, bound, most):
    """Masks [batch, h, w] with the neighbours of their cells that attend alike: those whose softmaxed self-attention rows [batch, h w, h, w] differ from the
    cell's by a symmetric Kullback-Leibler divergence below `bound`; at most `most` per picture, the nearest first."""
    height, width = mask.shape[-2:]
    p = rows.flatten(2).float().softmax(-1)
    logs = p.log()
    best = torch.full_like(mask, torch.inf).flatten(1)
    cells = torch.arange(height * width, device=mask.device).view(height, width)
    inside = mask.flatten(1) > 0.5
    for down, right in ((0, 1), (1, 0)):
        a, b = cells[:height - down, :width - right].flatten(), cells[down:, right:].flatten()
        kl = 0.5 * ((p[:, a] - p[:, b]) * (logs[:, a] - logs[:, b])).sum(-1)
        for near, far in ((a, b), (b, a)):
            found = torch.where(inside[:, near] & ~inside[:, far], kl, torch.full_like(kl, torch.inf))
            best[:, far] = torch.minimum(best[:, far], found)
    count = min(most, best.shape[1])
    nearest = best.topk(count, largest=False)
    out = mask.flatten(1).clone()
    out.scatter_(1, nearest.indices, torch.where(nearest.values < bound, torch.ones_like(nearest.values), out.gather(1, nearest.indices)))
    return out.view_as(mask)


@frozen(eq=False)
class ScribbleGuidance(MapSteer):
    """Draws things along strokes: their place and direction follow a scribble, and the scribble may grow to the thing's whole shape.

    M_k = the map of a region's words as in Attend-and-Excite;  S_k = its stroke on the grid of the attention
    E = sum over regions (by weight) of  focal(M_k, S_k) focal_weight  +  moment_weight (|c(M_k) - c(S_k)| + angle_weight d^2)  +  self_weight bce(self rows of S_k, S_k)
    c = centroid, d = angle between the principal axes theta = atan2(2 mu11, mu20 - mu02) / 2, which have the period pi (the released code's 2 pi never wraps)
    x <- x - size (a^2 + s^2) grad_x E,  size = max(0.5 / 3, 0.95^step) step_size, `iterations` times at first and once at the end of the window
    Propagation: cells next to a stroke whose self-attention is like its own (symmetric KL of softmaxed rows below `kl`) are added, at most `grow` per step.

    The shift enters the step as in Layout Guidance. The focal loss takes the map as a probability. Regions: scribbles, or masks and boxes.
    Joint attention: the picture's cells on the text. Layers: the smallest grid outside the middle block (SD1.5: 16 x 16), the middle third of DiTs.
    Defaults: step 3 falling to 0.5, 5 to 1 iterations, first 20 of 50 steps, weights 4, 1, 1, angle 2.5, propagation from a tenth of the schedule on (paper and released code).
    Identities: step 0; a map equal to its stroke has no moment loss; propagation off leaves the stroke. Cost: about 3 evaluations of the positive prompt per move.
    """

    node_id = "LodestarScribbleGuidance"
    title = "Scribble Guidance"
    family = "attention"
    paper = "Scribble-Guided Diffusion"
    aliases = ("scribble", "stroke", "ScribbleDiff", "orientation")
    evaluations = "0 (about 3 per move, backward pass included)"
    planar = True

    regions: Any = socket("LODESTAR_REGIONS", "The strokes with their words, through Prompt with Regions.")
    step_size: float = param(3.0, "Size of a move at the first step; 0 switches the node off.", 0.0, 10000.0, 0.1)
    iterations: int = param(5, "Moves at the first step; they fall to one at the end of the window.", 1, 100, 1)
    propagate: bool = param(True, "Lets the strokes grow over cells that attend alike.")
    focal_weight: float = param(4.0, "Weight of the cell-by-cell agreement with the stroke.", 0.0, 1000.0, 0.1)
    moment_weight: float = param(1.0, "Weight of place and direction.", 0.0, 1000.0, 0.1)
    angle_weight: float = param(2.5, "Weight of the direction beside the place.", 0.0, 1000.0, 0.1)
    self_weight: float = param(1.0, "Weight of the agreement of the stroke's self-attention with it.", 0.0, 1000.0, 0.1)
    start_percent: float = param(0.0, "Start of the window in which the sample is moved, as a fraction of the sampling schedule.", 0.0, 1.0, 0.001)
    end_percent: float = param(0.4, "End of that window.", 0.0, 1.0, 0.001)
    grow_from: float = param(0.1, "Place in the schedule from which strokes grow, as a fraction.", 0.0, 1.0, 0.001, advanced=True)
    grow: int = param(20, "Most cells that a stroke grows by in one step.", 0, 4096, 1, advanced=True)
    kl: float = param(1e-3, "How different the self-attention of a cell may be from its neighbour's in the stroke.", 0.0, 10.0, 1e-5, advanced=True)
    layers: str = param("", "Layers whose attention is read. Empty: the smallest grid outside the middle block, the middle third of DiTs.", advanced=True)

    def neutral(self):
        return self.step_size == 0

    def validate(self):
        super().validate()
        if self.regions is not None:
            self.regions.need(self.title, words=True)
        if self.focal_weight == self.moment_weight == self.self_weight == 0:
            raise BadInput(self.title, "weights", 0.0, "At least one of focal_weight, moment_weight, self_weight must be greater than 0.")
        return self

    @cached_property
    def _content(self):
        return tuple(self.regions.content) or all_tokens(self.regions)

    @property
    def _reads_self(self):
        return self.self_weight > 0 or self.propagate

    @cached_property
    def readers(self):
        cross = MapGraph(self.layers, tokens=self._content, length=self.regions.length or 0, mark=self.regions.mark, where="deepest")
        return (cross, SelfGraph(self.layers, mark=self.regions.mark, where="deepest")) if self._reads_self else (cross,)

    def _strokes(self, site, state, batch, device):
        """The strokes as they have grown so far [batch, regions, height, width]."""
        key = (site.height, site.width, site.window)
        if key not in state:
            fresh = self.regions.at(site, device, hard=True).float().view(1, len(self.regions), site.height, site.width)
            state[key] = fresh.expand(batch, -1, -1, -1).clone()
        return state[key]

    def energy(self, readings, step, state):
        batch = step.x.shape[0]
        maps, site = mean_map(readings[0], batch)
        if site.frames != 1:
            raise BadInput(self.title, "model", f"{site.frames} frames", "Strokes are for pictures; take Layout Guidance for videos.")
        maps, rows = sharpened(maps)[:, :, 0], None
        if self._reads_self:
            same = [r for r in readings[1] if (r.site.height, r.site.width) == (site.height, site.width)]
            rows = torch.stack([r.weights.unflatten(0, (-1, batch)).mean(0)[:, 0, :, 0] for r in same]).mean(0) if same else None
        strokes = self._strokes(site, state, batch, maps.device)
        if rows is not None and self.propagate and state.get("grown") != step.index and step.index >= self.grow_from * max(1, len(step.sigmas) - 1):
            for k in range(strokes.shape[1]):
                strokes[:, k] = grown(strokes[:, k], rows.detach(), self.kl, self.grow)
            state["grown"] = step.index
        total = torch.zeros(batch, device=maps.device)
        for k, region in enumerate(self.regions):
            own, mask = maps[:, [self._content.index(t) for t in region.tokens]].mean(1), strokes[:, k]
            lost = self.focal_weight * focal_loss(own, mask) + self.moment_weight * moment_loss(own, mask, self.angle_weight)
            if rows is not None and self.self_weight:
                lost = lost + self.self_weight * self_loss(rows, mask)
            total = total + region.weight * lost
        return total, total

    def rounds(self, step):
        span = max(1e-6, self.end_percent - self.start_percent)
        done = min(1.0, max(0.0, (progress(step) - self.start_percent) / span))
        count = max(1, math.ceil(self.iterations - (self.iterations - 1) * done - 1e-6))
        return [(count, variance_preserving(step, self.step_size * max(0.5 / 3, 0.95 ** step.index)), -1.0)]
