"""Procedural scenes: pictures of one to three shapes, their captions, and the exact truth about them.

A scene is a background and one to three shapes that do not overlap. Everything that a measurement needs is known:
colour, shape, size, centre, box and mask of every object, and the relation that the caption names.
Coordinates are pixels of a SIZE x SIZE picture, x to the right, y down; all randomness comes from one `random.Random`.
"""
import math
import random
from dataclasses import dataclass, field

import torch

SIZE = 64

COLOURS = {
    "red": (0.90, 0.12, 0.14),
    "orange": (0.98, 0.55, 0.08),
    "yellow": (0.97, 0.90, 0.15),
    "green": (0.13, 0.65, 0.22),
    "cyan": (0.15, 0.80, 0.85),
    "blue": (0.12, 0.25, 0.85),
    "purple": (0.58, 0.15, 0.70),
}
BACKGROUNDS = {"white": (0.96, 0.96, 0.96), "gray": (0.50, 0.50, 0.50), "black": (0.05, 0.05, 0.05)}
SHAPES = ("circle", "square", "triangle", "cross")
SIZES = {"small": (6.5, 8.5), "large": (10.5, 13.0)}
RELATIONS = ("left of", "right of", "above", "below")
PLACES = ("left", "right", "top", "bottom", "center")

MARGIN = 2.0          # pixels between an object's circle and the border or another object's circle
CLEAR_OFFSET = 10.0   # a relation is only named when the centres differ by this much along its axis


@dataclass(frozen=True)
class Thing:
    """One object: names, centre (x, y) and half extent `radius`, all lengths in pixels."""

    colour: str
    shape: str
    size: str
    x: float
    y: float
    radius: float

    @property
    def box(self):
        """(left, top, right, bottom) in pixels."""
        return self.x - self.radius, self.y - self.radius, self.x + self.radius, self.y + self.radius


@dataclass(frozen=True)
class Scene:
    """A background, its objects in caption order, the caption, and the named relation between objects 0 and 1."""

    background: str
    things: tuple
    caption: str = ""
    relation: str | None = None
    jitter: tuple = field(default=())   # one RGB offset for the background, then one per object


def relation_of(a, b):
    """The clear relation of `a` to `b` (objects with x and y), or None where neither axis decides."""
    dx, dy = a.x - b.x, a.y - b.y
    if abs(dx) >= abs(dy) and abs(dx) >= CLEAR_OFFSET:
        return "left of" if dx < 0 else "right of"
    if abs(dy) > abs(dx) and abs(dy) >= CLEAR_OFFSET:
        return "above" if dy < 0 else "below"
    return None


def holds(relation, a, b):
    """Whether `a` stands in `relation` to `b`: the sign along the relation's axis decides."""
    dx, dy = a.x - b.x, a.y - b.y
    return {"left of": dx < 0, "right of": dx > 0, "above": dy < 0, "below": dy > 0}[relation]


def _place(rng, count):
    """Centres and radii of `count` objects that keep MARGIN from each other and the border."""
    while True:
        placed = []
        for _ in range(count):
            for _ in range(60):
                size = rng.choice(tuple(SIZES))
                r = rng.uniform(*SIZES[size])
                low, high = r + MARGIN, SIZE - r - MARGIN
                x, y = rng.uniform(low, high), rng.uniform(low, high)
                if all(math.hypot(x - px, y - py) > (r + pr) * 1.1 + MARGIN for px, py, pr, _ in placed):
                    placed.append((x, y, r, size))
                    break
        if len(placed) == count:
            return placed


def _noun(rng, thing, always_size=False):
    words = [thing.colour, thing.shape]
    if always_size or rng.random() < 0.4:
        words.insert(0, thing.size)
    article = "an" if words[0][0] in "aeiou" else "a"
    return " ".join([article] + words)


def _relation_words(rng, relation):
    if relation in ("left of", "right of") and rng.random() < 0.3:
        return "to the " + relation
    return relation


def _place_words(thing):
    dx, dy = thing.x - SIZE / 2, thing.y - SIZE / 2
    if max(abs(dx), abs(dy)) < 6:
        return "in the center"
    if abs(dx) >= abs(dy) + 4:
        return "on the left" if dx < 0 else "on the right"
    if abs(dy) >= abs(dx) + 4:
        return "at the top" if dy < 0 else "at the bottom"
    return ""


def caption_of(rng, background, things):
    """A caption in the small grammar, and the relation it names between the first two objects (or None)."""
    relation = relation_of(things[0], things[1]) if len(things) > 1 else None
    text = _noun(rng, things[0])
    if len(things) == 1:
        where = _place_words(things[0])
        if where and rng.random() < 0.6:
            text += " " + where
    else:
        link = _relation_words(rng, relation) if relation else "and"
        text += f" {link} {_noun(rng, things[1])}"
    if len(things) == 3:
        text += f" and {_noun(rng, things[2])}"
    if rng.random() < 0.5:
        text += f" on a {background} background"
    return text, relation


def random_scene(rng, count=None, jitter=0.03):
    """One scene with `count` objects (1 to 3; drawn when None). Colour and shape together differ between objects."""
    if count is None:
        count = rng.choices((1, 2, 3), weights=(0.25, 0.5, 0.25))[0]
    background = rng.choice(tuple(BACKGROUNDS))
    kinds = rng.sample([(c, s) for c in COLOURS for s in SHAPES], count)
    things = tuple(Thing(c, s, size, x, y, r) for (c, s), (x, y, r, size) in zip(kinds, _place(rng, count)))
    caption, relation = caption_of(rng, background, things)
    offsets = tuple(tuple(rng.uniform(-jitter, jitter) for _ in range(3)) for _ in range(count + 1))
    return Scene(background, things, caption, relation, offsets)


def _signed_distance(shape, dx, dy, r):
    """Signed distance (negative inside) to a shape of half extent r; dx, dy are offsets from its centre."""
    if shape == "circle":
        return torch.hypot(dx, dy) - r
    if shape == "square":
        return torch.maximum(dx.abs(), dy.abs()) - 0.88 * r
    if shape == "cross":
        long_, short = r, 0.34 * r
        across = torch.maximum(dx.abs() - long_, dy.abs() - short)
        down = torch.maximum(dx.abs() - short, dy.abs() - long_)
        return torch.minimum(across, down)
    if shape == "triangle":     # apex up; base at y = +0.8 r, apex at y = -r
        half, height = r, 1.8 * r
        slope = math.hypot(half, height)
        sides = (dx.abs() * height + (-dy - r) * half) / slope
        return torch.maximum(sides, dy - 0.8 * r)
    raise ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")


_GRID = torch.arange(SIZE, dtype=torch.float32) + 0.5


def mask_of(thing, size=SIZE):
    """Coverage of one object as [size, size] in [0, 1], anti-aliased over about one pixel."""
    grid = _GRID if size == SIZE else (torch.arange(size, dtype=torch.float32) + 0.5) * (SIZE / size)
    dx, dy = grid[None, :] - thing.x, grid[:, None] - thing.y
    return (0.5 - _signed_distance(thing.shape, dx, dy, thing.radius) * (size / SIZE)).clamp(0, 1)


def render(scene, size=SIZE):
    """The picture of a scene as [3, size, size] in [0, 1]; coordinates stay those of a SIZE px picture."""
    jitter = scene.jitter or ((0.0, 0.0, 0.0),) * (len(scene.things) + 1)
    image = (torch.tensor(BACKGROUNDS[scene.background]) + torch.tensor(jitter[0]))[:, None, None].expand(3, size, size)
    for thing, offset in zip(scene.things, jitter[1:]):
        mask = mask_of(thing, size)
        colour = (torch.tensor(COLOURS[thing.colour]) + torch.tensor(offset))[:, None, None]
        image = image * (1 - mask) + colour * mask
    return image.clamp(0, 1)


def batch(rng, n, count=None):
    """n scenes and their pictures [n, 3, SIZE, SIZE]."""
    scenes = [random_scene(rng, count) for _ in range(n)]
    return scenes, torch.stack([render(s) for s in scenes])


def two_object_prompts(n, seed=0):
    """n captions that name a relation of two objects, with their scenes: the prompts of the accuracy figure."""
    rng = random.Random(seed)
    found = []
    while len(found) < n:
        scene = random_scene(rng, 2)
        if scene.relation:
            found.append(scene)
    return found
