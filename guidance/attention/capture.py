"""Attention maps read beside the attention, in bounded memory.

The network's attention runs as always; the weights are computed a second time, in chunks of queries, for the layers, prompts and tokens that are wanted.
A map is the attention of the picture's cells to the prompt's tokens, normalised over these (in joint attention too, where the picture's own keys are left out).
"""
from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from ..frozen import frozen
from ..method import NEGATIVE, POSITIVE
from .edits import AttentionObserver
from .explicit import BUDGET, logits, query_chunks

ROLES = ("positive", "negative", "branches")


def folded(weights, length):
    """Weights [..., n length] of a text that the host has repeated n times, summed over the repetitions; length 0 leaves them."""
    if not length or weights.shape[-1] == length or weights.shape[-1] % length:
        return weights
    return weights.unflatten(-1, (-1, length)).sum(-2)


def text_weights(site, q, k, tokens=(), length=0, heads=False, budget=BUDGET):
    """Weights [rows, (heads,) cells, tokens] of the picture's cells on the prompt's tokens, float32, averaged over the heads unless they are asked for."""
    q, prompt = q[:, :, site.image], site.prompt or site.text or slice(None)
    mask = site.mask
    if mask is not None:
        mask = (mask if mask.shape[2] == 1 else mask[:, :, site.image])[..., prompt]
    k = k[:, :, prompt]
    parts = []
    for part in query_chunks(*q.shape[:3], k.shape[2], copies=3, budget=budget):
        a = logits(q, k, mask, part).softmax(-1)
        a = folded(a if heads else a.mean(1), length)
        parts.append(a[..., list(tokens)] if tokens else a)
    return torch.cat(parts, -2) if len(parts) > 1 else parts[0]


def own_weights(site, q, k):
    """Weights [rows, cells, cells] of the picture's cells on its cells, float32, averaged over the heads and normalised over these cells."""
    q, k, mask = q[:, :, site.image], k[:, :, site.image], site.mask
    if mask is not None:
        mask = (mask if mask.shape[2] == 1 else mask[:, :, site.image])[..., site.image]
    return torch.cat([logits(q, k, mask, part).softmax(-1).mean(1) for part in query_chunks(*q.shape[:3], k.shape[2], copies=3)], 1)


def shrunk(maps, side):
    """Maps [..., height, width] averaged over areas, so that no side is longer than `side` (0: as they are)."""
    height, width = maps.shape[-2:]
    if not side or max(height, width) <= side:
        return maps
    share = side / max(height, width)
    size = max(1, round(height * share)), max(1, round(width * share))
    return F.interpolate(maps.flatten(0, -3)[:, None], size, mode="area")[:, 0].unflatten(0, maps.shape[:-2])


def deepest(geometry, middle=False):
    """Selector of a U-Net's blocks around its middle, those of the smallest grid outside it (SD1.5: input.7-8, output.3-5), or with `middle` of the middle and the
    output blocks after it; on networks without these the middle third."""
    if geometry.family != "unet":
        return "middle"
    blocks = {stage: sorted({layer.index for layer in geometry.layers if layer.stage == stage}) for stage in ("input", "middle", "output")}
    last = blocks["input"][-1] if blocks["input"] else -1
    run = [i for i in blocks["input"] if set(range(i, last + 1)) <= set(blocks["input"])]
    first = blocks["output"][:len(run) + 1]
    before = (["middle"] if blocks["middle"] else []) if middle else ([f"input.{run[0]}-{run[-1]}"] if run else [])
    return ", ".join(before + ([f"output.{first[0]}-{first[-1]}"] if first else [])) or "all"


def by_role(role, wanted):
    """Whether rows of `role` are those that ROLES name by `wanted`."""
    if wanted == "positive":
        return role == POSITIVE
    return role == NEGATIVE if wanted == "negative" else role is not None and role not in (POSITIVE, NEGATIVE)


@frozen
class MapReader(AttentionObserver):
    """What all readers of maps have: role (one of ROLES), tokens (positions; empty for all), length (the prompt's number of tokens, 0 if unknown), mark (of one
    prompt where the conditioning holds several), most (layers with more cells are passed over, 0: none), where (the layers if `layers` is empty: "all", "deepest" or
    "middle and up", see `deepest`)."""

    role: str = ROLES[0]
    tokens: tuple = ()
    length: int = 0
    mark: str | None = None
    most: int = 0
    where: str = "all"

    kinds = ("cross", "joint")

    def default_layers(self, geometry):
        return "all" if self.where == "all" else deepest(geometry, self.where == "middle and up")

    def wanted(self, role):
        return by_role(role, self.role)

    def cells(self, site, q):
        """Number of the picture's cells in a call, 0 where it is not to be read."""
        count = len(range(*site.image.indices(q.shape[2])))
        known = site.height and site.frames * site.height * site.width == count
        return count if known and (not self.most or count <= self.most) and site.step is not None else 0


@frozen
class MapCapture(MapReader):
    """Sums the maps of a call by grid, averaged over heads, detached, stored with sides of at most `side` cells.

    step.maps[self] is {(frames, height, width, window): [sum [batch, tokens, frames, height, width], count]}; memory on the device is that of one map a grid,
    and of one chunk of weights (guidance.attention.explicit.BUDGET).
    """

    side: int = 32

    def observe(self, site, q, k):
        if not self.cells(site, q):
            return
        with torch.no_grad():
            maps = text_weights(site, q.detach(), k.detach(), self.tokens, self.length)
            maps = shrunk(maps.transpose(1, 2).unflatten(-1, (site.frames, site.height, site.width)), self.side)
            batch = site.step.x.shape[0] if maps.shape[0] % site.step.x.shape[0] == 0 else maps.shape[0]
            times = maps.shape[0] // batch
            maps = maps.unflatten(0, (times, batch)).sum(0)
            found = site.step.maps.setdefault(self, {}).setdefault((*maps.shape[-3:], site.window), [torch.zeros_like(maps), 0])
            if found[0].shape == maps.shape:      # prompts of another length do not mix
                found[0] += maps
                found[1] += times


@frozen
class SelfCapture(MapReader):
    """Sums the attention of the picture's cells to its cells by grid, averaged over heads, detached: step.maps[self] is as MapCapture has it, with sums
    [batch, cells, frames, height, width]. Only grids of at most `most` cells (0: 1024)."""

    kinds = ("self", "joint")

    def observe(self, site, q, k):
        count = self.cells(site, q)
        if not count or count > (self.most or 1024):
            return
        with torch.no_grad():
            maps = own_weights(site, q.detach(), k.detach()).unflatten(-1, (site.frames, site.height, site.width))
            batch = site.step.x.shape[0] if maps.shape[0] % site.step.x.shape[0] == 0 else maps.shape[0]
            found = site.step.maps.setdefault(self, {}).setdefault((*maps.shape[-3:], site.window), [torch.zeros_like(maps[:batch]), 0])
            found[0] += maps.unflatten(0, (-1, batch)).sum(0)
            found[1] += maps.shape[0] // batch


@frozen
class Reading:
    """One layer's maps: weights [rows, heads, tokens, frames, height, width], and the Site they were read at."""

    site: object
    weights: torch.Tensor


@frozen
class MapGraph(MapReader):
    """Keeps each layer's maps with their heads, in the graph where there is one: step.maps[self] is [Reading, ...] in order of execution."""

    def observe(self, site, q, k):
        if self.cells(site, q):
            maps = text_weights(site, q, k, self.tokens, self.length, heads=True)
            maps = maps.transpose(2, 3).unflatten(-1, (site.frames, site.height, site.width))
            site.step.maps.setdefault(self, []).append(Reading(site, maps))


@frozen
class SelfGraph(MapReader):
    """Keeps the attention of the picture's cells to its cells, averaged over heads: step.maps[self] is [Reading, ...] with weights
    [rows, 1, queries, frames, height, width]. Only where the grid is small: `most` cells (0: 1024)."""

    kinds = ("self", "joint")

    def observe(self, site, q, k):
        count = self.cells(site, q)
        if not count or count > (self.most or 1024):
            return
        a = own_weights(site, q, k)
        site.step.maps.setdefault(self, []).append(Reading(site, a.unflatten(-1, (site.frames, site.height, site.width))[:, None]))


def onto(maps, window, height, width):
    """Maps [n, tokens, h, w] of a grid that spans `window` (left, top, width, height, in fractions of the picture) as maps [n, tokens, height, width] of the
    whole picture, bilinear; 0 outside the window."""
    left, top, wide, high = window
    y = ((torch.arange(height, device=maps.device) + 0.5) / height - top) / high
    x = ((torch.arange(width, device=maps.device) + 0.5) / width - left) / wide
    grid = torch.stack(torch.broadcast_tensors(x[None], y[:, None]), -1) * 2 - 1
    inside = ((grid.abs() <= 1).all(-1)).to(maps)
    out = F.grid_sample(maps, grid.to(maps)[None].expand(maps.shape[0], -1, -1, -1), mode="bilinear", padding_mode="border", align_corners=False)
    return out * inside


@dataclass
class MapRecord:
    """The maps of a run on the CPU: `grids` as MapCapture has them, summed over the steps. `length`: number of tokens."""

    grids: dict = field(default_factory=dict)
    steps: int = 0

    def begin(self):
        """Forgets the last run."""
        self.grids, self.steps = {}, 0

    def add(self, found):
        """Adds what a call has seen."""
        self.steps += 1
        for key, (total, count) in found.items():
            mine = self.grids.setdefault(key, [torch.zeros(total.shape), 0])
            if mine[0].shape == total.shape:
                mine[0] += total.to("cpu", torch.float32)
                mine[1] += count

    @property
    def length(self):
        return next(iter(self.grids.values()))[0].shape[1] if self.grids else 0

    def picture(self, height, width, least=0):
        """The mean map [batch, tokens, frames, height, width] of all grids with at least `least` cells a frame (of the largest if there is none), each as a
        picture of this size. Every layer counts alike."""
        if not self.grids:
            return None
        chosen = {k: v for k, v in self.grids.items() if k[1] * k[2] >= least} or dict([max(self.grids.items(), key=lambda item: item[0][1] * item[0][2])])
        shape = next(iter(chosen.values()))[0].shape
        total, count = torch.zeros(*shape[:3], height, width), 0
        for (frames, _, _, window), (maps, n) in chosen.items():
            if maps.shape[:3] == shape[:3]:
                flat = maps.transpose(1, 2).flatten(0, 1)
                total += onto(flat, window, height, width).unflatten(0, (shape[0], frames)).transpose(1, 2)
                count += n
        return total / count


@frozen
class FeatureCapture(MapReader):
    """Sums the queries or keys of self-attention, all heads of a cell as one vector, by layer and kind (some blocks attend twice): step.maps[self] is
    {"layer kind": [sum [batch, cells, width], count, (frames, height, width), window]}."""

    what: str = "keys"

    kinds = ("self", "joint")

    def observe(self, site, q, k):
        if not self.cells(site, q):
            return
        with torch.no_grad():
            t = (k if self.what == "keys" else q).detach()[:, :, site.image].transpose(1, 2).flatten(2).float()
            batch = site.step.x.shape[0] if t.shape[0] % site.step.x.shape[0] == 0 else t.shape[0]
            t = t.unflatten(0, (-1, batch))
            found = site.step.maps.setdefault(self, {}).setdefault(f"{site.layer} {site.kind}", [torch.zeros_like(t[0]), 0, (site.frames, site.height, site.width), site.window])
            found[0] += t.sum(0)
            found[1] += t.shape[0]
