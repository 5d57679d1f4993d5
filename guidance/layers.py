"""How a layer is named, in every architecture, and how several are selected.

A layer is `stage.index`, with `.depth` where one block holds several transformer blocks: "input.4.1", "middle.0", "output.3", "double.7",
"single.12", "block.20", "layer.5". Selectors (separated by commas or spaces): "middle", "input", "output.3-5", "double.*", "all", "none",
"double.25%-75%" (a share of the stage's depth), and "-x" to take x out again. `down` and `up` are other words for input and output.
On networks without a middle block (DiTs) "middle" is the middle third of the first stage. docs/layers.md has the stages of every family.
"""
from __future__ import annotations

import re

from .frozen import frozen

JOINT_FAMILIES = ("flux", "sd3", "qwen", "hunyuan", "aura", "lumina", "hidream", "lens", "joy", "ideogram", "krea", "cogvideo", "mochi")      # text and picture attend in one call
ALIASES = {"down": "input", "up": "output", "mid": "middle", "blocks": "block", "layers": "layer", "double_block": "double", "single_block": "single"}


class LayerError(ValueError):
    """A selector that names no layer of this model; the message lists the layers."""


@frozen
class Layer:
    """One transformer block. `attentions` are the kinds of attention it calls, in order ("self", "cross", "joint", "image" = to the tokens of a start picture,
    "temporal" = over the frames, in the block that follows; empty where edits cannot reach them); `key` is the host's own name for it, (None, index) where the host has none."""

    stage: str
    index: int
    depth: int | None = None
    attentions: tuple = ("self",)
    key: tuple = ()

    def __hash__(self):      # asked for at every attention call
        return hash((self.stage, self.index, self.depth))

    def __str__(self):
        return f"{self.stage}.{self.index}" + ("" if self.depth is None else f".{self.depth}")


@frozen
class Geometry:
    """The layers of a network, in order of execution, and what an edit needs to know of it.

    family: "unet"; those of JOINT_FAMILIES (joint attention); "wan", "ltx", "cosmos", "kandinsky" (self and cross attention);
    "blocks" (blocks whose attention is not known) or "unknown". patch: (frame, height, width) of a token in latent cells.
    text_first: whether text comes before image tokens in joint attention. image_last: whether the picture is the last of the image tokens, after those of
    reference pictures. multiple: the image tokens are padded to a multiple of this. prelude: attention calls before the first block, each "text" or "image".
    temporal: every block is followed by one over the frames, which has the same key (SVD).
    """

    family: str
    layers: tuple
    patch: tuple = (1, 1, 1)
    text_first: bool = True
    image_last: bool = False
    multiple: int = 1
    prelude: tuple = ()
    temporal: bool = False

    def stages(self):
        return list(dict.fromkeys(layer.stage for layer in self.layers))

    def describe(self):
        """A readable list of the layers by stage."""
        lines = [f"{self.family} network, {len(self.layers)} transformer blocks"]
        for stage in self.stages():
            members = [x for x in self.layers if x.stage == stage]
            kinds = ", ".join(dict.fromkeys(k for x in members for k in x.attentions))
            lines.append(f"  {stage}: {', '.join(str(x) for x in members)}  ({kinds or 'unknown'} attention)")
        return "\n".join(lines)


def _fail(selector, part, geometry, node):
    where = f"{node}: " if node else ""
    if not geometry.layers:
        raise LayerError(f"{where}Lodestar does not know the layers of this model's network, so attention and blocks cannot be changed there. Remove the node, or use one that "
                         "acts on predictions alone.")
    raise LayerError(f"{where}layers = {selector!r}: {part!r} selects no layer of this model. It has:\n{geometry.describe()}\n"
                     "Write for example \"middle\", \"double.3-5\", \"output.*\", \"all\"; several are separated by commas.")


def _range(text, count):
    """The (low, high) of "3", "3-5", "25%-75%" or "*"."""
    if text in ("", "*"):
        return 0, 10 ** 9
    ends = text.split("-")
    if len(ends) > 2:
        return None
    values = []
    for i, end in enumerate(ends):
        if not re.fullmatch(r"\d+(\.\d+)?%?", end):
            return None
        if end.endswith("%"):
            share = float(end[:-1]) / 100 * count
            values.append(int(share + 0.5) if i == 0 else int(share + 0.5) - 1)
        elif "." in end:
            return None
        else:
            values.append(int(end))
    return values[0], values[-1]


def select(geometry, selector, node=""):
    """The layers that a selector names, in execution order, as a tuple. LayerError where a part names nothing."""
    chosen = set()
    parts = [p for p in re.split(r"[,\s]+", selector.strip().lower()) if p]
    if not parts:
        _fail(selector, selector, geometry, node)
    for part in parts:
        if part == "none":
            continue
        remove = part.startswith("-")
        found = _part(geometry, part[1:] if remove else part)
        if not found:
            _fail(selector, part, geometry, node)
        chosen = chosen - found if remove else chosen | found
    return tuple(layer for layer in geometry.layers if layer in chosen)


def _part(geometry, part):
    if part in ("all", "*"):
        return set(geometry.layers)
    stage, _, rest = part.partition(".")
    stage = ALIASES.get(stage, stage)
    members = [x for x in geometry.layers if x.stage == stage]
    if not members and stage == "middle":
        first = [x for x in geometry.layers if x.stage == geometry.stages()[0]] if geometry.layers else []
        n = len(first)
        return set(first[n // 3: max(n // 3 + 1, n - n // 3)])
    if not members:
        return set()
    index, depth = rest, None
    if members[0].depth is not None and "%" not in rest and rest.count(".") == 1:
        index, depth = rest.split(".")
    count = max(x.index for x in members) + 1
    low_high = _range(index, count)
    if low_high is None:
        return set()
    found = {x for x in members if low_high[0] <= x.index <= low_high[1]}
    if depth is not None:
        deep = _range(depth, max(x.depth for x in members) + 1)
        if deep is None:
            return set()
        found = {x for x in found if deep[0] <= x.depth <= deep[1]}
    return found


def published(geometry, table, default="middle"):
    """The selector that `table` {family: selector} has for a network, `default` where it has none or the network lacks those layers."""
    selector = table.get(geometry.family, default)
    try:
        select(geometry, selector)
    except LayerError:
        return default
    return selector
