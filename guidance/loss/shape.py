"""Where something of a colour is: its shape, place and size, without a network."""
from __future__ import annotations

from typing import Any

import torch

from ..frozen import frozen
from ..method import BadInput, param, socket
from .picture import PictureLoss, positions


def membership(u, colours, softness):
    """[n, k, h, w]: how much each cell is of each colour [k, 3], a softmax of the squared distances over `softness`."""
    distance = (u[:, None] - colours.to(u)[None, :, :, None, None]).square().sum(2)
    return (-distance / softness).softmax(1)


def parse_colour(text, node):
    """(r, g, b) in [0, 1] of "#rrggbb" or of three numbers."""
    found = text.strip()
    try:
        if found.startswith("#") and len(found) == 7:
            return tuple(int(found[i:i + 2], 16) / 255 for i in (1, 3, 5))
        values = tuple(float(v) for v in found.replace(",", " ").split())
        if len(values) == 3 and all(0 <= v <= 1 for v in values):
            return values
    except ValueError:
        pass
    raise BadInput(node, "colour", text, "Write #rrggbb, or three numbers from 0 to 1.")


@frozen(eq=False)
class ColouredShape(PictureLoss):
    """How far what has a colour is from a shape, a place or a size.

        p = softmax over {colour, others} of  -|u - c|^2 / softness          the share of each cell that has the colour
        shape (1 - 2 sum p r / (sum p + sum r))  +  place |sum p xy / sum p - xy*|^2  +  size (mean p - area)^2

    r: the mask `region`. Others: colours that the cell may have instead, the background's for example. place and size are in fractions of the picture.
    """

    title = "Coloured Shape Loss"
    spaces = ("rgb", "small")

    colour: str = param("#e61f24", "The colour, as #rrggbb or three numbers from 0 to 1.")
    others: str = param("#808080", "Colours that a cell may have instead, separated by semicolons.")
    region: Any = socket("MASK", "Where it is to be: the shape that it is to have.", optional=True)
    shape: float = param(1.0, "Weight of the shape.", 0.0, 1000.0, 0.05)
    place: float = param(0.0, "Weight of the place.", 0.0, 1000.0, 0.05)
    x: float = param(0.5, "Where its middle is to be, from the left, in fractions of the picture.", 0.0, 1.0, 0.01)
    y: float = param(0.5, "And from above.", 0.0, 1.0, 0.01)
    size: float = param(0.0, "Weight of the size.", 0.0, 1000.0, 0.05)
    area: float = param(0.1, "The share of the picture that it is to cover.", 0.0, 1.0, 0.01)
    softness: float = param(0.02, "How near a colour has to be, as a squared distance.", 1e-4, 10.0, 0.001, advanced=True)

    def check(self):
        super().check()
        if self.shape > 0 and self.region is None:
            raise BadInput(self.title, "region", None, "The shape needs a region; connect one, or set its weight to 0.")
        self.colours
        return self

    @property
    def colours(self):
        """[k, 3], the wanted one first."""
        return torch.tensor([parse_colour(t, self.title) for t in (self.colour, *(t for t in self.others.split(";") if t.strip()))])

    def measure(self, u, m, context):
        if len(self.colours) < 2:
            raise BadInput(self.title, "others", self.others, "Name at least one other colour, the background's for example.")
        p = membership(u, self.colours, self.softness)[:, :1] * m
        total, mass = u.new_zeros(u.shape[0]), p.flatten(1).sum(1).clamp(min=1e-6)
        if self.shape:
            r = self._each(torch.nn.functional.interpolate(self.region.to(u)[:, None], u.shape[-2:], mode="area"), u, "region")
            total = total + self.shape * (1 - 2 * (p * r).flatten(1).sum(1) / (mass + r.flatten(1).sum(1)).clamp(min=1e-6))
        if self.place:
            x, y = positions(u)
            total = total + self.place * (((p * x).flatten(1).sum(1) / mass - self.x).square() + ((p * y).flatten(1).sum(1) / mass - self.y).square())
        if self.size:
            total = total + self.size * (p.flatten(1).mean(1) - self.area).square()
        return total
