"""Gradients of losses on closed-form models: exact posteriors, entry modes, routes, and nothing left behind."""
import math

import pytest
import torch

from lodestar.guidance import engine, gradients
from lodestar.guidance.loss.base import LossContext
from lodestar.guidance.loss.target import TargetImage
from lodestar.guidance.loss.universal import UniversalGuidance
from lodestar.guidance.method import BadInput, Step

UNIVERSAL = pytest.mark.method("LodestarUniversalGuidance")


def step_at(x, s, flow=False, sigmas=None, index=0):
    return Step(x, torch.full((len(x),), s, dtype=x.dtype), flow=flow, sigmas=sigmas, index=index)


def unit_prior(s, flow=False):
    """The denoiser of N(0, 1) data: D = a x / (a^2 + s^2)."""
    a = 1 - s if flow else 1.0
    return lambda x: a * x / (a * a + s * s)


@UNIVERSAL
@pytest.mark.parametrize("flow", (False, True))
@pytest.mark.parametrize("s", (0.2, 0.7))
def test_exact_likelihood_gives_the_posterior_mean(s, flow):
    """With l = -log p(y | x) of a Gaussian measurement (exact covariance), D + (s^2 / a) g is E[x0 | x, y]."""
    tau, y = 0.5, 1.0
    a = 1 - s if flow else 1.0
    x = torch.randn(5, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rho2 = s * s / (a * a + s * s)
    step = step_at(x, s, flow)
    found = gradients.gradient(step, unit_prior(s, flow), lambda d: (0.5 * (d - y) ** 2 / (rho2 + tau**2)).flatten(1).sum(1))
    out = gradients.enter(step, found.denoised, found.direction, 1.0, "score")
    precision = 1 + a * a / s**2 + 1 / tau**2
    torch.testing.assert_close(out, (a * x / s**2 + y / tau**2) / precision, rtol=1e-5, atol=1e-6)


@UNIVERSAL
def test_one_dimensional_reference_run():
    """Karras schedule, Euler, 4000 samples: the exact-covariance score reaches the posterior (0.795, 0.440); the plain one overshoots (1.271, 0.128)."""
    n, steps, rho = 4000, 200, 7.0
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    sigmas = torch.cat(((80 ** (1 / rho) + ramp * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho, torch.zeros(1, dtype=torch.float64)))
    tau, y = 0.5, 1.0
    for exact, mean, sd in ((True, 0.795, 0.440), (False, 1.271, 0.128)):
        x = torch.randn(n, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 80
        for i in range(steps):
            s, following = float(sigmas[i]), float(sigmas[i + 1])
            step = step_at(x, s)
            var = tau**2 + (s * s / (1 + s * s) if exact else 0.0)
            found = gradients.gradient(step, unit_prior(s), lambda d: (0.5 * (d - y) ** 2 / var).flatten(1).sum(1))
            d = gradients.enter(step, found.denoised, found.direction, 1.0)
            x = d + following / s * (x - d)
        assert abs(float(x.mean()) - mean) < 0.02 + 4 * sd / math.sqrt(n)
        assert abs(float(x.std()) - sd) < 0.02 + 4 * sd / math.sqrt(2 * n)


@UNIVERSAL
@pytest.mark.parametrize("flow", (False, True))
def test_route_none_is_exact_for_unit_gaussian_data(flow):
    """The replaced Jacobian is that of unit-variance Gaussian data, so there both routes agree."""
    s, x = 0.6, torch.randn(3, 2, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step = step_at(x, s, flow)
    target = TargetImage(target=torch.ones(1, 2, 2, 2, dtype=torch.float64))
    loss = lambda d: target.value(d, LossContext(step))
    full = gradients.gradient(step, unit_prior(s, flow), loss, "network")
    short = gradients.gradient(step, unit_prior(s, flow), loss, "none")
    torch.testing.assert_close(full.direction, short.direction, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(full.denoised, short.denoised)


@UNIVERSAL
def test_entry_modes_move_the_next_state_as_they_say():
    """Euler from s to s': score moves it by (1 - r) scale s^2 g, state by scale g, keep noise by scale g with the noise kept."""
    sigmas = torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64)
    x = torch.randn(2, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    g, d = torch.randn_like(x), 0.3 * x
    step = step_at(x, 2.0, sigmas=sigmas)
    euler = lambda denoised: denoised + 0.5 * (x - denoised)
    moved = {m: euler(gradients.enter(step, d, g, 0.1, m)) - euler(d) for m in gradients.MODES}
    torch.testing.assert_close(moved["score"], 0.5 * 0.1 * 4.0 * g)
    torch.testing.assert_close(moved["state"], 0.1 * g)
    torch.testing.assert_close(moved["keep noise"], 0.1 * g)
    torch.testing.assert_close(moved["estimate"], 0.5 * 0.1 * g)
    assert all(gradients.enter(step, d, g, 0.0, m) is d for m in gradients.MODES)


@UNIVERSAL
def test_samples_of_a_batch_do_not_meet():
    x = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    loss = lambda d: (d - 1).square().flatten(1).sum(1)
    model = lambda z: torch.tanh(z)
    whole = gradients.gradient(step_at(x, 1.0), model, loss).direction
    for i in range(3):
        torch.testing.assert_close(gradients.gradient(step_at(x[i:i + 1], 1.0), model, loss).direction, whole[i:i + 1])


@UNIVERSAL
def test_works_in_inference_mode_and_leaves_no_graph():
    with torch.inference_mode():
        x = torch.randn(1, 1, 2, 2)
        found = gradients.gradient(step_at(x, 1.0), lambda z: z * 0.5, lambda d: d.square().flatten(1).sum(1))
    assert not found.direction.requires_grad and not found.denoised.requires_grad and found.denoised.grad_fn is None


@UNIVERSAL
def test_in_place_networks_are_differentiated_rightly():
    def network(z):
        h = torch.sigmoid(z)
        y = h * h
        h += 1.0            # overwrites what the product saved
        return y * h
    x = torch.randn(2, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = gradients.gradient(step_at(x, 1.0), network, lambda d: d.flatten(1).sum(1))
    h = torch.sigmoid(x)
    torch.testing.assert_close(found.direction, -(3 * h * h + 2 * h) * h * (1 - h), rtol=1e-6, atol=1e-9)


@UNIVERSAL
def test_universal_guidance_lowers_the_loss_and_refuses_by_name():
    x = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    method = UniversalGuidance(loss=TargetImage(target=torch.ones(1, 2, 4, 4)), scale=0.5)
    evaluate = unit_prior(1.0)
    out = method.steer(step_at(x, 1.0), evaluate, {})
    assert ((out - 1).square().flatten(1).sum(1) < (evaluate(x) - 1).square().flatten(1).sum(1)).all()
    move = (out - evaluate(x)).square().mean((1, 2, 3)).sqrt()
    torch.testing.assert_close(move, torch.full_like(move, 0.5 * 0.5))        # scale rho^2, rho^2 = 1/2 at s = 1
    with pytest.raises(BadInput, match="target size"):
        UniversalGuidance(loss=TargetImage(target=torch.ones(1, 2, 3, 3))).steer(step_at(x, 1.0), evaluate, {})
    with pytest.raises(ValueError, match="one value per sample"):
        gradients.gradient(step_at(x, 1.0), evaluate, lambda d: d.mean())


@pytest.mark.method("LodestarTargetImageLoss")
def test_target_loss_forms():
    d, y = torch.zeros(2, 1, 4, 4), torch.ones(1, 1, 4, 4) * 2
    context = LossContext(None)
    assert TargetImage(target=y).value(d, context).tolist() == [64.0, 64.0]
    assert TargetImage(target=y, reduction="mean").value(d, context).tolist() == [4.0, 4.0]
    torch.testing.assert_close(TargetImage(target=y, reduction="norm").value(d, context), torch.tensor([8.0, 8.0]))
    assert TargetImage(target=y, power=1.0).value(d, context).tolist() == [32.0, 32.0]
    mask = torch.zeros(1, 4, 4)
    mask[:, :2] = 1
    assert TargetImage(target=y, mask=mask).value(d, context).tolist() == [32.0, 32.0]
    assert TargetImage(target=y, mask=mask, reduction="mean").value(d, context).tolist() == [4.0, 4.0]
    checker = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(2, 2)[None, None]
    assert TargetImage(target=checker, factor=2).value(d, context).abs().max() == 0
    assert (TargetImage(target=y) + TargetImage(target=y, weight=0.5)).value(d, context).tolist() == [96.0, 96.0]
