"""Self-Attention Guidance and Blur Guidance: the attention mask on tensors, the guidance on closed-form models."""
from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from lodestar.guidance import engine
from lodestar.guidance.attention.edits import Site
from lodestar.guidance.layers import Geometry, Layer
from lodestar.guidance.method import NEGATIVE, BadInput, Step, noise_of
from lodestar.guidance.perturbation import sag
from lodestar.guidance.perturbation.common import blur2d
from lodestar.guidance.perturbation.sag import AttentionMass, BlurGuidance, Blurred, SelfAttentionGuidance, attention_mass
from lodestar.tests.toys import a_step, mixture, state

SAG, BLUR = "LodestarSelfAttentionGuidance", "LodestarBlurGuidance"
FLOWS = pytest.mark.parametrize("flow", [False, True])


def qk(rows=2, heads=3, tokens=12, dim=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, heads, tokens, dim, generator=g) for _ in range(2)]


@pytest.mark.method(SAG)
@pytest.mark.parametrize("chunk", (2 ** 24, 100))
def test_the_mass_is_the_attention_that_a_place_gets(monkeypatch, chunk):
    monkeypatch.setattr(sag, "CHUNK", chunk)
    q, k = qk()
    weights = (q @ k.transpose(-1, -2) / 2.0).softmax(-1)
    mass = attention_mass(q, k, slice(None))
    torch.testing.assert_close(mass, weights.mean(1).sum(1))
    torch.testing.assert_close(mass.mean(1), torch.ones(2))
    for text, image in ((slice(0, 4), slice(4, 12)), (slice(8, 12), slice(0, 8))):
        part = weights[:, :, image, image].mean(1).sum(1)
        torch.testing.assert_close(attention_mass(q, k, image, text), part / part.mean(1, keepdim=True))


@pytest.mark.method(SAG)
def test_the_reading_changes_nothing_and_is_put_together_on_the_latents_grid():
    q, k = qk()
    noted = []
    site = Site("self", None, 3, 4, note=lambda edit, t: noted.append(t))
    attend = F.scaled_dot_product_attention
    assert torch.equal(AttentionMass().apply(site, q, k, k, attend), attend(q, k, k))
    assert noted[0].shape == (2, 1, 3, 4)
    edit = AttentionMass()
    whole = edit.gather([(None, None, noted[0])], (2, 4, 6, 8))
    torch.testing.assert_close(whole[:, 0], noted[0][:, 0].repeat_interleave(2, 1).repeat_interleave(2, 2))
    left, right = torch.full((2, 1, 3, 2), 1.0), torch.full((2, 1, 3, 2), 3.0)
    parts = [((6, 4, 0, 0), None, left), ((6, 6, 0, 2), None, right)]          # an area is (height, width, y, x); they overlap in two columns
    joined = edit.gather(parts, (2, 4, 6, 8))[0, 0, 0]
    assert joined.tolist() == [1, 1, 2, 2, 3, 3, 3, 3]
    video = edit.gather([(None, None, torch.rand(1, 2, 3, 4))], (1, 4, 4, 6, 8))
    assert video.shape == (1, 1, 4, 6, 8)
    blocks = lambda stage, n: tuple(Layer(stage, i) for i in range(n))
    assert edit.default_layers(Geometry("flux", blocks("double", 19) + blocks("single", 38))) == "double.9"
    deep = Geometry("unet", (Layer("input", 1), Layer("middle", 0, 0), Layer("middle", 0, 1)))
    assert edit.default_layers(deep) == "middle.0.0"


def guided(method, flow, w=3.0, sigma=0.7, reading=None):
    """(result, CFG, negative prediction, step, the model): one call of the engine on a closed-form mixture."""
    model = mixture(flow, shape=(2, 6, 6), dtype=torch.float64)
    x = state(model, 2, sigma)
    r = engine.Run(engine.Pipeline((method,)), torch.tensor([1.0, sigma, 0.0]), flow, lambda p: 1.0 - p)
    evaluate = model.evaluate()
    c, u = model(x, sigma, (0,)), model(x, sigma)
    out = engine.predict(r, x, torch.full((2,), sigma, dtype=x.dtype), w, evaluate)
    return out, (u + w * (c - u) if w != 1 else c), (u if w != 1 else c), a_step(x, sigma, flow), model


@FLOWS
@pytest.mark.method(BLUR)
@pytest.mark.parametrize("w", (1.0, 3.0))
def test_blur_guidance_is_a_difference_of_noise_predictions(flow, w):
    """result = base + scale (d - D(x')), and in noise predictions scale (eps(x) - eps(x')), at the blurred input with its own noise."""
    out, base, u, step, model = guided(BlurGuidance(scale=0.7, blur_sigma=1.5, kernel=5), flow, w)
    d = blur2d(u.float(), 1.5, (5, 5)).to(u)
    sigma = float(step.sigma[0])
    x = step.x + (1 - sigma if flow else 1.0) * (d - u)
    at = model(x, sigma, (0,) if w == 1 else None)
    torch.testing.assert_close(out, base + 0.7 * (d - at), rtol=1e-5, atol=1e-6)
    noise, noise_at = noise_of(step, u), (x - step.a * at) / step.s
    change = noise_of(step, out) - noise_of(step, base)
    torch.testing.assert_close(change, -0.7 * step.a / step.s * (u - (at + u - d)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(change, 0.7 * (noise - noise_at), rtol=1e-4, atol=1e-5)


@FLOWS
@pytest.mark.method(BLUR)
def test_blur_guidance_smooths_a_linear_denoiser(flow):
    """Gaussian data with one variance everywhere: per frequency the change is -scale (1 - k) (1 - b) u, k the Wiener factor, b the blur's response."""
    variance, sigma, size = 0.5, 0.6, 32
    a = 1 - sigma if flow else 1.0
    k = a * a * variance / (a * a * variance + sigma * sigma)
    x = torch.cos(2 * math.pi * 4 * torch.arange(size, dtype=torch.float64) / size).expand(1, 1, size, size).contiguous()
    u = k / a * x
    step, method = a_step(x, sigma, flow), BlurGuidance(scale=1.0, blur_sigma=1.0)
    step.w = 1.0
    clean, degraded = method.branches(step)
    change = degraded.transform
    at = change.leave(step, x, k / a * change.enter(step, x, {clean: u}), {clean: u})
    delta = method.delta(step, u, {clean: u, degraded: at}, {})
    soft = blur2d(u, 1.0, (9, 9))
    torch.testing.assert_close(delta, -(1 - k) * (u - soft), rtol=1e-5, atol=1e-6)
    middle = slice(8, 24)
    ratio = (delta / u)[0, 0, middle, middle][u[0, 0, middle, middle].abs() > 0.1]
    assert ratio.max() < 0 and (ratio - ratio.mean()).abs().max() < 1e-4        # a cosine is blurred by one factor


@FLOWS
@pytest.mark.method(SAG)
@pytest.mark.method(BLUR)
def test_identities(flow):
    for method in (BlurGuidance(scale=0.0), BlurGuidance(blur_sigma=0.0), SelfAttentionGuidance(scale=0.0), SelfAttentionGuidance(blur_sigma=0.0)):
        assert method.neutral()
    out, base, *_ = guided(BlurGuidance(blur_sigma=1e-3), flow)
    torch.testing.assert_close(out, base, rtol=1e-5, atol=1e-6)
    # a mask that is nowhere leaves the input, one that is everywhere is Blur Guidance
    step = a_step(torch.randn(2, 2, 6, 6, generator=torch.Generator().manual_seed(0)), 0.7, flow)
    step.w = 3.0
    clean, masked = SelfAttentionGuidance(threshold=1.0).branches(step)
    everywhere = BlurGuidance().branches(step)[1]
    mass, u = torch.rand(2, 1, 6, 6) + 0.5, torch.randn(2, 2, 6, 6)
    change, reading = masked.transform, masked.transform.reading
    for method, value in ((change, mass * 0), (Blurred("negative", 2.0, 9, reading, 1.0, True), mass + 10)):
        assert torch.equal(method.enter(step, step.x, {clean: u, reading: value}), step.x)
        assert torch.equal(method.leave(step, step.x, u, {clean: u, reading: value}), u)
    seen = {clean: u, reading: mass + 10}
    assert torch.equal(change.enter(step, step.x, seen), everywhere.transform.enter(step, step.x, {clean: u}))
    where = (mass > 1).expand_as(u)
    part = change.change(step, {clean: u, reading: mass})
    whole = everywhere.transform.change(step, {clean: u})
    assert torch.equal(part[where], whole[where]) and part[~where].abs().max() == 0


@pytest.mark.method(SAG)
@pytest.mark.method(BLUR)
def test_plan_and_sharing():
    x = torch.zeros(2, 1, 6, 6)
    step = lambda: Step(x, torch.ones(2), percent_to_sigma=lambda p: 2 * (1 - p))
    both = engine.Pipeline((BlurGuidance(scale=1.0), SelfAttentionGuidance(scale=2.0, mask="all"), SelfAttentionGuidance(scale=1.0), SelfAttentionGuidance(scale=3.0)))
    active = engine.plan(engine.Run(both), step(), 4.0)
    assert len(active.branches) == 2 and len(active.readings) == 1 and active.wants_negative
    assert all(b.prompt == "negative" for b in active.branches) and active.readings[0].prompt == "negative"
    alone = engine.plan(engine.Run(both), step(), 1.0)
    assert not alone.wants_negative and all(b.prompt == "positive" for b in alone.branches) and alone.readings[0].prompt == "positive"
    with pytest.raises(BadInput, match="odd"):
        BlurGuidance(kernel=4).validate()
    with pytest.raises(RuntimeError, match="was not evaluated"):
        engine.transformed(active.branches[0], step(), x, torch.ones(2), {}, None)


@pytest.mark.method(BLUR)
def test_frames_of_a_video_are_blurred_alone():
    u = torch.randn(1, 2, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    change = Blurred("negative", 1.0, 3).change(None, {NEGATIVE: u})
    for i in range(3):
        torch.testing.assert_close(change[:, :, i] + u[:, :, i], blur2d(u[:, :, i], 1.0, (3, 3)))
