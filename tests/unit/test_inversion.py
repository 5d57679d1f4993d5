"""DDIM inversion and replay against the closed-form flow of Gaussian data."""

from __future__ import annotations

import pytest
import torch
from lodestar.guidance.inversion import DDIMInversion
from lodestar.guidance.inversion.ddim import invert, replay, rising
from lodestar.guidance.method import BadInput
from lodestar.guidance.samplers import cfgpp
from lodestar.tests.toys import euler, gaussian, levels, mixture, state

pytestmark = pytest.mark.method("LodestarDDIMInversion")
FLOWS = pytest.mark.parametrize("flow", [False, True])
MU, V = 0.5, 0.3


def picture(flow=False, batch=3, model=None):
    return state(model or gaussian(MU, V, flow=flow), batch, 0.0)


def exact(x, s, s_next, flow):
    """The probability flow of a Gaussian from level s to s_next."""
    a, b = (1 - s, 1 - s_next) if flow else (1.0, 1.0)
    return b * MU + (x - a * MU) * ((b * b * V + s_next**2) / (a * a * V + s**2)) ** 0.5


def span(flow, steps):
    if flow:
        return torch.linspace(0.02, 0.9, steps + 1, dtype=torch.float64)
    return torch.linspace(0.05**0.5, 5.0**0.5, steps + 1, dtype=torch.float64) ** 2


def ideal(x0, sigmas, flow):
    """Where the exact flow ends that starts, as the inversion does, with the clean picture at the smallest level."""
    s = float(sigmas[0])
    return exact((1 - s if flow else 1.0) * x0, s, float(sigmas[-1]), flow)


@FLOWS
def test_converges_to_the_closed_form(flow):
    model, x0 = gaussian(MU, V, flow=flow), picture(flow)

    def error(steps, midpoint):
        sigmas = span(flow, steps)
        return float((invert(model, x0, sigmas, flow, midpoint=midpoint) - ideal(x0, sigmas, flow)).abs().max())

    once, twice = error(20, False), error(40, False)
    assert 1.6 < once / twice < 2.4                                 # order 1
    once, second = error(20, True), error(40, True)
    assert once / second > 3.2                                      # order 2 at least
    assert second < 0.05 * twice


def test_sheets_formula_in_k_units():
    """x(s) = mu + (x0 - mu) sqrt((v + s^2) / v)."""
    model, x0 = gaussian(MU, V), picture()
    sigmas = torch.linspace(0.01**0.5, 5.0**0.5, 61, dtype=torch.float64) ** 2
    expected = MU + (x0 - MU) * ((V + 25.0) / V) ** 0.5
    torch.testing.assert_close(invert(model, x0, sigmas, midpoint=True), expected, rtol=1e-3, atol=1e-3)


@FLOWS
@pytest.mark.parametrize("zero", [True, False])
def test_refined_round_trip_is_exact(flow, zero):
    model, x0 = mixture(flow), picture(flow, model=mixture(flow))
    sigmas = levels(flow, 8, zero)

    def predict(x, s):
        return model(x, s, (0,))

    def trip(refine, midpoint=False):
        return float((replay(predict, invert(predict, x0, sigmas, flow, refine, midpoint), sigmas, flow) - x0).abs().max())

    assert trip(20) < 1e-4
    assert trip(20, True) < 1e-4
    assert trip(3) < 0.5 * trip(0)


@FLOWS
def test_replay_is_the_euler_sampler(flow):
    model = mixture(flow)
    sigmas = levels(flow, 8)
    x = state(model, 3, float(sigmas[0]))
    torch.testing.assert_close(replay(model, x, sigmas, flow), euler(x, sigmas, model))


@FLOWS
def test_round_trip_gets_nearer_with_steps_and_replay_has_a_midpoint_form(flow):
    model, x0 = gaussian(MU, V, flow=flow), picture(flow)

    def trip(steps, midpoint):
        sigmas = span(flow, steps)
        return float((replay(model, invert(model, x0, sigmas, flow, midpoint=midpoint), sigmas, flow, midpoint) - x0).abs().max())

    first, second = trip(15, False), trip(30, False)
    assert 1.5 < first / second < 2.6
    assert trip(30, True) < 0.1 * second


@FLOWS
def test_cfgpp_inversion_is_the_inverse_of_the_cfgpp_sampler(flow):
    model, broad, x0 = gaussian(MU, V, flow=flow), gaussian(0.2, 0.6, flow=flow), picture(flow)
    sigmas = levels(flow, 8)

    def predict(x, s, i=0):
        c, u = model(x, s), broad(x, s)
        return cfgpp.guided(c, u, 0.6), u

    x = invert(predict, x0, sigmas, flow, refine=20)
    assert (cfgpp.sample(predict, x, sigmas, flow) - x0).abs().max() < 1e-4
    assert (replay(predict, x, sigmas, flow) - x0).abs().max() < 1e-4


def test_cfgpp_step_up_is_the_authors_form():
    """Their variance-preserving inversion: x0 with the noise of u, then the guided noise at the next level."""
    model = mixture()
    s, s_next = 0.7, 1.1
    x = state(model, 3, s)
    c, u = model(x, s, (0,)), model(x, s)
    g = cfgpp.guided(c, u, 0.6)
    bar, bar_next = 1 / (1 + s * s), 1 / (1 + s_next * s_next)
    z0 = (x * bar**0.5 - (1 - bar) ** 0.5 * (x - u) / s) / bar**0.5
    z_next = bar_next**0.5 * z0 + (1 - bar_next) ** 0.5 * (x - g) / s
    out = invert(lambda x, sigma: (g, u), x, torch.tensor([s, s_next], dtype=torch.float64))
    torch.testing.assert_close(out * bar_next**0.5, z_next)


@FLOWS
def test_scale_zero_cfgpp_and_equal_prompts_are_plain_inversion(flow):
    model, x0 = mixture(flow), picture(flow, model=mixture(flow))
    sigmas = levels(flow, 8)
    torch.testing.assert_close(invert(lambda x, s: (model(x, s), model(x, s)), x0, sigmas, flow, 2), invert(model, x0, sigmas, flow, 2))


@FLOWS
def test_batch_of_three_is_three_singles_and_order_of_the_levels_does_not_matter(flow):
    model, x0 = mixture(flow), picture(flow, model=mixture(flow))
    sigmas = levels(flow, 8)
    out = invert(model, x0, sigmas, flow, refine=2)
    torch.testing.assert_close(out, torch.cat([invert(model, x0[i:i + 1], sigmas, flow, refine=2) for i in range(3)]))
    assert torch.equal(out, invert(model, x0, sigmas.flip(0), flow, refine=2))
    assert float(rising(sigmas)[0]) == 0.0


def test_evaluation_counts():
    model, x0, n = gaussian(MU, V), picture(), [0]

    def predict(x, s):
        n[0] += 1
        return model(x, s)

    for options, zero, expected in (({}, False, 7), ({"refine": 2}, False, 21), ({"midpoint": True}, False, 14), ({}, True, 7), ({"refine": 1}, True, 15)):
        n[0], seen = 0, []
        invert(predict, x0, levels(steps=8, zero=zero), callback=lambda i, x, s, g: seen.append(i), **options)
        assert n[0] == expected and seen == list(range(8 if zero else 7))


def test_zero_level_without_refinement_is_the_clean_latent_at_the_smallest_one():
    model, x0 = gaussian(MU, V), picture()
    assert torch.equal(invert(model, x0, levels(steps=8)), invert(model, x0, levels(steps=8, zero=False)))


def test_parameters():
    DDIMInversion().validate()
    with pytest.raises(BadInput, match="midpoint"):
        DDIMInversion(rule="cfg++", midpoint=True).validate()
    with pytest.raises(BadInput, match="scheduler"):
        DDIMInversion(scheduler="nonsense").validate()
