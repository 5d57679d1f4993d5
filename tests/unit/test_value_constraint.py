"""Value Constraint: the paper's formula, exactness, and what it leaves alone; masks on latents of every kind."""
from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from lodestar.guidance.cover import cover
from lodestar.guidance.method import BadInput
from lodestar.guidance.rules.value_constraint import ValueConstraint
from lodestar.tests.toys import a_step, euler, levels, mixture, state

pytestmark = pytest.mark.method("LodestarValueConstraint")
FLOWS = pytest.mark.parametrize("flow", [False, True], ids=("k", "flow"))
GENERATOR = torch.Generator().manual_seed(0)
FACTORS, BIAS = torch.randn(4, 3, generator=GENERATOR), torch.tensor([0.1, -0.2, 0.0])
FACTS = SimpleNamespace(channels=4, inward=lambda z: 0.5 * z - 0.25, rough=lambda node: SimpleNamespace(factors=FACTORS, bias=BIAS))


def made(**values):
    return ValueConstraint(**values).validate().fitted(FACTS)


def finish(method, d, flow=False, sigma=0.6):
    return method.finish(a_step(d, sigma, flow), d, None, {})


def rough(d):
    return (torch.einsum("nc...,ck->nk...", d, FACTORS) + BIAS.view(1, 3, *[1] * (d.ndim - 2)) + 1) / 2


@FLOWS
def test_it_is_the_papers_bound_on_the_noise(flow):
    """eps' = max(eps, (x - a u) / s), and the estimate that belongs to it; the bound is in the LATENT's own scale."""
    d = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    x, s, a, u = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(2)), 0.6, 0.4 if flow else 1.0, 0.5 * 0.5 - 0.25
    eps = torch.maximum((x - a * d) / s, (x - a * u) / s)
    torch.testing.assert_close(finish(made(space="latent", upper="0.5"), d, flow), (x - s * eps) / a)


@pytest.mark.parametrize("space", ("latent", "colour"))
def test_inside_is_untouched_twice_is_once_and_the_bounds_hold(space):
    d = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(1))
    method = made(space=space, lower="0.2", upper="0.6, 0.5, -" if space == "colour" else "0.6, 0.5, -, 0.9")
    out = finish(method, d)
    seen = rough(out) if space == "colour" else 2 * out + 0.5
    high = torch.tensor([0.6, 0.5, 9.0, 0.9][:seen.shape[1]]).view(1, -1, 1, 1)
    assert bool((seen > 0.2 - 1e-5).all()) and bool((seen < high + 1e-5).all()) and (out - d).abs().max() > 0.1
    torch.testing.assert_close(finish(method, out), out, rtol=0, atol=1e-5)
    wide = finish(made(space=space, lower="-100", upper="100"), d)
    assert torch.equal(wide, d)
    torch.testing.assert_close(finish(method, d[:1]), out[:1])
    half = finish(method, d.half())
    assert half.dtype == torch.float16 and bool(torch.isfinite(half).all())


def test_the_change_is_the_least_one_that_brings_the_colour_inside():
    d = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    out = finish(made(upper="0.4, 1, 1"), d)
    off = (out - d).movedim(1, -1)[(rough(d)[:, 0] > 0.4)]
    null = torch.linalg.svd(FACTORS.T)[2][3:]      # directions that no colour depends on
    assert off.shape[0] > 2 and (off @ null.T).abs().max() < 1e-5


def test_without_bounds_it_is_off():
    for off in (ValueConstraint(), ValueConstraint(upper="-"), ValueConstraint(upper="inf", lower="-, -, -"), ValueConstraint(upper="0.5", region=torch.zeros(1, 8, 8))):
        assert off.validate().neutral()
    assert not ValueConstraint(upper="0.5").neutral()


@FLOWS
def test_the_sample_lies_inside_where_the_mask_is(flow):
    model, sigmas = mixture(flow, (4, 4, 4), dtype=torch.float32), levels(flow, 8).float()
    x = state(model, 2, float(sigmas[0]))
    mask = torch.zeros(1, 8, 8)
    mask[..., :4] = 1
    method = made(space="latent", upper="0.3", region=mask)
    out = euler(x, sigmas, lambda x, s: method.finish(a_step(x, float(s[0]), flow), model(x, s), None, {}))
    assert float(2 * out[..., :2].max() + 0.5) < 0.3 + 1e-4 and float(2 * out[..., 2:].max() + 0.5) > 0.3
    torch.testing.assert_close(out[..., 2:], euler(x, sigmas, lambda x, s: torch.cat((method.finish(a_step(x, float(s[0]), flow), model(x, s), None, {})[..., :2], model(x, s)[..., 2:]), -1))[..., 2:])


def test_masks_on_latents_of_every_kind():
    m = torch.zeros(1, 4, 8)
    m[..., :4] = 1
    assert torch.equal(cover(m, torch.zeros(2, 3, 2, 4), "n"), torch.tensor([1.0, 1, 0, 0]).expand(1, 1, 2, 4))
    assert torch.equal(cover(m, torch.zeros(1, 3, 4), "n"), torch.tensor([[[1.0, 1, 0, 0]]]))
    frames = torch.stack((m[0], 1 - m[0], m[0]))
    video = cover(frames, torch.zeros(1, 3, 3, 2, 4), "n")
    assert video.shape == (1, 1, 3, 2, 4) and torch.equal(video[0, 0, 1], 1 - video[0, 0, 0])
    assert cover(frames, torch.zeros(1, 3, 2, 2, 4), "n").shape == (1, 1, 2, 2, 4)      # pictures for two latent frames
    assert cover(frames[:2], torch.zeros(2, 3, 5, 2, 4), "n").shape == (2, 1, 1, 2, 4)      # one for each of the batch
    for like in (torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 8)):
        with pytest.raises(BadInput, match="3 masks"):
            cover(frames, like, "n")
    with pytest.raises(BadInput, match="2 masks"):
        cover(frames[:2], torch.zeros(1, 3, 5, 2, 4), "n")
    for shape in ((1, 4, 6, 4, 4), (1, 4, 9)):
        out = finish(made(space="latent", upper="0.1", region=m), torch.ones(shape))
        assert float(out.min()) == pytest.approx(-0.2) and float(out.max()) == 1


def test_what_is_not_possible_is_named():
    for values, word in (({"upper": "red"}, "upper"), ({"lower": "0.6", "upper": "0.5"}, "above its upper"), ({"lower": "0,0", "upper": "1,1,1"}, "lower bounds")):
        with pytest.raises(BadInput, match=word):
            ValueConstraint(**values).validate()
    with pytest.raises(BadInput, match="3 channels"):
        made(upper="1,1")
    with pytest.raises(BadInput, match="4 channels"):
        made(space="latent", upper="1,1,1")
