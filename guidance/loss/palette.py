"""A label map as a target: which class each place of the picture has, by the colours of a palette."""
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from ..frozen import frozen
from ..method import BadInput, param, socket
from .picture import PictureLoss, mean
from .shape import membership, parse_colour


@frozen(eq=False)
class PaletteSegmentation(PictureLoss):
    """How far the classes of the picture's places are from a label map, where a class is a colour.

        p = softmax over the palette of  -|u - c|^2 / softness,    loss = mean over places of  -log p(label)

    label: the palette's colour that is nearest to the label map's, at each place. It stands in for a segmentation network where classes have colours of their own. Cross-entropy in nats.
    """

    title = "Palette Segmentation Loss"
    spaces = ("rgb", "small")

    image: Any = socket("IMAGE", "The label map: each class in its colour.")
    palette: str = param("#e61f24; #1f40d9; #f2d91a; #f5f5f5; #808080; #0d0d0d", "The classes' colours, as #rrggbb or three numbers from 0 to 1, separated by semicolons.")
    softness: float = param(0.05, "How near a colour has to be, as a squared distance.", 1e-4, 10.0, 0.001, advanced=True)

    def check(self):
        super().check()
        if len(self.colours) < 2:
            raise BadInput(self.title, "palette", self.palette, "Name at least two colours.")
        return self

    @property
    def colours(self):
        return torch.tensor([parse_colour(t, self.title) for t in self.palette.split(";") if t.strip()])

    def measure(self, u, m, context):
        colours = self.colours.to(u)
        with torch.no_grad():
            labels = membership(self.wanted(u), colours, self.softness).argmax(1, keepdim=True)      # at the label map's own size
            if labels.shape[-2:] != u.shape[-2:]:
                labels = F.interpolate(labels.float(), u.shape[-2:], mode="nearest").long()
        distance = (u[:, None] - colours[None, :, :, None, None]).square().sum(2)
        return mean(-(-distance / self.softness).log_softmax(1).gather(1, labels), m)
