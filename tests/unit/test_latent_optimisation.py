"""Optimise Initial Noise and Optimise Latent and Text against their formulas, on closed-form models, in k-units and for flow matching."""
from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from lodestar.guidance.frozen import frozen
from lodestar.guidance.inverse.levels import noise_source
from lodestar.guidance.loss.base import Loss
from lodestar.guidance.loss.initial_noise import OptimiseInitialNoise, rescaled
from lodestar.guidance.loss.latent_text import OptimiseLatentAndText, estimate_weights
from lodestar.guidance.method import BadInput
from lodestar.tests.toys import euler, levels, mixture, state

FLOWS = pytest.mark.parametrize("flow", [False, True], ids=("k", "flow"))
NOISE, TEXT = pytest.mark.method("LodestarOptimiseInitialNoise"), pytest.mark.method("LodestarOptimiseLatentAndText")
PLAIN = lambda checkpoint=False: torch.enable_grad()


@frozen(eq=False)
class Quadratic(Loss):
    """Mean square of z - target, per sample."""

    target: float = 1.0
    title = "quadratic"

    def value(self, denoised, context):
        return (denoised - self.target).flatten(1).square().mean(1)


class Blind(Quadratic):
    differentiable = False


class Text:
    """Tokens whose change moves the prediction of the whole picture: the mean over tokens and width."""

    def __init__(self):
        self.sizes, self.now = {"positive": [(3, 2)], "negative": [(1, 2)]}, {}

    def put(self, deltas):
        self.now = deltas

    def shift(self):
        return sum(((1.0 if name == "positive" else -0.5) * d.flatten(1).mean(1) for name, parts in self.now.items() for d in parts), torch.zeros(1)).view(-1, 1, 1, 1)


def begin(method, flow, steps=5, batch=2, text=None):
    model, sigmas = mixture(flow, (2, 4, 4)), levels(flow, steps)
    x = state(model, batch, float(sigmas[0]))
    unit = math.hypot(float(sigmas[0]), 1 - float(sigmas[0]) if flow else 1.0)

    def predict(z, i):
        out = model(z, sigmas[i] * torch.ones(z.shape[0], dtype=z.dtype))
        return out if text is None else out + text.shift().to(out)
    return method.chain(predict, sigmas, flow, PLAIN), x, unit, model, sigmas


def search(method, flow, **more):
    chain, x, unit, model, sigmas = begin(method, flow)
    return method.run(chain, x, unit, noise_source(x, 0), **more), x, model, sigmas


@NOISE
@FLOWS
@pytest.mark.parametrize("memory", ("checkpoint", "invertible"))
def test_noise_off_is_the_sampler_and_on_lowers_the_loss_at_one_length(flow, memory):
    method = OptimiseInitialNoise(loss=Quadratic(), iterations=4, clip=0.05, memory=memory)
    (picture, states, values), x, model, sigmas = search(method, flow)
    assert values.shape == (5, 2) and (values.min(0).values < values[0]).all()
    if memory == "checkpoint":      # the values of a pair are the mean of both
        torch.testing.assert_close(Quadratic().value(picture, None).float(), values.min(0).values)
    for s in states:
        torch.testing.assert_close(s.flatten(1).norm(dim=1), x.flatten(1).norm(dim=1), rtol=1e-12, atol=0)
    off, (first, *_), start = search(dataclasses.replace(method, iterations=0), flow)[0]
    assert torch.equal(first, x) if memory == "checkpoint" else (first - x).abs().max() < 1e-12
    if memory == "checkpoint":
        torch.testing.assert_close(off, euler(x, sigmas, model), rtol=0, atol=1e-9)
    assert torch.equal(start[0], values[0])
    (alone, *_), *_ = search(dataclasses.replace(method, rate=0.0, iterations=1), flow)      # only the perturbation moves it
    assert 0 < (alone - off).abs().max() < 1e-2
    neutral = dataclasses.replace(method, rate=0.0, perturbation=0.0)
    assert neutral.neutral() and torch.equal(search(neutral, flow)[0][0], off)


@NOISE
@FLOWS
def test_noise_moves_by_its_formula(flow):
    """Two iterations written out, with the gradient of the whole run in one graph."""
    method = OptimiseInitialNoise(loss=Quadratic(), iterations=2, rate=0.5, clip=0.003, momentum=0.7, perturbation=0.0, pick="last")
    (_, (found,), _), x, model, sigmas = search(method, flow)
    unit = math.hypot(float(sigmas[0]), 1 - float(sigmas[0]) if flow else 1.0)
    u, b = x / unit, torch.zeros_like(x)
    for _ in range(2):
        leaf = u.clone().requires_grad_()
        g, = torch.autograd.grad(Quadratic().value(euler(leaf * unit, sigmas, model), None).sum(), leaf)
        b = 0.7 * b + (-0.5 * g).clamp(-0.003, 0.003)
        u = u + b
        u = u * (x / unit).flatten(1).norm(dim=1).view(-1, 1, 1, 1) / u.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    torch.testing.assert_close(found, u * unit, rtol=1e-6, atol=1e-8)


@NOISE
def test_noise_keeps_what_is_masked_rests_and_mixes_no_samples():
    free = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    free[..., :2] = 1
    method = OptimiseInitialNoise(loss=Quadratic(), iterations=3, clip=0.05)
    (_, (moved,), _), x, *_ = search(method, False, free=free)
    assert (moved - x)[..., 2:].abs().max() < 1e-12 and (moved - x)[..., :2].abs().max() > 1e-3
    part = lambda t: t[..., :2].flatten(1).norm(dim=1)
    torch.testing.assert_close(part(moved), part(x))
    values = search(method, False)[0][2]
    stopped = dataclasses.replace(method, stop_at=float(values[0].mean()))      # one of the two is above it
    rest = values[0] <= stopped.stop_at
    assert rest.any() and not rest.all()
    (_, (state_of,), _), x, *_ = search(stopped, False)
    assert torch.equal(((state_of - x).abs() < 1e-12).flatten(1).all(1), rest)
    chain, x, unit, *_ = begin(method, False)
    single = method.run(chain, x[:1], unit, noise_source(x[:1], 0))
    torch.testing.assert_close(single[0], search(method, False)[0][0][:1])
    apart = dataclasses.replace(method, memory="invertible", tie_pair=False, clip=0.0, rate=0.01, pick="last")
    (_, pair, _), *_ = search(apart, False)
    tied = search(dataclasses.replace(apart, tie_pair=True), False)[0][1]
    assert (pair[0] - pair[1]).abs().max() > 1e-6 and torch.equal(tied[0], tied[1])


@NOISE
@TEXT
def test_bad_input_is_named():
    for cls in (OptimiseInitialNoise, OptimiseLatentAndText):
        with pytest.raises(BadInput, match="gives values only"):
            cls(loss=Blind()).check()
        with pytest.raises(BadInput, match="iterations"):
            cls(loss=Quadratic(), iterations=-1).check()

    class Broken(Quadratic):
        def value(self, denoised, context):
            return (denoised.flatten(1).sum(1) * 0).sqrt()
    with pytest.raises(ValueError, match="not finite"):
        search(OptimiseInitialNoise(loss=Broken(), iterations=1), False)
    u = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rescaled(u, torch.tensor([2.0, 3.0])).norm(dim=1), torch.tensor([2.0, 3.0]))


def text_search(flow, **values):
    method, text = OptimiseLatentAndText(**{"loss": Quadratic(), "iterations": 3, "rate": 0.02, **values}), Text()
    chain, x, unit, model, sigmas = begin(method, flow, text=text)
    return method.run(chain, x, unit, text), x, model, sigmas, text


@TEXT
@FLOWS
@pytest.mark.parametrize("each_step", (True, False))
def test_text_and_noise_move_by_adam_and_lower_the_loss(flow, each_step):
    (picture, first, deltas, values), x, model, sigmas, text = text_search(flow, each_step=each_step, iterations=1, last_estimates=2, pick="last", text_keep=0.3)
    assert (values[-1] < values[0]).all() and not text.now
    assert [len(parts[0]) for parts in deltas.values()] == ([5, 5] if each_step else [1, 1])
    # the first step of Adam is rate * sign(gradient) for every number: the gradients in one large graph
    unit = math.hypot(float(sigmas[0]), 1 - float(sigmas[0]) if flow else 1.0)
    leaf = (x / unit).requires_grad_()
    words = [{n: [torch.zeros(2, *size[0], dtype=x.dtype, requires_grad=True)] for n, size in text.sizes.items()} for _ in range(5 if each_step else 1)]
    z, found = leaf * unit, []
    for i in range(5):
        text.put(words[i if each_step else 0])
        found.append(model(z, sigmas[i] * torch.ones(2, dtype=x.dtype)) + text.shift())
        z = z + (z - found[-1]) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
    whole = sum(w * Quadratic().value(d, None) for w, d in zip((1 / 3, 2 / 3), found[-2:]))
    leaves = [w[n][0] for n in text.sizes for w in words]
    slopes = torch.autograd.grad(whole.sum(), [leaf, *leaves])
    flat = [t for parts in deltas.values() for t in parts[0]]
    for delta, slope in zip(flat, slopes[1:]):
        torch.testing.assert_close(delta, -0.02 * slope.sign().float(), rtol=1e-3, atol=1e-6)
    moved = x / unit - 0.002 * slopes[0].sign()
    moved = rescaled(moved, (x / unit).flatten(1).norm(dim=1))
    torch.testing.assert_close(first / unit, moved, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(first.flatten(1).norm(dim=1), x.flatten(1).norm(dim=1))


@TEXT
@FLOWS
def test_text_off_parts_and_zero_weights(flow):
    (plain, first, deltas, _), x, model, sigmas, _ = text_search(flow, iterations=0)
    torch.testing.assert_close(plain, euler(x, sigmas, model), rtol=0, atol=1e-9)
    assert torch.equal(first, x) and all(bool((t == 0).all()) for parts in deltas.values() for part in parts for t in part)
    (_, first, deltas, values), x, *_ = text_search(flow, latent=0.0, negative_text=0.0)
    assert (first - x).abs().max() < 1e-12 and list(deltas) == ["positive"] and (values.min(0).values < values[0]).all()
    (_, first, deltas, _), x, *_ = text_search(flow, positive_text=0.0, negative_text=0.0, rate=0.5)
    assert not deltas and (first - x).abs().max() > 1e-3

    class Nothing(Quadratic):
        def value(self, denoised, context):
            return 0.0 * super().value(denoised, context)
    (picture, *_), x, *_ = text_search(flow, loss=Nothing())
    torch.testing.assert_close(picture, plain, rtol=0, atol=1e-9)
    assert sum(estimate_weights(3)) == pytest.approx(1) and estimate_weights(3) == pytest.approx([1 / 6, 2 / 6, 3 / 6]) and estimate_weights(1) == [1.0]


@TEXT
@FLOWS
def test_text_keeps_what_is_outside_the_mask(flow):
    mask = torch.zeros(1, 4, 4)
    mask[..., :2] = 1
    plain = text_search(flow, iterations=0)[0][0]
    loose = text_search(flow, iterations=6, rate=0.05, pick="last")[0][0]
    kept, *_ = text_search(flow, mask=mask, keep=300.0, blend=0.6, iterations=6, rate=0.05, pick="last")[0]
    away = lambda z: (z - plain)[..., 2:].square().mean()
    assert away(kept) < 0.2 * away(loose) and (kept - plain)[..., :2].square().mean() > 1e-5
    held, *_ = text_search(flow, keep=300.0, iterations=6, rate=0.05, pick="last")[0]      # without a mask everything is held
    assert (held - plain).square().mean() < 0.2 * (loose - plain).square().mean()
    with pytest.raises(BadInput, match="mask"):
        text_search(flow, mask=torch.zeros(1, 4, 4))
    with pytest.raises(BadInput, match="3 masks"):
        text_search(flow, mask=torch.ones(3, 4, 4))
