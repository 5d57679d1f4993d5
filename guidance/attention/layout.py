"""Layout Guidance: the attention of words is drawn into their regions (backward guidance), and BoxDiff's constraints on it."""
from __future__ import annotations

from functools import cached_property
from typing import Any

import torch

from ..frozen import frozen
from ..method import param, progress, socket
from .capture import MapGraph
from .energy import MapSteer, mean_map, per_sample, smoothed
from .excite import due, parse_points, variance_preserving


def all_tokens(regions):
    """The positions of all regions' words, each once."""
    return tuple(sorted({t for r in regions for t in r.tokens}))


def outside_share(weights, masks, batch):
    """(1 - share of a token's attention inside its region)^2 [batch, heads, tokens]; weights [rows, heads, tokens, cells], masks [tokens, cells] in [0, 1]."""
    a = per_sample(weights, batch)
    inside = (a * masks).sum(-1) / a.sum(-1).clamp(min=1e-12)
    return (1 - inside).square()


@frozen(eq=False)
class LayoutGuidance(MapSteer):
    """Puts the things of a prompt where you want them: the sample is moved until the attention to their words lies in their boxes or masks.

    E = mean over layers, heads, words of a phrase, and regions (by weight) of (1 - sum_inside A / sum A)^2
    x <- x - scale s^2 grad_x E, while E > threshold, at most `iterations` times per step, in the first steps (end_percent)
    Then the step goes on from x': it returns D(x') + (x' - x) r / (1 - r), r = s_next / s, which is exact with Euler and DDIM; other samplers get the same shift
    spread over their next steps.

    s^2 is the paper's step in k-units, and the same move on flow models. Cells that a region covers in part count by their share. Frames of a video each have their region.
    Joint attention: the picture's cells on the text, normalised over it. Layers: the middle and the first output blocks (SD: paper), the middle third of DiTs.
    Defaults: scale 30, threshold 0.2, 5 iterations, first 10 of 51 steps (paper). Identities: scale 0; one region that is the whole picture.
    Cost: about 3 evaluations of the positive prompt per move. Unlike the released code, which never looks again once E fell below the threshold, every step does.
    """

    node_id = "LodestarLayoutGuidance"
    title = "Layout Guidance"
    family = "attention"
    paper = "Training-Free Layout Control with Cross-Attention Guidance (arXiv 2304.03373)"
    aliases = ("backward guidance", "boxes", "place objects", "layout control")
    evaluations = "0 (about 3 per move, backward pass included)"
    planar = True

    regions: Any = socket("LODESTAR_REGIONS", "Where things are to be: regions with words, through Prompt with Regions.")
    scale: float = param(30.0, "Size of a move; 0 switches the node off.", 0.0, 100000.0, 0.5)
    threshold: float = param(0.2, "A picture whose energy is below it is left alone; the energy goes from 0 (all attention inside) to 1.", 0.0, 1.0, 0.01)
    iterations: int = param(5, "Most moves per step.", 1, 100, 1)
    start_percent: float = param(0.0, "Start of the window in which the sample is moved, as a fraction of the sampling schedule.", 0.0, 1.0, 0.001)
    end_percent: float = param(0.2, "End of that window.", 0.0, 1.0, 0.001)
    layers: str = param("", "Layers whose attention is read. Empty: the middle block and the output blocks after it, the middle third of DiTs.", advanced=True)

    def neutral(self):
        return self.scale == 0

    def validate(self):
        super().validate()
        if self.regions is not None:
            self.regions.need(self.title, words=True)
        return self

    @cached_property
    def _tokens(self):
        return all_tokens(self.regions)

    @cached_property
    def readers(self):
        return (MapGraph(self.layers, tokens=self._tokens, length=self.regions.length or 0, mark=self.regions.mark, where="middle and up"),)

    def energy(self, readings, step, state):
        total = []
        for r in readings[0]:
            weights = r.weights.flatten(3)
            masks = self.regions.at(r.site, weights.device).clone()      # kept ones may have been made in inference mode
            lost, norm = 0.0, 0.0
            for region, mask in zip(self.regions, masks):
                chosen = [self._tokens.index(t) for t in region.tokens]
                lost = lost + region.weight * outside_share(weights[:, :, chosen], mask, step.x.shape[0]).flatten(1).mean(1)
                norm += region.weight
            total.append(lost / max(norm, 1e-12))
        total = torch.stack(total).mean(0)
        return total, total

    def rounds(self, step):
        return [(self.iterations, self.scale * step.s.float() ** 2, self.threshold)]


def top_mean(values, count):
    """Mean of the largest `count` of [batch, cells]."""
    return values.topk(max(1, min(count, values.shape[-1])), -1).values.mean(-1)


def edges(inside, reach):
    """Which places of a line [n] lie within `reach` of where a 0/1 pattern begins or ends."""
    n = len(inside)
    places = inside.nonzero().flatten()
    near = torch.zeros(n, device=inside.device)
    for edge in (int(places[0]), int(places[-1]) + 1) if len(places) else ():
        near[max(edge - reach, 0):edge + reach + 1] = 1
    return near


def boxed(maps, mask, share, reach):
    """(inner, outer, corner) [batch] of a map [batch, height, width] in [0, 1] and a 0/1 mask [height, width]: BoxDiff's constraints."""
    area, outer = int(mask.sum()), int((1 - mask).sum())
    inner = 1 - top_mean((maps * mask).flatten(1), int(share * area))
    out = top_mean((maps * (1 - mask)).flatten(1), int(share * outer)) if outer else torch.zeros_like(inner)
    corner = torch.zeros_like(inner)
    for axis in (0, 1):
        wanted = mask.amax(axis)
        corner = corner + ((maps.amax(1 + axis) - wanted).abs() * edges(wanted, reach)).mean(-1)
    return inner, out, corner


@frozen(eq=False)
class BoxDiff(MapSteer):
    """Puts the things of a prompt into boxes: the strongest attention to their words inside, none outside, and out to the edges of the box.

    M = the map of a region's words as in Attend-and-Excite (softmax over all words of 100 times the mean map, smoothed)
    E = sum over regions of  1 - mean(top P |B| of M inside)  +  mean(top P |outside| of M outside)  +  corner
    corner = the distance between the largest value of M along each row and column, and the box's own shadow, at L cells around its edges
    x <- x - step_size sqrt(1 - t/2) (a^2 + s^2) grad_x E,  t from 0 to 1 over the schedule
    At the places of `thresholds` this is repeated until the inner mean of every region is at least the threshold, at most `iterations` times.

    The shift enters the step as in Layout Guidance. Masks and scribbles count as the cells they cover by half. Regions of weight 0 are left out, others count by weight.
    Joint attention: the picture's cells on the text. Layers: the smallest grid outside the middle block (SD1.5: 16 x 16, paper), the middle third of DiTs.
    Defaults: step 20, P 0.2, L 1, first half of the schedule (paper). Cost: about 3 evaluations of the positive prompt per move.
    """

    node_id = "LodestarBoxDiff"
    title = "BoxDiff"
    family = "attention"
    paper = "BoxDiff: Text-to-Image Synthesis with Training-Free Box-Constrained Diffusion (arXiv 2307.10816)"
    aliases = ("boxes", "box-constrained", "layout")
    evaluations = "0 (about 3 per move, backward pass included)"
    planar = True

    regions: Any = socket("LODESTAR_REGIONS", "Where things are to be: regions with words, through Prompt with Regions.")
    step_size: float = param(20.0, "Size of a move; 0 switches the node off.", 0.0, 10000.0, 0.5)
    thresholds: str = param("0:0.05, 0.2:0.5, 0.4:0.8", "Where the moves are repeated until the attention inside reaches a value: pairs place:value.")
    iterations: int = param(20, "Most repetitions at such a place.", 0, 100, 1)
    start_percent: float = param(0.0, "Start of the window in which the sample is moved, as a fraction of the sampling schedule.", 0.0, 1.0, 0.001)
    end_percent: float = param(0.5, "End of that window.", 0.0, 1.0, 0.001)
    share: float = param(0.2, "P: share of the cells inside and outside that count, the strongest ones.", 0.01, 1.0, 0.01)
    reach: int = param(1, "L: cells around the edges of a box where its shadow is compared; 0 compares the edges alone.", 0, 64, 1)
    layers: str = param("", "Layers whose attention is read. Empty: the smallest grid outside the middle block, the middle third of DiTs.", advanced=True)

    def neutral(self):
        return self.step_size == 0

    def validate(self):
        super().validate()
        parse_points(self.thresholds, self.title)
        if self.regions is not None:
            self.regions.need(self.title, words=True)
        return self

    @cached_property
    def _content(self):
        return tuple(self.regions.content) or all_tokens(self.regions)

    @cached_property
    def readers(self):
        return (MapGraph(self.layers, tokens=self._content, length=self.regions.length or 0, mark=self.regions.mark, where="deepest"),)

    def _parts(self, readings, step):
        """[(weight, inner, outer, corner)] of each region."""
        maps, site = mean_map(readings[0], step.x.shape[0])
        maps = smoothed((100 * maps).softmax(1))
        masks = self.regions.at(site, maps.device, hard=True).float().clone()
        found = []
        for region, mask in zip(self.regions, masks):
            if region.weight == 0:
                continue
            own = maps[:, [self._content.index(t) for t in region.tokens]].mean(1)
            parts = [boxed(own[:, f], m, self.share, self.reach) for f, m in enumerate(mask.view(site.frames, site.height, site.width)) if bool(m.any())]
            found.append((region.weight, *(torch.stack(p).mean(0) for p in zip(*parts))))
        return found

    def energy(self, readings, step, state):
        parts = self._parts(readings, step)
        return sum(w * (inner + outer + corner) for w, inner, outer, corner in parts), torch.stack([inner for _, inner, _, _ in parts]).amax(0)

    def rounds(self, step):
        threshold = due(parse_points(self.thresholds, self.title), step)
        factor = variance_preserving(step, self.step_size * (1 - progress(step) / 2) ** 0.5)
        return ([(self.iterations, factor, 1 - threshold)] if threshold is not None else []) + [(1, factor, -1.0)]
