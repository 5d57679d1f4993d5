"""Scenes in motion, and what is measured on the bundled video model."""
import random
from types import SimpleNamespace

import pytest
import torch

from lodestar.bench import searched, subject, videos
from lodestar.demo.measure import Reading, Seen
from lodestar.demo.motions import FARTHEST, FRAMES, moving
from lodestar.demo.scenes import SIZE, random_scene


def seen(x, y, radius=6.0):
    return Reading("white", (Seen("red", "circle", "small", x, y, radius, 0.9),))


def test_objects_go_straight_on_and_stay_inside():
    rng, turned = random.Random(3), 0
    for _ in range(40):
        scene = random_scene(rng)
        frames = moving(rng, scene)
        assert len(frames) == FRAMES and all(f.caption == scene.caption and f.background == scene.background for f in frames)
        for i, thing in enumerate(scene.things):
            path = [(f.things[i].x, f.things[i].y) for f in frames]
            assert all(thing.radius <= v <= SIZE - thing.radius for place in path for v in place)
            steps = [(bx - ax, by - ay) for (ax, ay), (bx, by) in zip(path, path[1:])]
            assert sum((dx * dx + dy * dy) ** 0.5 for dx, dy in steps) <= FARTHEST + 1e-6
            turned += any(max(abs(a - b) for a, b in zip(s, steps[0])) > 1e-6 for s in steps)
    assert 0 < turned < 40      # most are never turned back, some are


def test_only_one_object_moves_where_it_is_named():
    scene = random_scene(random.Random(1), 2)
    frames = moving(random.Random(0), scene, only=1)
    assert len({(f.things[0].x, f.things[0].y) for f in frames}) == 1 and len({(f.things[1].x, f.things[1].y) for f in frames}) == FRAMES


def test_cases_are_videos_of_one_object_with_a_noise_for_each_frame():
    found = subject.cases(3, 1, videos.KIND)
    assert len(found) == 3 * FRAMES and [c.frame for c in found[:FRAMES]] == list(range(FRAMES))
    groups = subject.groups_of(found, 16)
    assert [len(g) for g in groups] == [FRAMES] * 3 and all(len({c.scene for c in g}) == 1 and len(g[0].scene.things) == 1 for g in groups)
    assert len({c.noise().sum().item() for c in found}) == len(found)


def measured(pictures, readings):
    cases = [SimpleNamespace(group=0, seed=0) for _ in readings]
    return SimpleNamespace(pictures=pictures, main=list(range(len(cases))), cases=cases, readings=lambda: readings)


def test_flicker_is_read_away_from_what_moves_and_travel_where_it_is():
    pictures = torch.zeros(3, 3, SIZE, SIZE)
    pictures[1, :, :8, 40:] = 0.5                      # a corner that flickers
    pictures[2, :, 26:38, 26:38] = 1.0                 # the object itself
    there = [seen(30, 32), seen(32, 32), seen(34, 32)]
    flicker, travel = (videos.values(m, measured(pictures, there)) for m in videos.METRICS)
    away = ~videos.reach(there, SIZE)
    share = 8 * 24 / int(away.sum())
    assert flicker.tolist() == pytest.approx([0.5 * share, 0.5 * share, 0.5 * share], rel=1e-5)      # the last is compared with the one before
    assert travel.tolist() == [2.0, 2.0, 2.0]
    assert videos.values("travel", measured(pictures, [Reading("white", ())] * 3)).tolist() == [0.0] * 3


def test_reach_covers_every_frame():
    mask = videos.reach([seen(12, 32), seen(52, 32)], 128)
    assert bool(mask[64, 24]) and bool(mask[64, 104]) and not bool(mask[0, 64]) and not bool(mask[64, 64])


def test_labels_name_each_object_once():
    case = subject.cases(1, 1)[0]
    labels = searched.labels([case])
    assert labels.shape == (1, 128, 128, 3) and float(labels.sum(-1).max()) == 1.0
    assert all(float(labels[..., i].sum()) > 50 for i in range(len(case.scene.things)))
