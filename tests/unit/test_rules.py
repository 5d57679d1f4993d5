"""Adaptive Projected Guidance and Model Pair Guidance on closed-form mixtures."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from lodestar.guidance import engine
from lodestar.guidance.method import NEGATIVE, POSITIVE, BadInput, Branch, ModelRef, dot
from lodestar.guidance.rules import AdaptiveProjectedGuidance, ModelPairGuidance
from lodestar.guidance.rules.apg import split
from lodestar.tests.toys import a_step, euler, levels, mixture, percent_to_sigma, state

APG, PAIR = "LodestarAdaptiveProjectedGuidance", "LodestarModelPairGuidance"
FLOWS = pytest.mark.parametrize("flow", [False, True])


def predictions(flow=False, batch=3, sigma=0.9):
    model = mixture(flow, dtype=torch.float32)
    x = state(model, batch, sigma)
    return a_step(x, sigma, flow), model(x, sigma, (0,)), model(x, sigma)


def cfg(c, u, w):
    return u + (c - u) * w


def run(method, flow, w=5.0, x=None, others=(), steps=8):
    """The Euler sampler with the engine: (result, Run)."""
    model = mixture(flow, dtype=torch.float32)
    sigmas = levels(flow, steps).float()
    x = state(model, 3, float(sigmas[0])) if x is None else x
    r = engine.Run(engine.Pipeline((method,) if method else ()), sigmas, flow, percent_to_sigma(flow))
    evaluate = model.evaluate(others=others)
    return euler(x, sigmas, lambda x, s: engine.predict(r, x, s, w, evaluate)), r


@pytest.mark.method(APG)
@FLOWS
def test_apg_without_its_parts_is_cfg(flow):
    step, c, u = predictions(flow)
    method = AdaptiveProjectedGuidance(eta=1.0, norm_threshold=0.0, momentum=0.0)
    assert method.neutral()
    assert torch.equal(method.combine(step, c, u, 7.0, {}), cfg(c, u, 7.0))
    # the same by its own path, with a threshold that nothing reaches
    near = dataclasses.replace(method, norm_threshold=10000.0)
    torch.testing.assert_close(near.combine(step, c, u, 7.0, {}), cfg(c, u, 7.0), rtol=1e-4, atol=1e-4)


@pytest.mark.method(APG)
@FLOWS
def test_apg_at_scale_one_is_the_conditional_prediction(flow):
    step, c, u = predictions(flow)
    assert torch.equal(AdaptiveProjectedGuidance().combine(step, c, u, 1.0, {}), c)


@pytest.mark.method(APG)
def test_apg_of_equal_predictions_is_the_conditional_one():
    step, c, _ = predictions()
    assert torch.equal(AdaptiveProjectedGuidance(momentum=0.0).combine(step, c, c, 9.0, {}), c)
    assert torch.equal(AdaptiveProjectedGuidance().combine(step, c, c, 9.0, {}), c)
    zero = torch.zeros_like(c)
    assert torch.isfinite(AdaptiveProjectedGuidance().combine(step, zero, c, 9.0, {})).all()


@pytest.mark.method(APG)
def test_apg_splits_into_parallel_and_orthogonal():
    _, c, u = predictions()
    along, across = split(c - u, c)
    torch.testing.assert_close(along + across, c - u)
    assert dot(across, c).abs().max() < 1e-4 * dot(c, c).min()
    step, _, _ = predictions()
    pushed = AdaptiveProjectedGuidance(norm_threshold=0.0, momentum=0.0).combine(step, c, u, 3.0, {}) - c
    assert dot(pushed, c).abs().max() < 1e-4 * dot(c, c).min()


@pytest.mark.method(APG)
def test_apg_threshold_bounds_the_guidance():
    step, c, u = predictions()
    pushed = AdaptiveProjectedGuidance(eta=1.0, norm_threshold=0.05, momentum=0.0).combine(step, c, u, 2.0, {}) - c
    expected = (c - u).flatten(1).norm(dim=1).clamp_max(0.05)
    assert (expected == 0.05).any()
    torch.testing.assert_close(pushed.flatten(1).norm(dim=1), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.method(APG)
@FLOWS
def test_apg_treats_samples_of_a_batch_alone(flow):
    step, c, u = predictions(flow)
    method = AdaptiveProjectedGuidance(norm_threshold=1.0, momentum=-0.5)
    one, many = [{} for _ in range(3)], {}
    swapped = {}
    order = torch.tensor([2, 0, 1])
    for index in range(3):
        step.index = index
        factor = 1.0 + index
        out = method.combine(step, c * factor, u, 6.0, many)
        singles = torch.cat([method.combine(step, c[i:i + 1] * factor, u[i:i + 1], 6.0, one[i]) for i in range(3)])
        torch.testing.assert_close(out, singles)
        torch.testing.assert_close(method.combine(step, c[order] * factor, u[order], 6.0, swapped), out[order])


@pytest.mark.method(APG)
def test_apg_momentum_is_the_papers_recursion_and_of_one_run():
    step, c, u = predictions()
    method = AdaptiveProjectedGuidance(eta=1.0, norm_threshold=0.0, momentum=-0.5)
    state_, m = {}, torch.zeros_like(c)
    for index in range(4):
        step.index = index
        d = c * (1 + 0.3 * index) - u
        m = d - 0.5 * m
        out = method.combine(step, c * (1 + 0.3 * index), u, 3.0, state_)
        torch.testing.assert_close(out, c * (1 + 0.3 * index) + 2.0 * m, rtol=1e-4, atol=1e-5)
    first, _ = run(AdaptiveProjectedGuidance(), False)
    second, _ = run(AdaptiveProjectedGuidance(), False)
    assert torch.equal(first, second)


@pytest.mark.method(APG)
def test_apg_feeds_each_call_of_a_step_once_and_forgets_over_a_gap():
    step, c, u = predictions()
    method = AdaptiveProjectedGuidance(norm_threshold=0.0, momentum=-0.5)
    fresh = method.combine(step, c, u, 3.0, {})
    kept = {}
    method.combine(step, c, u, 3.0, kept)
    step.call = 1
    assert torch.equal(method.combine(step, c, u, 3.0, kept), fresh)      # its own buffer
    assert torch.equal(method.combine(step, c, u, 3.0, kept), fresh)      # evaluated again at the same place: not fed twice
    step.index, step.call = 1, 1
    assert not torch.equal(method.combine(step, c, u, 3.0, kept), fresh)
    step.index = 5
    assert torch.equal(method.combine(step, c, u, 3.0, kept), fresh)      # after a closed gate


@pytest.mark.method(APG)
def test_apg_window_and_effect():
    plain, _ = run(None, False)
    closed, _ = run(AdaptiveProjectedGuidance(start_percent=0.5, end_percent=0.5), False)
    early, _ = run(AdaptiveProjectedGuidance(norm_threshold=0.1, end_percent=0.6), False)
    full, r = run(AdaptiveProjectedGuidance(norm_threshold=1.0), False, w=20.0)
    high, _ = run(None, False, w=20.0)
    assert torch.equal(plain, closed) and not torch.equal(plain, early)
    assert r.report.evaluations == 16                                    # as CFG
    assert full.abs().mean() < high.abs().mean()                         # less saturation at a high scale
    assert torch.isfinite(full).all()


@pytest.mark.method(APG)
def test_apg_keeps_the_dtype_and_says_what_is_wrong():
    step, c, u = predictions()
    assert AdaptiveProjectedGuidance().combine(step, c.half(), u.half(), 5.0, {}).dtype == torch.float16
    with pytest.raises(BadInput, match="momentum"):
        AdaptiveProjectedGuidance(momentum=-2.0).validate()
    AdaptiveProjectedGuidance().validate()


WEAK = object()


@pytest.mark.method(PAIR)
@FLOWS
def test_pair_weights_add_as_in_the_appendix(flow):
    model, weak = mixture(flow, dtype=torch.float32), mixture(flow, seed=7, dtype=torch.float32)
    x, sigma = state(model, 3, 0.7), torch.full((3,), 0.7)
    method = ModelPairGuidance(WEAK, scale=1.5)
    assert method.branches(a_step(x)) == (POSITIVE, Branch(model=ModelRef(WEAK)))
    r = engine.Run(engine.Pipeline((method,)), None, flow, percent_to_sigma(flow))
    out = engine.predict(r, x, sigma, 4.0, model.evaluate(others={method.branch: lambda x, s: weak(x, s, (0,))}))
    g, u, b = model(x, sigma, (0,)), model(x, sigma), weak(x, sigma, (0,))
    torch.testing.assert_close(out, g + 3.0 * (g - u) + 1.5 * (g - b), rtol=1e-5, atol=1e-5)
    assert r.report.evaluations == 3


@pytest.mark.method(PAIR)
@FLOWS
def test_pair_of_equal_models_is_the_model(flow):
    model = mixture(flow, dtype=torch.float32)
    method = ModelPairGuidance(WEAK, scale=2.0)
    others = {method.branch: lambda x, s: model(x, s, (0,))}
    assert torch.equal(run(method, flow, others=others)[0], run(None, flow)[0])
    assert torch.equal(run(method, flow, 1.0, others=others)[0], run(None, flow, 1.0)[0])


@pytest.mark.method(PAIR)
def test_pair_without_strength_is_off_and_not_evaluated():
    method = ModelPairGuidance(WEAK, scale=0.0)
    assert method.neutral() and not method.active(a_step(torch.zeros(1, 1)))
    assert ModelPairGuidance(None, scale=1.0).neutral()
    assert torch.equal(run(method, False)[0], run(None, False)[0])
    assert run(method, False)[1].report.evaluations == 16


@pytest.mark.method(PAIR)
def test_pair_at_minus_one_is_the_weak_model_and_its_window_counts():
    model, weak = mixture(dtype=torch.float32), mixture(seed=7, dtype=torch.float32)
    method = ModelPairGuidance(WEAK, scale=-1.0)
    others = {method.branch: lambda x, s: weak(x, s, (0,))}
    sigmas = levels(steps=8).float()
    x = state(model, 3, 14.6)
    torch.testing.assert_close(run(method, False, 1.0, x, others)[0], euler(x, sigmas, lambda x, s: weak(x, s, (0,))), rtol=1e-4, atol=1e-4)
    half = ModelPairGuidance(WEAK, scale=1.0, start_percent=0.0, end_percent=0.5)
    r = run(half, False, 1.0, others={half.branch: lambda x, s: weak(x, s, (0,))})[1]
    inside = sum(float(s) >= percent_to_sigma()(0.5) for s in sigmas[:-1])
    assert 0 < inside < 8 and r.report.evaluations == 8 + inside


@pytest.mark.method(PAIR)
def test_pair_takes_a_prompt_of_its_own():
    prompt = [["tokens", {}]]
    one, two = ModelPairGuidance(WEAK, prompt, 1.0), ModelPairGuidance(WEAK, prompt, 2.0)
    assert one.branch == two.branch and one.branch.prompt.cond is prompt and one.branch != ModelPairGuidance(WEAK).branch
    assert NEGATIVE not in one.branches(None)


@pytest.mark.method(PAIR)
def test_pair_and_apg_go_together():
    weak = mixture(seed=7, dtype=torch.float32)
    method = ModelPairGuidance(WEAK, scale=0.5)
    model, sigmas = mixture(dtype=torch.float32), levels(steps=6).float()
    x = state(model, 3, 14.6)
    outs = []
    for order in ((method, AdaptiveProjectedGuidance()), (AdaptiveProjectedGuidance(), method)):
        r = engine.Run(engine.Pipeline(order), sigmas, False, percent_to_sigma())
        evaluate = model.evaluate(others={method.branch: lambda x, s: weak(x, s, (0,))})
        outs.append(euler(x, sigmas, lambda x, s, r=r, e=evaluate: engine.predict(r, x, s, 4.0, e)))
    assert torch.equal(*outs)
