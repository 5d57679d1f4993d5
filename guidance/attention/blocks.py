"""The contract of a block edit: what a transformer block is given, and what becomes of its result, for some rows of a batch.

An edit is a frozen dataclass with a layer selector, carried by a Branch (`blocks`) or placed on a prompt's rows by a method of kind Edit. It sees the token
streams [rows, tokens, width] of the rows it is meant for: {"image": ...}, and {"text": ...} beside it where the block updates a separate text stream. Where
picture and text are one stream, that stream is "image" and `site.image` says which of its tokens are the picture's.
"""
from __future__ import annotations

import random
from dataclasses import field
from typing import Any, ClassVar

from ..frozen import frozen
from .edits import titled


@frozen
class BlockSite:
    """Where a block runs.

    layer: guidance.layers.Layer. part: "space", or "time" for the block over the frames behind a spatial one (SVD). image: the picture's tokens in
    streams["image"]. frames, height, width: their grid (None where it is unknown). step: guidance.method.Step.
    """

    layer: Any
    part: str = "space"
    image: slice = field(default_factory=lambda: slice(None))
    frames: int = 1
    height: int | None = None
    width: int | None = None
    step: Any = None


@frozen
class BlockEdit:
    """Base of all block edits. `layers` is a selector of guidance.layers ("" = the edit's own default per architecture)."""

    layers: str = ""

    parts: ClassVar[tuple] = ("space", "time")
    replaces: ClassVar[bool] = False      # whether `leave` does without what the block made: the block need not run where all rows say so

    def __deepcopy__(self, memo):
        return self

    def default_layers(self, geometry):
        """The selector to use when `layers` is empty."""
        return "middle"

    def check(self, geometry, layers):
        """Raises ValueError where the edit has no meaning on a network's layers."""
        if "space" not in self.parts and not geometry.temporal:
            raise ValueError(f"{titled(self)}: this {geometry.family} network has no blocks over the frames of their own; only video U-Nets such as SVD have.")

    def pick(self, layers, step):
        """The layers, of those selected (in order of execution), that the edit acts on at this step."""
        return layers

    def enter(self, site, streams):
        """The streams that the block is given in place of `streams`."""
        return streams

    def leave(self, site, given, made):
        """What goes on behind the block: `given` is what came to it before `enter`, `made` what it returned."""
        return made


@frozen
class SkipBlock(BlockEdit):
    """The block is left out: its input goes on, picture and text."""

    replaces = True

    def leave(self, site, given, made):
        return given


@frozen
class SkipTimeBlock(SkipBlock):
    """Leaves out the blocks over the frames alone, on networks that have such blocks."""

    parts = ("time",)


@frozen
class SkipSpaceBlock(SkipBlock):
    """Leaves out the spatial blocks alone, on networks that have blocks over the frames beside them."""

    parts = ("space",)

    def check(self, geometry, layers):
        SkipTimeBlock().check(geometry, layers)


def generator_of(*key):
    """A random.Random that depends on nothing but the key, the same on every machine."""
    return random.Random("/".join(map(str, key)))
