"""An object on a background whose place, light and tone are optimised (DiPIR's parameters that need no renderer; ComboVerse's of the layout)."""
from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from ..frozen import frozen
from ..method import param
from .distil import Distiller

KNOTS = 8


def placed(picture, x, y, size, turn, height, width):
    """pictures [n, c, h, w], drawn with their middle at (x, y) (fractions of the frame), `size` times their own size and turned clockwise by `turn` radians, on an empty
    frame [n, c, height, width]. x, y, size, turn: [n], with grad."""
    n, _, h, w = picture.shape
    across = (torch.arange(width, device=picture.device) + 0.5)[None, None] - (x * width)[:, None, None]
    down = (torch.arange(height, device=picture.device) + 0.5)[None, :, None] - (y * height)[:, None, None]
    cos, sin, size = torch.cos(turn)[:, None, None], torch.sin(turn)[:, None, None], size[:, None, None]
    at = torch.stack(((cos * across + sin * down) / size / (w / 2), (cos * down - sin * across) / size / (h / 2)), -1)
    return F.grid_sample(picture, at, mode="bilinear", padding_mode="zeros", align_corners=False)


def toned(u, curve):
    """Pictures u [n, 3, h, w] through the rising curve [n, knots - 1] of logarithmic slopes over [0, 1] (0: the curve is straight); beyond it goes on with the last slope."""
    pieces = curve.shape[1]
    steps = curve.exp() / pieces
    begin = torch.cumsum(F.pad(steps, (1, 0))[:, :-1], 1)
    where = (u * pieces).floor().clamp(0, pieces - 1).long()
    pick = lambda t: t.gather(1, where.flatten(1)).view(u.shape)
    return pick(begin) + (u * pieces - where) * pick(steps)


class CompositeCanvas:
    """Objects [n, 3, h, w] with coverage [n, 1, h, w] on backgrounds [n, 3, height, width]; `rates` are the factors of the rate of the groups that move."""

    through = True

    def __init__(self, thing, cover, ground, x, y, size, turn, rates):
        self.thing, self.cover, self.ground = thing, cover, ground
        n = len(ground)
        like = dict(dtype=torch.float32, device=ground.device)
        full = lambda value, *shape: torch.full((n, *shape), float(value), **like)
        start = {"place": full(0.0, 2), "size": full(math.log(size), 1), "turn": full(math.radians(turn), 1), "colour": full(0.0, 3), "tone": full(0.0, KNOTS - 1)}
        start["place"][:, 0], start["place"][:, 1] = x, y
        self.values = {k: v.requires_grad_(rates.get(k, 0) > 0) for k, v in start.items()}
        self.rates = {k: r for k, r in rates.items() if r > 0}

    groups = property(lambda self: [([self.values[k]], r) for k, r in self.rates.items()])

    def parts(self):
        """(object's colours, its coverage) on the frame."""
        v = self.values
        colours = toned(self.thing * v["colour"].exp()[:, :, None, None], v["tone"])
        both = placed(torch.cat((colours * self.cover, self.cover), 1), v["place"][:, 0], v["place"][:, 1], v["size"][:, 0].exp(), v["turn"][:, 0], *self.ground.shape[-2:])
        return both[:, :3], both[:, 3:]

    def picture(self, prior=None):
        colours, cover = self.parts()      # colours times coverage, so that the object's border has no fringe
        return self.ground * (1 - cover) + colours

    def latent(self, prior):
        return prior.encode(self.picture())

    def entries(self, rows):
        return tuple(range(len(self.ground))) if rows % len(self.ground) == 0 else (0,)

    def settle(self, before):
        """The object stays with its middle on the frame."""
        self.values["place"].clamp_(0, 1)

    def told(self):
        """[{name: numbers}] of each entry."""
        v = {k: t.detach().cpu() for k, t in self.values.items()}
        return [{"x": float(v["place"][i, 0]), "y": float(v["place"][i, 1]), "size": float(v["size"][i, 0].exp()), "rotation": math.degrees(float(v["turn"][i, 0])),
                 "gain": [float(g) for g in v["colour"][i].exp()],
                 "tone": [float(t) for t in toned(torch.linspace(0, 1, KNOTS).view(1, 1, 1, -1), v["tone"][i:i + 1]).flatten()]} for i in range(len(self.ground))]


@frozen(eq=False)
class CompositeDistillation(Distiller):
    """Sets an object into a picture: its place, size, rotation, colour and tone are optimised under a distillation guidance, and nothing else of the picture.

        u = background (1 - cover) + tone(gain * object) cover,   both drawn at (x, y), size, rotation
        parameters <- parameters - rate Adam( J^T g(encode(u)) ),   J: the Jacobian of encoder and composite

    gain: a factor for red, green and blue; tone: a rising curve through 8 knots. Place and sizes are fractions of the background; their rates are a part of `rate` each (below 0.2 for the
    place, whose unit is the whole frame), 0 keeps a group as it starts.
    DiPIR optimises light and tone of an object in a scene, under a model that was personalised to the scene by a LoRA (load one on the guidance's MODEL; Hybrid Distillation takes the plain model's
    prediction off): its renderer, environment light and shadows need a scene in three dimensions and are not here. ComboVerse's layout is the place, size and rotation under SDS with
    Spatial Word Attention at t from 0.8 to 0.9.
    Identities: no iterations, or all rates 0, is the plain composite. A mask of the object is its coverage. The guidance needs the VAE.
    Defaults: rate 0.05 with a fifth of it for the place; 100 iterations. Papers: arXiv 2408.09702 (its guidance as others report it), arXiv 2403.12409. Cost: see the guidance, and three times an encoding per iteration.
    """

    node_id = "LodestarCompositeDistillation"
    title = "Composite Distillation"
    paper = ("Photorealistic Object Insertion (DiPIR)", "ComboVerse (SSDS)")
    aliases = ("DiPIR", "object insertion", "harmonise", "layout distillation", "ComboVerse")

    steps: int = param(100, "Iterations.", 0, 100000, 1, label="iterations")
    x: float = param(0.5, "Where the object's middle starts, as a fraction of the background's width.", 0.0, 1.0, 0.01)
    y: float = param(0.5, "The same down its height.", 0.0, 1.0, 0.01)
    size: float = param(1.0, "Its size to start from, as a factor of its picture's.", 0.01, 100.0, 0.01)
    rotation: float = param(0.0, "Its rotation to start from, in degrees clockwise.", -360.0, 360.0, 1.0)
    place_rate: float = param(0.2, "Share of the rate for the place; 0: it stays.", 0.0, 100.0, 0.01)
    size_rate: float = param(0.2, "Share of the rate for the size.", 0.0, 100.0, 0.01)
    turn_rate: float = param(0.0, "Share of the rate for the rotation.", 0.0, 100.0, 0.01)
    colour_rate: float = param(1.0, "Share of the rate for the colour's gain.", 0.0, 100.0, 0.01)
    tone_rate: float = param(0.0, "Share of the rate for the tone curve.", 0.0, 100.0, 0.01)

    def neutral(self):
        return super().neutral() or not any(self.rates().values())

    def rates(self):
        return {"place": self.place_rate, "size": self.size_rate, "turn": self.turn_rate, "colour": self.colour_rate, "tone": self.tone_rate}

    def canvas(self, thing, cover, ground):
        return CompositeCanvas(thing, cover, ground, self.x, self.y, self.size, self.rotation, self.rates())
