"""Regions as JSON text: a list of objects, strictly checked."""
from __future__ import annotations

import json

import torch

from ..method import BadInput
from .regions import Region, Regions, checked_box

PLACES = ("box", "boxes", "polygon", "scribble")
KEYS = (*PLACES, "thickness", "words", "prompt", "weight")
SIZE = 512          # polygons and strokes are drawn on so many cells a side
EXAMPLE = '[{"box": [0, 0.25, 0.5, 0.5], "words": "red ball"}]'


def _points(values, least, node, name):
    """Points [n, 2] in fractions of the picture."""
    good = isinstance(values, list) and len(values) >= least and all(
        isinstance(p, list) and len(p) == 2 and all(isinstance(v, (int, float)) and not isinstance(v, bool) and 0 <= v <= 1 for v in p) for p in values)
    if not good:
        raise BadInput(node, name, values, f"Give at least {least} points [x, y] in fractions of the picture, each from 0 to 1.")
    return torch.tensor(values, dtype=torch.float32)


def _cells():
    at = (torch.arange(SIZE) + 0.5) / SIZE
    return at[None, :].expand(SIZE, SIZE), at[:, None].expand(SIZE, SIZE)


def polygon(points):
    """Mask [1, SIZE, SIZE] of the inside of a polygon [n, 2] (even-odd rule)."""
    x, y = _cells()
    inside = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    for (ax, ay), (bx, by) in zip(points.tolist(), points.roll(-1, 0).tolist()):
        if ay != by:
            inside ^= ((y >= ay) != (y >= by)) & (x < ax + (y - ay) * (bx - ax) / (by - ay))
    return inside.float()[None]


def stroke(points, thickness):
    """Mask [1, SIZE, SIZE] of a line through points [n, 2], `thickness` wide (fraction of the picture, one cell at least)."""
    x, y = _cells()
    near = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    pairs = zip(points[:-1].tolist(), points[1:].tolist()) if len(points) > 1 else [(points[0].tolist(), points[0].tolist())]
    for (ax, ay), (bx, by) in pairs:
        length = (bx - ax) ** 2 + (by - ay) ** 2
        along = (((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / max(length, 1e-12)).clamp(0, 1)
        near |= (x - ax - along * (bx - ax)) ** 2 + (y - ay - along * (by - ay)) ** 2 <= max(thickness / 2, 0.75 / SIZE) ** 2
    return near.float()[None]


def _text(item, key, node, where):
    value = item.get(key, "")
    if not isinstance(value, str):
        raise BadInput(node, f"{where}.{key}", value, "It must be a text.")
    return value


def region_of(item, node="Regions from JSON", where="regions[0]"):
    """The Region of one JSON object."""
    if not isinstance(item, dict):
        raise BadInput(node, where, item, f"Each region is an object, for example {EXAMPLE[1:-1]}")
    unknown = [k for k in item if k not in KEYS]
    if unknown:
        raise BadInput(node, where, unknown[0], f"There is no such key. Keys: {', '.join(KEYS)}.")
    places = [k for k in PLACES if k in item]
    if len(places) != 1:
        raise BadInput(node, where, places or None, f"A region has exactly one of: {', '.join(PLACES)}.")
    place, value = places[0], item[places[0]]
    if "thickness" in item and place != "scribble":
        raise BadInput(node, f"{where}.thickness", item["thickness"], "Only a scribble has a thickness.")
    weight = item.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight <= 100:
        raise BadInput(node, f"{where}.weight", weight, "It must lie between 0 and 100.")
    common = dict(words=_text(item, "words", node, where), prompt=_text(item, "prompt", node, where), weight=float(weight))
    if place == "box":
        return Region(boxes=(checked_box(value, node, f"{where}.box"),), **common)
    if place == "boxes":
        if not isinstance(value, list) or not value:
            raise BadInput(node, f"{where}.boxes", value, "Give a list of boxes: key positions at even distances over the frames of a video.")
        return Region(boxes=tuple(checked_box(b, node, f"{where}.boxes[{i}]") for i, b in enumerate(value)), **common)
    if place == "polygon":
        mask = polygon(_points(value, 3, node, f"{where}.polygon"))
        if not mask.any():
            raise BadInput(node, f"{where}.polygon", value, "The polygon has no area.")
        return Region(mask=mask, **common)
    thickness = item.get("thickness", 0.02)
    if isinstance(thickness, bool) or not isinstance(thickness, (int, float)) or not 0 < thickness <= 1:
        raise BadInput(node, f"{where}.thickness", thickness, "It must lie between 0 and 1, as a fraction of the picture.")
    return Region(mask=stroke(_points(value, 1, node, f"{where}.scribble"), thickness), scribble=True, **common)


def parse(text, node="Regions from JSON"):
    """The Regions of a JSON text. BadInput names the object and the key that is wrong."""
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadInput(node, "text", f"line {error.lineno}, column {error.colno}", f"No valid JSON: {error.msg}. Write a list of objects, for example {EXAMPLE}") from None
    if not isinstance(data, list) or not data:
        raise BadInput(node, "text", type(data).__name__, f"Write a list of at least one object, for example {EXAMPLE}")
    return Regions(tuple(region_of(item, node, f"regions[{i}]") for i, item in enumerate(data)))


def dump(regions):
    """The JSON text of regions given by boxes; a mask is written as the box around it."""
    def plain(box):
        return [round(v, 4) for v in box]

    rows = []
    for r in regions:
        item = {"box": plain(r.bounds())} if len(r.boxes) < 2 else {"boxes": [plain(b) for b in r.boxes]}
        item |= {k: v for k, v in (("words", r.words), ("prompt", r.prompt)) if v}
        rows.append(json.dumps(item | ({"weight": r.weight} if r.weight != 1.0 else {}), ensure_ascii=False))
    return "[" + ",\n ".join(rows) + "]"
