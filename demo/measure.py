"""The measuring network: reads a picture of a scene back into its objects, and gives features for a Frechet distance.

A small CenterNet: [n, 3, 64, 64] in [0, 1] -> a 16 x 16 grid with, per cell, the chance of an object's centre, its colour,
shape, radius and the centre's offset, and one background per picture. Trained by train_measure.py on fresh scenes with the
flaws that generated pictures have; its figures are in weights/measure.json. Plain PyTorch, needs no ComfyUI.
"""
import os
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from .scenes import BACKGROUNDS, COLOURS, RELATIONS, SHAPES, SIZE, SIZES, holds

GRID = 16
CELL = SIZE / GRID       # pixels
WIDTH = 64
STEM = 32
FEATURES = WIDTH + STEM
THRESHOLD = 0.35         # least chance of a centre that counts as an object
SIZE_LIMIT = (SIZES["small"][1] + SIZES["large"][0]) / 2
WEIGHTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "weights", "measure.safetensors")
_COLOURS, _GROUNDS = tuple(COLOURS), tuple(BACKGROUNDS)
_HEADS = (1, len(COLOURS), len(SHAPES), 1, 2)     # centre, colour, shape, radius, offset


@dataclass(frozen=True)
class Seen:
    """One object found in a picture: names, centre (x, y) and half extent in pixels of a 64 px picture, and its score in [0, 1]."""

    colour: str
    shape: str
    size: str
    x: float
    y: float
    radius: float
    score: float


@dataclass(frozen=True)
class Reading:
    """What a picture shows: the background's name and the objects, best score first."""

    background: str
    things: tuple


class _Block(nn.Module):
    def __init__(self, width, dilation):
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.conv = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation)

    def forward(self, x):
        return x + self.conv(F.silu(self.norm(x)))


class Measure(nn.Module):
    """See the module's text. forward: [n, 3, 64, 64] in [0, 1] -> (maps [n, 15, 16, 16], background logits [n, 3])."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Conv2d(12, STEM, 3, padding=1)
        self.fine = _Block(STEM, 1)
        self.down = nn.Conv2d(STEM, WIDTH, 4, stride=2, padding=1)
        self.blocks = nn.ModuleList(_Block(WIDTH, d) for d in (1, 2, 1, 2, 1))
        self.norm = nn.GroupNorm(8, WIDTH)
        self.head = nn.Conv2d(WIDTH, sum(_HEADS), 1)
        self.ground = nn.Linear(WIDTH, len(BACKGROUNDS))

    def trunk(self, images):
        """Fine features [n, 32, 32, 32] and coarse features [n, 64, 16, 16]."""
        fine = self.fine(self.enter(F.pixel_unshuffle(images * 2 - 1, 2)))
        x = self.down(F.silu(fine))
        for block in self.blocks:
            x = block(x)
        return fine, F.silu(self.norm(x))

    def forward(self, images):
        _, x = self.trunk(images)
        return self.head(x), self.ground(x.mean((2, 3)))

    @torch.no_grad()
    def features(self, images, chunk=256):
        """[n, 3, h, w] in [0, 1] -> [n, FEATURES]: means of the coarse and of the fine features, for a Frechet distance."""
        out = []
        for part in fit_size(images).split(chunk):
            fine, coarse = self.trunk(part)
            out.append(torch.cat((coarse.mean((2, 3)), F.silu(fine).mean((2, 3))), 1))
        return torch.cat(out)

    @torch.no_grad()
    def decode(self, images, threshold=THRESHOLD, chunk=256):
        """Pictures [n, 3, h, w] in [0, 1] -> one Reading per picture."""
        found = []
        for part in fit_size(images).split(chunk):
            maps, ground = self(part)
            found += _read(maps, ground, threshold)
        return found


def fit_size(images):
    """Pictures [n, 3, h, w] as float32 of 64 x 64 px, clamped to [0, 1]; other sizes are averaged over areas.

    Raises ValueError where the shape is not that of RGB pictures."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"pictures must be [n, 3, h, w], not {list(images.shape)}")
    images = images.float().clamp(0, 1)
    return images if images.shape[-2:] == (SIZE, SIZE) else F.interpolate(images, size=(SIZE, SIZE), mode="area")


def _read(maps, ground, threshold):
    heat, colour, shape, radius, offset = maps.float().split(_HEADS, 1)
    heat = heat.sigmoid()
    peaks = (heat == F.max_pool2d(heat, 5, 1, 2)) & (heat >= threshold)      # centres are at least four cells apart
    colour, shape, ground = colour.argmax(1), shape.argmax(1), ground.argmax(1)
    things = [[] for _ in ground]
    for i, _, row, column in peaks.nonzero().tolist():
        r = radius[i, 0, row, column].item() * CELL
        dx, dy = (offset[i, :, row, column] * CELL).tolist()
        things[i].append(Seen(_COLOURS[colour[i, row, column]], SHAPES[shape[i, row, column]], "small" if r < SIZE_LIMIT else "large",
                              (column + 0.5) * CELL + dx, (row + 0.5) * CELL + dy, r, heat[i, 0, row, column].item()))
    return [Reading(_GROUNDS[g], tuple(sorted(t, key=lambda s: -s.score))) for g, t in zip(ground.tolist(), things)]


def load(path=WEIGHTS):
    """The trained network in float32, without gradients. Raises FileNotFoundError or ValueError that names the file."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"The measuring network's weights are missing: {path}. Restore the file from the repository "
                                "or make it with: python -m demo.train_measure --out demo/weights")
    network = Measure()
    try:
        network.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    except Exception as e:
        raise ValueError(f"{path} is not the measuring network's weight file ({e}). Restore it from the repository.") from e
    return network.eval().requires_grad_(False)


def judge(scene, reading):
    """How a reading agrees with what was asked for: a dict of bools.

    objects: every object of the scene is there with its colour and shape. relation: the scene's named relation holds between
    the first two (false while one is missing; where none is named it is true when the objects are). all: objects and relation.
    count: as many objects as asked for. background: the scene's. binding_error: an object is missing although all its scene's
    colours and shapes are in the picture, each as often as asked for, only paired wrongly."""
    best = {}
    for seen in reading.things:     # best score first
        best.setdefault((seen.colour, seen.shape), seen)
    partners = [best.get((t.colour, t.shape)) for t in scene.things]
    objects = None not in partners
    named = scene.relation in RELATIONS
    relation = holds(scene.relation, *partners[:2]) if named and None not in partners[:2] else objects and not named

    def there(name):
        wanted, got = [getattr(t, name) for t in scene.things], [getattr(s, name) for s in reading.things]
        return all(got.count(w) >= wanted.count(w) for w in wanted)
    return {"objects": objects, "relation": bool(relation), "all": bool(objects and relation),
            "count": len(reading.things) == len(scene.things), "background": reading.background == scene.background,
            "binding_error": not objects and there("colour") and there("shape")}


def prompt_accuracy(scenes, images, network=None):
    """One dict of bools (see `judge`) per scene and its picture [n, 3, h, w] in [0, 1]; the network is loaded where none is given.

    Raises ValueError where there are not as many scenes as pictures."""
    if len(scenes) != len(images):
        raise ValueError(f"{len(scenes)} scenes but {len(images)} pictures")
    readings = (network or load()).decode(images)
    return [judge(s, r) for s, r in zip(scenes, readings)]


def frechet_distance(a, b):
    """Frechet distance between two sets of features [n, d] and [m, d] (n, m > 1), in float64."""
    a, b = a.double(), b.double()
    ca, cb = torch.cov(a.T), torch.cov(b.T)
    values, vectors = torch.linalg.eigh(ca)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cb @ root).clamp(min=0).sqrt().sum()
    return ((a.mean(0) - b.mean(0)).square().sum() + ca.trace() + cb.trace() - 2 * cross).clamp(min=0).item()
