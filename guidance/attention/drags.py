"""Drags: places of a reference, and where in the picture what they show is to be; and how well vectors of places say so."""
from __future__ import annotations

import math
import re

import torch
import torch.nn.functional as F

from ..method import BadInput

_FORM = "Write x, y > x, y in fractions of the picture (0 is left or top): several are separated by ; and those of different pictures by |."


def parse(text, node, field="drags"):
    """[[n, 4] for each picture] of a text "x, y > x, y; ... | ...": from (x, y) to (x, y) in fractions of the picture."""
    pictures = []
    for part in text.split("|"):
        found = []
        for drag in (d for d in re.split(r"[;\n]", part) if d.strip()):
            ends = [e.replace(",", " ").split() for e in drag.split(">")]
            try:
                values = [float(v) for e in ends for v in e]
            except ValueError:
                values = []
            if [len(e) for e in ends] != [2, 2] or len(values) != 4 or not all(math.isfinite(v) and 0 <= v <= 1 for v in values):
                raise BadInput(node, field, drag.strip(), _FORM)
            found.append(values)
        if not found:
            raise BadInput(node, field, text, f"Each picture needs a drag. {_FORM}")
        pictures.append(torch.tensor(found))
    return pictures


def disc(radius, height, width):
    """Offsets [m, 2] of a disc's cells in fractions of a picture of height x width cells; radius is a fraction of the longer side. Its centre is always one."""
    longest = max(height, width)
    reach = int(radius * longest)
    y, x = torch.meshgrid(torch.arange(-reach, reach + 1), torch.arange(-reach, reach + 1), indexing="ij")
    cells = torch.stack((x, y), -1).flatten(0, 1).float()
    cells = cells[cells.square().sum(1).sqrt() <= radius * longest + 1e-6]
    return cells / torch.tensor([width, height])


def at(vectors, points):
    """vectors [channels, height, width] at points [m, 2], as unit vectors [m, channels]; bilinear, the nearest beyond the border."""
    grid = (points.to(vectors) * 2 - 1)[None, None]
    return F.normalize(F.grid_sample(vectors[None], grid, mode="bilinear", padding_mode="border", align_corners=False)[0, :, 0].T, dim=1)


def misplaced(vectors, reference, drags, radius, ghost):
    """How far what the reference [channels, height, width] shows around the drags' beginnings is from being at their ends in vectors [channels, height, width]: a number.

    mean over drags and the cells d of a disc:  (1 - ghost) (1 - sim(end + d, begin + d)) + ghost sim(begin + d, begin + d),   sim = (1 + cos) / 2 of the picture's vector and the reference's.
    """
    around = disc(radius, *vectors.shape[-2:])
    begin, end = ((drags[:, None, part] + around).flatten(0, 1) for part in (slice(0, 2), slice(2, 4)))
    wanted = at(reference, begin)
    alike = lambda points: 0.5 + 0.5 * (at(vectors, points) * wanted).sum(1)
    return ((1 - ghost) * (1 - alike(end)) + ghost * alike(begin)).mean()
