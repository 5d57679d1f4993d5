"""Upsample Guidance on tensors and on closed-form models."""
from __future__ import annotations

import pytest
import torch
from lodestar.guidance import engine
from lodestar.guidance.method import NEGATIVE, POSITIVE, BadInput, Step
from lodestar.guidance.perturbation.upsample import Pooled, UpsampleGuidance, enlarged, pooled
from lodestar.tests.toys import a_step, gaussian, mixture, state

pytestmark = pytest.mark.method("LodestarUpsampleGuidance")
FLOWS = pytest.mark.parametrize("flow", [False, True])


def test_pooling_and_its_enlargement():
    x = torch.randn(2, 3, 12, 8, generator=torch.Generator().manual_seed(0))
    for m in (1, 2, 4):
        small = pooled(x, m)
        assert small.shape == (2, 3, 12 // m, 8 // m)
        torch.testing.assert_close(pooled(enlarged(small, m, x.shape), m), small)
    torch.testing.assert_close(pooled(x, 2)[0, 0, 0, 0], x[0, 0, :2, :2].mean())
    odd = torch.randn(1, 3, 7, 9)
    up = enlarged(pooled(odd, 2), 2, odd.shape)
    assert up.shape == odd.shape and torch.equal(up[..., 6, :], up[..., 5, :]) and torch.equal(up[..., 8], up[..., 7])
    video = torch.randn(1, 3, 5, 8, 8)
    assert torch.equal(pooled(video, 2)[:, :, 3], pooled(video[:, :, 3], 2)) and enlarged(pooled(video, 2), 2, video.shape).shape == video.shape


@FLOWS
@pytest.mark.parametrize("m", (2, 3))
def test_the_small_sample_has_its_own_noise_level(flow, m):
    """Block-constant data: P x is the small picture with signal a' and noise s' of the level that the network is told."""
    g = torch.Generator().manual_seed(0)
    small = torch.randn(1, 1, 8, 8, dtype=torch.float64, generator=g).expand(4096, -1, -1, -1)
    x0, sigma = enlarged(small, m, (1, 1, 8 * m, 8 * m)), 0.6
    step = a_step(x0, sigma, flow)
    x = step.a * x0 + step.s * torch.randn(x0.shape, dtype=torch.float64, generator=g)
    change = Pooled(m)
    entered, level = change.enter(step, x, {}), float(change.level(step, step.sigma)[0])
    rest = entered - (1 - level if flow else 1.0) * small
    torch.testing.assert_close(float(rest.std()), level, rtol=0.01, atol=0)
    torch.testing.assert_close(float((entered * small).mean() / small.square().mean()), (1 - level) if flow else 1.0, rtol=0.02, atol=0)


@FLOWS
def test_nothing_is_added_where_the_small_picture_says_all(flow):
    """Block-constant Gaussian data and exact denoisers of the picture and of the small one: the correction is nothing."""
    m, sigma = 2, 0.7
    small = gaussian(mean=0.3, variance=0.4, shape=(2, 4, 4), flow=flow)
    g = torch.Generator().manual_seed(1)
    y = 0.3 + 0.4 ** 0.5 * torch.randn(3, 2, 4, 4, dtype=torch.float64, generator=g)
    step = a_step(torch.zeros(3, 2, 8, 8, dtype=torch.float64), sigma, flow)
    x = step.a * enlarged(y, m, (3, 2, 8, 8)) + step.s * torch.randn(3, 2, 8, 8, dtype=torch.float64, generator=g)
    change = Pooled(m)
    low = small(change.enter(step, x, {}), change.level(step, step.sigma))
    # the mean over a block is all that the block knows of its value: the exact denoiser of the large picture
    a, v = float(step.a.flatten()[0]), 0.4
    mean = pooled(x, m)
    exact = enlarged(0.3 + a * v / (a * a * v + (sigma / m) ** 2) * (mean - a * 0.3), m, x.shape)
    method = UpsampleGuidance(factor=m)
    step.w = 1.0
    delta = method.delta(step, exact, {method.small[0]: low}, {})
    assert delta.abs().max() < 1e-6


@FLOWS
@pytest.mark.parametrize("w", (1.0, 3.0))
def test_in_the_engine(flow, w):
    """The whole way, with two closed-form models: at scale 1 the small picture inside the result is the small prediction with CFG."""
    large, small = mixture(flow, (2, 8, 8)), mixture(flow, (2, 4, 4), seed=3)
    method = UpsampleGuidance(factor=2, scale=1.0, end_percent=1.0)
    sigma = 0.7
    x = state(large, 2, sigma)

    def evaluate(branches, at, level):
        model = large if at.shape[-1] == 8 else small
        return {b: model(at, level, None if b.prompt == "negative" else (0,)) for b in branches}
    r = engine.Run(engine.Pipeline((method,)), torch.tensor([1.0, sigma, 0.0]), flow, lambda p: 1.0 - p)
    out = engine.predict(r, x, torch.full((2,), sigma, dtype=x.dtype), w, evaluate)
    step, change = a_step(x, sigma, flow), Pooled(2)
    at, level = change.enter(step, x, {}), float(change.level(step, step.sigma)[0])
    c, u = small(at, level, (0,)), small(at, level)
    torch.testing.assert_close(pooled(out, 2), u + w * (c - u) if w != 1 else c)
    assert r.report.evaluations == (2 if w == 1 else 4)
    base = large(x, sigma, (0,)) if w == 1 else large(x, sigma) + w * (large(x, sigma, (0,)) - large(x, sigma))
    torch.testing.assert_close(out - enlarged(pooled(out, 2), 2, x.shape), base - enlarged(pooled(base, 2), 2, x.shape))      # detail stays the base's


def test_off_and_bad_input():
    assert UpsampleGuidance(scale=0.0).neutral() and UpsampleGuidance(factor=1).neutral() and not UpsampleGuidance().neutral()
    with pytest.raises(BadInput, match="factor"):
        UpsampleGuidance(factor=9).validate()
    x = torch.zeros(1, 2, 3, 8)
    with pytest.raises(ValueError, match="3 x 8 cells cannot be made smaller by 4"):
        Pooled(4).enter(a_step(x), x, {})
    active = engine.plan(engine.Run(engine.Pipeline((UpsampleGuidance(), UpsampleGuidance(scale=0.5)))), Step(x, torch.ones(1), percent_to_sigma=lambda p: 2 - 2 * p), 4.0)
    assert active.branches == UpsampleGuidance().small and POSITIVE not in active.branches and NEGATIVE not in active.branches
    assert Pooled(1).enter(a_step(x), x, {}).equal(x) and Pooled(1).level(a_step(x), torch.ones(1)) == 1
