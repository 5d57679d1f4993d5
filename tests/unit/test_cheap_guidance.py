"""Universal Guidance at every n-th step, with the last gradient between, and without the network's Jacobian late in the schedule."""
import dataclasses

import pytest
import torch

from lodestar.guidance.loss.target import TargetImage
from lodestar.guidance.loss.universal import UniversalGuidance
from lodestar.tests.toys import a_step, levels, mixture, state

pytestmark = pytest.mark.method("LodestarUniversalGuidance")
LOSS = TargetImage(target=torch.ones(1, 2, 4, 4, dtype=torch.float64))


def run(method, calls):
    """The predictions of a run's steps on a mixture, the gradients' calls counted through its model."""
    model, sigmas, kept, out = mixture(), levels(False, 4), {}, []
    for i in range(4):
        x = state(model, sigma=float(sigmas[i]))
        step = a_step(x, float(sigmas[i]), index=i, sigmas=sigmas)

        def evaluate(at, s=float(sigmas[i])):
            calls.append((i, at.requires_grad))
            return model(at, s)
        out.append(method.steer(step, evaluate, kept))
    return out


def same(a, b):
    return [torch.equal(u, v) for u, v in zip(a, b)]


def test_the_defaults_are_the_full_method_and_others_spare_gradients():
    full, plain = UniversalGuidance(loss=LOSS, scale=0.5), []
    every = run(full, plain)
    assert all(grad for _, grad in plain)
    assert all(same(run(dataclasses.replace(full, guide_every=1, cheap_from=1.0, reuse=True), []), every))
    calls = []
    second = run(dataclasses.replace(full, guide_every=2), calls)
    assert [grad for _, grad in calls] == [True, False, True, False]
    assert same(second, every) == [True, False, True, False]
    bare = run(dataclasses.replace(full, scale=1e-30), [])
    torch.testing.assert_close(second[1], bare[1])      # the steps between are plain


def test_the_last_gradient_is_used_again():
    full = UniversalGuidance(loss=LOSS, scale=0.5, normalise="none", guide_every=2, reuse=True)
    found, none = run(full, []), run(dataclasses.replace(full, scale=1e-30), [])
    sigmas = levels(False, 4)
    g = (found[0] - none[0]) / (0.5 * float(sigmas[0]) ** 2)
    torch.testing.assert_close(found[1] - none[1], 0.5 * float(sigmas[1]) ** 2 * g)


def test_cheap_from_the_beginning_is_the_route_none():
    full = UniversalGuidance(loss=LOSS, scale=0.5)
    calls = []
    assert all(same(run(dataclasses.replace(full, cheap_from=0.0), calls), run(dataclasses.replace(full, route="none"), [])))
    assert not any(grad for _, grad in calls)
    late = run(dataclasses.replace(full, cheap_from=0.5), [])
    assert same(late, run(full, [])) == [True, True, False, False]
