"""Correspondences between a picture and a reference, voted for by attention over layers and steps (CorrFill)."""
from __future__ import annotations

import torch
import torch.nn.functional as F

from .explicit import logits, query_chunks

LEAST = 4      # matches below which nothing is steered (released code)


def cells(height, width, device=None):
    """Centres of a grid's cells [height, width, 2] as (y, x) in fractions of the picture."""
    y, x = ((torch.arange(n, device=device, dtype=torch.float32) + 0.5) / n for n in (height, width))
    return torch.stack(torch.meshgrid(y, x, indexing="ij"), -1)


def sides(height, width, device=None):
    """(y, x) lengths of the picture as fractions of its longer side."""
    return torch.tensor([height, width], device=device, dtype=torch.float32) / max(height, width)


def attention_to(q, k, found, image, bias=None):
    """How much of each picture token's attention goes to each token of the reference: [rows, tokens, tokens of the reference], mean over heads, softmax over all keys.

    q, k [rows, heads, tokens, d]; found: the reference's keys; image: the picture's slice of q; bias: on the reference's logits.
    """
    keys = torch.cat((k, found), 2)
    q = q[:, :, image]
    parts = []
    for part in query_chunks(*q.shape[:3], keys.shape[2]):
        z = logits(q, keys, None, part)
        if bias:
            z = torch.cat((z[..., :k.shape[2]], z[..., k.shape[2]:] + bias), -1)
        parts.append(z.softmax(-1)[..., k.shape[2]:].mean(1))
    return torch.cat(parts, 1)


def resampled(a, grid, wanted):
    """Attention [n, cells, cells] between two grids of one size, on another one: sums over the reference's cells are kept."""
    if grid == wanted:
        return a
    n, (h, w), (high, wide) = a.shape[0], grid, wanted
    a = _scaled(a.reshape(n, h * w, h, w), wanted, "bilinear") * (h * w / (high * wide))
    a = _scaled(a.flatten(2).transpose(1, 2).reshape(n, high * wide, h, w), wanted, "nearest-exact")
    return a.flatten(2).transpose(1, 2)


def _scaled(t, wanted, mode):
    if t.shape[-2] >= wanted[0] and t.shape[-1] >= wanted[1]:
        return F.adaptive_avg_pool2d(t, wanted)
    return F.interpolate(t, size=wanted, mode=mode, **({"align_corners": False} if mode == "bilinear" else {}))


def matches(votes, grid, dominant=4, radius=0.2, outlier=0.15):
    """Correspondences from votes [n, cells, cells]: (points [n, height, width, 2] in the reference, valid, rejected [n, height, width], raw points).

    A point of the reference that more than `dominant` cells chose is none of them's match; the flow is then smoothed over discs of `radius` (0: not), weighted by the votes;
    matches that this moves by more than `outlier` or out of the picture are rejected. Lengths in fractions of the longer side.
    """
    n, (height, width) = votes.shape[0], grid
    top, index = votes.max(-1)
    valid = top > 0
    here = cells(height, width, votes.device)
    raw = here.flatten(0, 1)[index].view(n, height, width, 2)
    chosen = torch.zeros_like(votes[:, 0]).scatter_add_(1, index, valid.to(votes.dtype))
    kept = valid & (chosen.gather(1, index) <= dominant) if dominant else valid
    valid, kept, weight = (t.view(n, height, width) for t in (valid, kept, top))
    points = raw
    if radius:
        flow = (raw - here).permute(0, 3, 1, 2)
        weight = (weight * kept)[:, None]
        reach = int(radius * max(height, width))
        line = torch.arange(-reach, reach + 1, device=votes.device, dtype=torch.float32)
        disc = (line[:, None].square() + line.square() < (radius * max(height, width)) ** 2).float()[None, None]
        spread = lambda t: F.conv2d(t.flatten(0, 1)[:, None], disc, padding=reach).view(t.shape)
        smooth = spread(flow * weight) / spread(weight).clamp(min=1e-20)
        points = here + smooth.permute(0, 2, 3, 1)
        moved = ((points - raw) * sides(height, width, votes.device)).norm(dim=-1)
        kept = kept & (moved <= outlier) & (points >= 0).all(-1) & (points < 1).all(-1)
    return points, kept, valid & ~kept, raw


def at_layer(points, valid, grid):
    """Matches on another grid: the mean of those inside each cell. (points [n, height, width, 2], valid)."""
    if tuple(points.shape[1:3]) == grid:
        return points, valid
    share = valid[:, None].float()
    if points.shape[1] >= grid[0] and points.shape[2] >= grid[1]:
        count = F.adaptive_avg_pool2d(share, grid)
        mean = F.adaptive_avg_pool2d(points.permute(0, 3, 1, 2) * share, grid) / count.clamp(min=1e-12)
        return mean.permute(0, 2, 3, 1), count[:, 0] > 1e-6
    pick = lambda t: F.interpolate(t, size=grid, mode="nearest-exact")
    return pick(points.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), pick(share)[:, 0] > 0.5


def near(points, grid, radius):
    """Whether each cell of the reference is within `radius` cells of each point: bool [n, cells, cells of the reference]."""
    size = torch.tensor(grid, device=points.device, dtype=torch.float32)
    here = cells(*grid, points.device).flatten(0, 1) * size
    return torch.cdist(points.flatten(1, 2) * size, here[None].expand(points.shape[0], -1, -1)) <= radius + 1e-4


def agreement_loss(a, points, valid, grid, radius=0.05):
    """[n]: class-balanced cross entropy between maps a [n, cells, cells], brought to [0, 1] row by row, and discs of `radius` around each valid match."""
    want = near(points, grid, max(0.71, radius * max(grid))).to(a.dtype) * valid.flatten(1)[..., None]
    top = (a + 1e-7).amax(-1, keepdim=True).detach()
    middle = (a + 1e-7).median(-1, keepdim=True)[0].detach()
    shown = ((a - middle) / top).clamp(0, 1)
    rows = valid.flatten(1)[..., None].to(a.dtype).expand_as(a)
    positive, total = (want * rows).sum((1, 2)), rows.sum((1, 2)).clamp(min=1)
    share = (positive / total)[:, None, None]
    weight = rows * torch.where(want > 0, 1 - share, share)
    return (F.binary_cross_entropy_with_logits(shown, want, reduction="none") * weight).sum((1, 2)) / total


class Votes:
    """What one run knows: votes [batch, cells, cells] so far, the matches that follow from them, and the maps of an evaluation with a gradient."""

    def __init__(self, most, dominant, radius, outlier):
        self.most, self.rules = most, dict(dominant=dominant, radius=radius, outlier=outlier)
        self.grid = self.votes = self.found = None
        self.maps, self.wanted = [], False

    def grid_of(self, latent):
        """The grid of votes for a latent: its own, halved until no side is longer than `most`."""
        height, width = latent[-2:]
        while max(height, width) > self.most:
            height, width = -(-height // 2), -(-width // 2)
        return height, width

    def add(self, a, grid, latent):
        """Adds the attention [batch, cells, cells] of one layer, less each row's median."""
        if self.grid is None:
            self.grid = self.grid_of(latent)
        a = resampled(a, grid, self.grid)
        if self.wanted and a.requires_grad:
            self.maps.append(a)
        with torch.inference_mode(False), torch.no_grad():
            a = a.detach().clone().float()
            a = (a - a.median(-1, keepdim=True)[0]).clamp(min=0)
            self.votes = a if self.votes is None or self.votes.shape != a.shape else self.votes + a
            self.found = matches(self.votes, self.grid, **self.rules)

    @property
    def share(self):
        """[batch]: which share of the cells has a match; 0 where too few have one."""
        valid = self.found[1].flatten(1)
        return torch.where(valid.sum(1) >= LEAST, valid.float().mean(1), 0.0)

    def bias(self, grid, boost, hide, window):
        """[batch, cells, cells of the reference] on a layer's logits: boost within `window` cells of the match, with `hide` -inf elsewhere, and around rejected matches."""
        points, valid, rejected, raw = self.found
        share = self.share[:, None, None]
        own, has = at_layer(points, valid, grid)
        inside, has = near(own, grid, window), has.flatten(1)[..., None] & (share > 0)
        out = torch.where(inside & has, boost * share, 0.0)
        if not hide:
            return out
        wrong, bad = at_layer(raw, rejected, grid)
        hidden = (~inside & has) | (near(wrong, grid, window) & bad.flatten(1)[..., None] & ~has & (share > 0))
        return out.masked_fill(hidden, float("-inf"))

    def loss(self, like):
        """[batch]: the mean agreement_loss of the maps of this evaluation."""
        if not self.maps or self.found is None:
            return like.flatten(1).sum(1) * 0
        return torch.stack([agreement_loss(a, self.found[0], self.found[1], self.grid) for a in self.maps]).mean(0) * (self.share > 0)
