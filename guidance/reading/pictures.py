"""Maps as pictures."""
from __future__ import annotations

import torch
import torch.nn.functional as F

from ..attention.region_picture import COLOURS

# a perceptually even scale from black over violet, red and orange to a light yellow
_STOPS = ((0.0, 0.0, 0.02), (0.26, 0.04, 0.41), (0.58, 0.15, 0.40), (0.87, 0.32, 0.23), (0.99, 0.65, 0.04), (0.99, 1.0, 0.64))


def enlarged(maps, size):
    """Maps [n, h, w] as [n, height, width], bicubic where they grow, averaged where they shrink."""
    height, width = (int(s) for s in size)
    if height >= maps.shape[-2] and width >= maps.shape[-1]:
        return F.interpolate(maps[:, None].float(), (height, width), mode="bicubic", align_corners=False)[:, 0]
    return F.interpolate(maps[:, None].float(), (height, width), mode="area")[:, 0]


def spectrum(values):
    """Values [...] in [0, 1] as colours [..., 3]."""
    stops = torch.tensor(_STOPS, device=values.device)
    place = values.clamp(0, 1) * (len(_STOPS) - 1)
    low = place.floor().long().clamp(max=len(_STOPS) - 2)
    share = (place - low)[..., None]
    return stops[low] * (1 - share) + stops[low + 1] * share


def stretched(maps):
    """Each map [n, h, w] from its least value (0) to its largest (1); a constant map is 0."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return torch.where(high > low, (maps - low) / (high - low).clamp(min=1e-12), torch.zeros_like(maps))


def coloured(maps, size, signed=False, full=1.0):
    """Maps [n, h, w] as an IMAGE [n, height, width, 3] on one common scale; `signed`: red above 0, blue below it, white at 0. `full`: the share of the values that the
    scale holds, so that single cells do not hide the rest."""
    values = maps.abs().flatten().float()
    top = values.kthvalue(max(1, round(full * values.numel()))).values.clamp(min=1e-12)
    maps = enlarged(maps, size)
    if not signed:
        return spectrum(maps / top)
    share = (maps / top).clamp(-1, 1)[..., None]
    warm, cold = torch.tensor([0.80, 0.15, 0.10], device=maps.device), torch.tensor([0.10, 0.25, 0.80], device=maps.device)
    return 1 - share.abs() * (1 - torch.where(share > 0, warm, cold))


def resized(picture, size):
    """Pictures [n, height, width, channels] of another size (height, width), bilinear without aliasing."""
    size = tuple(int(s) for s in size)
    if tuple(picture.shape[1:3]) == size:
        return picture
    return F.interpolate(picture.movedim(-1, 1).float(), size, mode="bilinear", align_corners=False, antialias=True).movedim(1, -1).clamp(0, 1)


def labelled_picture(labels, picture=None, strength=0.55):
    """IMAGE [n, height, width, 3] of labels [n, height, width] (-1: none): each class in a colour, over pictures [n or 1, height, width, 3] or dark grey."""
    base = torch.full((*labels.shape, 3), 0.12, device=labels.device) if picture is None else picture.to(labels.device).expand(*labels.shape, 3)
    colours = (torch.tensor(COLOURS, device=labels.device) / 255)[labels.clamp(min=0) % len(COLOURS)]
    share = strength * (labels >= 0).float()[..., None]
    return base * (1 - share) + colours * share


def overlaid(picture, heat, strength=0.6):
    """Heat maps in [0, 1] [n, height, width] over pictures [n, height, width, 3]: where the heat is, its colour."""
    share = strength * heat.clamp(0, 1)[..., None]
    return (picture * (1 - share) + spectrum(heat) * share).clamp(0, 1)
