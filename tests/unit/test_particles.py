"""The particle samplers against their papers' formulas and the identities that follow, on closed-form models, in k-units and for flow matching."""
from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from lodestar.guidance.frozen import frozen
from lodestar.guidance.inverse import levels
from lodestar.guidance.inverse.levels import noise_source
from lodestar.guidance.inverse.operators import Quantisation, RandomProjection
from lodestar.guidance.inverse.problem import Problem
from lodestar.guidance.inverse.solver import Point
from lodestar.guidance.loss.base import Loss
from lodestar.guidance.loss.blackbox import ValuesOnly
from lodestar.guidance.method import BadInput
from lodestar.guidance.particles.candidates import least
from lodestar.guidance.particles.enkg import EnsembleKalmanGuidance, ladder, move
from lodestar.guidance.particles.fkc import FeynmanKacCorrector, corrected
from lodestar.guidance.particles.free2guide import ENSEMBLES, Free2Guide, key_frames, together
from lodestar.guidance.particles.plot import plot
from lodestar.guidance.particles.steering import POTENTIALS, ParticleSteering
from lodestar.guidance.particles.svdd import SVDD
from lodestar.guidance.particles.swarm import Noise, Record, Swarm, drawn, effective, systematic
from lodestar.tests.toys import euler, gaussian, mixture, percent_to_sigma, state
from lodestar.tests.toys import levels as schedule

FLOWS = pytest.mark.parametrize("flow", [False, True], ids=("k", "flow"))


@frozen(eq=False)
class Tilt(Loss):
    """-factor times the mean of a sample; `watched` is called with what it is asked about."""

    factor: float = 1.0
    watched: object = None
    title, differentiable = "tilt", False

    def value(self, denoised, context):
        assert not torch.is_grad_enabled()
        if self.watched is not None:
            self.watched(denoised, context)
        return -self.factor * denoised.flatten(1).mean(1)


LOSS = Tilt()
ALL = {"fk": ParticleSteering(loss=LOSS, every=2), "svdd": SVDD(loss=LOSS, candidates=3), "free": Free2Guide(loss=LOSS, candidates=3, steps=3)}
ONE = {"fk": {"particles": 1}, "svdd": {"candidates": 1}, "free": {"candidates": 1}}
EVERY = pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.method(c.node_id)) for n, c in ALL.items()])


def run(method, model, x, sigmas, flow=False, seed=0, problem=None, call=None, record=None, start=None, fast=False):
    """(result, swarm). fast: noise of one generator, for thousands of particles."""
    g = torch.Generator().manual_seed(seed)
    noise = (lambda count: torch.randn(count * x.shape[0], *x.shape[1:], generator=g, dtype=x.dtype)) if fast else None
    start = start or (lambda noise, factor=1.0: factor * (x if noise is None else float(sigmas[0]) * noise))
    swarm = Swarm(model, x, sigmas, flow, seed, start, record, noise=noise)
    return method.run(swarm, problem if problem is not None else method.problem(sigmas, flow), call), swarm


def begun(flow, batch=2, steps=8, shape=(2, 3, 3), model=None):
    model, sigmas = model or mixture(flow, shape), schedule(flow, steps)
    return model, state(model, batch, float(sigmas[0])), sigmas


def ancestral(x, sigmas, model, flow, seed=0, eta=1.0, draw=None):
    """The plain ancestral sampler, written out."""
    draw = draw or noise_source(x, seed)
    for s, s_next in zip(sigmas[:-1].tolist(), sigmas[1:].tolist()):
        d = model(x, torch.full((x.shape[0],), s, dtype=x.dtype))
        down, up = levels.ancestral(s, s_next, eta, flow)
        x = levels.signal(s_next, flow) * d + (down * (x - levels.signal(s, flow) * d) / s if s_next > 0 else 0)
        x = x + up * draw() if up else x
    return x


# layout, noise, weights

def test_systematic_resampling_keeps_equal_weights_in_place_and_counts_shares():
    at = lambda *u: torch.tensor(u, dtype=torch.float64)
    assert torch.equal(systematic(torch.ones(7, 3), at(0.0, 0.3, 0.999)), torch.arange(7)[:, None].expand(7, 3))
    u = torch.linspace(0.005, 0.995, 100, dtype=torch.float64)
    w = torch.tensor([0.5, 0.25, 0.125, 0.125])
    counts = torch.stack([torch.bincount(line, minlength=4) for line in systematic(w[:, None].expand(4, 100), u).T])
    assert bool((counts >= (4 * w).floor()).all() and (counts <= (4 * w).ceil()).all())
    mean = torch.stack([torch.bincount(line, minlength=3) for line in systematic(torch.tensor([[0.1], [0.6], [0.3]]).expand(3, 100), u).T]).double().mean(0)
    torch.testing.assert_close(mean, at(0.3, 1.8, 0.9), atol=2e-2, rtol=0)
    both = systematic(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), at(0.5, 0.5))      # each entry by its own weights
    assert both.tolist() == [[0, 1], [0, 1]]
    assert effective(torch.zeros(5, 2)).tolist() == pytest.approx([5, 5]) and effective(torch.tensor([[0.0], [-1e30]])).tolist() == [1.0]
    picks = torch.stack([drawn(torch.log(torch.tensor([[0.2, 1.0], [0.8, 0.0]])), torch.stack([v, v])) for v in u])
    assert float((picks[:, 0] == 1).double().mean()) == pytest.approx(0.8, abs=0.02) and bool((picks[:, 1] == 0).all())


def test_noise_of_a_particle_is_its_own_whatever_the_count():
    x = torch.zeros(2, 3, dtype=torch.float64)
    few, many, plain = Noise(x, 5), Noise(x, 5), noise_source(x, 5)
    for _ in range(3):
        a, b = few(2), many(4)
        assert torch.equal(a, b[:4]) and torch.equal(a[:2], plain()) and len(b.unique()) == b.numel()


@EVERY
@FLOWS
def test_one_is_the_plain_sampler(name, flow):
    model, x, sigmas = begun(flow)
    one = dataclasses.replace(ALL[name], **ONE[name])
    torch.testing.assert_close(run(dataclasses.replace(one, eta=0.0), model, x, sigmas, flow)[0], euler(x, sigmas, model), atol=1e-9, rtol=0)
    torch.testing.assert_close(run(one, model, x, sigmas, flow)[0], ancestral(x, sigmas, model, flow))


@EVERY
@FLOWS
def test_entries_never_mix_runs_repeat_and_the_loss_falls(name, flow):
    model, x, sigmas = begun(flow, batch=3)
    out = run(ALL[name], model, x, sigmas, flow)[0]
    assert out.shape == x.shape and out.dtype == x.dtype and bool(torch.isfinite(out).all())
    assert torch.equal(out, run(ALL[name], model, x, sigmas, flow)[0])
    for entries in (x[:1], x[:2]):
        torch.testing.assert_close(run(ALL[name], model, entries, sigmas, flow)[0], out[:len(entries)])
    many = [run(ALL[name], model, x, sigmas, flow, seed)[0].flatten(1).mean(1) for seed in range(6)]
    plain = [ancestral(x, sigmas, model, flow, seed).flatten(1).mean(1) for seed in range(6)]
    assert float(torch.stack(many).mean()) > float(torch.stack(plain).mean())


@EVERY
def test_split_into_calls_changes_nothing_and_each_call_of_the_loss_has_the_batch(name):
    model, x, sigmas = begun(False)
    shapes = []

    def watched(denoised, context):
        shapes.append(denoised.shape[0])
        assert context.step.x.shape == denoised.shape

    def split(x, sigma):
        return torch.cat([model(a, b) for a, b in zip(x.split(2), sigma.split(2))])
    method = dataclasses.replace(ALL[name], loss=Tilt(watched=watched))
    torch.testing.assert_close(run(method, split, x, sigmas)[0], run(method, model, x, sigmas)[0])
    assert set(shapes) == {2}


@EVERY
def test_a_loss_that_is_constant_leaves_all_alike(name):
    model, x, sigmas = begun(False)
    record = Record()
    out, _ = run(dataclasses.replace(ALL[name], loss=Tilt(factor=0.0)), model, x, sigmas, record=record)
    torch.testing.assert_close(out, ancestral(x, sigmas, model, False))      # the first of equals: particle 0, undisturbed
    for row in record.rows:
        assert row["ancestors"] is None and (row["ess"] is None or row["ess"] == pytest.approx([4, 4]))


# FK steering

@pytest.mark.method("LodestarParticleSteering")
@pytest.mark.parametrize("potential", POTENTIALS)
def test_weights_telescope_to_the_last_reward(potential):
    model, x, sigmas = begun(False)
    method = ParticleSteering(loss=LOSS, particles=5, strength=3.0, potential=potential, every=2, resample_below=0.0, give="all")
    out, swarm = run(method, model, x, sigmas)
    reward = out.view(2, 5, -1).mean(2).T      # the last step's estimate is the result
    torch.testing.assert_close(swarm.final, 3.0 * reward)
    first = swarm.record.rows[0]["losses"]
    assert len(swarm.record.rows) == 4 and torch.tensor(first).shape == (2, 5) and swarm.record.rows[-1]["ess"] == pytest.approx(effective(swarm.final).tolist())
    assert torch.equal(out, run(dataclasses.replace(method, strength=0.0), model, x, sigmas)[0])      # nobody was drawn anew


@pytest.mark.method("LodestarParticleSteering")
def test_strength_nothing_with_best_is_best_of_n_and_drawn_is_by_weight():
    model, x, sigmas = begun(False)
    every, _ = run(ParticleSteering(loss=LOSS, particles=6, strength=0.0, give="all"), model, x, sigmas)
    best, _ = run(ParticleSteering(loss=LOSS, particles=6, strength=0.0), model, x, sigmas)
    by_entry = every.view(2, 6, *every.shape[1:])
    wanted = torch.stack([e[e.flatten(1).mean(1).argmax()] for e in by_entry])
    torch.testing.assert_close(best, wanted)
    torch.testing.assert_close(by_entry[:, 0], ancestral(x, sigmas, model, False))
    sharp, _ = run(ParticleSteering(loss=LOSS, particles=6, strength=1e6, resample_below=0.0, give="drawn"), model, x, sigmas)
    torch.testing.assert_close(sharp, wanted)


@pytest.mark.method("LodestarParticleSteering")
def test_weights_are_kept_until_they_resample_and_lines_of_ancestors_are_reported():
    model, x, sigmas = begun(False, batch=1)
    record = Record()
    _, swarm = run(ParticleSteering(loss=LOSS, particles=8, every=1, resample_below=0.5), model, x, sigmas, record=record)
    assert any(r["ancestors"] is not None for r in record.rows) and any(r["ancestors"] is None for r in record.rows[:-1])
    for row in record.rows[:-1]:
        assert (row["ancestors"] is not None) == (row["ess"][0] <= 4 + 1e-6)
    kept = [k[0] for k in record.survivors() if k is not None]
    assert kept == sorted(kept, reverse=True) and 1 <= kept[-1] < 8
    assert "drawn anew at steps" in record.words() and plot(record).size == (860, 480) and plot(Record()).size == (860, 480)


@pytest.mark.method("LodestarParticleSteering")
def test_nothing_counts_outside_its_window_and_no_number_is_the_worst():
    model, x, sigmas = begun(False)
    method = ParticleSteering(loss=LOSS, every=1, start_percent=0.5)
    record = Record()
    problem = method.problem(sigmas, False, percent_to_sigma())
    run(method, model, x, sigmas, problem=problem, record=record)
    assert 1 < len(record.rows) < 8 and all(r["sigma"] <= percent_to_sigma()(0.5) for r in record.rows)

    @frozen(eq=False)
    class Broken(Tilt):
        def value(self, denoised, context):
            found = super().value(denoised, context)
            return torch.where(found < found.median() if self.factor else found != found, found, math.nan)
    out, _ = run(ParticleSteering(loss=ValuesOnly(Tilt())), model, x, sigmas)
    assert bool(torch.isfinite(out).all())
    with pytest.raises(ValueError, match="gives no number"):
        run(ParticleSteering(loss=Broken(factor=0.0, watched=None), every=1), lambda x, s: model(x, s) * math.nan, x, sigmas)


@pytest.mark.method("LodestarParticleSteering")
@FLOWS
def test_particles_follow_the_tilted_gaussian(flow):
    """Prior N(0.3, 0.5): the chain itself gives N(m, v), and with the loss -x at strength 1 its weighted particles N(m + v, v). 4 x 1,000 particles: standard error about 0.015."""
    model = gaussian(0.3, 0.5, (1,), flow)
    sigmas = schedule(flow, 12)
    x = float(sigmas[0]) * torch.randn(4, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    g = torch.Generator().manual_seed(4)
    noise = lambda: torch.randn(6000, 1, dtype=torch.float64, generator=g)
    chain = ancestral(float(sigmas[0]) * noise(), sigmas, model, flow, draw=noise)
    for potential in POTENTIALS:
        out, swarm = run(ParticleSteering(loss=LOSS, particles=1000, strength=1.0, every=3, potential=potential, give="all"), model, x, sigmas, flow, fast=True)
        w = swarm.final.softmax(0).T.reshape(-1, 1) / 4
        mean = float((w * out).sum())
        spread = float((w * (out - mean).square()).sum())
        assert abs(mean - float(chain.mean() + chain.var())) < 0.06 and abs(spread - float(chain.var())) < 0.08


# SVDD and Free2Guide

@pytest.mark.method("LodestarSVDDSampler")
@FLOWS
def test_svdd_follows_the_tilted_gaussian_with_many_candidates(flow):
    """Prior N(0.3, 0.5), value -x, temperature 1: the clean estimate is the soft value up to a constant, so many candidates give N(m + v, v). 800 entries: standard error 0.025."""
    model = gaussian(0.3, 0.5, (1,), flow)
    sigmas = schedule(flow, 12)
    g = torch.Generator().manual_seed(3)
    x = float(sigmas[0]) * torch.randn(800, 1, dtype=torch.float64, generator=g)
    chain = ancestral(x, sigmas, model, flow, draw=lambda: torch.randn(800, 1, dtype=torch.float64, generator=g))
    out, _ = run(SVDD(loss=LOSS, candidates=24, temperature=1.0), model, x, sigmas, flow, fast=True)
    assert abs(float(out.mean() - chain.mean() - chain.var())) < 0.12 and float(out.var() / chain.var()) == pytest.approx(1.0, abs=0.2)


@pytest.mark.method("LodestarSVDDSampler")
def test_svdd_takes_the_best_reuses_its_estimate_and_counts_as_said():
    model, x, sigmas = begun(False)
    calls = []

    def counted(x, sigma):
        calls.append((x.shape[0], float(sigma[0])))
        return model(x, sigma)
    record = Record()
    run(SVDD(loss=LOSS, candidates=3), counted, x, sigmas, record=record)
    assert calls == [(2, float(sigmas[0]))] + [(6, float(s)) for s in sigmas[1:-1]]
    for row in record.rows:
        assert row["chosen"] == [losses.index(min(losses)) for losses in row["losses"]]
    assert torch.equal(least(torch.tensor([[1.0, 2.0], [0.5, 2.0], [0.5, 1.0]])), torch.tensor([1, 2]))


@pytest.mark.method("LodestarFree2Guide")
def test_judges_together():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(6, 3, generator=g, dtype=torch.float64), torch.randn(6, 3, generator=g, dtype=torch.float64)
    torch.testing.assert_close(together(a, b, "weighted", 0.25), 0.25 * a + 0.75 * b)
    torch.testing.assert_close(together(a, b, "normalised", 0.5), together(5 * a + 3, 0.01 * b - 7, "normalised", 0.1))
    torch.testing.assert_close(together(a, b, "consensus", 0.5), together(a.exp(), b ** 3, "consensus", 0.1))
    for how in ENSEMBLES:
        assert torch.equal(least(together(a, a, how, 0.5)), least(a)) and torch.equal(together(a, None, how, 0.5), a)
        assert torch.equal(least(together(a + 5, b + 5, how, 0.5)), least(together(a, b, how, 0.5)))
    assert together(torch.tensor([[1.0], [1.0], [2.0]]), torch.zeros(3, 1), "consensus", 0.5)[:, 0].tolist() == [1.0 + 1.5, 1.0 + 1.5, 2.5 + 1.5]


@pytest.mark.method("LodestarFree2Guide")
def test_free2guide_chooses_the_noise_first_then_a_few_steps_and_sees_key_frames():
    model, x, sigmas = begun(False)
    record, calls = Record(), []
    out, swarm = run(Free2Guide(loss=LOSS, candidates=4, steps=3), lambda x, s: calls.append(x.shape[0]) or model(x, s), x, sigmas, record=record)
    assert [r["sigma"] for r in record.rows] == sigmas[:3].tolist() and calls == [8, 8, 8, 2, 2, 2, 2, 2]
    starts = swarm.start(4)
    assert torch.equal(starts[:2], x)
    z = torch.arange(2 * 16, dtype=torch.float64).view(2, 1, 16, 1, 1)
    assert key_frames(z, 4).flatten().tolist() == [0, 4, 8, 12, 16, 20, 24, 28] and key_frames(z, 50).shape == (32, 1, 1, 1, 1)
    video, seen = mixture(False, (2, 5, 3, 3)), []
    x = state(video, 2, float(sigmas[0]))
    run(Free2Guide(loss=Tilt(watched=lambda d, c: seen.append(tuple(d.shape))), candidates=2, steps=2, frames=3), video, x, sigmas)
    assert set(seen) == {(6, 2, 1, 3, 3)}


# ensemble Kalman guidance

@pytest.mark.method("LodestarEnsembleKalmanGuidance")
def test_kalman_moves_stay_in_the_span_descend_and_do_not_see_the_measurements_axes():
    g = torch.Generator().manual_seed(0)
    x, a, y = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((5, 12), (7, 12), (7,)))
    residual = y - x @ a.T
    moved = move(x, residual, 0.3)
    away = x - x.mean(0)
    assert float((moved - x - (moved - x) @ torch.linalg.pinv(away) @ away).abs().max()) < 1e-9      # in the span of the ensemble
    q = torch.linalg.qr(torch.randn(7, 7, generator=g, dtype=torch.float64))[0]
    torch.testing.assert_close(move(x, residual @ q.T, 0.3), moved)
    # a linear measurement: sum_i e_i . A dx_i = |C|^2-like >= 0, so that a small step reduces the misfit
    assert float((y - move(x, residual, 1e-3) @ a.T).square().sum()) < float(residual.square().sum())
    c = residual @ (residual - residual.mean(0)).T / 5
    torch.testing.assert_close(moved, x - 0.3 / c.norm() * c @ away)
    assert torch.equal(move(x, torch.ones(5, 7, dtype=torch.float64), 0.3), x)      # nothing varies: nothing to go by


@pytest.mark.method("LodestarEnsembleKalmanGuidance")
@FLOWS
def test_kalman_off_is_euler_entries_are_apart_and_the_misfit_falls(flow):
    model, x, sigmas = begun(flow, batch=2, steps=12, shape=(1, 3, 3))
    operator = RandomProjection(0.5, 1)
    y = operator.measure(torch.full((2, 1, 3, 3), 0.4, dtype=torch.float64))
    problem = lambda n: Problem(operator, y[:n], 0.1)
    method = EnsembleKalmanGuidance(measurement=None, particles=12)
    torch.testing.assert_close(run(dataclasses.replace(method, scale=0.0), model, x, sigmas, flow, problem=problem(2))[0], euler(x, sigmas, model), atol=1e-9, rtol=0)
    out, _ = run(method, model, x, sigmas, flow, problem=problem(2))
    torch.testing.assert_close(run(method, model, x[:1], sigmas, flow, problem=problem(1))[0], out[:1])
    plain, _ = run(dataclasses.replace(method, skip_first=1.0, give="all"), model, x, sigmas, flow, problem=problem(2))
    led, _ = run(dataclasses.replace(method, give="all"), model, x, sigmas, flow, problem=problem(2))
    misfit = lambda u: float((operator.measure(u) - y.repeat_interleave(12, 0)).square().sum())
    assert misfit(led) < 0.5 * misfit(plain)
    torch.testing.assert_close(run(dataclasses.replace(method, give="mean"), model, x, sigmas, flow, problem=problem(2))[0], led.view(2, 12, 1, 3, 3).mean(1))
    torch.testing.assert_close(ladder(5.0, 4, True, sigmas), torch.tensor([5, 3.75, 2.5, 1.25, 0], dtype=torch.float64))
    deeper, _ = run(dataclasses.replace(method, inner=3), model, x, sigmas, flow, problem=problem(2))
    assert bool(torch.isfinite(deeper).all()) and not torch.equal(deeper, out)


@pytest.mark.method("LodestarEnsembleKalmanGuidance")
def test_kalman_takes_operators_without_gradient():
    model, x, sigmas = begun(False, batch=1, steps=20, shape=(3, 4, 4))
    operator = Quantisation(levels=3)
    out, _ = run(EnsembleKalmanGuidance(particles=16), model, x, sigmas, problem=Problem(operator, torch.full((1, 3, 4, 4), 0.5, dtype=torch.float64), 0.0))
    assert bool(torch.isfinite(out).all())


# Feynman-Kac correctors

def mixed(flow, shape=(2, 3, 3)):
    """(model of parts, the mixture): positive is its first component, negative the whole, second its second."""
    base = mixture(flow, shape)
    return (lambda x, s: {"positive": base(x, s, (0,)), "negative": base(x, s), "second": base(x, s, (1,))}), base


@pytest.mark.method("LodestarFeynmanKacCorrector")
@FLOWS
def test_the_rates_are_the_papers(flow):
    parts, base = mixed(flow)
    s = 0.6
    x = state(base, 3, s)
    a = levels.signal(s, flow)
    found = parts(x, torch.full((3,), s, dtype=x.dtype))
    score = {k: (a * d - x) / s ** 2 * a for k, d in found.items()}      # of x / a
    v = (s / a) ** 2
    u, c, second = score["negative"], score["positive"], score["second"]
    rate = lambda **b: corrected(x, found, b, s, a)[1] / v      # per unit of the variance (s / a)^2
    torch.testing.assert_close(rate(positive=3.0, negative=-2.0), 0.5 * 3 * 2 * (c - u).square())
    torch.testing.assert_close(rate(positive=2.5), 0.5 * 2.5 * 1.5 * c.square())
    torch.testing.assert_close(rate(positive=1.0, second=1.0), c * second)
    torch.testing.assert_close(rate(positive=1.0), torch.zeros_like(x))
    n, _ = corrected(x, found, {"positive": 3.0, "negative": -2.0}, s, a)
    torch.testing.assert_close((x - s * n) / a, found["negative"] + 3 * (found["positive"] - found["negative"]))


@pytest.mark.method("LodestarFeynmanKacCorrector")
@FLOWS
def test_one_particle_is_cfg_and_a_product_with_itself_is_a_power(flow):
    parts, base = mixed(flow)
    sigmas = schedule(flow, 8)
    x = state(base, 2, float(sigmas[0]))
    cfg = lambda x, s: base(x, s) + 3 * (base(x, s, (0,)) - base(x, s))
    method = FeynmanKacCorrector(guidance=3.0, particles=1)
    torch.testing.assert_close(run(method, parts, x, sigmas, flow)[0], ancestral(x, sigmas, cfg, flow))
    torch.testing.assert_close(run(dataclasses.replace(method, eta=0.0), parts, x, sigmas, flow)[0], euler(x, sigmas, cfg), atol=1e-9, rtol=1e-9)
    off = FeynmanKacCorrector(guidance=1.0, particles=1, eta=0.0)
    assert off.neutral()
    torch.testing.assert_close(run(off, base, x, sigmas, flow)[0], euler(x, sigmas, base), atol=1e-9, rtol=0)
    same = lambda x, s: {"positive": base(x, s, (0,)), "second": base(x, s, (0,))}
    product = FeynmanKacCorrector(second="a prompt", guidance=1.0, particles=4, limit=0.0, give="all")
    power = FeynmanKacCorrector(guidance=1.0, power=2.0, particles=4, limit=0.0, give="all")
    torch.testing.assert_close(run(product, same, x, sigmas, flow)[0], run(power, same, x, sigmas, flow)[0])
    assert product.exponents == {"positive": 1.0, "second": 1.0} and power.exponents == {"positive": 2.0}


@pytest.mark.method("LodestarFeynmanKacCorrector")
@FLOWS
def test_corrector_keeps_entries_apart_and_equal_predictions_weigh_alike(flow):
    parts, base = mixed(flow)
    sigmas = schedule(flow, 8)
    x = state(base, 2, float(sigmas[0]))
    method = FeynmanKacCorrector(guidance=3.0, particles=5)
    out, _ = run(method, parts, x, sigmas, flow)
    torch.testing.assert_close(run(method, parts, x[:1], sigmas, flow)[0], out[:1])
    record = Record()
    run(method, lambda x, s: dict.fromkeys(("positive", "negative"), base(x, s)), x, sigmas, flow, record=record)
    assert len(record.rows) == 8 and all(r["ess"] == pytest.approx([5, 5]) and r["ancestors"] is None for r in record.rows)


@pytest.mark.method("LodestarFeynmanKacCorrector")
@FLOWS
def test_corrector_samples_the_power_and_the_quotient_where_cfg_does_not(flow):
    """Positive N(0.6, 0.4), negative N(0, 0.6) at guidance 2: N(1.5, 0.3) x const by precisions 2/0.4 - 1/0.6 = 10/3, mean 2 x 0.6/0.4 / (10/3) = 0.9. Power 2 of N(0.6, 0.4): N(0.6, 0.2).
    3,000 particles, 100 steps: standard error 0.02 or less."""
    positive, negative = gaussian(0.6, 0.4, (1,), flow), gaussian(0.0, 0.6, (1,), flow)
    sigmas = schedule(flow, 50)
    x = float(sigmas[0]) * torch.randn(1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    parts = lambda x, s: {"positive": positive(x, s), "negative": negative(x, s)}
    for values, mean, variance in (({"guidance": 2.0}, 0.9, 0.3), ({"guidance": 1.0, "power": 2.0}, 0.6, 0.2)):
        out, swarm = run(FeynmanKacCorrector(particles=2000, limit=0.0, give="all", **values), parts, x, sigmas, flow, fast=True)
        w = swarm.final.softmax(0)
        got = float((w * out).sum())
        assert got == pytest.approx(mean, abs=0.09) and float((w * (out - got).square()).sum()) == pytest.approx(variance, abs=0.07), values


@pytest.mark.method("LodestarFeynmanKacCorrector")
def test_exponents_that_are_no_distribution_are_refused():
    both = FeynmanKacCorrector(second="a prompt", guidance=3.0, second_power=2.0, composed=True).validate().exponents
    assert both == {"positive": 3.0, "negative": -4.0, "second": 2.0}
    with pytest.raises(BadInput, match="second_power"):
        FeynmanKacCorrector(second="a prompt", second_power=-2.0).validate()


def test_a_point_of_the_swarm_has_the_steps_levels():
    model, x, sigmas = begun(False)
    swarm = Swarm(model, x, sigmas, False, 0)
    point = swarm.point(swarm.start(3), 2)
    assert isinstance(point, Point) and point.s == float(sigmas[2]) and point.s_next == float(sigmas[3]) and point.x.shape[0] == 6
    assert torch.equal(swarm.entries(torch.arange(6.0)[:, None])[:, 0], torch.tensor([0.0, 2, 4, 1, 3, 5]))


@pytest.mark.method("LodestarParticleSteering")
def test_convergence_bench_has_truths_and_slopes():
    from lodestar.bench import particles as bench
    g = torch.Generator().manual_seed(0)
    found, error = bench.slope({k: torch.randn(400, generator=g, dtype=torch.float64).square() / k for k in (4, 8, 16, 32)})
    assert abs(found + 0.5) < 4 * error and 0.005 < error < 0.05
    z = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    mixture_ = bench.line([0.7, -0.2], [0.15, 0.1], [0.7, 0.3])
    assert float(bench.log_density(mixture_, z).exp().sum() * (z[1] - z[0])) == pytest.approx(1.0, abs=1e-6)
    some = bench.estimates(ParticleSteering(loss=bench.Direction(torch.ones(2, dtype=torch.float64)), particles=3, every=2, give="all"), bench.gaussian(), False, 4, 5, 1)
    assert some.shape == (5, 2) and bool(torch.isfinite(some).all())
    for _, values, parts in bench.correctors():
        assert set(FeynmanKacCorrector(particles=2, **values).exponents) == set(parts)
