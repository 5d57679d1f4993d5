"""Measuring methods that look at another picture: which picture belongs to a case, and how far the sampled one agrees with it."""
from __future__ import annotations

import math
import random
import re
from dataclasses import replace

import torch

from ..demo.scenes import BACKGROUNDS, COLOURS, RELATIONS, SIZE, mask_of, random_scene
from . import layout, motion, stats

KINDS = ("styled", "together", "moved", "crossed", "hole", "viewed", "shifted")
METRICS = ("background", "palette", "structure", "background_together", "palette_together", "hole_error", "recovered", "view_ssim", "view_error", "shape_overlap")
GROUP = 4          # pictures that are sampled together where they are to agree with each other
LEVELS = 3         # per channel, of a palette: black, the middle and white, near which the three backgrounds lie
_MOVES = [(8, 0), (0, 8), (-8, 0), (0, -8), (4, 0), (0, 4), (-4, 0), (0, -4)]      # pixels; a latent cell is 4
SEED = 40_001      # of the references; no seed of the training


def cases(found, kind):
    """Cases with their references (scenes); prompts name no background, so that it can only come from the reference.

    styled: another scene. together: none, GROUP pictures are sampled at once, of which the first one's prompt names a background. moved: the scene before its objects changed places. crossed: `reference` has the places of
    the objects, `appearance` their colours and the background elsewhere; the prompt names shapes and colours, no place. hole: the scene moved by a few latent cells; its first
    object is to be painted anew, after the reference alone. viewed: the scene itself, which is to be seen from where `camera` has moved. shifted: the scene before its first object moved (bench.motion).
    """
    make = {"hole": _hole, "styled": _styled, "together": _together, "moved": _moved, "crossed": _crossed, "viewed": _viewed, "shifted": motion.shifted}[kind]
    return [make(c) for c in found]


def _silent(scene):
    return re.sub(r" on a \w+ background", "", scene.caption)


def _styled(case):
    return replace(case, scene=replace(case.scene, caption=_silent(case.scene)), reference=random_scene(random.Random(SEED + case.prompt), 2))


def _together(case):
    group, first = divmod(case.prompt, GROUP)
    named = f" on a {('white', 'black')[group % 2]} background" if first == 0 else ""
    return replace(case, scene=replace(case.scene, caption=_silent(case.scene) + named), group=group)


def _moved(case):
    scene = case.scene
    back = RELATIONS[RELATIONS.index(scene.relation) ^ 1]
    mirror = (lambda t: replace(t, x=SIZE - t.x)) if scene.relation in RELATIONS[:2] else (lambda t: replace(t, y=SIZE - t.y))
    wanted = replace(scene, things=tuple(map(mirror, scene.things)), relation=back, caption=_silent(scene).replace(scene.relation, back))
    return replace(case, scene=wanted, reference=scene)


def _crossed(case):
    scene, rng = case.scene, random.Random(SEED + case.prompt)
    colours = rng.sample([c for c in COLOURS if c not in {t.colour for t in scene.things}], len(scene.things))
    things = tuple(replace(t, colour=c) for t, c in zip(scene.things, colours))
    ground = rng.choice([b for b in BACKGROUNDS if b != scene.background])
    noun = lambda t: f"{'an' if t.colour[0] in 'aeiou' else 'a'} {t.colour} {t.shape}"
    wanted = replace(scene, background=ground, things=things, relation=None, jitter=(), caption=" and ".join(map(noun, things)))
    away = replace(wanted, things=tuple(replace(t, x=SIZE - t.x, y=SIZE - t.y) for t in things))
    return replace(case, scene=wanted, reference=replace(scene, caption=_silent(scene)), appearance=away)


def _hole(case):
    def inside(dx, dy):
        return all(t.radius < t.x + dx < SIZE - t.radius and t.radius < t.y + dy < SIZE - t.radius for t in case.scene.things)
    dx, dy = next((d for d in _MOVES[case.prompt % 4:] + _MOVES if inside(*d)), (0, 0))
    return replace(case, reference=replace(case.scene, things=tuple(replace(t, x=t.x + dx, y=t.y + dy) for t in case.scene.things)))


def _viewed(case):
    return replace(case, scene=replace(case.scene, caption=_silent(case.scene)), reference=case.scene)


def camera():
    """The Warp of a camera that has come nearer and moved to the right."""
    from ..guidance.attention.warps import view_warp
    return view_warp(torch.ones(1, SIZE, SIZE), forward=0.25, right=0.12)


def holes(cases, size):
    """[n, 1, size, size]: 1 in the cells around each case's first object, with a border of a cell."""
    out = torch.zeros(len(cases), 1, size, size)
    for i, c in enumerate(cases):
        left, top, right, bottom = (v * size / SIZE for v in c.scene.things[0].box)
        out[i, :, max(0, math.floor(top) - 1):math.ceil(bottom) + 1, max(0, math.floor(left) - 1):math.ceil(right) + 1] = 1
    return out


def reference_of(case, appearance=False):
    """The scene that a case's picture looks at; its own where it has none (for times)."""
    return (case.appearance if appearance and case.appearance is not None else case.reference) or case.scene


def covered(scene):
    """[SIZE, SIZE] from 0 to 1: where any object of a scene is."""
    return torch.stack([mask_of(t) for t in scene.things]).amax(0)


def drawn(pictures):
    """Bool [n, h, w]: what differs from the background, which is the middle value of the picture's border."""
    border = torch.cat((pictures[..., 0, :], pictures[..., -1, :], pictures[..., 0], pictures[..., -1]), -1).median(-1).values
    return (pictures - border[..., None, None]).abs().amax(1) > 0.2


def palette(pictures):
    """Colour histograms [n, LEVELS^3] of pictures [n, 3, h, w], each with sum 1. A value counts for the two levels that it lies between, so that a slightly other shade is nearly the same."""
    centres = torch.linspace(0, 1, LEVELS)[None, None, :, None]
    share = (1 - (pictures.clamp(0, 1).flatten(2)[:, :, None] - centres).abs() * (LEVELS - 1)).clamp(min=0)      # [n, 3, LEVELS, pixels]
    return torch.einsum("nap,nbp,ncp->nabc", *share.unbind(1)).flatten(1) / share.shape[-1]


def shared_palette(a, b):
    """What two histograms have in common, in [0, 1]."""
    return torch.minimum(a, b).sum(-1)


def places(scene, reading):
    """Mean overlap of a scene's objects with the object of any colour and shape that is nearest to each in a picture."""
    boxes = [((t.x - t.radius) / SIZE, (t.y - t.radius) / SIZE, 2 * t.radius / SIZE, 2 * t.radius / SIZE) for t in scene.things]
    return sum(max((layout.overlap(seen, box) for seen in reading.things), default=0.0) for box in boxes) / len(boxes)


def values(metric, pictures, cases, readings, rendered):
    """One value per picture [n, 3, h, w]. readings: what the measuring network sees in each; rendered(scenes): their pictures through the autoencoder."""
    if metric == "background":
        return torch.tensor([float(r.background == reference_of(c, True).background) for c, r in zip(cases, readings)])
    if metric == "structure":
        return torch.tensor([places(reference_of(c), r) for c, r in zip(cases, readings)])
    if metric == "shape_overlap":
        seen, wanted = drawn(pictures.clamp(0, 1)), torch.stack([covered(reference_of(c)) > 0.5 for c in cases])
        return (seen & wanted).sum((1, 2)) / (seen | wanted).sum((1, 2)).clamp(min=1)
    if metric == "palette":
        return shared_palette(palette(pictures), palette(rendered([reference_of(c, True) for c in cases])))
    if metric == "hole_error":
        holed = holes(cases, SIZE // 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
        away = (pictures.clamp(0, 1) - rendered([c.scene for c in cases]).clamp(0, 1)).square().mean(1, keepdim=True)
        return ((away * holed).sum((1, 2, 3)) / holed.sum((1, 2, 3))).sqrt()
    if metric == "recovered":
        return torch.tensor([float(any((s.colour, s.shape) == (c.scene.things[0].colour, c.scene.things[0].shape) for s in r.things)) for c, r in zip(cases, readings)])
    if metric in ("view_ssim", "view_error"):
        wanted = camera().apply(rendered([c.reference for c in cases]))
        return stats.ssim(pictures, wanted) if metric == "view_ssim" else (pictures.clamp(0, 1) - wanted.clamp(0, 1)).square().mean((1, 2, 3)).sqrt()
    own = palette(pictures)
    likeness = (lambda i, j: float(readings[i].background == readings[j].background)) if metric == "background_together" else (lambda i, j: float(shared_palette(own[i], own[j])))
    others = [[j for j, d in enumerate(cases) if (d.group, d.seed) == (c.group, c.seed) and j != i] for i, c in enumerate(cases)]
    return torch.tensor([sum(likeness(i, j) for j in them) / len(them) if them else 1.0 for i, them in enumerate(others)])
