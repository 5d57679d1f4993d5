"""The measurement solvers against their papers' formulas and the identities that follow, on closed-form models, in k-units and for flow matching."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from lodestar.guidance.inverse import ddnm, levels, lgd, mpgd, pigdm, problem, psld, reddiff, repaint, resample, solver
from lodestar.guidance.inverse.dps import DiffusionPosteriorSampling
from lodestar.guidance.inverse.levels import noise_source
from lodestar.guidance.inverse.operators import Colourisation, GaussianBlur, Inpainting, Jpeg, LowLight, MissingTraces, MotionBlur, Quantisation, RandomProjection, SuperResolution, Wavelet
from lodestar.guidance.inverse.problem import Problem
from lodestar.guidance.method import BadInput
from lodestar.tests.toys import euler, gaussian, levels as schedule, mixture, state

DPS, LGD, PIGDM, DDNM = DiffusionPosteriorSampling, lgd.LossGuidedDiffusion, pigdm.PseudoinverseGuidance, ddnm.NullSpaceSampler
MPGD, PSLD, REPAINT, RED = mpgd.ManifoldPreservingGuidance, psld.LatentPosteriorSampling, repaint.RePaint, reddiff.REDdiff
RESAMPLE = resample.ReSample
FLOWS = pytest.mark.parametrize("flow", [False, True], ids=("k", "flow"))
ALL = {"dps": DPS(scale=0.3), "dps likelihood": DPS(scale=1.0, form="likelihood"), "lgd": LGD(scale=0.3, samples=3), "pigdm": PIGDM(), "pigdm published": PIGDM(form="published"), "ddnm": DDNM(repeats=2),
       "mpgd": MPGD(scale=0.1, eta=0.5, repeats=2), "psld": PSLD(scale=0.3, gluing=0.1, eta=1.0), "repaint": REPAINT(jump=2, rounds=2), "red": RED(inner=2),
       "resample": RESAMPLE(every=1, rounds=5, ahead=2, scale=0.5)}
EVERY = pytest.mark.method("LodestarDiffusionPosteriorSampling", "LodestarLossGuidedDiffusion", "LodestarPseudoinverseGuidance", "LodestarNullSpaceSampler",
                           "LodestarManifoldPreservingGuidance", "LodestarLatentPosteriorSampling", "LodestarRePaint", "LodestarREDdiff", "LodestarReSample")
LINEAR = (SuperResolution(2), SuperResolution(2, "bicubic"), GaussianBlur(0.6), MotionBlur(3.0), RandomProjection(0.5), Wavelet(1), MissingTraces())


def hole():
    mask = torch.zeros(1, 4, 4)
    mask[:, 1:3, 1:] = 1
    return Inpainting(mask)


def task(operator=None, noise=0.1, shape=(3, 4, 4), seed=0, batch=1):
    operator = operator or hole()
    y = operator.measure(torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    return Problem(operator, y, noise)


def run(method, model, x, sigmas, given, flow=False, seed=0, context=None, callback=None):
    return method.run(model, x, sigmas, given, flow, noise_source(x, seed), callback, context or (lambda checkpoint=False: torch.enable_grad()))


def start(flow, batch=2, steps=6, shape=(3, 4, 4), model=None):
    model = model or mixture(flow, shape)
    sigmas = schedule(flow, steps)
    return model, state(model, batch, float(sigmas[0])), sigmas


@EVERY
@FLOWS
@pytest.mark.parametrize("name", ALL)
def test_batches_are_singles_and_runs_repeat(name, flow):
    model, x, sigmas = start(flow)
    given = task(batch=2)
    seen = []
    out = run(ALL[name], model, x, sigmas, given, flow, callback=lambda i, x, s, d: seen.append(i))
    assert bool(torch.isfinite(out).all()) and out.shape == x.shape and out.dtype == x.dtype
    assert torch.equal(out, run(ALL[name], model, x, sigmas, given, flow))
    assert sorted(set(seen)) == list(range(len(sigmas) - 1))
    alone = run(ALL[name], model, x[:1], sigmas, Problem(given.operator, given.y[:1], given.noise), flow)
    torch.testing.assert_close(alone, out[:1])


@EVERY
@pytest.mark.parametrize("name", ALL)
def test_videos(name):
    """Five axes, an operator that is the same for each frame."""
    model = mixture(False, (2, 3, 4, 4))
    sigmas = schedule(False, 3)
    x = state(model, 2, float(sigmas[0]))
    out = run(ALL[name], model, x, sigmas, task(shape=(2, 3, 4, 4)))
    assert out.shape == x.shape and bool(torch.isfinite(out).all())
    assert (out - solver.euler(model, x, sigmas)).abs().max() > 1e-3


@EVERY
@FLOWS
@pytest.mark.parametrize("method", [DPS(scale=0.0, eta=0.0), LGD(scale=0.0, eta=0.0), PIGDM(scale=0.0, eta=0.0), DDNM(scale=0.0, eta=0.0), MPGD(scale=0.0), PSLD(scale=0.0, gluing=0.0, eta=0.0)],
                         ids=lambda m: type(m).__name__)
def test_scale_zero_is_euler(method, flow):
    model, x, sigmas = start(flow)
    assert torch.equal(run(method, model, x, sigmas, task(), flow), solver.euler(model, x, sigmas))
    torch.testing.assert_close(solver.euler(model, x, sigmas), euler(x, sigmas, model))


@EVERY
@FLOWS
@pytest.mark.parametrize("name", ["dps", "pigdm", "mpgd", "psld"])
def test_small_scales_are_near_zero_scale(name, flow):
    """The step of the loop is the same with and without the measurement: continuous at 0, fresh noise included."""
    model, x, sigmas = start(flow)
    small = {"scale": 1e-9} | ({"gluing": 0.0} if name == "psld" else {}) | ({"repeats": 1} if name == "mpgd" else {})
    none = {**small, "scale": 0.0}
    a, b = (run(dataclasses.replace(ALL[name], eta=0.7, **v), model, x, sigmas, task(), flow) for v in (small, none))
    torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


@EVERY
def test_conversions_are_those_of_the_papers():
    """x_vp = x / c; a paper's shift of x_vp by its own gradient is ours by c c' times the gradient in x."""
    s, t = 3.0, 1.2
    assert math.isclose(levels.amplitude(s, False), math.sqrt(1 + s * s)) and math.isclose(levels.amplitude(0.3, True), math.hypot(0.7, 0.3))
    abar = 1 / (1 + s * s)
    assert math.isclose(levels.spread(s, False), 1 - abar)
    loss = lambda x: (x.cos() * x).sum(1)
    x = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    g, = torch.autograd.grad(loss(x).sum(), x)
    vp = (x.detach() / levels.amplitude(s, False)).requires_grad_(True)
    g_vp, = torch.autograd.grad(loss(vp * levels.amplitude(s, False)).sum(), vp)
    torch.testing.assert_close(levels.amplitude(t, False) * g_vp, levels.paper_shift(s, t, False) * g)
    # noised from t up to s, the variance is that of level s
    for flow, low, high in ((False, 1.2, 3.0), (True, 0.3, 0.8)):
        ratio = levels.signal(high, flow) / levels.signal(low, flow)
        zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
        assert math.isclose(float(levels.renoise(one, low, high, flow, zero)), ratio)
        assert math.isclose(float(levels.renoise(zero, low, high, flow, one)) ** 2 + (ratio * low) ** 2, high**2)


@pytest.mark.method("LodestarDiffusionPosteriorSampling")
def test_dps_is_the_papers_step():
    """Written out once in the paper's own coordinates: x_t with abar, DDPM's mean and variance, the gradient of the norm."""
    model, x, _ = start(False)
    given, s, t, zeta = task(), 3.0, 1.7, 0.4
    sigmas = torch.tensor([s, t], dtype=torch.float64)
    mine = run(DPS(scale=zeta), model, x, sigmas, given) / math.sqrt(1 + t * t)
    abar, below = 1 / (1 + s * s), 1 / (1 + t * t)
    alpha, beta = abar / below, 1 - abar / below
    vp = (x * math.sqrt(abar)).requires_grad_(True)
    x0 = model(vp / math.sqrt(abar), s)
    norm = (given.y - given.operator.measure(x0)).flatten(1).square().sum(1).sqrt()
    g, = torch.autograd.grad(norm.sum(), vp)
    mean = math.sqrt(below) * beta / (1 - abar) * x0 + math.sqrt(alpha) * (1 - below) / (1 - abar) * vp
    deviation = math.sqrt((1 - below) / (1 - abar) * beta)
    expected = mean + deviation * noise_source(x, 0)() - zeta * g
    torch.testing.assert_close(mine, expected.detach())


@pytest.mark.method("LodestarPseudoinverseGuidance")
def test_pigdm_is_the_papers_step():
    model, x, _ = start(False)
    given, s, t = task(SuperResolution(2), 0.0), 3.0, 1.7
    mine = run(PIGDM(form="published", eta=0.0), model, x, torch.tensor([s, t], dtype=torch.float64), given) / math.sqrt(1 + t * t)
    abar, below = 1 / (1 + s * s), 1 / (1 + t * t)
    vp = (x * math.sqrt(abar)).requires_grad_(True)
    x0 = model(vp / math.sqrt(abar), s)
    inverse = given.operator.pseudo_inverse(given.y, x) - given.operator.pseudo_inverse(given.operator.measure(x0), x)
    g, = torch.autograd.grad((inverse.detach() * x0).sum(), vp)
    noise = (vp - math.sqrt(abar) * x0) / math.sqrt(1 - abar)
    torch.testing.assert_close(mine, (math.sqrt(below) * x0 + math.sqrt(1 - below) * noise + math.sqrt(below * abar) * g).detach())


@pytest.mark.method("LodestarPseudoinverseGuidance")
@FLOWS
@pytest.mark.parametrize("operator", [hole(), *LINEAR, Colourisation()], ids=lambda o: type(o).__name__)
def test_pigdm_has_the_exact_posterior_mean_of_a_standard_gaussian(operator, flow):
    """D + (s^2 / a) g = E[x0 | x, y], from the covariance of the Gaussian itself."""
    model, given = gaussian(0.0, 1.0, (3, 4, 4), flow), task(operator, 0.2)
    s = 0.6 if flow else 1.5
    a = levels.signal(s, flow)
    x = state(model, 2, s)
    point = solver.Point(x, s, s / 2, flow, lambda x: model(x, torch.full((2,), s)), None, given, context=lambda checkpoint=False: torch.enable_grad())
    seen = []
    point.go = lambda x0, *rest: seen.append(x0)
    PIGDM().advance(point)
    eye = torch.eye(48, dtype=torch.float64).view(48, 3, 4, 4)
    matrix = operator.measure(eye).flatten(1).T
    precision = (1 + a * a / (s * s)) * torch.eye(48, dtype=torch.float64) + matrix.T @ matrix / 0.04
    expected = torch.linalg.solve(precision, (a / (s * s) * x.flatten(1) + (given.y.flatten(1) @ matrix) / 0.04).T).T
    torch.testing.assert_close(seen[0].flatten(1), expected, atol=1e-5, rtol=0)      # losses are taken in float32


@pytest.mark.method("LodestarLossGuidedDiffusion")
@FLOWS
def test_lgd_without_spread_is_dps(flow):
    model, x, sigmas = start(flow)
    for form in ("published", "likelihood"):
        assert torch.equal(run(LGD(scale=0.2, samples=1, spread=0.0, form=form), model, x, sigmas, task(), flow), run(DPS(scale=0.2, form=form), model, x, sigmas, task(), flow))


@pytest.mark.method("LodestarLossGuidedDiffusion")
def test_lgd_with_many_samples_is_the_inflated_likelihood():
    """One number, everything measured: the average over rho z of N(y; D, noise^2) is N(y; D, noise^2 + rho^2)."""
    s, noise, n = 1.0, 0.5, 500
    given = Problem(Inpainting(torch.zeros(1, 1, 1)), torch.ones(1, 1, 1, 1, dtype=torch.float64), noise)
    x = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    draws = iter(torch.randn(n, 1, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    point = solver.Point(x, s, 0.5, False, None, lambda: next(draws), given)
    value = LGD(samples=n, form="likelihood").loss(point)
    denoised = torch.full((1, 1, 1, 1), 0.2, dtype=torch.float64).requires_grad_(True)
    g, = torch.autograd.grad(value(denoised).sum(), denoised)
    assert abs(float(-g) - 0.8 / (noise**2 + 0.5)) < 5 * 1.1 / math.sqrt(n)      # the deviation of one draw's share is about 1.1


@pytest.mark.method("LodestarNullSpaceSampler")
@FLOWS
@pytest.mark.parametrize("operator", [hole(), *LINEAR, Colourisation()], ids=lambda o: type(o).__name__)
def test_ddnm_without_noise_agrees_with_the_measurement(operator, flow):
    model, x, sigmas = start(flow)
    given = task(operator, 0.0)
    out = run(DDNM(), model, x, sigmas, given, flow)
    goal = operator.measure(operator.pseudo_inverse(given.y, x))
    torch.testing.assert_close(operator.measure(out), goal.expand_as(operator.measure(out)), atol=1e-6, rtol=0)
    plain = run(DDNM(scale=0.0), model, x, sigmas, given, flow)
    assert (operator.measure(plain) - goal).abs().max() > 0.05


@pytest.mark.method("LodestarNullSpaceSampler")
def test_ddnm_plus_keeps_the_level_of_noise():
    for s, t in ((2.0, 0.0), (2.0, 0.7), (0.5, 0.5), (0.3, 0.5), (0.0, 0.5)):
        weight, kept = ddnm.balance(s, t)
        assert math.isclose((weight * t) ** 2 + (kept * s) ** 2, s * s, abs_tol=1e-12)      # brought by the measurement, and left: together level s
    assert ddnm.gain(Problem(SuperResolution(4), None), torch.zeros(1, 3, 8, 8)) == 4 and ddnm.gain(Problem(hole(), None), torch.zeros(1, 3, 8, 8)) == 1
    # the noise of what is not seen stays whole: a state without signal, measured with noise 1 at the next level 2
    x = torch.zeros(1, 1, 1, 2, dtype=torch.float64)
    given = Problem(Inpainting(torch.tensor([[[0.0, 1.0]]])), torch.zeros(1, 1, 1, 2, dtype=torch.float64), 1.0)
    draw = lambda: torch.ones_like(x)
    point = solver.Point(x, 4.0, 2.0, False, torch.zeros_like, draw, given)
    torch.testing.assert_close(DDNM(eta=1.0).advance(point).flatten(), torch.tensor([math.sqrt(3.0), 2.0], dtype=torch.float64))


@pytest.mark.method("LodestarNullSpaceSampler")
@FLOWS
@pytest.mark.parametrize("operator", [hole(), SuperResolution(2), GaussianBlur(0.6), MotionBlur(3.0)], ids=lambda o: type(o).__name__)
def test_damping_is_the_mean_of_a_gaussian(operator, flow):
    """prior A^T (prior A A^T + noise)^-1 (y - A u) is how far the posterior mean of N(u, prior) is from u; through an autoencoder of other units too."""
    given = task(operator, 0.3)
    u = torch.randn(1, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    matrix = operator.measure(torch.eye(48, dtype=torch.float64).view(48, 3, 4, 4)).flatten(1).T
    for prior in (4.0, 0.05):
        precision = torch.eye(48, dtype=torch.float64) / prior + matrix.T @ matrix / 0.09
        expected = torch.linalg.solve(precision, u.flatten() / prior + matrix.T @ given.y.flatten() / 0.09).view_as(u)
        torch.testing.assert_close(given.corrected(u, 1.0, (prior, given.deviation**2)), expected)
        pictures = Problem(operator, _picture(given.y) if operator.linear and not isinstance(operator, Inpainting) else given.operator.measure(_picture(given.y)), 0.15, _picture,
                           lambda p: 2 * p - 1, 2.0)
        torch.testing.assert_close(pictures.corrected(u, 1.0, (prior, pictures.deviation**2)), expected)


@pytest.mark.method("LodestarPseudoinverseGuidance")
def test_pigdm_does_not_step_beyond_the_least_residual():
    """A model far more uncertain than a standard Gaussian, in one large step: without the bound the residual would grow."""
    model, given = gaussian(0.0, 400.0, (3, 4, 4)), task(SuperResolution(2), 0.0)
    s, t = 3.0, 0.3
    x = state(model, 2, s)
    before = model(x, torch.full((2,), s))
    residual = lambda x, level: problem.distance(given, model(x, torch.full((2,), level)))
    moved = run(PIGDM(eta=0.0), model, x, torch.tensor([s, t], dtype=torch.float64), given)
    assert bool((residual(moved, t) < 0.2 * residual(x, s)).all())
    point = solver.Point(x, s, t, False, None, None, given)
    d = model(x, torch.full((2,), s)) * 0 + 50 * given.correction(before)
    k = pigdm.reach(given, before, d, point.lever(0.0))
    torch.testing.assert_close(k, torch.full_like(k, 1 / (50 * point.lever(0.0))))
    assert math.isclose(point.lever(0.0), 1 - t / s) and bool((pigdm.reach(given, before, d / 50, 0.9) == 1).all())


@pytest.mark.method("LodestarManifoldPreservingGuidance")
@FLOWS
def test_mpgd_moves_the_estimate_and_keeps_its_noise(flow):
    model, x, _ = start(flow)
    s, t = (0.8, 0.6) if flow else (3.0, 1.5)
    given, calls = task(), []

    def counted(x, sigma):
        calls.append(torch.is_grad_enabled())
        return model(x, sigma)
    sigmas = torch.tensor([s, t], dtype=torch.float64)
    moved = run(MPGD(scale=0.2), counted, x, sigmas, given, flow) - run(MPGD(scale=0.0, eta=1e-9), model, x, sigmas, given, flow)
    denoised = model(x, s)
    away = given.operator.measure(denoised) - given.y
    slope = away / away.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    a, a_next = levels.signal(s, flow), levels.signal(t, flow)
    torch.testing.assert_close(moved, -a_next * 0.2 * math.hypot(a, s) / a * slope, atol=1e-7, rtol=0)
    assert calls == [False]      # one evaluation, without a graph


@pytest.mark.method("LodestarLatentPosteriorSampling")
@FLOWS
def test_psld_without_gluing_is_dps(flow):
    model, x, sigmas = start(flow)
    torch.testing.assert_close(run(PSLD(scale=0.3, gluing=0.0, eta=0.0), model, x, sigmas, task(), flow), run(DPS(scale=0.3, eta=0.0), model, x, sigmas, task(), flow))


@pytest.mark.method("LodestarLatentPosteriorSampling")
def test_gluing_measures_what_the_autoencoder_loses():
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for operator in (hole(), SuperResolution(2)):
        given = task(operator)
        with_identity = Problem(operator, given.y, decode=lambda z: z, encode=lambda u: u, unit=2.0)
        expected = operator.pseudo_inverse(operator.measure(x) - given.y, x).flatten(1).norm(dim=1)
        torch.testing.assert_close(psld.glue(given, x), expected)
        torch.testing.assert_close(psld.glue(with_identity, x), expected)
    lossy = Problem(Inpainting(torch.ones(1, 4, 4)), torch.zeros(1, 3, 4, 4, dtype=torch.float64), decode=lambda z: z, encode=lambda u: 0.5 * u)
    torch.testing.assert_close(psld.glue(lossy, x), 0.5 * x.flatten(1).norm(dim=1))      # nothing is measured: Enc(Dec(D)) against D


@pytest.mark.method("LodestarRePaint")
def test_repaint_goes_the_papers_way():
    """Its published schedule, told by how many steps are left before the last one: 250 steps, jumps of 10, 10 rounds."""
    way = repaint.course(250, 10, 10)
    goes, up = [b for _, b in way], 0
    left, t, told = {j: 9 for j in range(0, 240, 10)}, 250, []
    while t >= 1:
        t -= 1
        told.append(t)
        if left.get(t, 0) > 0:
            left[t] -= 1
            for _ in range(10):
                t += 1
                told.append(t)
    told.append(-1)
    mine = [249 - i for i in goes]      # level i has 250 - i steps left, which the paper calls t = 249 - i
    assert mine[:-1] == told[1:-1] + [0] * (len(mine) - 1 - len(told[1:-1])) or mine == told[1:]
    assert sum(b > a for a, b in way) == 250 + 24 * 9 * 10
    assert repaint.course(7, 3, 1) == [(i, i + 1) for i in range(7)] and repaint.course(2, 5, 4) == [(0, 1), (1, 2)]


@pytest.mark.method("LodestarRePaint")
@FLOWS
def test_repaint_returns_what_is_known(flow):
    model, x, sigmas = start(flow)
    given = task(hole(), 0.0)
    out = run(REPAINT(jump=2, rounds=3), model, x, sigmas, given, flow)
    known = given.operator.keep(x).expand_as(x) > 0
    assert torch.equal(out[known], given.y.expand_as(x)[known])
    nothing = Problem(Inpainting(torch.ones(1, 4, 4)), torch.zeros(1, 3, 4, 4, dtype=torch.float64))
    drawn = noise_source(x, 0)
    plain = x
    for s, t in zip(sigmas[:-1].tolist(), sigmas[1:].tolist()):
        point = solver.Point(plain, s, t, flow, lambda x, s=s: model(x, s), drawn)
        x0 = point.predict()
        plain = point.go(x0, point.noise_of(x0), 1.0)
        if t:
            drawn()      # the noise of what is known
    torch.testing.assert_close(run(REPAINT(rounds=1), model, x, sigmas, nothing, flow), plain)
    with pytest.raises(BadInput, match="Inpainting, Missing Traces"):
        run(REPAINT(), model, x, sigmas, task(GaussianBlur(1.0)), flow)


@pytest.mark.method("LodestarPseudoinverseGuidance")
def test_pigdm_does_not_run_away_where_the_operator_cuts_off():
    """A direction far longer than pictures are is measured within them, where the exposure still answers."""
    given = Problem(LowLight(0.2), 0.1 * torch.ones(1, 3, 4, 4, dtype=torch.float64), 0.02)
    before, d = torch.full((1, 3, 4, 4), 0.2, dtype=torch.float64), torch.full((1, 3, 4, 4), 1000.0, dtype=torch.float64)
    k = pigdm.reach(given, before, d, 1.0)
    torch.testing.assert_close(before + k * d, torch.full_like(d, 0.5))      # where the residual is 0


@pytest.mark.method("LodestarREDdiff")
def test_red_diff_starts_from_what_a_noisy_measurement_tells():
    """A blur's A+ swells the noise beyond the picture; the start is the estimate of a standard Gaussian, and A+ y where there is no noise."""
    zero, blur = torch.zeros(1, 3, 16, 16, dtype=torch.float64), GaussianBlur(3.0)
    truth = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    noisy = Problem(blur, blur.measure(truth) + 0.05 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64), 0.05)
    begun = RED().begun(noisy, zero)
    assert (begun - truth).square().mean() < truth.square().mean() < 0.1 * (noisy.first(zero) - truth).square().mean()
    torch.testing.assert_close(begun, blur.solve(noisy.y, 1.0, 0.05**2, zero))
    exact = dataclasses.replace(noisy, noise=0.0)
    assert torch.equal(RED().begun(exact, zero), exact.first(zero))


@pytest.mark.method("LodestarREDdiff")
@FLOWS
def test_red_is_its_papers_gradient(flow):
    """prior w (n^ - n) / N with the linear weight is prior (m - D) / N; data alone has no slope at A+ y, and is fitted."""
    model, x, sigmas = start(flow)
    given = task(SuperResolution(2))
    method, i = RED(prior=0.25, data=0.0), 2
    m = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    n = noise_source(m, 5)()
    found = method.gradient(model, m, sigmas, i, given, flow, lambda: n, given.count(2), 2)
    s = float(sigmas[i])
    a = levels.signal(s, flow)
    denoised = model(a * m + s * n, s)
    predicted = (a * m + s * n - a * denoised) / s
    torch.testing.assert_close(found, 0.25 * (s / a) * (predicted - n) / 48)
    torch.testing.assert_close(found, 0.25 * (m - denoised) / 48)
    assert RED(prior=0.0).gradient(model, given.first(x), sigmas, i, given, flow, None, given.count(2), 2).abs().max() < 1e-12
    assert given.count(2) == 12
    fitted = run(RED(prior=0.0, start="zero", inner=60, rate=0.1), model, x, sigmas, given, flow)
    torch.testing.assert_close(given.operator.measure(fitted), given.y.expand(2, -1, -1, -1), atol=3e-2, rtol=0)


@pytest.mark.method("LodestarReSample")
@FLOWS
def test_resampling_lies_between_the_model_and_the_fit(flow):
    s, t = (0.8, 0.6) if flow else (3.0, 1.5)
    x, clean, noise = torch.randn(3, 2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    point = solver.Point(x, s, t, flow, None, None)
    torch.testing.assert_close(resample.drawn_between(x, clean, point, 1e12, noise), levels.signal(t, flow) * clean + t * noise)
    torch.testing.assert_close(resample.drawn_between(x, clean, point, 1e-12, noise), x, atol=1e-5, rtol=0)
    # the product of N(b clean, left) and N(v, g): the paper's formula, from precisions
    c, abar = levels.amplitude(t, flow), levels.signal(s, flow) ** 2 / levels.amplitude(s, flow) ** 2
    b = levels.signal(t, flow) / c
    g = 40 * (1 - b * b) / (1 - abar) * (1 - abar / (b * b))
    precision = 1 / (1 - b * b) + 1 / g
    mean = (b * clean / (1 - b * b) + (x / c) / g) / precision
    torch.testing.assert_close(resample.drawn_between(x, clean, point, 40.0, noise), c * (mean + precision**-0.5 * noise))


@pytest.mark.method("LodestarReSample")
@FLOWS
def test_resample_ends_on_the_measurement(flow):
    model, x, sigmas = start(flow)
    for noise in (0.0, 0.2):
        given = task(SuperResolution(2), noise)
        out = run(RESAMPLE(every=1, rounds=400, rate=0.05, scale=0.0), model, x, sigmas, given, flow)
        error = given.residual(out).flatten(1).square().mean(1)
        assert error.max() < 1.5 * max(noise * noise, 1e-6)      # the first round that is below the noise is the last
    nothing = run(RESAMPLE(strength=0.0, scale=0.0), model, x, sigmas, given, flow)
    torch.testing.assert_close(nothing, solver.euler(model, x, sigmas))
    assert len(resample.way(sigmas, 2, 3)) == 4 and resample.way(sigmas, 4, 9).tolist() == sigmas[4:].tolist()


def _picture(z):
    return 0.5 * z + 0.5


@EVERY
@pytest.mark.parametrize("method", [DPS(scale=0.3), DPS(scale=1.0, form="likelihood"), LGD(scale=0.3, samples=2), PIGDM(), DDNM(eta=0.0), MPGD(scale=0.2), PSLD(scale=0.3, gluing=0.1), RED()],
                         ids=lambda m: f"{type(m).__name__} {getattr(m, 'form', '')}")
def test_pictures_in_our_range_are_pictures_in_the_papers(method):
    """An autoencoder that only brings [-1, 1] to [0, 1]: the same as the operator on [-1, 1] itself."""
    model, x, sigmas = start(False)
    operator = SuperResolution(2)
    y = operator.measure(torch.randn(1, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    noise = 0.0 if isinstance(method, DDNM) else 0.1
    plain = run(method, model, x, sigmas, Problem(operator, y, noise))
    mine = run(method, model, x, sigmas, Problem(operator, _picture(y), noise / 2, _picture, lambda u: 2 * u - 1, unit=2.0))
    torch.testing.assert_close(mine, plain, atol=1e-4, rtol=0)      # losses are taken in float32


@EVERY
@pytest.mark.parametrize("operator", [Quantisation(4), Jpeg(30)], ids=lambda o: type(o).__name__)
@pytest.mark.parametrize("name", ["dps", "lgd", "pigdm", "ddnm", "mpgd", "psld", "red", "resample"])
def test_curved_operators_come_nearer_to_the_measurement(operator, name):
    model = gaussian(0.5, 0.05, (3, 8, 8))
    sigmas = schedule(False, 8)
    x = state(model, 1, float(sigmas[0]))
    given = Problem(operator, operator.measure(state(model, 1, 0.0, seed=9)), 0.0)
    plain = problem.distance(given, run(DPS(scale=0.0, eta=0.0), model, x, sigmas, given))
    method = dataclasses.replace(ALL[name], scale=1.0) if hasattr(ALL[name], "scale") else ALL[name]
    assert float(problem.distance(given, run(method, model, x, sigmas, given))) < 0.95 * float(plain)


@EVERY
def test_wrong_inputs_are_named():
    model, x, sigmas = start(False)
    with pytest.raises(BadInput, match="noise = 0.0 is not possible. A likelihood needs"):
        run(DPS(form="likelihood"), model, x, sigmas, task(noise=0.0))
    wrong = Problem(SuperResolution(2), torch.zeros(1, 3, 4, 4, dtype=torch.float64))
    with pytest.raises(BadInput, match="size of the degraded picture"):
        run(DPS(), model, x, sigmas, wrong)
    with pytest.raises(BadInput, match="one for each of the 2"):
        run(DPS(), model, x, sigmas, task(batch=3))
    with pytest.raises(ValueError, match="not finite"):
        run(MPGD(), lambda x, s: x / 0, x, sigmas, task())
    with pytest.raises(BadInput, match="Diffusion Posterior Sampling: scale"):
        DPS(scale=-1.0).validate()
