"""The closed-form posteriors, the measurement solvers' errors against them, and the page with all of them."""

from __future__ import annotations

import json
import math

import pytest
import torch
from lodestar.bench import exactness
from lodestar.guidance.catalogue import ROOT
from lodestar.guidance.inverse.dps import DiffusionPosteriorSampling
from lodestar.guidance.inverse.pigdm import PseudoinverseGuidance

FOLDER = ROOT / "docs" / "effects"


def affine(solver, task, flow=False, steps=200):
    """(mean, deviation) of a deterministic solver on a Gaussian prior of one number: its map from noise to sample is affine, so two samples tell them exactly."""
    sigmas = exactness.schedule(flow, steps)
    posterior = task.posterior()
    x = float(sigmas[0]) * torch.tensor([0.0, 1.0], dtype=torch.float64).view(2, 1, 1, 1)
    problem = task.problem()
    problem.exact = posterior
    out = solver.run(lambda x, s: task.prior.denoise(x, s, flow), x, sigmas, problem, flow, None, None, lambda checkpoint=False: torch.enable_grad()).flatten()
    return float(out[0]), float(out[1] - out[0])


@pytest.mark.method("LodestarPseudoinverseGuidance", "LodestarDiffusionPosteriorSampling")
@pytest.mark.parametrize("name, solver, mean, deviation", [
    ("covariance in the likelihood", PseudoinverseGuidance(eta=0.0), 0.795, 0.440),
    ("estimate taken for certain", DiffusionPosteriorSampling(scale=1.0, eta=0.0, form="likelihood"), 1.271, 0.128),
    ("published gain", PseudoinverseGuidance(eta=0.0, form="published"), 1.020, 0.0)], ids=lambda v: v if isinstance(v, str) else "")
def test_one_number(name, solver, mean, deviation):
    """N(0, 1), measured as 1 with noise 0.5: the posterior is 0.8, 0.447; what the forms give at 200 steps."""
    found = affine(solver, exactness.one_value())
    assert abs(found[0] - mean) < 0.02 and abs(found[1] - deviation) < 0.02
    assert affine(exactness.Oracle(), exactness.one_value()) == pytest.approx((0.8, 0.447), abs=0.012)


def test_posteriors_are_bayes():
    """Against samples of the prior, weighted by their likelihood."""
    g = torch.Generator().manual_seed(0)
    prior = exactness.Gaussians(torch.randn(2, 2, generator=g, dtype=torch.float64), torch.tensor([[[1.0, 0.3], [0.3, 0.5]], [[0.4, -0.1], [-0.1, 0.8]]]), [0.3, 0.7], (1, 1, 2))
    matrix, y, noise, n = torch.tensor([[1.0, 0.5]], dtype=torch.float64), torch.tensor([0.7], dtype=torch.float64), 0.6, 200_000
    kind = (torch.rand(n, generator=g) > 0.3).long()
    x = prior.means[kind] + torch.einsum("nde,ne->nd", (prior.vectors * prior.values.sqrt()[:, None])[kind], torch.randn(n, 2, generator=g, dtype=torch.float64))
    weights = (-0.5 * (y - x @ matrix.T).square().sum(1) / noise**2).softmax(0)
    mean = weights @ x
    covariance = ((x - mean) * weights[:, None]).T @ (x - mean)
    found = prior.posterior(matrix, y, noise).moments()
    margin = 5 * math.sqrt(float(weights.square().sum()))      # five standard errors of a weighted mean
    assert (found[0] - mean).abs().max() < margin and (found[1] - covariance).abs().max() < 2 * margin


def test_denoiser_is_the_conditional_mean():
    """D = (x + s^2 grad log p) / a, from the density itself, in both parametrisations."""
    task = exactness.tasks()[4]
    for flow, s in ((False, 0.7), (True, 0.4)):
        a = exactness.signal(s, flow)
        x = torch.randn(3, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
        parts = [w.log() + torch.distributions.MultivariateNormal(a * m, a * a * c + s * s * torch.eye(16, dtype=torch.float64)).log_prob(x.flatten(1))
                 for w, m, c in zip(task.prior.weights, task.prior.means, task.prior.covariances)]
        score, = torch.autograd.grad(torch.logsumexp(torch.stack(parts), 0).sum(), x)
        torch.testing.assert_close(task.prior.denoise(x.detach(), s, flow), ((x + s * s * score) / a).detach())


@pytest.mark.method("LodestarPseudoinverseGuidance")
@pytest.mark.parametrize("flow", [False, True], ids=("k", "flow"))
def test_pigdm_is_the_exact_sampler_of_a_standard_gaussian(flow):
    """Sample by sample the same as the sampler that is given the posterior; and within chance of the posterior."""
    task = exactness.tasks()[1]
    steps = 60
    mine, exact = (exactness.sampled(s, task, flow, steps, 400) for s in (PseudoinverseGuidance(eta=0.0), exactness.Oracle()))
    if not flow:      # at the first level of a flow model the network sees nothing, and has no gradient
        torch.testing.assert_close(mine, exact, atol=1e-4, rtol=0)
    found = exactness.errors(mine, task)
    assert found["mean"] < 1.5 * found["mean_bar"] + 1 / steps and found["covariance"] < 1.5 * found["covariance_bar"] + 6 / steps


def test_bars_are_what_an_exact_sampler_shows():
    task = exactness.tasks()[4]
    posterior = task.posterior()
    g = torch.Generator().manual_seed(2)
    n, below = 500, {"mean": 0, "covariance": 0, "spread": 0}
    for _ in range(40):
        kind = torch.multinomial(posterior.weights, n, True, generator=g)
        x = posterior.means[kind] + torch.einsum("nde,ne->nd", (posterior.vectors * posterior.values.clamp(min=0).sqrt()[:, None])[kind],
                                                 torch.randn(n, 16, generator=g, dtype=torch.float64))
        found = exactness.errors(x, task)
        below["mean"] += found["mean"] < found["mean_bar"]
        below["covariance"] += found["covariance"] < found["covariance_bar"]
        below["spread"] += abs(found["spread"] - 1) < found["spread_bar"] * 1.5
    assert min(below.values()) >= 34      # of 40


def test_the_page_is_that_of_its_figures():
    data = json.loads((FOLDER / "exactness.json").read_text(encoding="utf-8"))
    assert (FOLDER / "exactness.md").read_text(encoding="utf-8") == exactness.page(data["errors"], data["steps"], data["samples"])
    for by_task in data["errors"].values():
        assert set(by_task) == {t.name for t in exactness.tasks()}
        for by_solver in by_task.values():
            assert set(exactness.SOLVERS) - {"RePaint, 5 rounds"} <= set(by_solver)
            assert set(exactness.MADE) - set(exactness.ONLY) <= set(by_solver)
    one, plain = (data["errors"]["k-units"][name] for name in ("one number", "standard Gaussian, inpainting"))
    for by_solver in (one, plain):      # the score form is as exact as the sampler that knows the posterior
        assert by_solver["PiGDM, score"]["mean"] == pytest.approx(by_solver["exact score"]["mean"], abs=1e-4)
    assert one["DPS, likelihood"]["mean"] > 0.4 and one["PiGDM, published"]["spread"] < 0.01
    # what is replaced without regard to its noise has none; a step by the likelihood's gradient alone is nearer than one of fixed length
    assert one["Masked Sampler, blended"]["spread"] < 1e-6 and one["DADiff, R = A+, scale 1"]["spread"] < 1e-6
    assert {n for by_task in data["errors"].values() for rows in by_task.values() for n in rows} == {*exactness.SOLVERS, *exactness.MADE}


@pytest.mark.method("LodestarDegradationAwareSampler", "LodestarMaskedSampler")
def test_made_solvers_are_what_their_names_say():
    """DADiff with R = A+ and scale 1 replaces the measured part, as the mask does; the rest follows the prior."""
    task = exactness.tasks()[1]
    for name in ("Masked Sampler, blended", "DADiff, R = A+, scale 1"):
        out = exactness.sampled(exactness.MADE[name](task), task, False, 20, 50).view(50, *task.prior.shape)
        known = task.operator.keep(out).bool().expand_as(out)
        torch.testing.assert_close(out[known], task.y.expand_as(out)[known])
        assert float(out[~known].std()) > 0.4
