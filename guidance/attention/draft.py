"""Draft Attention: sparse attention chosen by a low-resolution draft of it."""
from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from ..frozen import frozen
from ..method import Edit, param
from .edits import AttentionEdit

BUDGET = 512 * 2 ** 20     # bytes of keys and values that are gathered at a time
CHOICES = ("per head", "per row")


def part_size(length, wanted):
    """The size of the parts that a side of the grid is cut into: the divisor nearest to `wanted`, or `wanted` itself (the last part is then filled up)."""
    divisors = [s for s in range(1, length + 1) if length % s == 0 and wanted / 2 <= s <= wanted * 1.5]
    return min(divisors, key=lambda s: abs(s - wanted)) if divisors else min(wanted, length)


@frozen
class Regions:
    """The cutting of a grid of frames x height x width tokens into regions of part_height x part_width tokens of one frame."""

    frames: int
    height: int
    width: int
    part_height: int
    part_width: int

    @property
    def size(self):
        return self.part_height * self.part_width

    @property
    def grid(self):
        return -(-self.height // self.part_height), -(-self.width // self.part_width)

    @property
    def whole(self):
        """Whether no region is filled up."""
        return self.height % self.part_height == 0 and self.width % self.part_width == 0

    def cut(self, t):
        """Tokens [rows, heads, frames * height * width, d] as regions [rows, heads, regions, size, d]; what is filled up is 0."""
        rows, heads, _, d = t.shape
        (gh, gw), ph, pw = self.grid, self.part_height, self.part_width
        t = t.reshape(rows, heads, self.frames, self.height, self.width, d)
        if not self.whole:
            t = F.pad(t, (0, 0, 0, gw * pw - self.width, 0, gh * ph - self.height))
        t = t.reshape(rows, heads, self.frames, gh, ph, gw, pw, d).transpose(4, 5)
        return t.reshape(rows, heads, self.frames * gh * gw, ph * pw, d)

    def join(self, t):
        """The inverse of `cut`."""
        rows, heads, _, _, d = t.shape
        (gh, gw), ph, pw = self.grid, self.part_height, self.part_width
        t = t.reshape(rows, heads, self.frames, gh, gw, ph, pw, d).transpose(4, 5).reshape(rows, heads, self.frames, gh * ph, gw * pw, d)
        return t[:, :, :, :self.height, :self.width].reshape(rows, heads, -1, d)

    def filled(self, device):
        """Bool [regions, size]: which places hold a token."""
        ones = torch.ones(1, 1, self.frames * self.height * self.width, 1, device=device)
        return self.cut(ones)[0, 0, :, :, 0] > 0


def draft(q, k, regions):
    """The low-resolution map [rows, heads, regions, regions] of attention between the means of the regions' queries and keys."""
    def means(t):
        t = regions.cut(t).float()
        return t.mean(-2) if regions.whole else t.sum(-2) / regions.filled(t.device).sum(-1, dtype=torch.float32)[:, None]
    return (means(q) @ means(k).transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)


def kept(scores, share, choice=CHOICES[0]):
    """How many regions of keys each region of queries attends, int64 [rows, heads, regions]: the largest `share` of the map's pairs, at least one each.

    "per head": one threshold for the whole map of a head (the authors'), so that rows differ; "per row": as many in every row.
    """
    n = scores.shape[-1]
    if choice == "per row":
        return torch.full(scores.shape[:-1], max(1, math.ceil(share * n - 1e-9)), dtype=torch.int64, device=scores.device)
    flat = scores.flatten(-2)
    threshold = flat.topk(max(1, math.ceil(share * n * n - 1e-9)), -1).values[..., -1]
    return (scores >= threshold[..., None, None]).sum(-1).clamp(min=1)


def sparse(q, k, v, regions, share, choice=CHOICES[0], image=slice(None), budget=BUDGET):
    """Attention [rows, heads, tokens, d] in which image queries see the kept regions of image keys and all other keys; other queries see everything.

    Regions of queries are served in groups that keep about as many regions each; a group takes the most that one of its members keeps, so nothing kept is lost.
    """
    rows, heads, tokens, d = q.shape
    begin, end, _ = image.indices(tokens)
    out = torch.empty(rows, heads, tokens, v.shape[-1], dtype=v.dtype, device=v.device)
    others = [s for s in (slice(0, begin), slice(end, tokens)) if s.stop > s.start]
    for part in others:
        out[:, :, part] = F.scaled_dot_product_attention(q[:, :, part], k, v)
    qi, ki, vi = (t[:, :, begin:end] for t in (q, k, v))
    scores = draft(qi, ki, regions)
    counts, order = kept(scores, share, choice).flatten(), scores.argsort(-1, descending=True).flatten(0, 2)
    qb, kb, vb = (regions.cut(t).flatten(0, 1) for t in (qi, ki, vi))
    whole, n = kb.shape[0], kb.shape[1]
    rest = [torch.cat([t[:, :, part] for part in others], 2).flatten(0, 1) for t in (k, v)] if others else None
    filled = None if regions.whole else regions.filled(q.device)
    result = torch.empty(whole * n, regions.size, v.shape[-1], dtype=v.dtype, device=v.device)
    queries = qb.flatten(0, 1)
    step = max(1, n // 16)
    rounded = ((counts + step - 1) // step * step).clamp(max=n)
    for count in rounded.unique().tolist():
        members = (rounded == count).nonzero().flatten()
        keys = count * regions.size + (rest[0].shape[1] if rest else 0)
        room = max(1, budget // (2 * keys * d * q.element_size()))
        for chosen in members.split(room):
            source, wanted = chosen // n, order[chosen, :count]
            gk, gv = (t[source[:, None], wanted].flatten(1, 2) for t in (kb, vb))
            mask = None
            if filled is not None:
                mask = filled[wanted].flatten(1)
                mask = torch.cat((mask, mask.new_ones(len(chosen), rest[0].shape[1])), 1) if rest else mask
                mask = mask[:, None, None]
            if rest:
                gk, gv = torch.cat((gk, rest[0][source]), 1), torch.cat((gv, rest[1][source]), 1)
            result[chosen] = F.scaled_dot_product_attention(queries[chosen][:, None], gk[:, None], gv[:, None], attn_mask=mask)[:, 0]
    out[:, :, begin:end] = regions.join(result.view(rows, heads, n, regions.size, -1))
    return out


@frozen
class DraftEdit(AttentionEdit):
    """The edit: sparse attention among the tokens of the picture or video."""

    share: float = 0.25
    pool_height: int = 8
    pool_width: int = 16
    least: int = 4096
    choice: str = CHOICES[0]

    everywhere = True

    def default_layers(self, geometry):
        return f"all -{geometry.layers[0]}" if len(geometry.layers) > 1 else "all"

    def check(self, geometry, layers):
        if geometry.family == "lens":
            raise ValueError("Draft Attention: this lens network always masks its attention (the padding of its text), and where attention is masked none of it is left out.")

    def apply(self, site, q, k, v, attend):
        image = len(range(*site.image.indices(q.shape[2])))
        cells = (site.height or 0) * (site.width or 0)
        if self.share >= 1 or image < self.least or not cells or image % cells or site.mask is not None or q.shape[2] != k.shape[2]:
            return attend(q, k, v)
        regions = Regions(image // cells, site.height, site.width, part_size(site.height, self.pool_height), part_size(site.width, self.pool_width))
        return sparse(q, k, v, regions, self.share, self.choice, site.image)


@frozen
class DraftAttention(Edit):
    """Faster attention on long sequences (video, large pictures): regions attend only the regions that a small draft of the attention finds important.

    The tokens of a frame are cut into regions of pool_height x pool_width; the draft is softmax(mean(q) mean(k) / sqrt(d)) between regions, per head. The largest
    `kept` share of its pairs is computed, with the queries' and keys' full resolution; text and other tokens see, and are seen by, everything.
    "per head" keeps the pairs above one threshold per head (the authors'), at least one region per row; "per row" keeps as many in every row.

    Keys are gathered per group of regions and run through the framework's own attention, without a special kernel. Sides that the pool size does not divide take
    the nearest size that does, or are filled up. Exact (and the host's own attention, bit for bit) at kept 1, before the window, in the first layer (authors'
    Wan code), on sequences below `least_tokens`, and where the network masks its attention.
    Defaults: regions 8 x 16, kept 0.25 (authors: Wan 0.25, Hunyuan Video 0.1), the first tenth of the schedule dense (authors: timesteps above 925).
    Identity: queries and keys that are equal within each region lose only what the draft says. Cost: attention's cost times about `kept`, and gathering.
    Limits: other edits of the same layers that come after it in the graph (regional masks, sharing) do not act where it is sparse.
    """

    node_id = "LodestarDraftAttention"
    title = "Draft Attention"
    family = "attention"
    paper = "DraftAttention"
    aliases = ("sparse attention", "block sparse", "fast video")
    evaluations = "0"

    kept: float = param(0.25, "Share of the attention between regions that is computed; 1 computes all and switches the node off.", 0.01, 1.0, 0.01)
    pool_height: int = param(8, "Height of a region in tokens.", 1, 128, 1)
    pool_width: int = param(16, "Width of a region in tokens.", 1, 128, 1)
    start_percent: float = param(0.1, "Start of the window in which attention is sparse, as a fraction of the sampling schedule; before it, it is dense.", 0.0, 1.0, 0.001)
    end_percent: float = param(1.0, "End of that window (1 = last step).", 0.0, 1.0, 0.001)
    layers: str = param("", "Layers whose self-attention becomes sparse. Empty: all but the first.", advanced=True)
    least_tokens: int = param(4096, "Sequences with fewer tokens of picture or video stay dense.", 0, 1000000, 1, advanced=True)
    choice: str = param(CHOICES[0], "per head: one threshold for all pairs of a head. per row: as many regions for every region.", choices=CHOICES, advanced=True)

    def neutral(self):
        return self.kept >= 1

    def edits(self, step):
        return (DraftEdit(self.layers, self.kept, self.pool_height, self.pool_width, self.least_tokens, self.choice),)
