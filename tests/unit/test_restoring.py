"""Steered Diffusion, DAPS, DDRM, DDA, tractable steering, masks, projection, degradation-aware and blind restoration against their formulas and identities, on closed-form models."""
from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from lodestar.bench import exactness
from lodestar.guidance.inverse import ddnm, levels, solver, tractable
from lodestar.guidance.inverse.blind import BlindPosteriorSampling, bands
from lodestar.guidance.inverse.copaint import TractableSteering
from lodestar.guidance.inverse.daps import DecoupledPosteriorSampling
from lodestar.guidance.inverse.dda import DiffusionDrivenAdaptation
from lodestar.guidance.inverse.ddrm import SpectralSampler
from lodestar.guidance.inverse.degradation_aware import DegradationAwareSampler
from lodestar.guidance.inverse.estimated import Estimate, blurred
from lodestar.guidance.inverse.levels import noise_source
from lodestar.guidance.inverse.masked_sampler import MaskedSampler
from lodestar.guidance.inverse.operators import Colourisation, GaussianBlur, Inpainting, KernelBlur, LowLight, MissingTraces, MotionBlur, Quantisation, RandomProjection, SuperResolution, Wavelet
from lodestar.guidance.inverse.problem import Problem
from lodestar.guidance.inverse.projection import EstimateProjection
from lodestar.guidance.inverse.repaint import RePaint
from lodestar.guidance.inverse.steered import SteeredDiffusion
from lodestar.guidance.loss.solvers.base import LossProblem
from lodestar.guidance.method import BadInput
from lodestar.tests.toys import mixture, state
from lodestar.tests.toys import levels as schedule

FLOWS = pytest.mark.parametrize("flow", [False, True], ids=("k", "flow"))
SHAPE = (3, 4, 4)
SOURCE = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
HALF = torch.zeros(1, 4, 4)
HALF[:, :, 2:] = 1
MIXED = HALF.clone()
MIXED[:, :2, 2:] = 0.5
KNOWN = Inpainting(HALF)
LINEAR = (KNOWN, SuperResolution(2), SuperResolution(3), SuperResolution(2, "bicubic"), GaussianBlur(0.6), MotionBlur(3.0), RandomProjection(0.5), Wavelet(1), MissingTraces(), Colourisation())


@dataclasses.dataclass(frozen=True, eq=False)
class Pull:
    """|z - 1|^2 / 2: a loss."""

    differentiable, title = True, "pull"

    def active(self, step):
        return True

    def value(self, denoised, context):
        return 0.5 * (denoised - 1).flatten(1).square().sum(1)


def known(operator=KNOWN, noise=0.0, batch=1):
    y = operator.measure(torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    return Problem(operator, y, noise)


def pair(y, size):
    """A restorer that is the exact pseudo-inverse of averages over 2 x 2."""
    return y.repeat_interleave(2, -1).repeat_interleave(2, -2)


PRIOR = tractable.fitted(torch.randn(12, *SHAPE, generator=torch.Generator().manual_seed(3), dtype=torch.float64), 4)
ALL = {"steered": SteeredDiffusion(measurement=0, repeats=2), "steered loss": SteeredDiffusion(loss=Pull(), strength=0.1), "daps": DecoupledPosteriorSampling(ahead=2), "daps walked": DecoupledPosteriorSampling(ahead=1, rounds=3),
       "ddrm": SpectralSampler(), "dda": DiffusionDrivenAdaptation(source={"samples": SOURCE}, scale=0.5), "ilvr": DiffusionDrivenAdaptation(source={"samples": SOURCE}, form="replace"),
       "copaint": TractableSteering(), "tractable": TractableSteering(posterior=PRIOR, share=0.5), "map": MaskedSampler(source={"samples": SOURCE}, mask=MIXED, eta=0.5),
       "aware": DegradationAwareSampler(restorer=pair, scale=0.5), "blind": BlindPosteriorSampling(scale=0.3, size=3, begin=0.0, frequency=0.5), "projection": EstimateProjection(operator=SuperResolution(2)),
       "repaint": RePaint(jump=2, rounds=2, guided=0.5)}
IDS = {n: pytest.param(n, marks=pytest.mark.method(m.node_id)) for n, m in ALL.items()}
EVERY = pytest.mark.parametrize("name", IDS.values())


def problem_for(name, batch=1, noise=0.1):
    if name == "steered loss":
        return LossProblem(Pull())
    if name in ("dda", "ilvr", "projection"):
        return Problem(SuperResolution(2), SuperResolution(2).measure(SOURCE), noise)
    if name == "map":
        return Problem(Inpainting(torch.zeros(1, 1, 1)), SOURCE)
    if name in ("aware", "daps walked", "blind"):
        return known({"aware": SuperResolution(2), "daps walked": Quantisation(5), "blind": MotionBlur(3.0)}[name], noise, batch)
    return known(noise=noise, batch=batch)


def run(method, x, sigmas, given, flow=False, model=None, seed=0, callback=None):
    return method.run(model or mixture(flow, SHAPE), x, sigmas, given, flow, noise_source(x, seed), callback, lambda checkpoint=False: torch.enable_grad())


def start(flow, batch=2, steps=6):
    sigmas = schedule(flow, steps)
    return state(mixture(flow, SHAPE), batch, float(sigmas[0])), sigmas


@EVERY
@FLOWS
def test_batches_are_singles_and_runs_repeat(name, flow):
    x, sigmas = start(flow)
    seen, given = [], problem_for(name, batch=2)
    out = run(ALL[name], x, sigmas, given, flow, callback=lambda i, x, s, d: seen.append(i))
    assert bool(torch.isfinite(out).all()) and out.shape == x.shape and out.dtype == x.dtype and sorted(set(seen)) == list(range(len(sigmas) - 1))
    assert torch.equal(out, run(ALL[name], x, sigmas, problem_for(name, batch=2), flow))
    first = problem_for(name, batch=2)
    if name != "steered loss":
        first = dataclasses.replace(first, y=first.y[:1])
    torch.testing.assert_close(run(ALL[name], x[:1], sigmas, first, flow), out[:1])
    assert (out - solver.euler(mixture(flow, SHAPE), x, sigmas)).abs().max() > 1e-3


@FLOWS
@pytest.mark.parametrize("name, off", [pytest.param(n, o, marks=IDS[n].marks) for n, o in {
    "steered": {"scale": 0.0, "repeats": 1}, "steered loss": {"strength": 0.0}, "dda": {"scale": 0.0}, "copaint": {"rate": 0.0}, "tractable": {"rate": 0.0, "start": 1.0}, "aware": {"scale": 0.0},
    "blind": {"scale": 0.0}, "projection": {"strength": 0.0}}.items()])
def test_off_is_euler(name, off, flow):
    x, sigmas = start(flow)
    assert torch.equal(run(dataclasses.replace(ALL[name], eta=0.0, **off), x, sigmas, problem_for(name), flow), solver.euler(mixture(flow, SHAPE), x, sigmas))


@pytest.mark.method("LodestarSpectralSampler")
@pytest.mark.parametrize("operator", LINEAR, ids=lambda o: type(o).__name__ + getattr(o, "kind", ""))
def test_singular_directions(operator):
    """`shaped` with gain 1 is the identity, with s^2 it is A^T A, with s > 0 it is A+ A; of pictures and videos."""
    for shape in ((2, 3, 8, 12), (1, 3, 2, 6, 6)):
        u = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        torch.testing.assert_close(operator.shaped(u, torch.ones_like), u)
        torch.testing.assert_close(operator.shaped(u, lambda s: (s > 0).to(s)), operator.project(u), atol=1e-6, rtol=1e-6)
        around = operator.adjoint(operator.measure(u), u)
        torch.testing.assert_close(operator.shaped(u, torch.square), around, atol=1e-4 * float(around.abs().max()), rtol=0)      # what is cut off is below 1 % of 1 %


@pytest.mark.method("LodestarSpectralSampler", "LodestarSteeredDiffusion")
@FLOWS
@pytest.mark.parametrize("operator", LINEAR[:6], ids=lambda o: type(o).__name__ + getattr(o, "kind", ""))
def test_without_noise_the_measurement_is_kept(operator, flow):
    x, sigmas = start(flow)
    given = known(operator)
    for method in (SpectralSampler(), SteeredDiffusion(measurement=0)):
        out = run(method, x, sigmas, given, flow)
        torch.testing.assert_close(operator.project(out), operator.pseudo_inverse(given.y, x).expand_as(out), atol=1e-6, rtol=0)


@pytest.mark.method("LodestarSpectralSampler")
def test_ddrm_by_hand():
    """One step, value by value: a mask with noise, above and below the measurement's noise."""
    method, noise = SpectralSampler(eta=0.6, mix=0.8), 0.5
    given = known(noise=noise)
    x, _ = start(False)
    for s, t in ((3.0, 1.2), (0.8, 0.3)):
        model = mixture(False, SHAPE)
        d, z = model(x, torch.full((2,), s, dtype=torch.float64)), noise_source(x, 0)()
        n = (x - d) / s
        y = given.y.expand_as(d)
        seen = (1 - 0.8) * d + 0.8 * y + math.sqrt(max(0.0, t * t - (0.8 * noise) ** 2)) * z if t >= noise else d + 0.8 * t * (y - d) / noise + 0.6 * t * z
        k = KNOWN.keep(x)
        expected = k * seen + (1 - k) * (d + t * (0.8 * n + 0.6 * z))
        point = solver.at(model, x, torch.tensor([s, t], dtype=torch.float64), 0, given, False, noise_source(x, 0), None)
        torch.testing.assert_close(method.advance(point), expected)


@pytest.mark.method("LodestarSteeredDiffusion")
def test_steered_by_hand():
    """The loss's move in the paper's coordinates, and noise that follows it."""
    x, _ = start(False)
    s, t = 2.0, 0.9
    leaf = (x / math.sqrt(1 + s * s)).requires_grad_(True)
    model = mixture(False, SHAPE)
    denoised = model(leaf * math.sqrt(1 + s * s), torch.full((2,), s, dtype=torch.float64))
    g, = torch.autograd.grad(Pull().value(denoised, None).sum(), leaf)
    moved = (denoised - 0.3 * math.sqrt(s * s / (1 + s * s)) * g).detach()
    mine = run(SteeredDiffusion(loss=Pull(), strength=0.3, eta=0.0), x, torch.tensor([s, t], dtype=torch.float64), LossProblem(Pull()))
    torch.testing.assert_close(mine, moved + t / s * (x - moved))
    both = known()
    both.led = LossProblem(Pull())
    out = run(SteeredDiffusion(measurement=0, loss=Pull(), strength=0.3), x, schedule(False, 4), both)
    torch.testing.assert_close(KNOWN.measure(out), both.y.expand_as(out))
    with pytest.raises(BadInput, match="Connect a measurement, a loss"):
        SteeredDiffusion().validate()


@pytest.mark.method("LodestarDecoupledPosteriorSampling")
@pytest.mark.parametrize("operator", (KNOWN, SuperResolution(2), GaussianBlur(0.6)), ids=lambda o: type(o).__name__)
def test_daps_draws_the_posterior(operator):
    """The exact draw has the posterior's mean and covariance; Langevin's too, with small steps."""
    r, noise, n = 0.7, 0.3, 1200
    given = known(operator, noise)
    clean = torch.zeros(n, *SHAPE, dtype=torch.float64)
    z = noise_source(clean, 1)
    task = exactness.Task("", exactness.Gaussians(torch.zeros(1, 48), r * r * torch.eye(48, dtype=torch.float64)[None], shape=SHAPE), operator, noise, given.y)
    for method, found in (("exact", DecoupledPosteriorSampling(spread=1.0).exact(clean, r, given, z)), ("walked", None)):
        if found is None:
            few = clean[:400]
            found = DecoupledPosteriorSampling(rounds=40, rate=0.3, spread=1.0).walked(few, r, given, torch.full((len(few),), 1.5, dtype=torch.float64), noise_source(few, 2))
        errors = exactness.errors(found.flatten(1), task)
        slack = 1.5 if method == "exact" else 1.6
        assert errors["mean"] < slack * errors["mean_bar"] and errors["covariance"] < slack * errors["covariance_bar"] and abs(errors["spread"] - 1) < (0.05 if method == "exact" else 0.2)


@pytest.mark.method("LodestarDiffusionDrivenAdaptation")
def test_dda():
    x, sigmas = start(False)
    given, low = problem_for("ilvr", noise=0.0), SuperResolution(2)
    out = run(ALL["ilvr"], x, sigmas, given)
    torch.testing.assert_close(low.project(out), low.project(SOURCE).expand_as(out))      # the low-pass part is the source's
    assert (out[0] - out[1]).abs().max() > 0.1      # the rest is not
    s, t = 2.0, 0.9
    model, method = mixture(False, SHAPE), DiffusionDrivenAdaptation(source={"samples": SOURCE}, scale=0.4, eta=0.0)
    leaf = (x / math.sqrt(1 + s * s)).requires_grad_(True)
    denoised = model(leaf * math.sqrt(1 + s * s), torch.full((2,), s, dtype=torch.float64))
    g, = torch.autograd.grad((low.project(SOURCE) - low.project(denoised)).flatten(1).norm(dim=1).sum(), leaf)
    plain = denoised.detach() + t / s * (x - denoised.detach())
    torch.testing.assert_close(run(method, x, torch.tensor([s, t], dtype=torch.float64), given), plain - 0.4 * math.sqrt(1 + t * t) * g)
    made = method.measurement
    torch.testing.assert_close(made.picture, low.measure(SOURCE))


@pytest.mark.method("LodestarTractableSteering")
def test_tractable_posteriors():
    """The low-rank conditional is that of the whole covariance; mixing two equal Gaussians changes nothing; k = 1 is the estimate alone."""
    y = KNOWN.measure(torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(4), dtype=torch.float64))
    mean, variance = PRIOR.conditional(KNOWN, y, 0.2)
    d = PRIOR.directions.double()
    whole = exactness.Gaussians(PRIOR.mean.double()[None], (d.T @ d + PRIOR.rest * torch.eye(48, dtype=torch.float64))[None], shape=SHAPE)
    matrix, kept = exactness.matrix_of(KNOWN, SHAPE)
    for i in range(2):
        m, c = whole.posterior(matrix, y[i].flatten()[kept], 0.2).moments()
        torch.testing.assert_close(mean[i].flatten(), m, atol=1e-5, rtol=0)
        torch.testing.assert_close(variance[i].flatten(), c.diagonal(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(tractable.mixed(mean, 0.3, mean, variance, 0.4), mean)
    torch.testing.assert_close(tractable.mixed(mean, 0.3, mean + 1, variance, 1.0), mean)
    full = tractable.fitted(torch.randn(60, 2, 3, 3, generator=torch.Generator().manual_seed(0)), 18)
    samples = torch.randn(60, 2, 3, 3, generator=torch.Generator().manual_seed(0)).flatten(1)
    d = full.directions
    torch.testing.assert_close(d.T @ d + full.rest * torch.eye(18), samples.T.cov(), atol=5e-3, rtol=0)
    with pytest.raises(BadInput, match="posterior = .3, 4, 4."):
        run(ALL["tractable"], torch.zeros(1, 3, 8, 8), schedule(False, 2), known())


@pytest.mark.method("LodestarTractableSteering")
@FLOWS
def test_copaint_comes_closer(flow):
    x, sigmas = start(flow, steps=8)
    given, plain = known(), solver.euler(mixture(flow, SHAPE), *start(flow, steps=8))
    away = lambda out: float(given.residual(out).flatten(1).norm(dim=1).mean())
    assert away(run(TractableSteering(rate=0.5, rounds=3), x, sigmas, given, flow)) < 0.5 * away(plain)
    torch.testing.assert_close(run(TractableSteering(rate=1e-9), x, sigmas, given, flow), plain, atol=1e-5, rtol=0)


@pytest.mark.method("LodestarMaskedSampler")
@FLOWS
def test_masks(flow):
    x, sigmas = start(flow, steps=8)
    given, model, plain = problem_for("map"), mixture(flow, SHAPE), solver.euler(mixture(flow, SHAPE), *start(flow, steps=8))
    make = lambda mask, **v: run(MaskedSampler(source={"samples": SOURCE}, mask=mask, **v), x, sigmas, given, flow)
    torch.testing.assert_close(make(torch.ones(1, 4, 4)), plain)
    for form in ("change map", "blended", "shrinking"):
        assert torch.equal(make(torch.zeros(1, 4, 4), form=form), SOURCE.expand_as(x))
        out = make(HALF, form=form)
        torch.testing.assert_close(out[..., :2], SOURCE[..., :2].expand(2, -1, -1, -1))
    torch.testing.assert_close(make(HALF), make(HALF, form="blended"))
    # a change map: how many of the steps leave a place alone is 1 - M of them
    method = MaskedSampler(source={"samples": SOURCE}, mask=MIXED)
    free = torch.stack([method.free(x, (i + 1) / 8)[0, 0] for i in range(8)])
    assert free[:, 0, 0].sum() == 0 and free[:, 0, 3].sum() == 5 and free[:, 3, 3].sum() == 8
    wide = MaskedSampler(source={"samples": SOURCE}, mask=HALF, form="shrinking", grow=2)
    assert [int(wide.free(x, w)[0, 0, 0].sum()) for w in (0.0, 0.5, 1.0)] == [4, 3, 2]
    video = torch.zeros(1, 3, 5, 4, 4)
    assert MaskedSampler(source=None, mask=torch.ones(5, 4, 4)).free(video, 1.0).shape == (1, 1, 5, 4, 4)
    with pytest.raises(BadInput, match="3 masks"):
        make(torch.ones(3, 4, 4))


@pytest.mark.method("LodestarDegradationAwareSampler")
@FLOWS
def test_degradation_aware_with_the_exact_pair_is_the_null_space_sampler(flow):
    x, sigmas = start(flow)
    given = problem_for("aware", noise=0.0)
    mine = run(DegradationAwareSampler(restorer=pair, scale=1.0, eta=0.85), x, sigmas, given, flow)
    torch.testing.assert_close(mine, run(ddnm.NullSpaceSampler(eta=0.85), x, sigmas, given, flow), atol=1e-6, rtol=1e-6)
    # what operator and restorer cannot represent is taken out of y
    y = given.y + torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    smooth = lambda y, size: y.mean((2, 3), keepdim=True).expand(-1, -1, *size)
    a, b = (run(DegradationAwareSampler(restorer=smooth, perturb=p), x, sigmas, Problem(given.operator, y), flow) for p in (True, False))
    torch.testing.assert_close(a, b)      # this restorer is idempotent: nothing is left to take out


@pytest.mark.method("LodestarEstimateProjection")
@FLOWS
def test_projection_ends_in_the_range(flow):
    x, sigmas = start(flow)
    for operator in (SuperResolution(2), Wavelet(1), Colourisation()):
        given = Problem(operator, SOURCE)
        out = run(EstimateProjection(operator=operator), x, sigmas, given, flow)
        torch.testing.assert_close(operator.project(out), out)


@pytest.mark.method("LodestarBlindPosteriorSampling")
def test_estimates_are_the_operators():
    u = torch.rand(2, 3, 16, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    picture = torch.rand(1, 5, 5, 1, generator=torch.Generator().manual_seed(1)).expand(1, 5, 5, 3)
    for operator, slack in ((MotionBlur(5.0, 30.0), 0.1), (KernelBlur(picture), 0.1)):
        found = Estimate.begun(operator, 2, 9, u)
        assert (found.measure(u) - operator.measure(u)).abs().max() < slack * 1.5      # the first guess has a little everywhere
        back = found.operator(1)
        torch.testing.assert_close(back.measure(u), found.measure(u), atol=1e-6, rtol=0)
    narrow = Estimate.begun(GaussianBlur(1.0), 2, 15, u)
    torch.testing.assert_close(narrow.measure(u)[..., 4:-4, 4:-4], GaussianBlur(1.0).measure(u)[..., 4:-4, 4:-4], atol=1e-4, rtol=0)      # borders are continued in another way
    assert narrow.operator() == GaussianBlur(pytest.approx(1.0))
    light = Estimate.begun(LowLight(0.5, 2.0), 2, 0, u)
    torch.testing.assert_close(light.measure(u), LowLight(0.5, 2.0).measure(u), atol=1e-6, rtol=0)
    assert light.operator(1).gain == pytest.approx(0.5) and Estimate.begun(Quantisation(), 1, 3, u) is None
    # each sample has its own parameters; a video's frames share them
    own = Estimate("kernel", torch.stack([torch.randn(9, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(2)]), 3)
    torch.testing.assert_close(own.measure(u)[1:], Estimate("kernel", own.theta[1:], 3).measure(u[1:]))
    frames = u.repeat_interleave(3, 0)
    torch.testing.assert_close(own.measure(frames)[3:], own.measure(u)[1:].expand(3, -1, -1, -1))
    k = own.kernels(own.theta)
    torch.testing.assert_close(k.sum((1, 2)), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(blurred(u.float(), torch.nn.functional.one_hot(torch.tensor([4, 4]), 9).float().view(2, 3, 3)), u.float())
    assert float(own.sparsity(torch.zeros(1, 9))) == pytest.approx(1.0) and float(own.sparsity(50 * torch.eye(9)[:1])) == pytest.approx(1 / 3, abs=1e-3)


@pytest.mark.method("LodestarBlindPosteriorSampling")
def test_bands_are_orthonormal_and_a_kernel_is_found():
    r = torch.randn(2, 3, 6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(sum(b.square().flatten(1).sum(1) for b in bands(r)), r.square().flatten(1).sum(1))
    assert all(float(b.abs().max()) < 1e-12 for b in bands(torch.ones(1, 1, 4, 4))[1:]) and bands(torch.ones(1, 1, 3, 5))[0].shape[-2:] == (2, 3)
    # with the picture known (a model that is certain of it) the kernel comes out
    shape = (1, 12, 12)
    u = torch.randn(1, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    truth = torch.zeros(1, 5, 5, 3)
    truth[0, 2, 1:4], truth[0, 1, 3] = 1.0, 2.0
    method = BlindPosteriorSampling(size=5, rate=0.3, inner=15, begin=0.0)
    given = Problem(MotionBlur(1.0), KernelBlur(truth).measure(u), 0.0)
    x, sigmas = torch.randn(1, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)), schedule(False, 10)
    run(method, x, sigmas, given, model=lambda x, s: u + 0 * x)
    found = method.found.estimate
    assert (found.kernels(found.theta)[0] - KernelBlur(truth).kernel()).abs().max() < 0.03
    with pytest.raises(BadInput, match="What can be estimated is a blur"):
        run(method, torch.zeros(1, *SHAPE), sigmas, known())
    with pytest.raises(BadInput, match="exposure has a meaning for pictures only"):
        run(method, torch.zeros(1, *SHAPE), sigmas, known(LowLight()))


@pytest.mark.method("LodestarRePaint")
def test_repaint_with_input_guidance_keeps_what_is_known():
    x, sigmas = start(False)
    given = known()
    for guided in (0.0, 1.0):
        torch.testing.assert_close(KNOWN.measure(run(RePaint(jump=2, rounds=2, guided=guided), x, sigmas, given)), given.y.expand_as(x))
