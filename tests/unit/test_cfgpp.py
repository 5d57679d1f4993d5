"""The CFG++ rule and loop on closed-form mixtures, in k-units and for flow matching."""

from __future__ import annotations

import pytest
import torch
from lodestar.guidance.method import BadInput
from lodestar.guidance.samplers import CFGPlusPlusSampler, cfgpp
from lodestar.tests.toys import euler, gaussian, levels, mixture, state

pytestmark = pytest.mark.method("LodestarCFGPlusPlusSampler")
FLOWS = pytest.mark.parametrize("flow", [False, True])


def rule(model, scale, positive=(0,), negative=None):
    def predict(x, sigma, index=0):
        c, u = model(x, sigma, positive), model(x, sigma, negative)
        return cfgpp.guided(c, u, scale), u
    return predict


def start(model, flow, batch=3, steps=6):
    sigmas = levels(flow, steps)
    return state(model, batch, float(sigmas[0])), sigmas


@FLOWS
@pytest.mark.parametrize("order", [1, 2])
def test_scale_zero_ignores_the_prompt(flow, order):
    model = mixture(flow)
    x, sigmas = start(model, flow)
    out = cfgpp.sample(rule(model, 0.0), x, sigmas, flow, order=order)
    plain = cfgpp.sample(lambda x, s, i: (model(x, s),) * 2, x, sigmas, flow, order=order)
    assert torch.equal(out, plain)
    if order == 1:
        torch.testing.assert_close(out, euler(x, sigmas, model))           # DDIM is Euler


@FLOWS
@pytest.mark.parametrize("order", [1, 2])
def test_equal_prompts_give_the_plain_step(flow, order):
    model = mixture(flow)
    x, sigmas = start(model, flow)
    out = cfgpp.sample(rule(model, 0.6, (0,), (0,)), x, sigmas, flow, order=order)
    if order == 1:
        torch.testing.assert_close(out, euler(x, sigmas, lambda x, s: model(x, s, (0,))))
    else:
        torch.testing.assert_close(out, multistep(model, x, sigmas, flow, (0,)))


def multistep(model, x, sigmas, flow, condition):
    """DPM-Solver++ 2M from its paper's formula, on log-SNR."""
    a = [1 - float(s) if flow else 1.0 for s in sigmas]
    lam = [float("-inf") if a[i] == 0 else float("inf") if s == 0 else float(torch.log(a[i] / s)) for i, s in enumerate(sigmas)]
    before = None
    for i in range(len(sigmas) - 1):
        d = model(x, sigmas[i], condition)
        mixed = d
        if before is not None and sigmas[i + 1] > 0 and lam[i - 1] > float("-inf"):
            r = (lam[i] - lam[i - 1]) / (lam[i + 1] - lam[i])
            mixed = (1 + 1 / (2 * r)) * d - 1 / (2 * r) * before
        x = sigmas[i + 1] / sigmas[i] * x + (a[i + 1] - a[i] * sigmas[i + 1] / sigmas[i]) * mixed
        before = d
    return x


@FLOWS
def test_first_step_is_the_papers_formula(flow):
    model = mixture(flow)
    s, s_next = (0.8, 0.6) if flow else (3.0, 1.5)
    x = state(model, 3, s)
    a, a_next = (0.2, 0.4) if flow else (1.0, 1.0)
    c, u = model(x, s, (0,)), model(x, s)
    x0 = u + 0.6 * (c - u)
    expected = a_next * x0 + s_next * (x - a * u) / s
    torch.testing.assert_close(cfgpp.step_down(x, x0, u, s, s_next, flow), expected)
    # CFG moves by the part of the prompt's difference that the step takes; CFG++ by all of it
    plain = cfgpp.step_down(x, u, u, s, s_next, flow)
    torch.testing.assert_close(cfgpp.step_down(x, x0, u, s, s_next, flow) - plain, a_next * 0.6 * (c - u))
    assert not torch.allclose(cfgpp.step_down(x, c, u, s, s_next, flow), cfgpp.step_down(x, c, c, s, s_next, flow))   # scale 1 is not CFG at w = 1


def test_paper_coordinates_agree():
    """The authors' variance-preserving DDIM form is the k-unit step up to the scaling of x."""
    model = mixture()
    s, s_next = 2.0, 1.0
    x = state(model, 3, s)
    c, u = model(x, s, (0,)), model(x, s)
    bar, bar_next = 1 / (1 + s * s), 1 / (1 + s_next * s_next)
    z, eps_c, eps_u = x * bar**0.5, (x - c) / s, (x - u) / s
    eps_w = eps_u + 0.6 * (eps_c - eps_u)
    z0 = (z - (1 - bar) ** 0.5 * eps_w) / bar**0.5
    z_next = bar_next**0.5 * z0 + (1 - bar_next) ** 0.5 * eps_u
    torch.testing.assert_close(cfgpp.step_down(x, cfgpp.guided(c, u, 0.6), u, s, s_next) * bar_next**0.5, z_next)


@FLOWS
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_batch_of_three_is_three_singles_and_a_second_run_is_the_first(flow, order, eta):
    model = mixture(flow, dtype=torch.float32)
    sigmas = levels(flow, 4).float()
    x = state(model, 3, float(sigmas[0]))

    def run(x, seed=5):
        return cfgpp.sample(rule(model, 0.6), x, sigmas, flow, eta, order, cfgpp.noise_source(x, seed))

    out = run(x)
    assert torch.equal(out, run(x)) and torch.isfinite(out).all()
    # entry 0 of a batch has the noise that it has alone; without fresh noise every entry is as alone
    torch.testing.assert_close(out[:1], run(x[:1]), rtol=1e-4, atol=1e-5)
    if eta == 0.0:
        torch.testing.assert_close(out, torch.cat([run(x[i:i + 1]) for i in range(3)]), rtol=1e-4, atol=1e-5)
    else:
        assert not torch.equal(out, run(x, 6))
        torch.manual_seed(0)
        other = run(x)
        torch.randn(100)
        assert torch.equal(other, run(x))


@FLOWS
def test_ancestral_keeps_the_noise_level(flow):
    for s, s_next in ((1.0, 0.8), (0.9, 0.3), (0.2, 0.1)) if flow else ((14.6, 9.0), (1.0, 0.3), (0.1, 0.05)):
        for eta in (0.0, 0.3, 1.0):
            down, up = cfgpp.ancestral(s, s_next, eta, flow)
            assert down**2 + up**2 == pytest.approx(s_next**2) and 0 <= up <= s_next
        assert cfgpp.ancestral(s, s_next, 0.0, flow) == (s_next, 0.0)
    # k-diffusion's formula
    assert cfgpp.ancestral(2.0, 1.0, 1.0)[1] == pytest.approx((1.0 * (4.0 - 1.0) / 4.0) ** 0.5)
    assert cfgpp.ancestral(1.0, 0.0, 1.0, flow) == (0.0, 0.0)


@FLOWS
def test_ancestral_sampling_has_the_data_distribution(flow):
    model = gaussian(0.5, 0.3, (1, 1, 1), flow)
    sigmas = levels(flow, 40)
    x = torch.randn(3000, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * sigmas[0]
    g = torch.Generator().manual_seed(1)
    out = cfgpp.sample(lambda x, s, i: (model(x, s),) * 2, x, sigmas, flow, 1.0, 1,
                       lambda: torch.randn(x.shape, dtype=x.dtype, generator=g))
    assert out.mean() == pytest.approx(0.5, abs=0.03) and out.var() == pytest.approx(0.3, abs=0.07)


@FLOWS
def test_second_order_converges_faster(flow):
    model = gaussian(0.5, 0.3, flow=flow)
    top, bottom = (0.9, 0.1) if flow else (5.0, 0.2)
    x = state(model, 2, top)

    def error(steps, order):
        power = 1 if flow else 4
        sigmas = torch.linspace(top ** (1 / power), bottom ** (1 / power), steps + 1, dtype=torch.float64) ** power
        out = cfgpp.sample(lambda x, s, i: (model(x, s),) * 2, x, sigmas, flow, order=order)
        a, b = (1 - top, 1 - bottom) if flow else (1.0, 1.0)
        exact = b * 0.5 + (x - a * 0.5) * ((b * b * 0.3 + bottom**2) / (a * a * 0.3 + top**2)) ** 0.5
        return float((out - exact).abs().max())

    assert 1.6 < error(20, 1) / error(40, 1) < 2.4
    assert 3.2 < error(20, 2) / error(40, 2) < 5.5


@FLOWS
def test_prompt_strength_grows_with_the_scale(flow):
    model = mixture(flow)
    x, sigmas = start(model, flow)
    distance = [(cfgpp.sample(rule(model, scale), x, sigmas, flow) - model.means[0]).norm() for scale in (0.0, 0.3, 0.6)]
    assert distance[0] > distance[1] > distance[2]


def test_counts_and_callback():
    model = mixture()
    x, sigmas = start(model, False, steps=7)
    calls, seen = [], []

    def predict(x, sigma, i):
        calls.append((i, tuple(sigma.shape)))
        return model(x, sigma), model(x, sigma)

    cfgpp.sample(predict, x, sigmas, order=2, callback=lambda i, x, s, x0: seen.append(i))
    assert calls == [(i, (3,)) for i in range(7)] and seen == list(range(7))


def test_parameters():
    CFGPlusPlusSampler().validate()
    with pytest.raises(BadInput, match="order"):
        CFGPlusPlusSampler(order=3).validate()
    with pytest.raises(BadInput, match="terms"):
        CFGPlusPlusSampler(terms="other").validate()
