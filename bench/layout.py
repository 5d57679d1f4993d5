"""Measuring methods that place things: prompts that name two objects and no place, a wanted box for each, and how well the pictures keep them."""
from __future__ import annotations

import re
from dataclasses import replace

import torch

from ..demo.scenes import COLOURS, SIZE

SIDE = 0.42      # of a wanted box, in fractions of the picture; the largest objects have 0.41
NEAR, FAR = 0.05, 1 - 0.05 - SIDE
MIDDLE = 0.5 - SIDE / 2
LAYOUTS = tuple(tuple((x, y, SIDE, SIDE) for x, y in pair) for pair in (
    ((NEAR, MIDDLE), (FAR, MIDDLE)), ((FAR, MIDDLE), (NEAR, MIDDLE)), ((MIDDLE, NEAR), (MIDDLE, FAR)), ((MIDDLE, FAR), (MIDDLE, NEAR)),
    ((NEAR, NEAR), (FAR, FAR)), ((FAR, NEAR), (NEAR, FAR))))      # x, y, width, height of the first object's box and of the second's


def noun(thing):
    return f"{thing.colour} {thing.shape}"


def caption(scene):
    """The first two objects without size and place; every word is one token, so that captions of a batch have their words in the same places."""
    return f"a {noun(scene.things[0])} and a {noun(scene.things[1])}"


def regions_of(subject, batch, prompts=True):
    """The Regions of a batch of cases with one layout: the words of each object, and its prompt where `prompts`."""
    from ..guidance.attention.regions import Region, Regions
    from ..guidance.attention.tokens import Words, located
    first = caption(batch[0].scene)
    items = []
    for i, box in enumerate(LAYOUTS[batch[0].layout]):
        own = thing_of(subject, batch, i) if prompts else None
        items.append(Region(boxes=(box,), words=noun(batch[0].scene.things[i]), conditioning=own))
    found = Regions(tuple(items))
    return located(found, Words(subject.clip, first, subject.encode([first])[0][0].shape[1]))


def thing_of(subject, batch, i):
    """The conditioning of the i-th object's own words, for a batch of cases."""
    return subject.encode([f"a {noun(c.scene.things[i])}" for c in batch])


def place_of(batch, i):
    """The mask [1, SIZE, SIZE] of the i-th object's box in a batch of cases with one layout."""
    x, y, width, height = (round(v * SIZE) for v in LAYOUTS[batch[0].layout][i])
    mask = torch.zeros(1, SIZE, SIZE)
    mask[:, y:y + height, x:x + width] = 1
    return mask


def shapes(scene):
    """The shapes of the first two objects, without their colours."""
    return f"a {scene.things[0].shape} and a {scene.things[1].shape}"


def subjects_of(subject, batch):
    """Both objects of a batch's first case as Subjects of the bundled image adapter: each from a picture of it alone, in the middle and of middle size, with its box and the word for its shape. (What is measured
    of the pictures comes one by one, in groups of their own; times are of the first one's subjects in every picture.)"""
    from ..demo.adapter import NAME
    from ..demo.scenes import BACKGROUNDS, Scene, Thing, render
    from ..demo.vision import DemoVision
    from ..demo.weights_file import read
    from ..guidance.attention.image_adapter import Subject, Subjects, parse
    from ..guidance.attention.regions import Region
    case = batch[0]
    encoder, adapter, items = DemoVision(), parse(read(NAME), "bench"), []
    for thing, ground, box in zip(case.scene.things, BACKGROUNDS, LAYOUTS[case.layout]):
        picture = render(Scene(ground, (Thing(thing.colour, thing.shape, "large", SIZE / 2, SIZE / 2, 11.0),)))
        seen = encoder.encode_image(picture.movedim(0, -1)[None]).penultimate_hidden_states
        items.append(Subject(seen, Region(boxes=(box,)), subject.encode([f"a {thing.shape}"])[0][1]["pooled_output"][0]))
    return Subjects(adapter, tuple(items))


def named_of(subject, batch):
    """Both objects of a batch of cases as words of their prompts (guidance.attention.words)."""
    from ..guidance.attention.tokens import Words
    from ..guidance.attention.words import found
    first = caption(batch[0].scene)
    return found(Words(subject.clip, first, subject.encode([first])[0][0].shape[1]), [noun(t) for t in batch[0].scene.things[:2]])


def graph_of(subject, batch):
    """The Regions of a batch of cases with one relation, from a scene graph that says it."""
    from ..guidance.attention.scene_graph import SceneGraphLayout
    from ..guidance.attention.tokens import Words, located
    scene = batch[0].scene
    found, _ = SceneGraphLayout(text=f"a {noun(scene.things[0])} {scene.relation} a {noun(scene.things[1])}").regions()
    return located(found, Words(subject.clip, caption(scene), subject.encode([caption(scene)])[0][0].shape[1]))


def structured_of(subject, captions):
    """The mean embedding of Structured Diffusion for each caption, as the tuple of Prompts that its method takes."""
    import torch

    from ..guidance.attention.phrases import noun_phrases
    from ..guidance.attention.structured import structured
    from ..guidance.attention.tokens import Words
    from ..guidance.method import Prompt

    def encode(text):
        return subject.encode([text])[0][0]
    rows = [structured(Words(subject.clip, text, encode(text).shape[1]), encode(text), noun_phrases(text), encode, "values")[0] for text in captions]
    return (Prompt([[torch.cat(rows), {"pooled_output": subject.encode(captions)[0][1]["pooled_output"]}]], "structured prompt"),)


def places_of(subject, batch):
    """Terms of Self-Guidance that put both objects of a batch of cases with one layout into the middle of their boxes."""
    from ..guidance.attention.properties import PropertyTerm
    from ..guidance.attention.tokens import Words
    from ..guidance.attention.words import found
    first = caption(batch[0].scene)
    known = Words(subject.clip, first, subject.encode([first])[0][0].shape[1])
    return tuple(PropertyTerm(words=found(known, [noun(thing)]), kind="position", x=x + w / 2, y=y + h / 2).check()
                 for thing, (x, y, w, h) in zip(batch[0].scene.things[:2], LAYOUTS[batch[0].layout]))


def edited(scene):
    """(the scene with its first object in another colour, its caption before the edit): an edit of one word."""
    first, names = scene.things[0], tuple(COLOURS)
    taken = {t.colour for t in scene.things}
    colour = next(c for c in names[names.index(first.colour) + 1:] + names if c not in taken and c[0] not in "aeiou")
    before = re.sub(r"\ban (?=[aeiou])", "a ", scene.caption)      # one article for all colours: only the colour changes
    after = re.sub(rf"\b{first.colour}\b", colour, before, count=1)
    return replace(scene, things=(replace(first, colour=colour), *scene.things[1:]), caption=after), before


def overlap(seen, box):
    """Intersection over union of an object that was found (its square) and a wanted box in fractions; 0 where there is none."""
    if seen is None:
        return 0.0
    left, top, right, bottom = (v / SIZE for v in (seen.x - seen.radius, seen.y - seen.radius, seen.x + seen.radius, seen.y + seen.radius))
    x, y, w, h = box
    both = max(0.0, min(right, x + w) - max(left, x)) * max(0.0, min(bottom, y + h) - max(top, y))
    return both / ((right - left) * (bottom - top) + w * h - both)


def placed(case, reading):
    """{"iou": mean over both objects, "in_box": the share whose centre is in its box} of one picture."""
    best = {}
    for seen in reading.things:      # best score first
        best.setdefault((seen.colour, seen.shape), seen)
    found = [best.get((t.colour, t.shape)) for t in case.scene.things[:2]]
    boxes = LAYOUTS[case.layout]
    inside = [s is not None and b[0] <= s.x / SIZE <= b[0] + b[2] and b[1] <= s.y / SIZE <= b[1] + b[3] for s, b in zip(found, boxes)]
    return {"iou": sum(map(overlap, found, boxes)) / 2, "in_box": sum(inside) / 2}
