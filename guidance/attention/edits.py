"""The contract of an attention edit, and how several edits of one layer compose.

An edit is a frozen dataclass with a layer selector. It sees one attention call of the rows it is meant for, as
q, k, v [rows, heads, tokens, head_dim] after all projections and rotations, and returns [rows, heads, tokens, head_dim], the head outputs
before the output projection. `attend(q, k, v)` is the next edit's or the network's own attention; `attend(q, k, v, bias)` adds a bias to the logits of the latter.
"""
from __future__ import annotations

import sys
from dataclasses import field
from functools import partial
from typing import Any

from ..frozen import changed, frozen


@frozen
class Site:
    """Where an attention call happens.

    kind: "self", "cross", "joint" or "temporal" (over the frames of a video, one row for each cell). layer: guidance.layers.Layer. height, width: the token
    grid of the image (None where it is unknown). text: slice of the text tokens of a joint call (None else). image: slice of the image tokens of q.
    extra: what the edit asked the host to append (e.g. negative tokens of a cross-attention), by edit. batch: rows of one prompt, the pictures of the batch; the
    rows are a multiple of it, prompt by prompt. shared: {Branch: Shared} of the edits' references at this layer. partial: whether `attend` takes a part of the
    queries or rows. frames: how many frames the token grid has, one after the other (1 for pictures, and where frames have blocks of their own). window: (left,
    top, width, height) in fractions of the picture that the grid spans: more than 1 where it is padded, a part where a prompt has an area. prompt: slice of the
    keys that are the prompt's own tokens (a joint call's text may hold others beside them; None where it is unknown). latent: shape of the latent that entered
    the network. mask: the network's own attention mask as an additive tensor [rows or 1, heads or 1, queries or 1, keys], or None. rotation: the rotary embedding
    of q (guidance.host.rotary), for edits that ask by `unrotates`. note(edit, tensor): files what a reading measures, tensor [rows, ...] (guidance.method.Reading).
    streams(stream, rows): (keys, values) [rows, heads, n, head_dim] of an edit's condition tokens at this layer (guidance.host.streams).
    """

    kind: str
    layer: Any
    height: int | None = None
    width: int | None = None
    text: slice | None = None
    image: slice = field(default_factory=lambda: slice(None))
    extra: Any = None
    step: Any = None
    batch: int = 1
    shared: Any = None
    partial: bool = True
    mask: Any = None
    frames: int = 1
    window: tuple = (0.0, 0.0, 1.0, 1.0)
    prompt: slice | None = None
    latent: tuple | None = None
    rotation: Any = None
    note: Any = None
    streams: Any = None


@frozen
class Shared:
    """What an edit sees of a reference branch at its own layer: the picture's queries, keys and values [batch, heads, tokens, head_dim]; the text's are left out."""

    q: Any
    k: Any
    v: Any


@frozen
class AttentionEdit:
    """Base of all edits. `layers` is a selector of guidance.layers ("" = the edit's own default per architecture).

    everywhere: whether a method's edit acts on all rows of the sampled model (the network itself is changed). reach: else on those of the "positive" prompt, of the
    "negative", or "all" of them. references: Branches with a source, whose queries, keys and values the edit finds in `site.shared`. any_text: whether it is meant
    for the rows of a second text inside the network (a negative prompt in joint attention) as well.
    """

    layers: str = ""
    kinds = ("self", "joint")
    everywhere = False
    reach = "positive"
    references = ()
    any_text = False
    unrotates = False       # whether the edit wants `site.rotation`
    matrix = False      # whether it is a MatrixEdit (guidance.attention.matrix): those of one call run innermost, in one pass over the attention matrix

    def __deepcopy__(self, memo):
        return self

    def default_layers(self, geometry):
        """The selector to use when `layers` is empty."""
        return "middle"

    def wanted(self, role):
        """Whether rows of `role` (a Branch, None where another node asked for them) carry the edit when a method puts it on a run."""
        return self.everywhere or (role is not None and self.reach in (role.prompt, "all"))

    def acts(self, step):
        """Whether it acts in a certain evaluation of a step where its method does."""
        return True

    def check(self, geometry, layers):
        """Raises ValueError where the edit has no meaning on a network's layers."""

    def apply(self, site, q, k, v, attend):
        raise NotImplementedError


@frozen
class AttentionObserver(AttentionEdit):
    """Looks at queries and keys as the network's own attention gets them, after every edit, and changes nothing: the output stays bit-equal."""

    def observe(self, site, q, k):
        raise NotImplementedError

    def apply(self, site, q, k, v, attend):
        self.observe(site, q, k)
        return attend(q, k, v)


@frozen
class FeatureEdit(AttentionEdit):
    """An edit of what enters an output block of a U-Net: the hidden state and the skip connection, before they are joined."""

    kinds = ()

    def feature(self, site, h, skip):
        """(h, skip) [rows, channels, height, width] each; must not change its arguments in place. site.layer is the block's number."""
        raise NotImplementedError


@frozen
class Tempering(AttentionEdit):
    """Multiplies the logits by one number, and does nothing else: queries and keys stay as they are, and the host may be told the number as the scale of its attention."""

    def factor(self, site, keys):
        """What the logits are multiplied by where a query sees `keys` keys. It depends on the kind, the layer and the sizes of a place alone, so that it need not be asked for at every step."""
        raise NotImplementedError

    def apply(self, site, q, k, v, attend):
        return tempered(attend, q, k, v, self.factor(site, k.shape[2]))


def titled(edit):
    """What messages call an edit: its own title, else that of the method whose file it is in, else the name of its class."""
    if getattr(edit, "title", None):
        return edit.title
    here = [c for c in vars(sys.modules[type(edit).__module__]).values() if isinstance(c, type) and c.__module__ == type(edit).__module__ and getattr(c, "node_id", None)]
    return here[0].title if len(here) == 1 else type(edit).__name__


def chain(edits, site, attend):
    """One function (q, k, v) -> out that runs the edits, the first one outermost; observers see what the network's attention is given."""
    if len(edits) == 1 and not edits[0].matrix:
        return partial(_edited, edits[0], attend, site)
    matrix = tuple(e for e in edits if e.matrix)
    call, own = attend, site
    if matrix:
        call, own = matrix[0].together(matrix, site, attend), changed(site, partial=False)
    for edit in reversed(sorted((e for e in edits if not e.matrix), key=lambda e: isinstance(e, AttentionObserver))):
        call = partial(_edited, edit, call, own)
        own = changed(site, partial=False) if own is site else own      # an edit further in counts on all queries
    return call


def _edited(edit, inner, site, q, k, v, bias=None):
    return edit.apply(site, q, k, v, inner if bias is None else partial(_biased, inner, bias))


def _biased(inner, outer_bias, q, k, v, bias=None):
    return inner(q, k, v, outer_bias if bias is None else add_bias(outer_bias, bias))


def fit_bias(bias, keys, queries=None):
    """A bias [.., queries or 1, n] over the first n keys, with nothing added to those that an edit further in has appended."""
    import torch.nn.functional as F
    missing = keys - bias.shape[-1]
    bias = F.pad(bias, (0, missing)) if missing > 0 else bias
    return bias if queries is None else bias.expand(*bias.shape[:-2], queries, -1)


def add_bias(a, b):
    """The sum of two biases, one of which may know of more keys."""
    keys = max(a.shape[-1], b.shape[-1])
    return fit_bias(a, keys) + fit_bias(b, keys)


def apply_rows(groups, q, k, v, attend, site):
    """Attention of a batch whose rows carry different edits.

    groups: [(start, stop, edits)] over the rows in order; attend(q, k, v, start, stop) is the network's own attention of those rows.
    Rows without edits are run by the network's own attention, together when nothing is edited.
    """
    local = lambda start, stop: rows_of(site, start, stop, q.shape[0])
    return observed(groups, q, k, v, attend, local) if only_observed(groups) else by_groups(groups, q, k, v, attend, local)


def only_observed(groups):
    """Whether nothing in any group changes anything."""
    return all(isinstance(e, AttentionObserver) for _, _, edits in groups for e in edits)


def observed(groups, q, k, v, attend, local):
    """One call for all rows, of which each group's observers see their own; local(start, stop): the Site as they see it."""
    out = attend(q, k, v, 0, q.shape[0])
    for start, stop, edits in groups:
        for edit in edits:
            edit.observe(local(start, stop), q[start:stop], k[start:stop])
    return out


def by_groups(groups, q, k, v, attend, local, scaled=None):
    """The rows of each group through its edits; local(start, stop): the Site as they see it. scaled(q, k, v, start, stop, factor): see `tempered`."""
    import torch
    parts = []
    for start, stop, edits in groups:
        base = _Rows(attend, start, stop, scaled)
        run = chain(edits, local(start, stop), base) if edits else base
        parts.append(run(q, k, v) if stop - start == q.shape[0] else run(q[start:stop], k[start:stop], v[start:stop]))
    return torch.cat(parts) if len(parts) > 1 else parts[0]


class _Rows:
    """The network's own attention of rows start:stop, as the innermost edit is given it."""

    __slots__ = ("attend", "start", "stop", "scaled")

    def __init__(self, attend, start, stop, scaled=None):
        self.attend, self.start, self.stop, self.scaled = attend, start, stop, scaled

    def __call__(self, q, k, v, bias=None):
        return self.attend(q, k, v, self.start, self.stop) if bias is None else self.attend(q, k, v, self.start, self.stop, bias)


def tempered(attend, q, k, v, factor):
    """attend(q, k, v) with its logits times `factor`. The network's own attention takes it as its scale where the host's function has one; else the queries are multiplied."""
    if factor == 1.0:
        return attend(q, k, v)
    if isinstance(attend, _Rows) and attend.scaled is not None:
        out = attend.scaled(q, k, v, attend.start, attend.stop, factor)
        if out is not None:
            return out
    return attend(q * factor, k, v)


def rows_of(site, start, stop, rows):
    """The Site as rows start:stop of `rows` see it: their part of the attention mask and of the rotary embedding, their place among what is noted."""
    if (start, stop) == (0, rows):
        return site
    mask = site.mask[start:stop] if site.mask is not None and site.mask.shape[0] == rows else site.mask
    return changed(site, mask=mask, rotation=site.rotation and site.rotation.rows(start, stop), note=site.note and site.note.at(start), streams=site.streams and site.streams.at(start))


def merge_groups(labels, size):
    """[(start, stop, edits)] from one edit tuple per chunk of `size` rows; neighbours that agree are joined."""
    groups = []
    for i, edits in enumerate(labels):
        if groups and groups[-1][2] == edits:
            groups[-1] = (groups[-1][0], (i + 1) * size, edits)
        else:
            groups.append((i * size, (i + 1) * size, edits))
    return groups
