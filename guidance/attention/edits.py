"""The contract of an attention edit, and how several edits of one layer compose.

An edit is a frozen dataclass with a layer selector. It sees one attention call of the rows it is meant for, as
q, k, v [rows, heads, tokens, head_dim] after all projections and rotations, and returns [rows, heads, tokens, head_dim], the head outputs
before the output projection. `attend(q, k, v)` is the next edit's or the network's own attention.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Site:
    """Where an attention call happens.

    kind: "self", "cross" or "joint", or "temporal" for attention over the frames behind a spatial block (SVD). layer: guidance.layers.Layer.
    height, width: the token grid of the image (None where it is unknown), of `frames` frames in networks with one attention over space and time (None else).
    text: slice of the text tokens of a joint call (None else). image: slice of the image tokens of q. extra: what the edit asked the host to append
    (e.g. negative tokens of a cross-attention), by edit. rotation: the rotary embedding of q (guidance.host.rotary), for edits that ask by `unrotates`.
    note(edit, tensor): files what a reading measures, tensor [rows, ...] (guidance.method.Reading).
    """

    kind: str
    layer: Any
    height: int | None = None
    width: int | None = None
    text: slice | None = None
    image: slice = field(default_factory=lambda: slice(None))
    extra: Any = None
    step: Any = None
    rotation: Any = None
    frames: int | None = None
    note: Any = None


@dataclass(frozen=True)
class AttentionEdit:
    """Base of all edits. `layers` is a selector of guidance.layers ("" = the edit's own default per architecture)."""

    layers: str = ""
    kinds = ("self", "joint")
    unrotates = False       # whether the edit wants `site.rotation`

    def __deepcopy__(self, memo):
        return self

    def default_layers(self, geometry):
        """The selector to use when `layers` is empty."""
        return "middle"

    def check(self, geometry, layers):
        """Raises ValueError where the edit has no meaning on a network's layers."""

    def apply(self, site, q, k, v, attend):
        raise NotImplementedError


def chain(edits, site, attend):
    """One function (q, k, v) -> out that runs the edits, the first one outermost."""
    call = attend
    for edit in reversed(edits):
        def call(q, k, v, edit=edit, inner=call):
            return edit.apply(site, q, k, v, inner)
    return call


def apply_rows(groups, q, k, v, attend, site):
    """Attention of a batch whose rows carry different edits.

    groups: [(start, stop, edits)] over the rows in order; attend(q, k, v, start, stop) is the network's own attention of those rows.
    Rows without edits are run by the network's own attention, together when nothing is edited.
    """
    import torch
    if all(not edits for _, _, edits in groups):
        return attend(q, k, v, 0, q.shape[0])
    parts = []
    for start, stop, edits in groups:
        rows = slice(start, stop)
        base = lambda q_, k_, v_, start=start, stop=stop: attend(q_, k_, v_, start, stop)
        run = chain(edits, site, base) if edits else base
        parts.append(run(q[rows], k[rows], v[rows]))
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def merge_groups(labels, size):
    """[(start, stop, edits)] from one edit tuple per chunk of `size` rows; neighbours that agree are joined."""
    groups = []
    for i, edits in enumerate(labels):
        if groups and groups[-1][2] == edits:
            groups[-1] = (groups[-1][0], (i + 1) * size, edits)
        else:
            groups.append((i * size, (i + 1) * size, edits))
    return groups
