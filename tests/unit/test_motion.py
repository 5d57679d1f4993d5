"""Flows, the motion loss, and Motion Guidance against its formula on closed-form models."""
from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from lodestar.guidance.frozen import frozen
from lodestar.guidance.inverse.levels import noise_source
from lodestar.guidance.inverse.solver import at
from lodestar.guidance.loss.base import Loss, LossContext
from lodestar.guidance.loss.flow import Flow, FlowEstimator, of_mask, resized, shown, visible, warp
from lodestar.guidance.loss.motion import FlowMotion
from lodestar.guidance.loss.solvers.motion import MotionGuidance, clipped
from lodestar.guidance.method import BadInput
from lodestar.nodes.motion import _estimate, _from_mask, _show
from lodestar.tests.toys import euler, gaussian, mixture, state
from lodestar.tests.toys import levels as schedule

pytestmark = pytest.mark.method("LodestarMotionGuidance")
FLOWS = pytest.mark.parametrize("flow", [False, True], ids=("k", "flow"))


def box(size=32, left=6, top=10, wide=8, high=6):
    m = torch.zeros(1, size, size)
    m[:, top:top + high, left:left + wide] = 1
    return m


def picture(m, colour=(0.9, 0.1, 0.1)):
    """A coloured thing on a shaded ground, [n, 3, h, w]."""
    ground = torch.linspace(0.2, 0.6, m.shape[-1]).expand(3, m.shape[-2], -1)
    return ground * (1 - m[:, None]) + torch.tensor(colour)[:, None, None] * m[:, None]


def test_a_mask_moves_turns_and_scales_about_its_middle():
    m = box()
    flow, there = of_mask(m, 9.0, -4.0)
    inside = m[0] > 0
    assert torch.allclose(flow.vectors[0][:, inside], torch.tensor([[9.0], [-4.0]]).expand(2, 48)) and not flow.vectors[0][:, ~inside].any()
    torch.testing.assert_close(there, box(left=15, top=6))
    turned, _ = of_mask(m, turn=90.0)
    right = turned.vectors[0, :, 12, 13]      # 3.5 to the right and half a pixel above the middle (9.5, 12.5): goes to 3.5 below, half to the right
    torch.testing.assert_close(right, torch.tensor([0.5 - 3.5, 3.5 + 0.5]))
    larger, there = of_mask(m, scale=2.0)
    assert float(there.sum()) == pytest.approx(4 * 48, rel=0.1)
    torch.testing.assert_close(larger.vectors[0, :, 12, 13], torch.tensor([3.5, -0.5]))
    for values in ({"dx": 5.0, "dy": 3.0}, {"turn": 30.0}, {"scale": 1.5}):      # the flow leads to where the mask is then
        flow, there = of_mask(m, **values)
        assert float((warp(there[:, None], flow.vectors) * m[:, None]).sum()) > 0.9 * 48
    with pytest.raises(BadInput, match="mask"):
        of_mask(torch.zeros(1, 8, 8))


def test_flows_fit_to_a_size_and_show_what_is_hidden():
    vectors = torch.zeros(1, 2, 16, 16)
    vectors[:, 0] = 4.0
    torch.testing.assert_close(resized(vectors, 8, 32)[:, 0], torch.full((1, 8, 32), 8.0))
    torch.testing.assert_close(resized(vectors, 8, 8)[:, 0], torch.full((1, 8, 8), 2.0))
    m = box()
    flow, there = of_mask(m, 9.0, -4.0)
    o = visible(flow.vectors)[0, 0]
    assert torch.equal(o, 1 - there[0] * (1 - m[0]))      # what the thing lands on is hidden, the thing itself is not
    away, _ = of_mask(m, 40.0)
    assert not (visible(away.vectors)[0, 0] * m[0]).any()
    colours = shown(torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 0.0]]).view(3, 2, 1, 1).permute(2, 1, 0, 3)).flatten(2)[0]
    torch.testing.assert_close(colours.T, torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [1.0, 1.0, 1.0]]))


def loss_of(**values):
    m = box()
    flow, _ = of_mask(m, 9.0, -4.0)
    return FlowMotion(**{"image": None, "target": picture(m), "flow": flow, "decoder": lambda z: z, **values}).check()


def test_colours_along_the_wanted_flow():
    m, context = box(), LossContext()
    moved = picture(box(left=15, top=6))
    filled = moved * (1 - m[:, None]) + 0.7 * m[:, None]      # what is uncovered is free
    both = torch.cat((moved, filled, picture(m)))
    values = loss_of().value(both, context)
    assert values[0] < 1e-4 and values[1] < 1e-4 and values[2] > 1
    assert loss_of(occlusion=False).value(moved, LossContext())[0] > 1      # the ground is asked to shine through
    still = loss_of(flow=Flow(torch.zeros(1, 2, 32, 32)))
    assert float(still.value(picture(m), LossContext())) < 1e-5 and float(still.value(moved, LossContext())) > 1
    u = both.clone().requires_grad_()
    g, = torch.autograd.grad(loss_of().value(u, LossContext()).sum(), u)
    h, = torch.autograd.grad(loss_of().value(u[2:], LossContext()).sum(), u)
    torch.testing.assert_close(g[2:], h[2:])
    half = box(left=0, top=0, wide=32, high=2)      # where nothing moved
    assert float(loss_of(mask=half).value(picture(m), LossContext())) < 1e-4


def test_the_estimated_flow_counts():
    m = box()
    wanted, _ = of_mask(m, 9.0, -4.0)
    right = FlowEstimator(Plain(lambda a, b: wanted.vectors + 0 * b[:, :2]), 32, 4, 32)
    moved = picture(box(left=15, top=6))
    assert float(loss_of(estimator=right, colours_along="estimated").value(moved, LossContext())) < 1e-4
    still = FlowEstimator(Plain(lambda a, b: 0 * a[:, :2]), 32, 4, 32)
    mean = float(wanted.vectors.abs().mean())
    assert float(loss_of(estimator=still, colour_weight=0.0).value(moved, LossContext())) == pytest.approx(3 * mean, rel=1e-4)
    with pytest.raises(BadInput, match="estimator"):
        loss_of(colour_weight=0.0)
    with pytest.raises(BadInput, match="estimator"):
        loss_of(colours_along="estimated")


class Plain(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, a, b):
        return self.function(a, b)


def test_the_bundled_network_finds_motions_it_has_not_seen():
    """16 fresh pairs: nearer to the true flow than no motion is, where something moves (its error on 256 pairs is in weights/flow.json)."""
    from lodestar.demo.flow import load
    from lodestar.demo.flow_pairs import errors, pairs
    a, b, truth = pairs(random.Random(77), 16)
    estimator = FlowEstimator(load(), 64, 8, 64)
    with torch.no_grad():
        moving = errors(estimator(a, b), truth)[1].mean()
    assert moving < 0.6 * errors(torch.zeros_like(truth), truth)[1].mean()
    u = b[:2].clone().requires_grad_()
    found = estimator(a[:2], u)
    g, = torch.autograd.grad(found[0].abs().sum(), u)
    assert g[0].abs().max() > 0 and g[1].abs().max() == 0      # samples do not mix
    wide = torch.rand(1, 3, 96, 160, generator=torch.Generator().manual_seed(0))
    assert estimator(wide, wide).shape == (1, 2, 96, 160) and estimator.size(96, 160) == (64, 104)


def test_nodes():
    with torch.inference_mode():
        m = box()
        flow, there, both = _from_mask(m, 9.0, -4.0, 0.0, 1.0)
        assert not flow.vectors.is_inference() and torch.equal(both, torch.maximum(m, there))
        text = _show(flow, 0.0).text
        assert "4.7 %" in text and "9.8 pixels" in text
        found, seen = _estimate(FlowEstimator(Plain(lambda a, b: 0 * a[:, :2]), 32, 4, 32), torch.rand(1, 32, 32, 3), torch.rand(2, 32, 32, 3))
        assert found.vectors.shape == (2, 2, 32, 32) and bool((seen == 1).all())
        with pytest.raises(BadInput, match="second"):
            _estimate(None, torch.rand(1, 32, 32, 3), torch.rand(1, 16, 32, 3))


@frozen(eq=False)
class Quadratic(Loss):
    factor: float = 1.0
    title = "quadratic"

    def value(self, denoised, context):
        return 0.5 * self.factor * (denoised - 1).flatten(1).square().sum(1)


def run(method, model, x, sigmas, flow=False, seed=0):
    return method.run(model, x, sigmas, method.problem(sigmas, flow), flow, noise_source(x, seed), None, lambda checkpoint=False: torch.enable_grad())


@FLOWS
def test_sampler_off_is_plain_batches_are_singles_and_the_loss_falls(flow):
    model = mixture(flow, (3, 4, 4))
    sigmas = schedule(flow, 6)
    x = state(model, 2, float(sigmas[0]))
    method = MotionGuidance(loss=Quadratic(), scale=0.5, repeats=2, eta=0.3)
    out = run(method, model, x, sigmas, flow)
    torch.testing.assert_close(run(method, model, x[:1], sigmas, flow), out[:1])
    off = dataclasses.replace(method, scale=0.0, eta=0.0)
    torch.testing.assert_close(run(off, model, x, sigmas, flow), euler(x, sigmas, model), rtol=0, atol=1e-9)
    loss = lambda z: Quadratic().value(z, None)
    assert (loss(out) < loss(run(dataclasses.replace(off, eta=0.3), model, x, sigmas, flow))).all()


@FLOWS
def test_a_step_is_its_formula_and_its_length_is_limited(flow):
    model = gaussian(shape=(3, 4, 4), flow=flow)
    sigmas = schedule(flow, 6)
    x = state(model, 2, float(sigmas[2]))
    leaf = x.clone().requires_grad_()
    denoised = model(leaf, sigmas[2] * torch.ones(2, dtype=x.dtype))
    g, = torch.autograd.grad(-Quadratic().value(denoised, None).sum(), leaf)
    denoised = denoised.detach()
    for clip in (0.0, 1e6, 0.01):
        method = MotionGuidance(loss=Quadratic(), scale=0.7, clip=clip)
        problem = method.prepared(method.problem(sigmas, flow), x)
        p = at(model, x, sigmas, 2, problem, flow, noise_source(x, 0), lambda checkpoint=False: torch.enable_grad())
        q = 0.7 * p.s * g
        q = q / q.square().mean((1, 2, 3), keepdim=True).sqrt() * 0.01 if clip == 0.01 else q
        x0 = denoised + p.s / p.a * q
        torch.testing.assert_close(method.advance(p), p.a_next * x0 + p.s_next * (x - p.a * x0) / p.s)
    t = torch.stack((torch.full((4,), 3.0), torch.full((4,), 0.5), torch.zeros(4)))
    torch.testing.assert_close(clipped(t, 1.0), torch.stack((torch.ones(4), torch.full((4,), 0.5), torch.zeros(4))))


@FLOWS
def test_outside_the_edit_mask_the_source_comes_back(flow):
    model = mixture(flow, (3, 4, 4))
    sigmas = schedule(flow, 6)
    x = state(model, 2, float(sigmas[0]))
    z = torch.randn(1, 3, 4, 4, dtype=x.dtype, generator=torch.Generator().manual_seed(3))
    mask = torch.zeros(1, 8, 8)
    mask[..., :4] = 1
    for scale in (0.0, 0.5):
        method = MotionGuidance(loss=Quadratic(), scale=scale, repeats=2, edit_mask=mask, latent={"samples": z}).validate()
        out = run(method, model, x, sigmas, flow)
        torch.testing.assert_close(out[..., 2:], z[..., 2:].expand(2, -1, -1, -1))
        assert (out[..., :2] - z[..., :2]).abs().max() > 0.1
    with pytest.raises(BadInput, match="edit_mask"):
        MotionGuidance(loss=Quadratic(), latent={"samples": z}).validate()
    with pytest.raises(BadInput, match="latent"):
        run(MotionGuidance(loss=Quadratic(), edit_mask=mask, latent={"samples": z[..., :2]}), model, x, sigmas, flow)
    video = torch.zeros(1, 3, 2, 4, 4)
    assert MotionGuidance(loss=Quadratic(), edit_mask=mask, latent={"samples": video}).kept(method.problem(sigmas, flow), video)[0].shape == (1, 1, 1, 4, 4)
