"""Flow: how far each pixel of one picture moves to the next one; made from a mask or estimated, and pictures seen through it."""
from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from ..frozen import frozen
from ..method import BadInput


@frozen(eq=False)
class Flow:
    """vectors [n, 2, h, w] in pixels (x to the right, y down): what picture a shows at p is at p + vectors(p) in picture b."""

    vectors: Any

    def __deepcopy__(self, memo):
        return self

    def at(self, height, width):
        """The vectors for pictures of another size, in its pixels."""
        return resized(self.vectors, height, width)


def resized(vectors, height, width):
    h, w = vectors.shape[-2:]
    if (h, w) == (height, width):
        return vectors
    out = F.interpolate(vectors, (height, width), mode="area" if height < h and width < w else "bilinear", **({} if height < h and width < w else {"align_corners": False}))
    return out * out.new_tensor((width / w, height / h))[:, None, None]


def warp(picture, vectors, beyond="border"):
    """picture(p + vectors(p)), bilinear: [n, c, h, w] by [n, 2, h, w]; beyond the border the nearest pixel, or "zeros"."""
    h, w = picture.shape[-2:]
    x = torch.arange(w, device=vectors.device, dtype=vectors.dtype) + vectors[:, 0]
    y = torch.arange(h, device=vectors.device, dtype=vectors.dtype)[:, None] + vectors[:, 1]
    grid = torch.stack(((2 * x + 1) / w - 1, (2 * y + 1) / h - 1), -1)
    return F.grid_sample(picture, grid.to(picture), padding_mode=beyond, align_corners=False)


def _about(mask, node):
    """(x, y): where each pixel of masks [n, h, w] lies from the middle of what they mark; BadInput where they mark nothing."""
    if not bool((mask > 0.5).flatten(1).any(1).all()):
        raise BadInput(node, "mask", "empty", "Nothing is marked in the mask; paint white what is to move.")
    n, h, w = mask.shape
    inside = (mask > 0.5).float()
    x, y = torch.arange(w, dtype=torch.float32, device=mask.device).expand(n, h, w), torch.arange(h, dtype=torch.float32, device=mask.device)[:, None].expand(n, h, w)
    return tuple(t - (inside * t).sum((1, 2), keepdim=True) / inside.sum((1, 2), keepdim=True) for t in (x, y))


def of_mask(mask, dx=0.0, dy=0.0, turn=0.0, scale=1.0, node="Flow From Mask"):
    """(Flow, the mask there) of what a mask [n, h, w] marks, moved by (dx, dy) pixels, turned by `turn` degrees clockwise and scaled about its middle; nothing else moves."""
    x, y = _about(mask, node)
    c, s = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    flow = torch.stack((scale * (c * x - s * y) - x + dx, scale * (s * x + c * y) - y + dy), 1) * (mask > 0.5)[:, None]
    u, v = (x - dx) / scale, (y - dy) / scale
    back = torch.stack((c * u + s * v - x, c * v - s * u - y), 1)
    return Flow(flow), warp(mask[:, None].float(), back, "zeros")[:, 0]


def visible(vectors):
    """[n, 1, h, w]: 1 for the pixels that the second picture still shows: those that stay inside it, and on which nothing lands that moves further by more than half a pixel."""
    n, _, h, w = vectors.shape
    x = torch.arange(w, device=vectors.device) + vectors[:, 0]
    y = torch.arange(h, device=vectors.device)[:, None] + vectors[:, 1]
    inside = (x > -0.5) & (x < w - 0.5) & (y > -0.5) & (y < h - 0.5)
    far = vectors.norm(dim=1)
    furthest = far.new_zeros(n, h * w)      # of what lands on each pixel; its four neighbours count, so that no holes are left between pixels that are moved apart
    for i in (0, 1):
        for j in (0, 1):
            at = (y + 0.99 * i).floor().clamp(0, h - 1) * w + (x + 0.99 * j).floor().clamp(0, w - 1)
            furthest = furthest.scatter_reduce(1, at.long().flatten(1), (far * inside).flatten(1), "amax")
    here = (y.round().clamp(0, h - 1) * w + x.round().clamp(0, w - 1)).long().flatten(1)
    covered = furthest.gather(1, here).view(n, h, w) > far + 0.5
    return (inside & ~covered).float()[:, None]


def shown(vectors, longest=0.0):
    """Flow as colours [n, 3, h, w]: the hue says where to, the saturation how far, white does not move. longest: pixels that are fully coloured; 0: the longest vector of each."""
    length = vectors.norm(dim=1)
    most = length.flatten(1).amax(1).clamp(min=1e-6)[:, None, None] if longest <= 0 else longest
    s = (length / most).clamp(0, 1)
    hue = torch.atan2(vectors[:, 1], vectors[:, 0]) / (2 * math.pi) * 6
    ramps = torch.stack([(((hue + shift) % 6 - 3).abs() - 1).clamp(0, 1) for shift in (0, 4, 2)], 1)
    return 1 - s[:, None] * (1 - ramps)


@frozen(eq=False)
class FlowEstimator:
    """A network as estimate(a, b) -> vectors for pictures [n, 3, h, w] in [0, 1], differentiable in both.

    network(a, b) -> vectors; side: the shorter side that it works at, 0: the pictures' own; multiple: what its sides are multiples of; least: its shortest side.
    """

    network: Any
    side: int = 64
    multiple: int = 8
    least: int = 64
    name: str = "flow network"

    def __deepcopy__(self, memo):
        return self

    def size(self, h, w):
        factor = (self.side or max(min(h, w), self.least)) / min(h, w)
        return tuple(max(self.least, round(v * factor / self.multiple) * self.multiple) for v in (h, w))

    def __call__(self, a, b):
        h, w = a.shape[-2:]
        small = self.size(h, w)
        self.network.to(a.device)
        fit = lambda u: u if small == (h, w) else F.interpolate(u, small, mode="area" if small[0] <= h and small[1] <= w else "bilinear")
        return resized(self.network(fit(a.float()), fit(b.float())).float(), h, w)


class Raft(torch.nn.Module):
    """torchvision's RAFT as a network of FlowEstimator: pictures in [0, 1], `updates` iterations."""

    def __init__(self, network, updates=5):
        super().__init__()
        self.network, self.updates = network, updates

    def forward(self, a, b):
        return self.network(a * 2 - 1, b * 2 - 1, num_flow_updates=self.updates)[-1]


def raft_of(weights, node="Load Flow Network", file="file", updates=5):
    """A FlowEstimator of RAFT (small or large) in torchvision's layout from its tensors; BadInput for others."""
    from torchvision.models import optical_flow
    large = any(k.startswith("mask_predictor.") for k in weights)
    network = (optical_flow.raft_large if large else optical_flow.raft_small)(weights=None)
    missing = sorted(set(network.state_dict()) - set(weights) - {k for k in network.state_dict() if k.endswith("num_batches_tracked")})
    wrong = [k for k, v in network.state_dict().items() if k in weights and weights[k].shape != v.shape]
    if missing or wrong:
        what = f"it lacks {missing[0]}" if missing else f"{wrong[0]} is {list(weights[wrong[0]].shape)}"
        raise BadInput(node, "file", file, f"RAFT's keys are those of torchvision's raft_small and raft_large (feature_encoder..., context_encoder..., update_block...); {what}.")
    network.load_state_dict({k: v.float() for k, v in weights.items() if k in network.state_dict()}, strict=False)
    network.eval().requires_grad_(False)
    return FlowEstimator(Raft(network, updates), 0, 8, 128, "RAFT large" if large else "RAFT small")
