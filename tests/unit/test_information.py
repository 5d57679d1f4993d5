"""Prompt Information: the decomposition's identities, and the integral on Gaussian data with exact denoisers."""
import math

import pytest
import torch

from lodestar.guidance.reading.information import FORMS, PromptInformation, alpha_of, decompose, sigma_of, snr_samples

FLOWS = pytest.mark.parametrize("flow", (False, True))


def maps(seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.rand(2, 3, 4, generator=g) for _ in range(3)]


@pytest.mark.parametrize("redundancy", ("minimum", "specificity"))
def test_the_parts_make_up_the_whole(redundancy):
    first, second, both = maps()
    found = decompose(first, second, both, redundancy, 1.0, 1.3)
    torch.testing.assert_close(found.redundancy + found.unique_first + found.unique_second + found.synergy, both)
    torch.testing.assert_close(found.unique_first + found.redundancy, first)
    for name, total in found.totals().items():
        assert total.shape == (2,)


def test_equal_prompts_are_redundant():
    first, _, _ = maps()
    found = decompose(first, first, first)
    assert torch.equal(found.redundancy, first)
    for part in (found.unique_first, found.unique_second, found.synergy):
        assert part.abs().max() == 0


def test_specificity_is_the_pointwise_formula():
    first, second, both = maps()
    h1, h2 = 2.0, 3.0
    found = decompose(first, second, both, "specificity", h1, h2)
    torch.testing.assert_close(found.redundancy, torch.maximum(first, second - (h2 - h1)))


@FLOWS
def test_levels(flow):
    for alpha in (-6.0, 0.0, 3.0):
        assert alpha_of(sigma_of(alpha, flow), flow) == pytest.approx(alpha)
    grid = snr_samples(2000, -8.0, 8.0, 1.0, 2.0)
    assert all(-8 <= a <= 8 for a, _ in grid)
    # the quantiles with their weights integrate: of 1 the range, of a Gaussian its area
    assert sum(w for _, w in grid) / 2000 == pytest.approx(16, rel=1e-2)
    assert sum(w * math.exp(-a * a / 2) for a, w in grid) / 2000 == pytest.approx(math.sqrt(2 * math.pi), rel=1e-2)


@FLOWS
@pytest.mark.parametrize("form", FORMS)
def test_information_of_correlated_gaussians(flow, form):
    """x and y standard normal with correlation rho: the mean of i over x and y is -1/2 ln(1 - rho^2)."""
    rho, n = 0.8, 512
    g = torch.Generator().manual_seed(0)
    y = torch.randn(n, 1, 2, 2, generator=g)
    x0 = rho * y + math.sqrt(1 - rho * rho) * torch.randn(n, 1, 2, 2, generator=g)

    def predict(x, sigma, prompts):
        s = sigma.view(-1, 1, 1, 1)
        a = 1 - s if flow else torch.ones_like(s)
        told = rho * y.repeat(x.shape[0] // n, 1, 1, 1)
        left = 1 - rho * rho

        def posterior(mean, variance):
            return mean + a * variance / (a * a * variance + s * s) * (x - a * mean)
        return [posterior(torch.zeros_like(told), 1.0), posterior(told, left), posterior(torch.zeros_like(told), 1.0), posterior(told, left)]
    method = PromptInformation(samples=80, form=form, batch=7)
    first, second, both = method.maps(x0, predict, -12.0, 12.0, flow)
    assert float(first.mean()) == pytest.approx(-0.5 * math.log(1 - rho * rho), rel=0.08)
    assert second.abs().max() == 0      # equal to the base
    torch.testing.assert_close(both, first)
    if form == "orthogonal":
        assert float(first.min()) >= 0
    alone, _, _ = PromptInformation(samples=80, form=form, batch=80).maps(x0, predict, -12.0, 12.0, flow)
    torch.testing.assert_close(alone, first, rtol=1e-3, atol=1e-3)
