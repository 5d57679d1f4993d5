"""Guidance Interval and Adaptive Guidance on closed-form mixtures."""

from __future__ import annotations

import pytest
import torch
from lodestar.guidance import engine
from lodestar.guidance.method import BadInput, noise_of
from lodestar.guidance.rules import AdaptiveGuidance, GuidanceInterval
from lodestar.guidance.rules.adaptive import similarity
from lodestar.tests.toys import a_step, euler, levels, mixture, percent_to_sigma, state

INTERVAL, AG = "LodestarGuidanceInterval", "LodestarAdaptiveGuidance"
FLOWS = pytest.mark.parametrize("flow", [False, True])
STEPS = 10


def run(method, flow=False, w=4.0, x=None, seed=1, sigmas=None, negative=None):
    """(result, evaluations, Run) of the Euler sampler with the engine."""
    model = mixture(flow, dtype=torch.float32)
    sigmas = levels(flow, STEPS).float() if sigmas is None else sigmas
    x = state(model, 3, float(sigmas[0]), seed) if x is None else x
    r = engine.Run(engine.Pipeline((method,) if method else ()), sigmas, flow, percent_to_sigma(flow))
    evaluate = model.evaluate(negative=negative)
    return euler(x, sigmas, lambda x, s: engine.predict(r, x, s, w, evaluate)), r.report.evaluations, r


@pytest.mark.method(INTERVAL)
@FLOWS
def test_full_interval_is_cfg(flow):
    method = GuidanceInterval(0.0, 1.0)
    assert method.neutral()
    out, count, _ = run(method, flow)
    assert torch.equal(out, run(None, flow)[0]) and count == 2 * STEPS
    wide = GuidanceInterval(0.0, 1.0, sigma_low=0.0, sigma_high=1000.0)
    assert not wide.neutral() and torch.equal(run(wide, flow)[0], out)


@pytest.mark.method(INTERVAL)
@FLOWS
def test_empty_interval_is_the_conditional_model_at_half_the_cost(flow):
    for method in (GuidanceInterval(0.5, 0.5), GuidanceInterval(0.9, 0.1), GuidanceInterval(0.0, 1.0, sigma_low=100.0)):
        out, count, _ = run(method, flow)
        assert torch.equal(out, run(None, flow, 1.0)[0]) and count == STEPS


@pytest.mark.method(INTERVAL)
@FLOWS
def test_evaluations_are_steps_plus_steps_inside(flow):
    convert, sigmas = percent_to_sigma(flow), levels(flow, STEPS).float()
    for start, end in ((0.0, 0.3), (0.2, 0.8), (0.65, 1.0)):
        inside = sum(torch.tensor(convert(end)) <= s <= torch.tensor(convert(start)) for s in sigmas[:-1])
        _, count, _ = run(GuidanceInterval(start, end), flow)
        assert 0 < inside < STEPS and count == STEPS + inside


@pytest.mark.method(INTERVAL)
def test_sigma_bounds_are_open_below_and_closed_above():
    method = GuidanceInterval(0.0, 1.0, sigma_low=0.28, sigma_high=5.42)
    x = torch.zeros(1, 1, 2, 2)
    assert [method.scale(a_step(x, s), 3.0, {}) for s in (0.27, 0.28, 0.29, 5.42, 5.43)] == [1.0, 1.0, 3.0, 3.0, 1.0]
    only_low = GuidanceInterval(0.0, 1.0, sigma_low=0.28)
    assert only_low.scale(a_step(x, 14.0), 3.0, {}) == 3.0
    both = GuidanceInterval(0.5, 1.0, sigma_low=0.28, sigma_high=5.42)
    assert both.scale(a_step(x, 5.0), 3.0, {}) == 1.0 and both.scale(a_step(x, 0.5), 3.0, {}) == 3.0
    with pytest.raises(BadInput, match="sigma_high"):
        GuidanceInterval(sigma_low=2.0, sigma_high=1.0).validate()


@pytest.mark.method(INTERVAL)
def test_interval_on_a_batch_is_three_singles():
    model = mixture(dtype=torch.float32)
    x = state(model, 3, 14.6)
    method = GuidanceInterval(0.2, 0.7)
    torch.testing.assert_close(run(method, x=x)[0], torch.cat([run(method, x=x[i:i + 1])[0] for i in range(3)]))


@pytest.mark.method(AG)
@FLOWS
def test_unreachable_threshold_is_cfg(flow):
    assert AdaptiveGuidance(1.001).neutral()
    out, count, _ = run(AdaptiveGuidance(1.001), flow)
    assert torch.equal(out, run(None, flow)[0]) and count == 2 * STEPS


@pytest.mark.method(AG)
@FLOWS
def test_lowest_threshold_is_the_conditional_model_from_the_second_step(flow):
    out, count, _ = run(AdaptiveGuidance(-1.0, start_percent=0.0), flow)
    sigmas, model = levels(flow, STEPS).float(), mixture(flow, dtype=torch.float32)
    x = state(model, 3, float(sigmas[0]))
    first = euler(x, sigmas[:2], lambda x, s: model(x, s) + (model(x, s, (0,)) - model(x, s)) * 4.0)
    torch.testing.assert_close(out, euler(first, sigmas[1:], lambda x, s: model(x, s, (0,))), rtol=1e-5, atol=1e-5)
    assert count == STEPS + 1


@pytest.mark.method(AG)
@FLOWS
def test_similarity_is_the_cosine_of_the_noises(flow):
    model = mixture(flow, dtype=torch.float32)
    x = state(model, 3, 0.6)
    step = a_step(x, 0.6, flow)
    c, u = model(x, 0.6, (0,)), model(x, 0.6)
    expected = torch.nn.functional.cosine_similarity(noise_of(step, c).flatten(1), noise_of(step, u).flatten(1), dim=1)
    torch.testing.assert_close(similarity(step, c, u), expected)
    torch.testing.assert_close(similarity(step, c, c), torch.ones(3))
    assert similarity(step, c.half(), u.half()).dtype == torch.float32


@pytest.mark.method(AG)
@FLOWS
def test_never_switches_back_and_saves_the_rest(flow):
    sigmas, model = levels(flow, STEPS).float(), mixture(flow, dtype=torch.float32)
    r = engine.Run(engine.Pipeline((AdaptiveGuidance(0.97, start_percent=0.0),)), sigmas, flow, percent_to_sigma(flow))
    evaluate, settled, negatives = model.evaluate(), [], []

    def predict(x, s):
        before = r.report.evaluations
        out = engine.predict(r, x, s, 4.0, evaluate)
        settled.append(r.state(0).get("mask", torch.zeros(3, dtype=torch.bool)).clone())
        negatives.append(r.report.evaluations - before == 2)
        return out

    euler(state(model, 3, float(sigmas[0])), sigmas, predict)
    assert all((later | ~earlier).all() for earlier, later in zip(settled, settled[1:]))
    assert negatives == sorted(negatives, reverse=True) and negatives[0]
    assert settled[-1].all() and not negatives[-1]
    first = next(i for i, m in enumerate(settled) if m.all())
    assert sum(negatives) == first + 1


@pytest.mark.method(AG)
@FLOWS
def test_each_sample_of_a_batch_settles_as_it_would_alone(flow):
    model = mixture(flow, dtype=torch.float32)
    x = state(model, 3, 1.0 if flow else 14.6)
    method = AdaptiveGuidance(0.97, start_percent=0.0)
    together, many, _ = run(method, flow, x=x)
    alone = [run(method, flow, x=x[i:i + 1]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat([a[0] for a in alone]), rtol=1e-4, atol=1e-5)
    assert many == max(a[1] for a in alone)


@pytest.mark.method(AG)
def test_equal_prompts_settle_at_once_and_a_second_run_starts_anew():
    out, count, _ = run(AdaptiveGuidance(start_percent=0.0), negative=(0,))
    torch.testing.assert_close(out, run(None, w=1.0)[0], rtol=1e-5, atol=1e-5)
    assert count == STEPS + 1
    first, second = run(AdaptiveGuidance(0.97, start_percent=0.0)), run(AdaptiveGuidance(0.97, start_percent=0.0))
    assert torch.equal(first[0], second[0]) and first[1] == second[1]


@pytest.mark.method(AG)
def test_window_and_rising_levels():
    late = run(AdaptiveGuidance(-1.0, start_percent=0.5))[2]
    assert late.report.evaluations == STEPS + sum(float(s) > percent_to_sigma()(0.5) for s in levels(steps=STEPS).float()[:-1]) + 1
    up = levels(steps=STEPS, zero=False).float().flip(0)
    assert run(AdaptiveGuidance(-1.0, start_percent=0.0), sigmas=up)[1] == 2 * (STEPS - 1)


@pytest.mark.method(AG)
def test_both_gates_together():
    count = run(AdaptiveGuidance(-1.0, start_percent=0.0), w=4.0)[1]
    model, sigmas = mixture(dtype=torch.float32), levels(steps=STEPS).float()
    for order in ((AdaptiveGuidance(-1.0, start_percent=0.0), GuidanceInterval(0.3, 1.0)), (GuidanceInterval(0.3, 1.0), AdaptiveGuidance(-1.0, start_percent=0.0))):
        r = engine.Run(engine.Pipeline(order), sigmas, False, percent_to_sigma())
        evaluate = model.evaluate()
        euler(state(model, 3, 14.6), sigmas, lambda x, s, r=r, e=evaluate: engine.predict(r, x, s, 4.0, e))
        assert r.report.evaluations == count == STEPS + 1
