"""The readings bench: its scenes and their truth, its figures, and that finished scenes are not read again."""
import random
from pathlib import Path

import pytest
import torch

from lodestar.bench import readings, stats, store
from lodestar.bench.plan import Claim
from lodestar.demo.scenes import SIZE, random_scene


def test_every_reading_names_a_node_and_its_metrics():
    from lodestar.guidance.catalogue import methods
    known = methods()
    for r in readings.READINGS:
        assert known[r.method.node_id] is type(r.method) and r.metrics and r.method.validate()
        assert "def " in r.source and "Cost: " not in r.source      # its text is no part of what a result depends on


def test_captions_differ_in_what_is_asked():
    thing = random_scene(random.Random(1), 1).things[0]
    for attribute, count in (("colour", 7), ("shape", 4), ("size", 2)):
        names, texts = readings._captions(thing, attribute)
        assert len(set(texts)) == len(names) == count and all(n in t for n, t in zip(names, texts))
        assert all(t.startswith(("a ", "an o")) for t in texts)


def test_moved_scenes_keep_their_things():
    scene = readings.scenes_of(3, 2)[0]
    assert readings.scenes_of(2, 2) == readings.scenes_of(3, 2)[:2]
    other = readings.moved(scene, random.Random(0))
    assert [(t.colour, t.shape) for t in other.things] == [(t.colour, t.shape) for t in scene.things] and other.background == scene.background
    assert [(t.x, t.radius) for t in other.things] != [(t.x, t.radius) for t in scene.things]
    inside = readings.truth(scene.things[0])
    assert inside.shape == (SIZE, SIZE) and 0 < float(inside.float().mean()) < 0.2


def test_shares_and_overlap():
    a, b = torch.zeros(4, 4, dtype=torch.bool), torch.zeros(4, 4, dtype=torch.bool)
    a[:2], b[1:3] = True, True
    assert readings.overlap(a, b) == pytest.approx(1 / 3) and readings.overlap(a, ~a) == 0 and readings.overlap(a, a) == 1
    map_ = torch.tensor([[1.0, -5.0], [0.0, 3.0]])
    mask = torch.zeros(SIZE, SIZE)
    mask[SIZE // 2:, SIZE // 2:] = 1
    assert readings._share(map_, mask) == pytest.approx(0.75) and readings._share(-map_.abs(), mask) == 0


def test_figures():
    n = float("nan")
    f = readings.figures(readings.Metric("hit", Claim("hit", "at least", 0.7), "guess"), {"hit": [1, 1, 0, 1, n], "guess": [0.5] * 5})
    assert f["value"] == 0.75 and f["scenes"] == 4 and f["reached"] is True and f["claimed"] == "at least 0.7" and f["base"]["value"] == 0.5
    assert f["low"] == pytest.approx(stats.wilson(3, 4).low, abs=1e-4)
    lower = readings.figures(readings.Metric("error", Claim("error", "lower"), "still"), {"error": [1.0, 2.0, 3.0], "still": [9.0, 9.5, 10.0]})
    assert lower["verdict"] == "reached" and lower["difference"]["value"] == -7.5


def test_finished_scenes_are_kept_and_pages_written(tmp_path, monkeypatch):
    seen = []

    def run(subject, judge, method, scenes):
        seen.extend(scenes)
        return {"iou": [0.5 + 0.1 * i for i in range(len(scenes))], "whole": [0.1] * len(scenes)}
    monkeypatch.setattr(readings, "weights_mark", lambda generator: "w")
    reading = readings.Reading(readings.READINGS[1].method, run, (readings.Metric("iou", Claim("iou", "higher"), "whole"),))
    subject = type("Subject", (), {"generator": "unet"})
    kept = store.Store(tmp_path / "cache")
    Path(tmp_path / "cache").mkdir()
    first = readings.measure(reading, subject, None, 5, kept)
    assert len(seen) == 5 and len(first["iou"]) == 5
    assert readings.measure(reading, subject, None, 5, kept) == first and len(seen) == 5
    store.write_json(tmp_path / "readings.json", store.merge({}, reading.method.node_id, "unet", {m.name: readings.figures(m, first) for m in reading.metrics},
                                                             {"host": "0", "scenes": 5, "weights": "w"}))
    readings.write_page(tmp_path)
    assert "| unet | iou | 0.1 " in (tmp_path / "readings.md").read_text()
