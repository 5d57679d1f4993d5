"""The bench's figures on known inputs, its verdicts, and that merging keeps what other runs measured."""
import itertools
import math

import pytest
import torch

from lodestar.bench import costs, effects, pairs, plan, references, stats, store, subject
from lodestar.demo import measure, scenes
from lodestar.demo.reader import ShapeScore
from lodestar.guidance.distillation.distil import Distiller
from lodestar.guidance.distillation.hybrid import HybridDistillation


def test_frechet_distance_of_gaussians_is_the_closed_form():
    """|m1 - m2|^2 + sum (s1 - s2)^2 for diagonal covariances; the margin is five deviations of the estimate at n samples."""
    n, d = 20_000, 4
    g = torch.Generator().manual_seed(0)
    a = torch.randn(n, d, generator=g, dtype=torch.float64)
    b = torch.randn(n, d, generator=g, dtype=torch.float64) * 2 + 1
    reference = stats.Reference(a)
    assert reference.distance(a) == pytest.approx(0.0, abs=1e-9)
    exact = d * 1.0 + d * 1.0
    assert abs(reference.distance(b) - exact) < 5 * 2 * math.sqrt(d * (1 + 4) / n) * 2


def test_intervals_cover_as_they_say():
    """Of 50 repetitions the 95% interval of a mean misses about 3; 5 deviations of a binomial are allowed (and the bootstrap's bias at n = 40)."""
    g, hits, repetitions = torch.Generator().manual_seed(0), 0, 50
    for i in range(repetitions):
        found = stats.mean(torch.rand(40, generator=g), list(range(40)), seed=i)
        hits += found.low <= 0.5 <= found.high
    assert abs(hits / repetitions - 0.94) < 5 * math.sqrt(0.95 * 0.05 / repetitions)


def test_wilson_at_the_ends():
    assert tuple(stats.wilson(0, 20))[:2] == (0.0, 0.0) and 0.1 < stats.wilson(0, 20).high < 0.2
    assert stats.wilson(20, 20).high == 1.0 and stats.wilson(20, 20).low < 0.9


def test_ssim_and_clipping():
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert stats.ssim(x, x).tolist() == pytest.approx([1.0, 1.0])
    assert (stats.ssim(x, torch.rand(x.shape, generator=torch.Generator().manual_seed(1))) < 0.2).all()
    y = torch.full((1, 3, 2, 2), 0.5)
    y[0, 0, 0, 0], y[0, 1, 0, 0] = 1.5, -0.5
    assert stats.clipped(y).item() == pytest.approx(2 / 12)


def test_diversity_is_within_prompts():
    features = torch.tensor([[0.0, 0], [3, 4], [100, 0], [100, 0]])
    values, labels = stats.diversity(features, ["a", "a", "b", "c"])
    assert values.tolist() == [5.0] and labels == ["a"]


@pytest.mark.parametrize("direction,bound,low,high,words", [
    ("lower", 0, -0.3, -0.1, "reached"), ("lower", 0, -0.3, 0.1, "not resolved"), ("lower", 0, 0.1, 0.3, "opposite"),
    ("higher", 0, 0.1, 0.3, "reached"), ("not lower", 0.1, -0.05, 0.1, "reached"), ("not higher", 0.0, 0.1, 0.2, "opposite")])
def test_verdicts(direction, bound, low, high, words):
    e = stats.Estimate
    found = plan.verdict(plan.Claim("m", direction, bound), e(0.5, 0.4, 0.6), e(0.5, 0.4, 0.6), e((low + high) / 2, low, high))
    assert found.words == words and found.reached is (words == "reached")


def test_ratio_claims_use_the_base():
    e = stats.Estimate
    claim = plan.Claim("evaluations", "ratio at most", 0.76)
    assert plan.verdict(claim, e(30, 30, 30), e(40, 40, 40), e(-10, -10, -10)).reached
    assert not plan.verdict(claim, e(31, 31, 31), e(40, 40, 40), e(-9, -9, -9)).reached


def test_every_method_of_the_table_exists_and_validates():
    for node_id, entry in plan.table().items():
        for setup in [c.setup for c in entry.comparisons] + [c.base for c in entry.comparisons]:
            for used in setup.methods:
                assert used.cls.node_id.startswith("Lodestar")
                latent = {"samples": torch.zeros(1, 16, 16, 16)}
                made = {"$reference": latent, "$outlines": latent, "$letters": "ox", "$reader": ShapeScore(), "$places": ()}      # what a method cannot do without
                values = {k: made.get(v, v) if isinstance(v, str) else v for k, v in used.values if not (isinstance(v, str) and v.startswith("$") and v not in made)}
                if not issubclass(used.cls, (Distiller, HybridDistillation)):      # made with their guidances
                    used.cls(**values).validate()
        assert entry.comparisons and node_id.startswith("Lodestar")


def test_references_of_cases():
    """The reference of each kind holds what its metric looks for, and the prompt does not tell it."""
    for kind in references.KINDS:
        for c in subject.cases(8, 1, kind):
            assert ("background" in subject.text_of(c, kind)) == (kind == "together" and c.prompt % references.GROUP == 0) and (c.group == c.prompt // references.GROUP) == (kind == "together")
            if kind == "moved":
                assert c.scene.relation in c.scene.caption and scenes.holds(c.scene.relation, *c.scene.things) and scenes.holds(c.reference.relation, *c.reference.things)
                assert c.scene.relation != c.reference.relation
            if kind == "crossed":
                own = measure.Reading("white", tuple(measure.Seen(t.colour, t.shape, t.size, t.x, t.y, t.radius, 1.0) for t in c.reference.things))
                assert references.places(c.reference, own) == pytest.approx(1.0) and references.places(c.appearance, own) < 0.9
                assert c.appearance.background != c.reference.background and {t.colour for t in c.scene.things} == {t.colour for t in c.appearance.things}
    batches = subject.groups_of(subject.cases(8, 1, "together"), 16)
    assert sorted(len({c.prompt for c in b if not c.extra}) for b in batches) == [4, 4]


def test_palettes():
    a = torch.zeros(1, 3, 8, 8)
    b = torch.cat((torch.zeros(1, 3, 8, 4), torch.ones(1, 3, 8, 4)), 3)
    assert references.shared_palette(references.palette(a), references.palette(torch.cat((a, b)))).tolist() == pytest.approx([1.0, 0.5])
    shade = references.palette(torch.full((1, 3, 8, 8), 0.1))
    assert references.shared_palette(references.palette(a), shade).item() == pytest.approx(0.8 ** 3) and shade.sum().item() == pytest.approx(1.0)
    group = subject.cases(4, 1, "together")
    readings = [measure.Reading(g, ()) for g in ("white", "white", "white", "black")]
    assert references.values("background_together", torch.cat((a, a, a, b)), group, readings, None).tolist() == pytest.approx([2 / 3, 2 / 3, 2 / 3, 0])
    assert references.values("palette_together", torch.cat((a, a, a, b)), group, readings, None).tolist() == pytest.approx([5 / 6, 5 / 6, 5 / 6, 0.5])


def test_merging_and_keeping(tmp_path):
    old = {"about": {"unet": {"steps": 20}}, "methods": {"A": {"unet": {"m": 1}}, "B": {"dit": {"m": 2}}}}
    new = store.merge(old, "A", "dit", {"m": 3}, {"steps": 4})
    assert new["methods"] == {"A": {"unet": {"m": 1}, "dit": {"m": 3}}, "B": {"dit": {"m": 2}}} and old["methods"]["A"] == {"unet": {"m": 1}}
    kept = store.Store(tmp_path)
    assert kept.get("k") is None
    kept.put({"latents": torch.ones(2, 3), "evaluations": 40.5}, "k")
    found = kept.get("k")
    assert torch.equal(found["latents"], torch.ones(2, 3)) and found["evaluations"] == 40.5 and kept.get("other") is None
    kept.path("k").write_bytes(b"broken")
    assert kept.get("k") is None


def test_a_close_promise_is_judged_by_the_interval_of_its_median():
    import math
    assert costs.median_interval([1.0, 2.0, 3.0]) == (-math.inf, math.inf)      # P(all above or all below) = 1/4 > 0.1
    assert costs.median_interval(range(1, 21)) == (6, 15)      # P(Bin(20, 1/2) <= 5) = 0.0207 <= 0.05 < 0.0577
    way = costs.Timed("x", "CFG", None, limit=1.05)
    for ratio, told in ((1.02, True), (1.1, False)):
        way.pairs = [(ratio + (i - 10) / 1000, 1.0) for i in range(21)]
        assert costs.verdict(way, costs.ratios(way, None)[0]) is told
    way.pairs = [(1.04 + i / 1000, 1.0) for i in range(21)]
    assert costs.verdict(way, 1.05) == "open"
    way.pairs, way.limit = [], None
    assert costs.verdict(way, 1.05) is None


def test_costs_of_some_methods_keep_the_other_rows():
    settings = {"steps": 6, "repeats": 5, "batch": 4}
    old = {"networks": {"unet": [{"label": "CFG", "ratio": 1}, {"label": "a", "ratio": 2}, {"label": "b", "ratio": 3}]}, "settings": {"unet": settings}}
    new = [{"label": "CFG", "ratio": 9}, {"label": "b", "ratio": 4}, {"label": "c", "ratio": 5}]
    found, said = costs.merged(old, "unet", new, {**settings, "repeats": 7})
    assert [(r["label"], r["ratio"]) for r in found] == [("CFG", 1), ("a", 2), ("b", 4), ("c", 5)] and said == settings
    assert [r.get("repeats") for r in found] == [None, None, 7, 7]      # those of the others are said once for all
    assert costs.merged({}, "unet", new, settings) == (new, settings)
    with pytest.raises(SystemExit, match="6 steps and batch 4"):
        costs.merged(old, "unet", new, {**settings, "batch": 1})


def test_costs_compare_within_a_repeat():
    base, way = costs.Timed("CFG", "CFG", None), costs.Timed("x", "CFG", None)
    base.seconds, way.seconds = [1.0, 2.0, 4.0], [1.5, 3.0, 6.0]
    assert costs.ratios(way, base) == (1.5, 1.5, 1.5)
    broken = costs.Timed("peer", "CFG", lambda: 1 / 0)
    fine = costs.Timed("CFG", "CFG", lambda: 3)

    class Bar:
        def update(self, n):
            pass
    from unittest import mock
    with mock.patch.object(costs.host, "on_gpu", lambda: False):
        costs.time_all([broken, fine], 2, Bar())
        assert "ZeroDivisionError" in broken.error and len(fine.seconds) == 2 and fine.evaluations == 3
        fine.seconds = [costs.PAIRS_SECONDS]
        costs.time_pairs(fine, fine)
        assert not fine.pairs      # a run that long leaves time for too few
        fine.seconds = [1e-6]
        costs.time_pairs(fine, fine)
        assert len(fine.pairs) == costs.PAIRS and all(a >= 0 and b >= 0 for a, b in fine.pairs)


@pytest.mark.parametrize("limit,times", ((1.5, 1), (0.5, 1), (1.0, costs.LONGER)))
def test_pairs_that_leave_a_close_promise_open_go_on(limit, times, monkeypatch):
    spread = itertools.cycle((1.0, 0.9, 1.1, 1.0))      # of the base and the way, then the way and the base: their ratios lie on both sides of 1
    monkeypatch.setattr(costs, "_timed", lambda way: (next(spread), 0))
    way, base = costs.Timed("x", "CFG", None, limit), costs.Timed("CFG", "CFG", None)
    base.seconds = [1e-6]
    costs.time_pairs(way, base)
    assert len(way.pairs) == times * costs.PAIRS
    assert costs.verdict(way, None) == {1.5: True, 0.5: False, 1.0: "open"}[limit]


def test_things_of_a_picture_lie_where_its_depth_says():
    import random

    from lodestar.demo.unicon import depth
    found = [scenes.random_scene(random.Random(i), 2) for i in range(6)]
    pictures, depths = torch.stack([scenes.render(s) for s in found]), torch.stack([depth(s) for s in found])
    own = pairs.values("depth_overlap", pictures, depths, None)
    assert own.min() > 0.85 and pairs.values("depth_overlap", pictures, depths.roll(1, 0), None).max() < 0.6
    assert not pairs.values("depth_error", pictures, depths, depths).any() and pairs.values("depth_error", pictures, 1 - depths, depths).min() > 0.5


def test_the_summary_files_each_claim_by_what_came_of_it():
    figure = lambda claimed, verdict: {"claimed": claimed, "verdict": verdict}
    made = effects.summary({"LodestarB": {"unet": {"x": figure("lower", "reached"), "y": figure("lower", "opposite"), "z": figure(None, "")}, "dit": {"x": figure("lower", "not resolved")}},
                            "LodestarA": {"unet": {"z": figure(None, "")}}})
    assert made[-1].splitlines()[2:] == ["| [B](#b) | unet: x | dit: x | unet: y |"]
