"""Decoupled guidance on closed-form mixtures: two conditions, an adapter's and the text's."""
import pytest
import torch

from lodestar.guidance import engine
from lodestar.guidance.method import NEGATIVE, POSITIVE, BadInput, Prompt, noise_of
from lodestar.guidance.rules.decoupled import DecoupledGuidance, numbers, std
from lodestar.tests.toys import a_step, mixture, percent_to_sigma, state

pytestmark = pytest.mark.method("LodestarDecoupledGuidance")
FLOWS = pytest.mark.parametrize("flow", (False, True))
EMPTY = [["tokens", {}]]


def setting(flow=False, sigma=0.7, **k):
    model = mixture(flow, components=4, dtype=torch.float32)
    x = state(model, 3, sigma)
    method = DecoupledGuidance(**{"text_free": EMPTY, "adapter": "1.5", "text": "3", "rescale": 0.0, **k})
    step = a_step(x, sigma, flow)
    predictions = {POSITIVE: model(x, sigma, (0,)), method.branch: model(x, sigma, (0, 1)), NEGATIVE: model(x, sigma)}
    return method, step, predictions


def run(method, step, predictions, w=1.0):
    base = predictions[NEGATIVE] + w * (predictions[POSITIVE] - predictions[NEGATIVE])
    return base + method.delta(step, base, predictions, {})


@FLOWS
@pytest.mark.parametrize("w", (1.0, 5.0))
def test_the_formula_whatever_the_samplers_scale(flow, w):
    method, step, p = setting(flow)
    c, i, u = (p[k] for k in (POSITIVE, method.branch, NEGATIVE))
    torch.testing.assert_close(run(method, step, p, w), u + 1.5 * (i - u) + 3.0 * (c - i), rtol=1e-4, atol=1e-5)


@FLOWS
def test_equal_strengths_are_cfg_and_one_is_the_conditional_prediction(flow):
    method, step, p = setting(flow, adapter="4", text="4")
    assert method.branches(step) == (POSITIVE, NEGATIVE)      # the third prediction is not needed
    torch.testing.assert_close(run(method, step, {k: v for k, v in p.items() if k != method.branch}), p[NEGATIVE] + 4 * (p[POSITIVE] - p[NEGATIVE]), rtol=1e-4, atol=1e-5)
    one, step, p = setting(flow, adapter="1", text="1", rescale=0.75)
    assert one.branches(step) == (POSITIVE,)
    torch.testing.assert_close(run(one, step, {POSITIVE: p[POSITIVE], NEGATIVE: p[NEGATIVE]}, 3.0), p[POSITIVE])


@FLOWS
def test_rescale_brings_the_noise_back(flow):
    """At rescale 1 the deviation of the guided noise is the mean of the two predictions'; per sample."""
    method, step, p = setting(flow, adapter="3", text="8", rescale=1.0)
    out = noise_of(step, run(method, step, p))
    wanted = (std(noise_of(step, p[POSITIVE])) + std(noise_of(step, p[method.branch]))) / 2
    torch.testing.assert_close(std(out), wanted, rtol=1e-3, atol=1e-4)
    free = noise_of(step, run(setting(flow, adapter="3", text="8")[0], step, p))
    half = setting(flow, adapter="3", text="8", rescale=0.5)[0]
    torch.testing.assert_close(noise_of(step, run(half, step, p)), free * (0.5 * wanted / std(free) + 0.5), rtol=1e-3, atol=1e-4)
    single = run(method, a_step(step.x[1:2], 0.7, flow), {k: v[1:2] for k, v in p.items()})
    torch.testing.assert_close(single, run(method, step, p)[1:2], rtol=1e-4, atol=1e-5)


def test_lists_of_strengths():
    method = DecoupledGuidance(text_free=EMPTY)
    pairs = []
    for index in range(6):
        step = a_step(torch.zeros(1, 1, 1, 1), index=index)
        pairs.append(method.strengths(step))
    assert pairs == [(1, 1), (1.5, 3), (1.5, 3), (1, 1), (1, 1), (1, 1)]
    assert numbers("n", "f", "2") == (2.0,) and numbers("n", "f", "1; 2,3,") == (1.0, 2.0, 3.0)
    for wrong in ("", "a", "1, nan"):
        with pytest.raises(BadInput, match="Decoupled Guidance: text"):
            DecoupledGuidance(text_free=EMPTY, text=wrong).validate()


def test_in_the_pipeline():
    """It counts as the combine rule of a model, and adds to it as a term: another rule is a conflict by name, evaluations are what is needed."""
    from lodestar.guidance.rules import AdaptiveProjectedGuidance
    method, step, p = setting()
    pipeline = engine.Pipeline().add(method)
    with pytest.raises(engine.RuleConflict, match="Decoupled Guidance"):
        pipeline.add(AdaptiveProjectedGuidance())
    r = engine.Run(pipeline, None, False, percent_to_sigma())
    out = engine.predict(r, step.x, step.sigma, 7.0, lambda branches, x, s: {b: p[b] for b in branches})
    torch.testing.assert_close(out, run(method, step, p), rtol=1e-4, atol=1e-5)
    assert r.report.evaluations == 3 and method.branch.prompt == Prompt(EMPTY)
