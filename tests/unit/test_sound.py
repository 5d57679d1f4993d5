"""Losses of sound and Sound Guidance against their formulas."""
from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from lodestar.guidance.inverse import levels
from lodestar.guidance.inverse.levels import noise_source
from lodestar.guidance.inverse.solver import at
from lodestar.guidance.loss.base import LossContext
from lodestar.guidance.loss.solvers.sound import SoundGuidance
from lodestar.guidance.loss.sound import SoundContext, SoundStyle, SpectralSound, context_mask, joined
from lodestar.guidance.method import BadInput
from lodestar.nodes import definitions
from lodestar.nodes.sound import _context, _made
from lodestar.tests.toys import euler, gaussian, mixture, state
from lodestar.tests.toys import levels as schedule

pytestmark = pytest.mark.method("LodestarSoundGuidance")
FLOWS = pytest.mark.parametrize("flow", [False, True], ids=("k", "flow"))


def sound(seed=0, length=40, batch=2):
    return torch.randn(batch, 3, length, generator=torch.Generator().manual_seed(seed))


def test_what_is_known_in_each_task():
    m = context_mask("continuation", 10, 0.4, 0.0, 0.0)
    assert torch.equal(m, torch.tensor([1.0] * 4 + [0] * 6))
    assert torch.equal(context_mask("inpainting", 10, 0.3, 0.6, 0.0), torch.tensor([1.0] * 3 + [0] * 3 + [1] * 4)) and bool((context_mask("regeneration", 10, 0, 0, 0) == 1).all())
    soft = context_mask("transition", 100, 0.4, 0.6, 0.2)
    assert float(soft[:20].min()) == 1 and float(soft[30]) == pytest.approx(0.5, abs=0.1) and not soft[40:60].any() and bool((soft[20:40].diff() < 0).all()) and torch.allclose(soft, soft.flip(0), atol=1e-5)
    a, b = sound(0, 30), sound(1, 30)
    out = joined(a, b, 40, 0.5, 0.75)
    assert torch.equal(out[..., :20], a[..., 10:]) and torch.equal(out[..., 30:], b[..., :10]) and not out[..., 20:30].any()
    with pytest.raises(BadInput, match="longer"):
        joined(a, b, 80, 0.5, 0.75)


def test_context_and_style_of_latents():
    y, m = sound(1, batch=1), context_mask("continuation", 40, 0.5, 0.0, 0.0).view(1, 1, 40)
    d = sound()
    loss = SoundContext(target=y, mask=m)
    torch.testing.assert_close(loss.value(d, LossContext()), (d - y)[..., :20].flatten(1).norm(dim=1))
    torch.testing.assert_close(dataclasses.replace(loss, norm=False, weight=2.0).value(d, LossContext()), 2 * (d - y)[..., :20].square().flatten(1).mean(1))
    tall = SoundContext(target=y[:, :, None].expand(-1, -1, 5, -1), mask=m).value(d[:, :, None].expand(-1, -1, 5, -1), LossContext())
    torch.testing.assert_close(tall, math.sqrt(5) * (d - y)[..., :20].flatten(1).norm(dim=1))
    nothing = SoundContext(target=y, mask=0 * m).value(d, LossContext())
    assert nothing.abs().max() < 1e-5
    style = SoundStyle(target=y)
    assert float(style.value(y.flip(-1), LossContext())) < 1e-6 < 0.1 < float(style.value(3 * y + 1, LossContext()))      # order does not count
    for wrong in (SoundContext(target=y[..., :30], mask=m), SoundStyle(target=y[:, :2])):
        with pytest.raises(BadInput, match="shape"):
            wrong.value(d, LossContext())


def test_spectra_hear_pitch_and_not_phase():
    t = torch.arange(8192) / 8000
    tone = lambda f, phase=0.0: torch.sin(2 * math.pi * f * t + phase)[None, None]
    loss = lambda u, y: SpectralSound(target=y, decoder=lambda z: z).value(u, LossContext())
    same, shifted, other = (float(loss(u, tone(440))) for u in (tone(440), tone(440, 1.0), tone(660)))
    assert same < 1e-5 and shifted < 0.2 * other
    with pytest.raises(BadInput, match="256"):
        loss(tone(440)[..., :100], tone(440))
    u = tone(440).clone().requires_grad_()
    g, = torch.autograd.grad(loss(u.expand(2, 2, -1), tone(660)).sum(), u)
    assert bool(torch.isfinite(g).all()) and float(g.abs().max()) > 0


def run(method, model, x, sigmas, flow=False):
    return method.run(model, x, sigmas, method.problem(sigmas, flow), flow, noise_source(x, 0), None, lambda checkpoint=False: torch.enable_grad())


def context(model, scale=1.0, project=False, **values):
    y = torch.linspace(-1, 1, 8, dtype=torch.float64).expand(1, 3, 8).contiguous()
    m = context_mask("continuation", 8, 0.5, 0.0, 0.0).view(1, 1, 8)
    more = {"context": {"samples": y}, "known": m} if project else {}
    return SoundGuidance(loss=SoundContext(target=y, mask=m), scale=scale, **more, **values).validate(), y


@FLOWS
def test_off_is_plain_batches_are_singles_and_the_known_part_comes_near(flow):
    model = mixture(flow, (3, 8))
    sigmas = schedule(flow, 10)
    x = state(model, 2, float(sigmas[0]))
    method, y = context(model, 0.3, eta=0.0)
    out, plain = run(method, model, x, sigmas, flow), euler(x, sigmas, model)
    torch.testing.assert_close(run(method, model, x[:1], sigmas, flow), out[:1])
    torch.testing.assert_close(run(context(model, 0.0, eta=0.0)[0], model, x, sigmas, flow), plain, rtol=0, atol=1e-9)
    away = lambda z: (z - y)[..., :4].flatten(1).norm(dim=1)
    assert (away(out) < away(plain)).all()
    for scale in (0.0, 0.3):
        exact = run(context(model, scale, project=True, eta=0.5)[0], model, x, sigmas, flow)
        torch.testing.assert_close(exact[..., :4], y[..., :4].expand(2, -1, -1))
        assert (exact - y)[..., 4:].abs().max() > 0.05
    with pytest.raises(BadInput, match="known"):
        SoundGuidance(loss=None, context={"samples": y}).validate()


@FLOWS
def test_a_step_is_its_formula(flow):
    model = gaussian(shape=(3, 8), flow=flow)
    sigmas = schedule(flow, 6)
    x = state(model, 2, float(sigmas[2]))
    method, y = context(model, 0.7, eta=0.0)
    p = at(model, x, sigmas, 2, method.prepared(method.problem(sigmas, flow), x), flow, noise_source(x, 0), lambda checkpoint=False: torch.enable_grad())
    leaf = x.clone().requires_grad_()
    denoised = model(leaf, sigmas[2] * torch.ones(2, dtype=x.dtype))
    g, = torch.autograd.grad((denoised - y)[..., :4].flatten(1).norm(dim=1).sum(), leaf)
    d = denoised.detach()
    wanted = p.a_next * d + p.s_next * (x - p.a * d) / p.s - 0.7 * levels.amplitude(p.s, flow) * levels.amplitude(p.s_next, flow) * g
    torch.testing.assert_close(method.advance(p), wanted)


def test_nodes():
    with torch.inference_mode():
        latent, known = {"samples": torch.zeros(1, 3, 40)}, {"samples": sound(0, 30, 1)}
        out, mask = _context(latent, known, 10.0, "continuation", 9.0, 0.0, 0.0, None)
        assert torch.equal(out["samples"][..., :30], known["samples"]) and float(mask.sum()) == 30      # the sound ends before `begin`
        out, mask = _context(latent, known, 10.0, "transition", 4.0, 6.0, 1.0, known)
        assert out["samples"].shape == (1, 3, 40) and mask.shape == (1, 1, 40)
        model = SimpleNamespace(get_model_object=lambda name: SimpleNamespace(process_in=lambda z: 2 * z))
        loss, = _made(SoundContext)(model, context=out, known=mask, weight=2.0)
        assert torch.equal(loss.target, 2 * out["samples"]) and not loss.target.is_inference() and loss.weight == 2
    for task, begin, second, word in (("transition", 4.0, None, "second"), ("inpainting", 7.0, None, "begin"), ("continuation", 4.0, known, "second")):
        with pytest.raises(BadInput, match=word):
            _context(latent, known, 10.0, task, begin, 6.0, 0.0, second)
    with pytest.raises(BadInput, match="same model"):
        _context(latent, {"samples": torch.zeros(1, 3, 2, 40)}, 10.0, "continuation", 4.0, 6.0, 0.0, None)
    assert {"LodestarSoundContext", "LodestarSoundContextLoss", "LodestarSoundStyleLoss", "LodestarSpectralSoundLoss", SoundGuidance.node_id} <= set(definitions())
