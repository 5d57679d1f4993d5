"""The restoration bench: its tasks and solvers, its scores, and that its page is that of its figures."""
from __future__ import annotations

import json

import pytest
import torch
from lodestar.bench import restoration, text_lines
from lodestar.bench.subject import Judge
from lodestar.guidance.catalogue import ROOT
from lodestar.guidance.inverse.estimated import Estimate
from lodestar.guidance.inverse.operators import OPERATORS

FOLDER = ROOT / "docs" / "effects"


def test_every_operator_is_a_task_and_every_solver_has_possible_values():
    tasks = restoration.tasks()
    assert {type(t.operator) for t in tasks.values()} == set(OPERATORS)
    for e in restoration.entries():
        for name, task in tasks.items():
            if not e.only or name in e.only:
                chosen = e.chosen(task)
                assert set(e.only) <= set(tasks) and (not e.scale or chosen[e.scale] == e.values[e.scale] * task.reach)
                e.cls(**{**e.values, **chosen, **({"loss": _Any()} if restoration._led(e.cls) else {"measurement": 0})}).validate()
    assert set(restoration.guesses()) == set(restoration.BLURS) and set(restoration.LINEAR) == {n for n, t in tasks.items() if t.operator.linear}
    for name, operator in restoration.guesses().items():
        assert Estimate.begun(operator, 1, 33, torch.zeros(1)) is not None and operator != tasks[name].operator


class _Any:
    differentiable, title = True, "any"


def test_scores():
    pictures = restoration.pictures_of(2)
    assert [p.scene for p in restoration.pictures_of(3)][:2] == [p.scene for p in pictures] and not torch.equal(pictures[0].noise(), pictures[1].noise())
    judge = Judge()
    from lodestar.demo.scenes import render
    truth = torch.stack([render(p.scene) for p in pictures])
    same = restoration.score(truth, truth, [p.scene for p in pictures], judge)
    assert float(same["psnr"].min()) > 99 and float(same["feature"].max()) == 0 and same["correct"].tolist() == [1.0, 1.0]
    off = restoration.score(truth + 0.1 * (truth < 0.5) - 0.1 * (truth >= 0.5), truth, [p.scene for p in pictures], judge)
    assert off["psnr"].tolist() == pytest.approx([20.0, 20.0], abs=1e-3)
    broken = restoration.score(torch.full_like(truth, float("nan")), truth, [p.scene for p in pictures], judge)
    assert bool(torch.isfinite(broken["psnr"]).all()) and broken["correct"].sum() == 0


def test_the_page_is_that_of_its_figures():
    data = json.loads((FOLDER / "restoration.json").read_text(encoding="utf-8"))
    assert (FOLDER / "restoration.md").read_text(encoding="utf-8") == restoration.page(data)
    assert json.loads((FOLDER / "restored.json").read_text(encoding="utf-8")) == {"methods": restoration.effects(data)}
    names = {restoration.PLAIN, restoration.NAIVE, *restoration.EXPOSED, *(e.name for e in restoration.entries())}
    assert set(data["tasks"]) == set(restoration.tasks())
    for name, rows in data["tasks"].items():
        assert set(rows) <= names and {restoration.PLAIN, restoration.NAIVE, "Null-Space Sampler (DDNM+)"} <= set(rows)
        if name in ("super-resolution x4", "Gaussian blur", "motion blur", "given kernel", "wavelet"):      # what is measured but in part comes back
            assert rows["Null-Space Sampler (DDNM+)"]["psnr"][0] > rows[restoration.NAIVE]["psnr"][0] > 0
        if name == restoration.SENSOR:      # the bundled network beats the brightened picture
            assert set(restoration.EXPOSED) <= set(rows) and min(rows[e]["psnr"][0] for e in restoration.EXPOSED) > rows[restoration.NAIVE]["psnr"][0] + 3


def test_lines_of_text_are_scored_and_shown():
    """Rows of the same lines; lines of which nothing was lost are read; the page and the node's figures say the same."""
    rows = text_lines.figures(1.0, 2)
    assert set(rows) == {text_lines.SMALL, text_lines.ALONE, text_lines.TOLD, text_lines.READ, text_lines.WRONG}
    assert rows[text_lines.SMALL]["characters"][0] > 0.5 and "above" not in rows[text_lines.SMALL]
    for name, row in rows.items():
        assert 0 <= row["lines"][0] <= row["characters"][0] <= 1 and 5 < row["psnr"][0] < 60
        if "above" in row:
            assert row["above"][text_lines.SMALL][0] == pytest.approx(row["characters"][0] - rows[text_lines.SMALL]["characters"][0], abs=1e-3)
    found = {"count": 2, "shares": {"1": rows}}
    figures = text_lines.effects(found)
    assert len(figures) == 2 and all(f["value"] == rows[text_lines.TOLD]["characters"][0] and f["reached"] == (f["difference"]["low"] > 0) for f in figures.values())
    assert f"| {text_lines.TOLD} | {rows[text_lines.TOLD]['characters'][0]:.0%} " in "\n".join(text_lines.page(found))
