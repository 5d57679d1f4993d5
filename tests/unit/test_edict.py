"""EDICT against the paper's formula, and its exact inverse; the chains that take gradients through whole sampling runs."""
from __future__ import annotations

import contextlib
import math

import pytest
import torch
from lodestar.guidance.inversion.chains import Coupled, NotRepeatable, Plain, pull
from lodestar.guidance.inversion.edict import EDICTInversion, EDICTSampler, Step, ascend, descend, start
from lodestar.tests.toys import euler, gaussian, levels, mixture, state

pytestmark = pytest.mark.method("LodestarEDICTSampler", "LodestarEDICTInversion")
FLOWS = pytest.mark.parametrize("flow", [False, True], ids=("k", "flow"))
PLAIN = lambda checkpoint=False: torch.enable_grad()


def begin(flow, steps=8, batch=2):
    model, sigmas = mixture(flow, (3, 4, 4)), levels(flow, steps)
    return model, sigmas, state(model, batch, float(sigmas[0]))


def indexed(model, sigmas):
    return lambda z, i: model(z, sigmas[i] * torch.ones(z.shape[0], dtype=z.dtype))


@FLOWS
@pytest.mark.parametrize("mix", (0.93, 1.0, 0.8))
def test_going_up_is_the_exact_inverse_of_going_down(flow, mix):
    model, sigmas, x = begin(flow)
    pair = (x, x + 0.1)
    end = descend(model, pair, sigmas, mix, flow)
    back = ascend(model, end, sigmas, mix, flow)
    for a, b in zip(back, pair):
        assert (a - b).abs().max() < 1e-9
    clean = start(end[0], sigmas, flow)
    again = descend(model, ascend(model, clean, sigmas, mix, flow), sigmas, mix, flow)
    assert (again[0] - clean[0]).abs().max() < 1e-9 and (again[1] - clean[1]).abs().max() < 1e-9


def test_a_step_is_the_papers_in_its_own_coordinates():
    """a_t = sqrt(abar_s / abar_t), b_t = sqrt(1 - abar_s) - a_t sqrt(1 - abar_t), in x / sqrt(1 + s^2)."""
    model, sigmas, x = begin(False)
    y, p, s, s_next = x + 0.2, 0.93, float(sigmas[3]), float(sigmas[4])
    c, c_next = math.hypot(1, s), math.hypot(1, s_next)
    bar, bar_next = 1 / c ** 2, 1 / c_next ** 2
    a = math.sqrt(bar_next / bar)
    b = math.sqrt(1 - bar_next) - a * math.sqrt(1 - bar)
    noise = lambda z: (z * c - model(z * c, torch.full((2,), s, dtype=z.dtype))) / s      # epsilon(z, t) of the variance-preserving state z
    u, v = x / c, y / c
    u1 = a * u + b * noise(v)
    v1 = a * v + b * noise(u1)
    u2 = p * u1 + (1 - p) * v1
    v2 = p * v1 + (1 - p) * u2
    velocity = lambda z: (z - model(z, torch.full((2,), s, dtype=z.dtype))) / s
    found = Step(s, s_next, 0, p).down((x, y), velocity)
    torch.testing.assert_close(found[0] / c_next, u2)
    torch.testing.assert_close(found[1] / c_next, v2)
    swapped = Step(s, s_next, 1, 1.0).down((y, x), velocity)      # odd steps begin with the second state
    torch.testing.assert_close(swapped[1] / c_next, u1)
    torch.testing.assert_close(swapped[0] / c_next, v1)


@FLOWS
def test_the_pair_stays_near_the_sampler_and_comes_nearer_with_more_steps(flow):
    gaps = []
    for steps in (10, 40):
        model, sigmas, x = begin(flow, steps)
        found = descend(model, (x, x.clone()), sigmas, 0.93, flow)[0]
        fine = levels(flow, 120)
        gaps.append(float((found - euler(x, fine, model)).abs().max()))
    assert gaps[1] < 0.5 * gaps[0]


@FLOWS
def test_gradients_through_the_run_are_those_of_one_large_graph(flow):
    model, sigmas, x = begin(flow, 6)
    target = torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)
    predict = indexed(model, sigmas)
    leaf = x.clone().requires_grad_()
    wanted, = torch.autograd.grad((euler(leaf, sigmas, model) - target).square().sum(), leaf)
    chain = Plain(predict, sigmas, flow, PLAIN)
    end = chain.forward(x)
    torch.testing.assert_close(chain.backward(2 * (end - target)), wanted)

    class Graph(Coupled):
        def whole(self, pair):
            for i, step in enumerate(self._steps()):
                pair = step.down(pair, self._velocity(i, step.s))
            return pair
    chain = Graph(predict, sigmas, flow, PLAIN, mix=0.93)
    leaves = x.clone().requires_grad_(), (x + 0.1).requires_grad_()
    ends = chain.whole(leaves)
    wanted = torch.autograd.grad((ends[0] - target).square().sum() + 0.5 * ends[1].pow(3).sum(), leaves)
    with torch.no_grad():
        end = chain.forward(tuple(t.detach() for t in leaves))
        pair, found = chain.backward(end, (2 * (end[0] - target), 1.5 * end[1].square()))
    for a, b, c, d in zip(found, wanted, pair, leaves):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
        assert (c - d).abs().max() < 1e-9


class Alive:
    """How many bytes autograd has saved at once, inside a context."""

    def __init__(self):
        self.now = self.most = 0

    def __call__(self, checkpoint=False):
        class Kept:
            def __init__(kept, t):
                kept.t = t
                self.now += t.nbytes
                self.most = max(self.most, self.now)

            def __del__(kept):
                self.now -= kept.t.nbytes
        stack = contextlib.ExitStack()
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.t))
        return stack


@pytest.mark.parametrize("cls", (Plain, Coupled))
def test_memory_does_not_grow_with_the_steps(cls):
    most, states = [], []
    for steps in (5, 20):
        model, sigmas, x = begin(False, steps)
        alive = Alive()
        chain = cls(indexed(model, sigmas), sigmas, False, alive)
        if cls is Plain:
            chain.backward(chain.forward(x))
        else:
            end = chain.forward((x, x.clone()))
            chain.backward(end, end)
        most.append(alive.most)
        states.append(len(chain.states))
        assert alive.now == 0
    assert most[0] == most[1] > 0
    assert states == ([1, 1] if cls is Plain else [0, 0])      # latents: freed on the way back; EDICT keeps none


def test_what_does_not_repeat_is_named():
    model, sigmas, x = begin(False, 4)
    calls = [0]

    def drifting(z, i):
        calls[0] += 1
        return indexed(model, sigmas)(z, i) + 0.2 * calls[0]
    chain = Plain(drifting, sigmas, False, PLAIN)
    with pytest.raises(NotRepeatable, match="remembers earlier steps"):
        chain.backward(chain.forward(x))


def test_slopes_of_any_size_survive_half_precision():
    weight = torch.linspace(0.5, 1.5, 8).half()
    z = torch.ones(2, 8)
    for size in (1e-9, 1.0, 1e9):
        _, found = pull(lambda t: (t.half() * weight).float(), z, torch.full((2, 8), size), PLAIN)
        torch.testing.assert_close(found / size, weight.float().expand(2, 8), rtol=2e-3, atol=0)
    _, nothing = pull(lambda t: t * 2, z, torch.zeros(2, 8), PLAIN)
    assert torch.equal(nothing, torch.zeros(2, 8))


def test_a_gaussian_comes_back_under_guidance_where_one_step_inversion_fails():
    """With cfg the DDIM inversion's error is plain; EDICT's is rounding."""
    from lodestar.guidance.inversion.ddim import invert, replay
    positive, negative = gaussian(0.9, 0.2, (3, 4, 4)), gaussian(-0.4, 0.4, (3, 4, 4))
    guided = lambda x, s: negative(x, s) + 4.0 * (positive(x, s) - negative(x, s))
    sigmas = levels(False, 10)
    x0 = state(positive, 2, 0.0)
    pair = ascend(guided, start(x0, sigmas, False), sigmas, 0.93)
    assert (descend(guided, pair, sigmas, 0.93)[0] - x0).abs().max() < 1e-9
    there = invert(guided, x0, sigmas)
    assert (replay(guided, there, sigmas) - x0).abs().max() > 1e-3


def test_fields_are_checked():
    from lodestar.guidance.method import BadInput
    for made in (EDICTSampler(mix=0.3), EDICTInversion(mix=1.2)):
        with pytest.raises(BadInput, match="mix"):
            made.validate()
