"""The loss-guided samplers against their papers' formulas and the identities that follow, on closed-form models, in k-units and for flow matching."""
from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from lodestar.guidance.frozen import frozen
from lodestar.guidance.inverse import levels
from lodestar.guidance.inverse.levels import noise_source
from lodestar.guidance.inverse.solver import at
from lodestar.guidance.loss.base import Loss, LossContext
from lodestar.guidance.gradients import normalised
from lodestar.guidance.loss.solvers.base import LossProblem, rises
from lodestar.guidance.loss.solvers.dreamguider import Dreamguider
from lodestar.guidance.loss.solvers.geoguide import GeoGuide
from lodestar.guidance.loss.solvers.tfg import TrainingFreeGuidance as TFG
from lodestar.guidance.loss.solvers.tfg import smoothed, weights
from lodestar.guidance.loss.solvers.universal import UniversalGuidanceSampler as UGD
from lodestar.guidance.loss.solvers.universal import optimised
from lodestar.guidance.method import BadInput
from lodestar.tests.toys import euler, gaussian, mixture, state
from lodestar.tests.toys import levels as schedule

FLOWS = pytest.mark.parametrize("flow", [False, True], ids=("k", "flow"))


@frozen(eq=False)
class Quadratic(Loss):
    """factor / 2 |z - target|^2 per sample, of the samples that `rows` says, or of all."""

    target: float = 1.0
    factor: float = 1.0
    title = "quadratic"

    def value(self, denoised, context):
        return 0.5 * self.factor * (denoised - self.target).flatten(1).square().sum(1)


ALL = {"tfg": TFG(loss=Quadratic(), rho=0.1, mu=0.05, samples=2, repeats=2), "ugd": UGD(loss=Quadratic(), scale=0.3, backward_steps=3, repeats=2, eta=0.5), "geo": GeoGuide(loss=Quadratic()),
       "dream": Dreamguider(loss=Quadratic())}
IDS = {"tfg": TFG, "ugd": UGD, "geo": GeoGuide, "dream": Dreamguider}
EVERY = pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.method(c.node_id)) for n, c in IDS.items()])
OFF = {"tfg": {"rho": 0.0, "mu": 0.0}, "ugd": {"scale": 0.0, "backward_steps": 0}, "geo": {"scale": 0.0}, "dream": {"strength": 0.0}}


def run(method, model, x, sigmas, flow=False, seed=0):
    return method.run(model, x, sigmas, method.problem(sigmas, flow), flow, noise_source(x, seed), None, lambda checkpoint=False: torch.enable_grad())


def start(flow, batch=2, steps=6, shape=(3, 4, 4), model=None):
    model = model or mixture(flow, shape)
    sigmas = schedule(flow, steps)
    return model, state(model, batch, float(sigmas[0])), sigmas


def point(model, x, sigmas, i, flow, problem=None):
    return at(model, x, sigmas, i, problem or LossProblem(Quadratic(), sigmas, flow), flow, noise_source(x, 0), lambda checkpoint=False: torch.enable_grad())


@EVERY
@FLOWS
def test_batches_are_singles_off_is_plain_and_the_loss_falls(name, flow):
    model, x, sigmas = start(flow)
    method = ALL[name]
    out = run(method, model, x, sigmas, flow)
    assert bool(torch.isfinite(out).all()) and out.shape == x.shape and out.dtype == x.dtype
    torch.testing.assert_close(run(method, model, x[:1], sigmas, flow), out[:1])
    off = dataclasses.replace(method, **OFF[name], eta=0.0, **({"repeats": 1} if hasattr(method, "repeats") else {}))
    torch.testing.assert_close(run(off, model, x, sigmas, flow), euler(x, sigmas, model), rtol=0, atol=1e-9)
    loss = lambda z: Quadratic().value(z, LossContext())
    noise = dataclasses.replace(off, eta=method.eta)
    assert (loss(out) < loss(run(noise, model, x, sigmas, flow))).all()


@EVERY
def test_a_loss_without_gradient_is_refused(name):
    class Blind(Quadratic):
        differentiable = False
    with pytest.raises(BadInput, match="gives values only"):
        dataclasses.replace(ALL[name], loss=Blind()).problem(None, False)


@pytest.mark.method("LodestarTrainingFreeGuidance")
@FLOWS
def test_tfg_is_its_formula(flow):
    """One step written out with the exact Jacobian of a Gaussian prior."""
    model, x, sigmas = start(flow, model=gaussian(shape=(3, 4, 4), flow=flow))
    method = TFG(loss=Quadratic(), rho=0.7, mu=0.1, smoothing=0.0, iterations=3, eta=0.0, rho_schedule="constant", mu_schedule="constant")
    p = point(model, x, sigmas, 2, flow, method.problem(sigmas, flow))
    moved = method.advance(p)
    leaf = x.clone().requires_grad_()
    g, = torch.autograd.grad(-Quadratic().value(model(leaf, sigmas[2] * torch.ones(2, dtype=x.dtype)), None).sum(), leaf)
    denoised = model(x, sigmas[2] * torch.ones(2, dtype=x.dtype))
    z = denoised
    for _ in range(3):
        z = z - 0.1 * (z - 1)
    wanted = p.a_next * denoised + p.s_next * (x - p.a * denoised) / p.s + 0.7 * (p.a ** 2 + p.s ** 2) * p.a_next / p.a * g + p.a_next * (z - denoised)
    torch.testing.assert_close(moved, wanted)


@pytest.mark.method("LodestarTrainingFreeGuidance")
def test_tfg_smoothing_schedules_and_corners():
    z, draws = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), iter(torch.randn(8, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    loss = lambda t: Quadratic().value(t, None)
    torch.testing.assert_close(smoothed(loss, 0.0, 4, None)(z), -loss(z))
    noise = [next(draws) for _ in range(4)]
    given = iter(noise)
    wanted = torch.logsumexp(torch.stack([-loss(z + 0.3 * n) for n in noise]), 0) - math.log(4)
    torch.testing.assert_close(smoothed(loss, 0.3, 4, lambda: next(given))(z), wanted)
    for flow in (False, True):
        sigmas = schedule(flow, 6)
        up, down = rises(sigmas, flow), weights("decrease", sigmas, flow)
        assert sum(weights("increase", sigmas, flow)) == pytest.approx(6) and sum(down) == pytest.approx(6) and weights("constant", sigmas, flow) == [1.0] * 6
        assert all(0 <= a <= 1 for a in up)
    # with a quadratic loss, many steps below 2 / L reach its least value: the last step gives the target itself
    model, x, sigmas = start(False)
    reached = run(TFG(loss=Quadratic(), rho=0.0, mu=0.5, iterations=100, smoothing=0.0, mu_schedule="constant"), model, x, sigmas)
    torch.testing.assert_close(reached, torch.ones_like(reached))


@pytest.mark.method("LodestarUniversalGuidanceSampler")
@FLOWS
def test_universal_forward_is_the_score_and_backward_goes_to_the_least(flow):
    model, x, sigmas = start(flow, model=gaussian(shape=(3, 4, 4), flow=flow))
    p = point(model, x, sigmas, 2, flow)
    moved = UGD(loss=Quadratic(), scale=0.5, normalise="none").advance(p)
    leaf = x.clone().requires_grad_()
    denoised = model(leaf, sigmas[2] * torch.ones(2, dtype=x.dtype))
    g, = torch.autograd.grad(-Quadratic().value(denoised, None).sum(), leaf)
    x0 = denoised.detach() + 0.5 * p.s ** 2 / p.a * g
    torch.testing.assert_close(moved, p.a_next * x0 + p.s_next * (x - p.a * x0) / p.s)
    target = optimised(lambda z: Quadratic().value(z, None), x / 20, 400, 0.1, LossProblem(Quadratic()))
    torch.testing.assert_close(target, torch.ones_like(x), atol=1e-2, rtol=0)
    stays = optimised(lambda z: Quadratic().value(z, None), x, 5, 0.1, LossProblem(Quadratic()), limit=1e9)
    assert torch.equal(stays, x)


@pytest.mark.method("LodestarUniversalGuidanceSampler")
def test_universal_forward_with_the_exact_likelihood_gives_the_posterior():
    """Gaussian prior N(0, 1), y = x0 + 0.5 n = 1, the loss -log N(y; D, 0.25 + Var(x0 | x)): at scale 1 the sampler gives the posterior, mean 0.8 and deviation 0.447; 2,000 samples, a
    standard error of 0.01."""
    class Exact(Loss):
        differentiable, title = True, "exact"

        def value(self, denoised, context):
            s = float(context.step.sigma[0])
            return 0.5 * ((1 - denoised).square() / (0.25 + s * s / (1 + s * s))).flatten(1).sum(1)
    model = gaussian(0.0, 1.0, (1,))
    rho = 7.0
    sigmas = torch.cat(((80 ** (1 / rho) + torch.linspace(0, 1, 200, dtype=torch.float64) * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho, torch.zeros(1, dtype=torch.float64)))
    x = 80 * torch.randn(2000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    out = run(UGD(loss=Exact(), scale=1.0, normalise="none"), model, x, sigmas)
    assert abs(float(out.mean()) - 0.8) < 0.04 and abs(float(out.std()) - 0.447) < 0.03


@pytest.mark.method("LodestarGeoGuide")
@FLOWS
def test_geoguide_moves_by_a_constant_length_whatever_the_losss_factor(flow):
    model, x, sigmas = start(flow)
    p = point(model, x, sigmas, 2, flow)
    for through in ("network", "estimate"):
        moved = [GeoGuide(loss=Quadratic(factor=f), scale=0.2, eta=0.0, through=through).led(p, lambda d, f=f: Quadratic(factor=f).value(d, None)) for f in (1.0, 50.0)]
        torch.testing.assert_close(*moved)
        denoised = p.predict()
        shift = (moved[0] - p.go(denoised, p.noise_of(denoised))).flatten(1).norm(dim=1)
        wanted = levels.amplitude(p.s_next, flow) * math.sqrt(48) / 6 * 0.2
        torch.testing.assert_close(shift, torch.full_like(shift, wanted))


@pytest.mark.method("LodestarDreamguider")
@FLOWS
def test_dreamguider_does_not_depend_on_the_losss_factor_and_needs_no_backward(flow):
    model, x, sigmas = start(flow, steps=8)

    def watched(x, sigma):
        assert not torch.is_grad_enabled() and not x.requires_grad
        return model(x, sigma)
    out = [run(Dreamguider(loss=Quadratic(factor=f), eta=0.0), watched, x, sigmas, flow) for f in (1.0, 100.0)]
    torch.testing.assert_close(*out, rtol=1e-5, atol=1e-6)
    zero = run(Dreamguider(loss=Quadratic(factor=0.0), eta=0.0), watched, x, sigmas, flow)
    torch.testing.assert_close(zero, euler(x, sigmas, model), rtol=0, atol=1e-9)


def test_directions_of_a_size():
    g = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
    g[2] = 0
    assert torch.equal(normalised(g, "none"), g)
    torch.testing.assert_close(normalised(g, "unit rms").square().mean((1, 2)), torch.tensor([1.0, 1.0, 0.0]))
    torch.testing.assert_close(normalised(g, "unit length").square().sum((1, 2)), torch.tensor([1.0, 1.0, 0.0]))
