"""A reader of the demo scenes in place of a text recogniser: the demo models can draw no text, so shapes are the letters, from left to right.

It stands on the measuring network (measure.py) and has what Glyph-Adaptive Attention asks of a recogniser.
"""
import torch
import torch.nn.functional as F

from ..guidance.attention.glyph_reader import TextScore
from .measure import _HEADS, CELL, THRESHOLD, fit_size, load
from .scenes import SHAPES

LETTERS = dict(zip(SHAPES, "ohax"))      # circle, square, triangle, cross
LENGTH = 4                               # positions: up to three letters and the end


def letters(scene):
    """What a scene says: its shapes from left to right."""
    return "".join(LETTERS[t.shape] for t in sorted(scene.things, key=lambda t: t.x))


class _Alphabet:
    """What a TextScore asks of its reader."""

    characters, length = "".join(LETTERS.values()), LENGTH


class ShapeScore(TextScore):
    """How legible shapes are: class probabilities from the measuring network's chance of an object and of its shape."""

    def __init__(self):
        super().__init__(_Alphabet())
        self.network = load()

    def probabilities(self, pictures):
        self.network.to(pictures.device)
        maps, _ = self.network(fit_size(pictures))
        heat, _, shape, _, offset = maps.float().split(_HEADS, 1)
        heat, shape = heat[:, 0].sigmoid(), shape.softmax(1)
        peaks = (heat == F.max_pool2d(heat[:, None], 5, 1, 2)[:, 0]) & (heat >= THRESHOLD)
        out = torch.zeros(len(maps), LENGTH, 1 + len(LETTERS), device=maps.device)
        out[..., 0] = 1
        for i, picture in enumerate(peaks):
            found = sorted(picture.nonzero().tolist(), key=lambda at: (at[1] + 0.5) * CELL + float(offset[i, 0, at[0], at[1]]) * CELL)
            for p, (row, column) in enumerate(found[:LENGTH - 1]):
                chance = heat[i, row, column]
                out[i, p, 0], out[i, p, 1:] = 1 - chance, chance * shape[i, :, row, column]
        return out
