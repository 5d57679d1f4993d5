"""From relations between things to regions: a layout for a scene graph."""
from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass

from ..frozen import frozen
from ..method import BadInput, Method, param
from .phrases import NAMES, statements
from .regions import Region, Regions

SIZES = {"tiny": 0.5, "small": 0.7, "little": 0.7, "large": 1.3, "big": 1.3, "huge": 1.6}
ROUNDS = 600
SLACK = 0.015      # how far a relation may be missed before it counts as impossible


@dataclass
class Thing:
    """One thing of the scene: its name, the sides of its box, and the box's centre, all in fractions of the picture."""

    name: str
    width: float
    height: float
    x: float = 0.5
    y: float = 0.5
    prompt: str = ""


def parse(text, node="Scene Graph Layout"):
    """([name], {name: {"size", "prompt"}}, [(a, relation, b)]) of a description in words, or of JSON: {"objects": [...], "relations": [[a, relation, b]]}."""
    if text.lstrip().startswith("{"):
        return _parse_json(text, node)
    names, relations = [], []

    def known(name):
        """The thing that is meant: the same words, or the last one that ends in them ("the cube" after "a blue cube")."""
        for other in reversed(names):
            if other == name or other.endswith(" " + name):
                return other
        names.append(name)
        return name
    for a, relation, b in statements(text):
        if relation is not None and b is None:
            raise BadInput(node, "text", f"{a} {relation}", "A relation has a thing on each side, for example: a cat on a mat.")
        a = known(a)
        if relation is not None:
            relations.append((a, relation, known(b)))
    if not names:
        raise BadInput(node, "text", text, "Describe things and how they stand to each other, for example: a red ball left of a blue cube; a cat on the cube.")
    return names, {}, relations


def _parse_json(text, node):
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadInput(node, "text", f"line {error.lineno}, column {error.colno}", f"No valid JSON: {error.msg}.") from None
    unknown = [k for k in data if k not in ("objects", "relations")]
    if unknown or not isinstance(data.get("objects"), list) or not data["objects"] or not isinstance(data.get("relations", []), list):
        raise BadInput(node, "text", unknown[0] if unknown else "objects", 'Give {"objects": ["red ball", {"name": "cube", "size": 0.4, "prompt": "a blue cube"}], '
                       '"relations": [["red ball", "left of", "cube"]]}.')
    names, details = [], {}
    for i, item in enumerate(data["objects"]):
        item = {"name": item} if isinstance(item, str) else item
        wrong = not isinstance(item, dict) or not isinstance(item.get("name"), str) or not item["name"].strip() or set(item) - {"name", "size", "prompt"}
        size = None if wrong else item.get("size")
        if wrong or not isinstance(item.get("prompt", ""), str) or item["name"] in names:
            raise BadInput(node, f"objects[{i}]", item, "An object is a name of its own, or has name and perhaps size and prompt.")
        if size is not None and (isinstance(size, bool) or not (isinstance(size, (int, float)) and 0 < size <= 1 or isinstance(size, str) and size in SIZES)):
            raise BadInput(node, f"objects[{i}].size", size, f"A size is a fraction of the picture up to 1, or one of: {', '.join(SIZES)}.")
        names.append(item["name"])
        details[item["name"]] = item
    relations = []
    for i, row in enumerate(data.get("relations", [])):
        if not isinstance(row, list) or len(row) != 3 or not all(isinstance(v, str) for v in row):
            raise BadInput(node, f"relations[{i}]", row, 'A relation is ["red ball", "left of", "cube"].')
        for name in (row[0], row[2]):
            if name not in names:
                raise BadInput(node, f"relations[{i}]", name, f"There is no such object. Objects: {', '.join(names)}.")
        if row[1] not in NAMES:
            raise BadInput(node, f"relations[{i}]", row[1], f"There is no such relation. Relations: {', '.join(NAMES)}.")
        relations.append(tuple(row))
    return names, details, relations


def _side(name, details, size):
    given = details.get(name, {}).get("size")
    if isinstance(given, (int, float)):
        return float(given)
    words = [given] if given else name.split()
    return size * math.prod(SIZES.get(w, 1.0) for w in words)


def _push(value, need):
    """How far apart two things have to be moved so that value >= need."""
    return max(0.0, need - value)


def violations(a, relation, b, gap):
    """[(axis, sign, amount)]: moves of a by sign * amount (and of b the other way) that would satisfy the relation; the first amount is 0 where it holds (of
    "inside" both are), the second is a wish."""
    half = lambda axis: (a.width + b.width) / 2 if axis == "x" else (a.height + b.height) / 2
    dx, dy = b.x - a.x, b.y - a.y
    line_x, line_y = ("x", 1 if dx > 0 else -1, abs(dx)), ("y", 1 if dy > 0 else -1, abs(dy))      # the wish to stand in line
    if relation == "left of":
        return [("x", -1, _push(dx, half("x") + gap)), line_y]
    if relation == "right of":
        return [("x", 1, _push(-dx, half("x") + gap)), line_y]
    if relation == "above":
        return [("y", -1, _push(dy, half("y") + gap)), line_x]
    if relation == "below":
        return [("y", 1, _push(-dy, half("y") + gap)), line_x]
    if relation == "on":      # standing on it: the bottom of a at the top of b
        off = dy - half("y")
        return [("y", 1 if off > 0 else -1, abs(off)), line_x]
    if relation == "next to":
        off = abs(dx) - half("x") - gap
        return [("x", (1 if dx > 0 else -1) * (1 if off > 0 else -1), abs(off)), line_y]
    if relation == "inside":
        room_x, room_y = max(0.0, (b.width - a.width) / 2), max(0.0, (b.height - a.height) / 2)
        return [("x", 1 if dx > 0 else -1, _push(room_x, abs(dx))), ("y", 1 if dy > 0 else -1, _push(room_y, abs(dy)))]
    # in front of: nearer to the viewer, so lower in the picture; behind: higher
    low = 1 if relation == "in front of" else -1
    return [("y", low, _push(-low * dy, 0.25 * min(a.height, b.height))), line_x]


def layout(names, details, relations, size, gap, seed=0):
    """([Thing], relation that could not be kept or None): boxes in the picture, found by moving things until no relation is violated. Deterministic for a seed.

    Things without relations to each other are kept apart. Names that a relation puts inside or in front of another may overlap it.
    """
    n = len(names)
    side = size if size > 0 else min(0.42, 0.84 / math.ceil(math.sqrt(n)) - 0.02 * (n > 1))
    things = {name: Thing(name, *(min(0.98, _side(name, details, side)),) * 2, prompt=details.get(name, {}).get("prompt", "")) for name in names}
    for a, relation, b in relations:
        if relation == "inside":
            outer, inner = things[b], things[a]
            outer.width, outer.height = max(outer.width, min(0.98, 1.6 * inner.width)), max(outer.height, min(0.98, 1.6 * inner.height))
    rng = random.Random(seed)
    for i, t in enumerate(things.values()):
        turn = 2 * math.pi * i / max(1, n)
        t.x, t.y = 0.5 + 0.2 * math.cos(turn) + rng.uniform(-0.02, 0.02), 0.5 + 0.2 * math.sin(turn) + rng.uniform(-0.02, 0.02)
        if n == 1:
            t.x = t.y = 0.5
    overlap = {frozenset((a, b)) for a, r, b in relations if r in ("inside", "in front of", "behind", "on")}
    for attempt in range(8):
        for round_ in range(ROUNDS):
            _relax(things, relations, gap, overlap, max(0.0, 1 - 1.4 * round_ / ROUNDS))
        worst = _worst(things, relations, gap)
        if worst is None and not _crowded(things, overlap):
            break
        if attempt < 7:      # what does not fit is made smaller together
            for t in things.values():
                t.width, t.height = 0.87 * t.width, 0.87 * t.height
    for axis, side in (("x", "width"), ("y", "height")):      # the whole into the middle of the picture
        low = min(getattr(t, axis) - getattr(t, side) / 2 for t in things.values())
        high = max(getattr(t, axis) + getattr(t, side) / 2 for t in things.values())
        for t in things.values():
            setattr(t, axis, getattr(t, axis) + 0.5 - (low + high) / 2)
    return list(things.values()), worst


def _relax(things, relations, gap, overlap, soft):
    """One round: every violated relation moves its two things, everything stays in the picture. Standing in line and keeping apart are wishes, which fade with `soft`."""
    for a, relation, b in relations:
        one, two = things[a], things[b]
        for i, (axis, sign, amount) in enumerate(violations(one, relation, two, gap)):
            share = 0.45 if i == 0 or relation == "inside" else 0.1 * soft
            setattr(one, axis, getattr(one, axis) + sign * amount * share)
            setattr(two, axis, getattr(two, axis) - sign * amount * share)
    for one, two, over_x, over_y in _overlaps(things, overlap):
        axis, amount, sign = ("x", over_x, 1 if two.x >= one.x else -1) if over_x < over_y else ("y", over_y, 1 if two.y >= one.y else -1)
        setattr(one, axis, getattr(one, axis) - sign * amount * 0.4 * soft)
        setattr(two, axis, getattr(two, axis) + sign * amount * 0.4 * soft)
    for t in things.values():
        t.x, t.y = min(max(t.x, t.width / 2 + 0.01), 0.99 - t.width / 2), min(max(t.y, t.height / 2 + 0.01), 0.99 - t.height / 2)


def _overlaps(things, allowed):
    """(one, two, overlap in x, overlap in y) of every two things that overlap and may not."""
    every = list(things.values())
    for i, one in enumerate(every):
        for two in every[i + 1:]:
            over_x, over_y = (one.width + two.width) / 2 - abs(two.x - one.x), (one.height + two.height) / 2 - abs(two.y - one.y)
            if over_x > 0 and over_y > 0 and frozenset((one.name, two.name)) not in allowed:
                yield one, two, over_x, over_y


def _crowded(things, allowed):
    return any(min(over_x, over_y) > SLACK for _, _, over_x, over_y in _overlaps(things, allowed))


def _worst(things, relations, gap):
    """The relation that is missed by most, or None where all hold."""
    missed = [(max(m for _, _, m in violations(things[a], r, things[b], gap)[:2 if r == "inside" else 1]), (a, r, b)) for a, r, b in relations]
    amount, which = max(missed, default=(0.0, None))
    return which if amount > SLACK else None


@frozen
class SceneGraphLayout(Method):
    """Turns a description of things and how they stand to each other into regions, for every method that takes them.

    The description is a scene graph in words: "a red ball left of a blue cube; a cat on the cube". Relations: left of, right of, above, below, on, inside, next to, in front of,
    behind, and common words for them. "the cube" means the thing named before. JSON gives sizes and prompts: {"objects": ["red ball", {"name": "cube", "size": 0.4}],
    "relations": [["red ball", "left of", "cube"]]}.

    Boxes start on a circle and are moved until every relation holds and things without a relation do not overlap; what does not fit is made smaller together. The same text
    and seed give the same boxes. Relations that cannot hold together are an error that names one of them. "in front of" and "behind" overlap, the nearer thing lower in the picture.

    The paper guides a diffusion of 3D scenes by a network over the scene graph; here its idea is carried over to pictures: relations become a layout, and layout methods keep it.
    Every region has the thing's words and, as its prompt, the thing with an article.
    Cost: none while sampling.
    """

    node_id = "LodestarSceneGraphLayout"
    title = "Scene Graph Layout"
    family = "regions"
    paper = "3D Scene Diffusion Guidance using Scene Graphs"
    aliases = ("scene graph", "relations to boxes", "auto layout")
    evaluations = "0"

    text: str = param("a red ball left of a blue cube", "Things and how they stand to each other, in words or as JSON; sentences are separated by ; or line breaks.")
    size: float = param(0.0, "Side of an ordinary thing's box as a fraction of the picture; 0: by the number of things.", 0.0, 0.9, 0.01)
    gap: float = param(0.04, "Least distance of things beside or above each other, as a fraction of the picture.", 0.0, 0.3, 0.01)
    seed: int = param(0, "Another arrangement where the relations leave room.", 0, 2 ** 31 - 1, 1)

    def regions(self):
        """(Regions, the description as one sentence)."""
        names, details, relations = parse(self.text, self.title)
        if any(a == b for a, _, b in relations):
            a, r, b = next(row for row in relations if row[0] == row[2])
            raise BadInput(self.title, "text", f"{a} {r} {b}", "A thing has no relation to itself.")
        things, missed = layout(names, details, relations, self.size, self.gap, self.seed)
        if missed is not None:
            raise BadInput(self.title, "text", " ".join(missed), "This relation cannot hold together with the others, or there is no room for it: change it, make things smaller, or lower the gap.")
        items = []
        for t in things:
            box = (max(0.0, t.x - t.width / 2), max(0.0, t.y - t.height / 2), t.width, t.height)
            items.append(Region(boxes=(box,), words=t.name, prompt=t.prompt or with_article(t.name)))
        return Regions(tuple(items)), sentence(names, relations)


def with_article(name):
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def sentence(names, relations):
    """The description as a prompt: every relation, and the things without one; a thing that comes again has "the"."""
    told, parts = set(), []

    def say(name):
        first = name not in told
        told.add(name)
        return with_article(name) if first else f"the {name}"
    for a, relation, b in relations:
        parts.append(f"{say(a)} {relation} {say(b)}")
    parts += [say(n) for n in names if n not in told]
    return " and ".join(parts)
