"""Warps: where each place of a new view lies in an old one, from a camera's movement and distances; and pictures, latents and features seen through them."""
from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from ..frozen import frozen
from ..method import BadInput

NODE = "View Warp"


@frozen(eq=False)
class Warp:
    """points [n, height, width, 2]: (x, y) in the old view in fractions of its sides, of each cell of the new one; seen [n, height, width]: whether the old view shows it."""

    points: Any
    seen: Any

    def __deepcopy__(self, memo):
        return self

    def at(self, height, width):
        """(points, seen as 0 or 1) on another grid."""
        if tuple(self.points.shape[1:3]) == (height, width):
            return self.points, self.seen.float()
        mode = dict(size=(height, width), mode="bilinear", align_corners=False)
        points = F.interpolate(self.points.permute(0, 3, 1, 2), **mode).permute(0, 2, 3, 1)
        inside = ((points >= 0) & (points <= 1)).all(-1)
        return points, ((F.interpolate(self.seen.float()[:, None], **mode)[:, 0] > 0.5) & inside).float()

    def entries(self, batch, node):
        """The Warp with one entry for each of a batch."""
        n = self.points.shape[0]
        if n not in (1, batch):
            raise BadInput(node, "warp", f"{n} warps", f"The batch has {batch}: give one warp for all pictures, or one for each.")
        return Warp(self.points.expand(batch, -1, -1, -1), self.seen.expand(batch, -1, -1))

    def apply(self, t):
        """t [n, channels, (frames,) height, width] of the old view as the new one sees it; beyond the border it is mirrored."""
        if t.ndim == 5:
            return torch.stack([self.apply(t[:, :, i]) for i in range(t.shape[2])], 2)
        points, _ = self.entries(t.shape[0], NODE).at(*t.shape[-2:])
        return F.grid_sample(t.float(), points.to(t.device) * 2 - 1, mode="bilinear", padding_mode="reflection", align_corners=False).to(t.dtype)


def rotation(yaw, pitch, roll):
    """The camera's rotation [3, 3] from degrees: yaw to the right, pitch upwards, roll clockwise; axes x right, y down, z forward."""
    y, p, r = (math.radians(v) for v in (yaw, pitch, roll))
    about_y = torch.tensor([[math.cos(y), 0, math.sin(y)], [0, 1, 0], [-math.sin(y), 0, math.cos(y)]])
    about_x = torch.tensor([[1, 0, 0], [0, math.cos(p), -math.sin(p)], [0, math.sin(p), math.cos(p)]])
    about_z = torch.tensor([[math.cos(r), -math.sin(r), 0], [math.sin(r), math.cos(r), 0], [0, 0, 1]])
    return about_y @ about_x @ about_z


def view_warp(distance, fov=60.0, forward=0.0, right=0.0, down=0.0, yaw=0.0, pitch=0.0, roll=0.0):
    """The Warp of a camera that moves and turns: P_old = R P_new + T, both seen through a lens of `fov` degrees along the longer side.

    distance [n, height, width]: of what each cell of the new view shows, taken from the old view's cell at the same place, as the authors do; T is in the same unit.
    """
    n, h, w = distance.shape
    focal = 0.5 * max(h, w) / math.tan(math.radians(fov) / 2)
    y, x = torch.meshgrid(torch.arange(h) + 0.5 - h / 2, torch.arange(w) + 0.5 - w / 2, indexing="ij")
    rays = torch.stack((x / focal, y / focal, torch.ones_like(x)), -1)
    old = (rays * distance[..., None].float()) @ rotation(yaw, pitch, roll).T + torch.tensor([right, down, forward], dtype=torch.float32)
    depth = old[..., 2]
    flat = old[..., :2] * focal / depth.clamp(min=1e-6)[..., None] + torch.tensor([w / 2, h / 2])
    points = flat / torch.tensor([w, h], dtype=torch.float32)
    seen = (depth > 1e-6) & ((points >= 0) & (points <= 1)).all(-1)
    return Warp(points.clamp(-8, 9), seen)


def distances(depth, near, far):
    """Distances [n, height, width] from a picture of inverse depth in [0, 1], bright near (MiDaS and its like)."""
    value = depth.float()
    value = value.mean(-1) if value.ndim == 4 else value
    return 1 / (1 / far + value.clamp(0, 1) * (1 / near - 1 / far))


def with_detail(warped, old, radius):
    """The low frequencies of `warped` with the high ones of `old`, so that noise stays as rough as it was: a square of half side `radius`, as a share of the picture, is low."""
    if radius >= 0.5:
        return warped
    high, wide = warped.shape[-2:]
    rows, columns = (torch.fft.fftfreq(n, device=warped.device) for n in (high, wide))
    low = ((rows >= -radius) & (rows < radius))[:, None] & ((columns >= -radius) & (columns < radius))
    both = torch.where(low, torch.fft.fft2(warped.float()), torch.fft.fft2(old.float()))
    return torch.fft.ifft2(both).real.to(warped.dtype)
