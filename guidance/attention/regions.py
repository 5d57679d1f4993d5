"""Where something is to be: boxes, masks and scribbles, each with words of the prompt or a prompt of its own. One value for all methods.

Everything is in fractions of the picture, x to the right, y down, so that one Regions serves every size, every layer and every frame of a video.
`Regions.maps` resolves it to a token grid by exact area shares, `Regions.hard` to yes and no.
"""
from __future__ import annotations

import dataclasses
from dataclasses import field
from typing import Any

import torch

from ..frozen import frozen
from ..method import BadInput, Prompt

WHOLE = (0.0, 0.0, 1.0, 1.0)      # left, top, width, height: the whole picture
STROKE = 0.25                     # a cell belongs to a scribble from this share of the most covered cell's coverage on
_SLACK = 1e-6


def _number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


def checked_box(box, node="Region", name="box"):
    """(x, y, width, height) as floats; BadInput unless it is a box with a size that lies inside the picture."""
    if not isinstance(box, (list, tuple)) or len(box) != 4 or not all(map(_number, box)):
        raise BadInput(node, name, box, "Give four numbers: x, y, width, height, as fractions of the picture.")
    x, y, width, height = map(float, box)
    if width <= 0 or height <= 0:
        raise BadInput(node, name, list(box), "Width and height must be greater than 0.")
    if x < -_SLACK or y < -_SLACK or x + width > 1 + _SLACK or y + height > 1 + _SLACK:
        raise BadInput(node, name, list(box), "The box must lie inside the picture: x, y at least 0, x + width and y + height at most 1.")
    return x, y, width, height


def checked_mask(mask, node="Region", name="mask"):
    """A mask [frames, height, width] in [0, 1] on the CPU in float32; BadInput for another shape, for numbers that are none, and where nothing is marked."""
    if not isinstance(mask, torch.Tensor) or mask.ndim not in (2, 3, 4) or (mask.ndim == 4 and mask.shape[1] != 1):
        raise BadInput(node, name, list(getattr(mask, "shape", [])), "Give a MASK [pictures, height, width].")
    mask = mask.detach().to("cpu", torch.float32)
    mask = mask[:, 0] if mask.ndim == 4 else mask[None] if mask.ndim == 2 else mask
    if not torch.isfinite(mask).all():
        raise BadInput(node, name, "not finite", "A mask has values from 0 to 1.")
    if not (mask > 0).any():
        raise BadInput(node, name, "empty", "Nothing is marked in the mask; paint the region white.")
    return mask.clamp(0, 1).clone()


@frozen(eq=False)
class Region:
    """One region: a place, and what belongs there.

    boxes: (x, y, width, height) once, or several times: key positions at even distances over the frames of a video. mask [frames or 1, height, width] in
    place of boxes; scribble says that it is a thin stroke. words: phrases of the whole prompt, separated by commas ("ball, ball[2]": the second one);
    tokens: their positions among the prompt's tokens, found by guidance.attention.tokens. prompt: a text of the region's own; conditioning: its CONDITIONING.
    """

    boxes: tuple = ()
    mask: Any = None
    scribble: bool = False
    words: str = ""
    prompt: str = ""
    weight: float = 1.0
    conditioning: Any = None
    tokens: tuple = ()

    def __deepcopy__(self, memo):
        return self

    def __post_init__(self):
        if bool(self.boxes) == (self.mask is not None):
            raise BadInput("Region", "place", "both" if self.boxes else None, "A region has either boxes or a mask.")
        object.__setattr__(self, "boxes", tuple(checked_box(b) for b in self.boxes))
        if self.mask is not None:
            object.__setattr__(self, "mask", checked_mask(self.mask))
        if not _number(self.weight) or not 0 <= self.weight <= 100:
            raise BadInput("Region", "weight", self.weight, "It must lie between 0 and 100.")

    @property
    def phrases(self):
        """The phrases of `words`."""
        return tuple(" ".join(p.split()) for p in self.words.split(",") if p.strip())

    def bounds(self, frame=0.0):
        """The box (x, y, width, height) around the region at a time of the video (0 first frame, 1 last)."""
        if self.boxes:
            return _between(self.boxes, frame)
        picture = self.mask[min(int(frame * len(self.mask)), len(self.mask) - 1)]
        rows, columns = (picture >= 0.5 * picture.max().clamp(min=1e-6)).any(1).nonzero().flatten(), (picture >= 0.5 * picture.max().clamp(min=1e-6)).any(0).nonzero().flatten()
        if not len(rows):
            return WHOLE
        height, width = picture.shape
        top, left = int(rows[0]) / height, int(columns[0]) / width
        return left, top, (int(columns[-1]) + 1) / width - left, (int(rows[-1]) + 1) / height - top

    def map(self, height, width, frames=1, window=WHOLE):
        """Coverage [frames, height, width] in [0, 1] of the cells of a grid that spans `window` of the picture (exact area shares)."""
        left, top, wide, high = window
        count = len(self.mask) if self.mask is not None else len(self.boxes)
        if count > 1 and frames == 1:
            raise BadInput("Region", "boxes" if self.boxes else "mask", f"{count} frames", "Several boxes or masks stand for the frames of a video; a picture takes one.")
        if self.boxes:
            times = [t / max(1, frames - 1) for t in range(frames)] if count > 1 else [0.0]
            found = torch.stack([torch.outer(_covered(height, top, high, y, h), _covered(width, left, wide, x, w))
                                 for x, y, w, h in (_between(self.boxes, t) for t in times)])
        else:
            down, across = _shares(height, top, high, self.mask.shape[1]), _shares(width, left, wide, self.mask.shape[2])
            found = down @ self.mask @ across.T
            if count > 1:
                found = torch.einsum("tf,fhw->thw", _shares(frames, 0.0, 1.0, count), found)
        return found.expand(frames, height, width).clamp(0, 1)


def _between(boxes, time):
    """The box at `time` in [0, 1] between key boxes at even distances."""
    place = time * (len(boxes) - 1)
    i = min(int(place), max(0, len(boxes) - 2))
    a, b, share = boxes[i], boxes[min(i + 1, len(boxes) - 1)], place - i
    return tuple(p + (q - p) * share for p, q in zip(a, b))


def _edges(cells, begin, extent):
    edges = begin + extent * torch.arange(cells + 1, dtype=torch.float64) / cells
    return edges[:-1], edges[1:]


def _covered(cells, begin, extent, start, length):
    """[cells]: the share of each cell, cut to the picture, that lies in [start, start + length]."""
    low, high = _edges(cells, begin, extent)
    inside = (high.clamp(max=1.0) - low.clamp(min=0.0)).clamp(min=0)
    both = (high.clamp(max=min(1.0, start + length)) - low.clamp(min=max(0.0, start))).clamp(min=0)
    return torch.where(inside > 1e-9, both / inside.clamp(min=1e-9), torch.zeros_like(both)).float()


def _shares(cells, begin, extent, pixels):
    """[cells, pixels]: how much of each cell, cut to the picture, each pixel covers; rows sum to 1 (to 0 outside the picture)."""
    low, high = _edges(cells, begin, extent)
    start = torch.arange(pixels, dtype=torch.float64) / pixels
    both = (torch.minimum(high[:, None], start + 1 / pixels) - torch.maximum(low[:, None], start)).clamp(min=0)
    total = both.sum(1, keepdim=True)
    return torch.where(total > 1e-9, both / total.clamp(min=1e-9), torch.zeros_like(both)).float()


@frozen(eq=False)
class Regions:
    """Several regions in the order in which they were given. text, length: the prompt whose words were found, and the number of its tokens (None before);
    spans: (first, last + 1) of the prompt's own words among them, one for each stream of its text encoder;
    mark: what the conditioning of that prompt carries as "lodestar_prompt" (an edit with this `mark` keeps to its rows where there are several prompts)."""

    items: tuple = ()
    text: str = ""
    length: int | None = None
    mark: str | None = None
    spans: tuple = ()
    _cache: dict = field(default_factory=dict, repr=False)

    def __deepcopy__(self, memo):
        return self

    def __len__(self):
        return len(self.items)

    def __iter__(self):
        return iter(self.items)

    def __add__(self, other):
        """Both, one after the other; words have to be found again."""
        return Regions(self.items + other.items)

    @property
    def content(self):
        """Positions of the prompt's own tokens, without begin, end and padding; empty before its words were found."""
        return tuple(sorted({i for first, stop in self.spans for i in range(first, stop)}))

    def label(self, index):
        """A region as a message calls it: its number from 1, and its words or prompt."""
        region = self.items[index]
        return f"region {index + 1}" + (f" ({region.words or region.prompt})" if region.words or region.prompt else "")

    @property
    def prompts(self):
        """The regions' own conditionings as Prompts, None where a region has none; equal wires are equal Prompts."""
        if "prompts" not in self._cache:
            self._cache["prompts"] = tuple(None if r.conditioning is None else Prompt(r.conditioning, self.label(i)) for i, r in enumerate(self.items))
        return self._cache["prompts"]

    def replace(self, items, **changes):
        """The same with other items."""
        return Regions(tuple(items), **{"text": self.text, "length": self.length, "mark": self.mark, "spans": self.spans, **changes})

    def cached(self, key, make):
        """make(), kept under a hashable key as long as these regions live (for small things that every step and layer asks for)."""
        if key not in self._cache:
            if len(self._cache) > 256:      # sizes of layers are few; other windows of a video come and go
                self._cache.clear()
            self._cache[key] = make()
        return self._cache[key]

    def _resolved(self, kind, make, device, *grid):
        return self.cached((kind, str(device), *grid), lambda: make().to(device) if device is not None else make())

    def maps(self, height, width, frames=1, window=WHOLE, device=None):
        """Coverage [regions, frames * height * width] in [0, 1] on a token grid that spans `window` (left, top, width, height) of the picture."""
        def make():
            return torch.stack([r.map(height, width, frames, window).flatten() for r in self.items])
        return self._resolved("soft", make, device, height, width, frames, window)

    def hard(self, height, width, frames=1, window=WHOLE, device=None):
        """Bool [regions, frames * height * width]: cells that are covered at least by half, of a stroke all it touches; in every frame at least one where there is any."""
        def make():
            soft = self.maps(height, width, frames, window).view(len(self.items), frames, -1)
            most = soft.max(2, keepdim=True).values
            thin = torch.tensor([r.scribble for r in self.items])[:, None, None]
            bound = torch.where(thin, STROKE * most, torch.minimum(most, torch.tensor(0.5)))
            return ((soft >= bound) & (soft > 0)).flatten(1)
        return self._resolved("hard", make, device, height, width, frames, window)

    def at(self, site, device=None, hard=False, tokens=None):
        """`maps` (or `hard`) on the token grid of an attention call (guidance.attention.edits.Site). ValueError where the call has other `tokens` than its grid."""
        if site.height is None or (tokens is not None and tokens != site.frames * site.height * site.width):
            raise ValueError(f"The attention of layer {site.layer} has {tokens} tokens, the picture there has {site.frames} x {site.height} x {site.width}: another node changes "
                             "the tokens (tiles, merging, extra pictures), and regions cannot be placed. Remove it.")
        find = self.hard if hard else self.maps
        return find(site.height, site.width, site.frames, site.window, device)

    def need(self, node, words=False, prompts=False):
        """BadInput of `node` where there is no region, or one without words found in a prompt, or without a conditioning of its own."""
        if not self.items:
            raise BadInput(node, "regions", "none", "Connect at least one region.")
        for i, region in enumerate(self.items):
            if words and not region.tokens:
                right = ("Connect the regions through the node Prompt with Regions, which finds their words in the prompt." if region.words else
                         "Write which words of the prompt belong to it.")
                raise BadInput(node, "regions", f"{self.label(i)} without words", right)
            if prompts and region.conditioning is None:
                right = ("Connect the regions through the node Prompt with Regions, which encodes their prompts." if region.prompt else
                         "Give it a prompt, or a conditioning.")
                raise BadInput(node, "regions", f"{self.label(i)} without a prompt", right)
        return self


def columns(tokens, length, prompt):
    """Key positions of tokens that are given by their place in a prompt of `length` tokens; `prompt` is Site.prompt, the slice of the keys that are its tokens.

    A cross-attention call may hold the prompt several times one after the other (the host repeats prompts to a common length): all of them. ValueError where the
    keys are no prompt of this length.
    """
    if prompt is None:
        raise ValueError("The tokens of the prompt cannot be told from the other text in this network's attention.")
    count = prompt.stop - prompt.start
    if not length or count % length:
        raise ValueError(f"The positive prompt has {count} tokens, the words of the regions were found in one of {length}: connect the conditioning of the same node "
                         "Prompt with Regions to the sampler.")
    return [prompt.start + turn * length + t for turn in range(count // length) for t in tokens]


def renewed(region, **changes):
    """A region with some fields changed."""
    return dataclasses.replace(region, **changes)
