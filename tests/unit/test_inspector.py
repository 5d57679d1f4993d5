"""The Guidance Inspector: its numbers on known predictions, its previews, and that it changes nothing."""
import pytest
import torch

from lodestar.guidance import engine
from lodestar.guidance.inspection.inspector import GuidanceInspector, Record
from lodestar.guidance.inspection.plot import plot, summary
from lodestar.guidance.method import NEGATIVE, POSITIVE
from lodestar.tests import toys

pytestmark = pytest.mark.method("LodestarGuidanceInspector")


def inspected(steps=6, w=3.0, previews=3):
    record, model = Record(), toys.mixture()
    sigmas = toys.levels(steps=steps)
    pipeline = engine.Pipeline().add(GuidanceInspector(previews=previews, record=record))
    run = engine.Run(pipeline, sigmas=sigmas)
    x = toys.state(model, batch=2, sigma=float(sigmas[0]))
    outs = []
    for s, following in zip(sigmas[:-1], sigmas[1:]):
        d = engine.predict(run, x, s.expand(2), w, model.evaluate())
        outs.append((x, s, d))
        x = x + (following - s) * (x - d) / s
    return record, model, outs


def test_changes_nothing_and_measures_rightly():
    record, model, outs = inspected()
    assert len(record.rows) == len(outs) == 6
    for row, (x, s, d) in zip(record.rows, outs):
        c, u = model(x, s.expand(2), (0,)), model(x, s.expand(2))
        torch.testing.assert_close(d, u + (c - u) * 3.0)
        assert row["sigma"] == pytest.approx(float(s)) and row["evaluations"] == 2
        assert row["added rms"] == pytest.approx(float((d - c).square().mean().sqrt()), rel=1e-4)
        assert row["cond - uncond rms"] == pytest.approx(float((c - u).square().mean().sqrt()), rel=1e-4)
        nc, nu = ((x - p) / s for p in (c, u))
        cosine = torch.nn.functional.cosine_similarity(nc.flatten(1), nu.flatten(1)).mean()
        assert row["cosine"] == pytest.approx(float(cosine), abs=1e-4)
    assert len(record.previews) == 3


def test_a_new_run_starts_a_new_record():
    record, _, _ = inspected()
    first = record.rows
    record.begin()
    assert record.rows == [] and len(first) == 6


def test_without_negative_and_empty():
    record, _, _ = inspected(w=1.0, previews=0)
    assert all("cosine" not in r and r["evaluations"] == 1 and r["added rms"] == 0 for r in record.rows) and record.previews == []
    assert "no run" in summary([]) and plot([]).size[0] > 100


def test_the_plot_draws_every_curve():
    record, _, _ = inspected()
    sheet = plot(record.rows)
    colours = sheet.getcolors(1 << 20)
    assert sheet.size == (860, 480) and len(colours) > 6      # paper, ink, grid and several curves
    assert "6 sampler calls, 12 predictions" in summary(record.rows)
