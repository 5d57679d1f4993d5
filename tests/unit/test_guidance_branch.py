"""Guided Decode (GuideSR) on tensors: the branch's formula, its file, and what it is given."""
import json
import os

import pytest
import torch
import torch.nn.functional as F

from lodestar.demo.guidance_branch import NAME, WIDTH, fresh
from lodestar.guidance.inverse.guidance_branch import GuidedDecode, fitting, guided, parse
from lodestar.guidance.method import BadInput

pytestmark = pytest.mark.method("LodestarGuidedDecode")


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def weights_of(seed=1, **values):
    w = fresh(seed, **{"width": 5, "body": (2, 1), "fuse": (1,), **values})
    return {k: v + 0.2 * torch.randn(v.shape, generator=torch.Generator().manual_seed(i)) for i, (k, v) in enumerate(w.items())}


@pytest.fixture(scope="module")
def branch():
    return parse(weights_of(), "test", "file")


def test_the_residual_is_the_formula(branch):
    w, degraded, drawn = weights_of(), random(2, 3, 9, 7), random(2, 3, 9, 7, seed=1)
    conv = lambda x, name: F.conv2d(F.pad(x, [(w[f"{name}.weight"].shape[-1] - 1) // 2] * 4), w[f"{name}.weight"], w[f"{name}.bias"])

    def block(x, name, count):
        h = x
        for j in range(count):
            t = F.gelu(conv(h, f"{name}.blocks.{j}.conv1"))
            share = 1 / (1 + torch.exp(-conv(F.adaptive_avg_pool2d(t, 1), f"{name}.blocks.{j}.gate")))
            h = h + conv(t * share, f"{name}.blocks.{j}.conv2")
        return x + conv(h, f"{name}.tail")
    first = conv(degraded, "enter")
    f = first + conv(block(block(first, "body.0", 2), "body.1", 1), "tail")
    a = torch.sigmoid(conv(F.gelu(conv(torch.cat((drawn, degraded), 1), "guide.attend.0")), "guide.attend.1"))
    f = f + a * conv(f, "guide.project")
    wanted = conv(block(conv(torch.cat((f, drawn), 1), "fuse.enter"), "fuse.body.0", 1), "leave")
    torch.testing.assert_close(branch.residual(degraded, drawn), wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(guided(branch, degraded, drawn, 0.5), (drawn + 0.5 * wanted).clamp(0, 1), atol=1e-4, rtol=1e-4)
    assert branch.blocks == {"body": (2, 1), "fuse.body": (1,)} and branch.width == 5 and 0 < branch.attention(degraded, drawn).min() < branch.attention(degraded, drawn).max() < 1


def test_no_strength_and_no_training_leave_every_bit(branch):
    degraded, drawn = random(2, 3, 8, 8), random(2, 3, 8, 8, seed=1)
    assert guided(branch, degraded, drawn, 0.0) is drawn and GuidedDecode(strength=0.0).validate().strength == 0
    assert torch.equal(guided(parse(fresh(), "test", "file"), degraded, drawn, 1.0), drawn)
    assert (guided(branch, degraded, drawn, 1.0) - drawn).abs().max() > 1e-2


def test_a_batch_is_its_pictures(branch):
    degraded, drawn = random(3, 3, 8, 12), random(3, 3, 8, 12, seed=1)
    out = branch.residual(degraded, drawn)
    for i in range(3):
        assert (branch.residual(degraded[i:i + 1], drawn[i:i + 1]) - out[i:i + 1]).abs().max() < 1e-5 * out.abs().max()


def test_it_works_at_full_resolution(branch):
    """One pixel to the side in, one pixel to the side out: no grid of coarser cells, as behind a VAE."""
    degraded, drawn = torch.full((1, 3, 64, 64), 0.3), torch.full((1, 3, 64, 64), 0.6)
    degraded[..., 28:34, 27:33], drawn[..., 28:34, 27:33] = random(1, 3, 6, 6), random(1, 3, 6, 6, seed=1)
    moved = branch.residual(degraded.roll((1, 1), (-2, -1)), drawn.roll((1, 1), (-2, -1)))
    out = branch.residual(degraded, drawn)
    torch.testing.assert_close(moved.roll((-1, -1), (-2, -1))[..., 18:44, 18:44], out[..., 18:44, 18:44], atol=1e-4, rtol=1e-4)
    assert (moved - out)[..., 18:44, 18:44].abs().max() > 1e-2


def test_channels_are_weighed_by_the_whole_picture(branch):
    """A far corner reaches a place by the channel attention alone."""
    degraded, drawn = random(1, 3, 80, 80), random(1, 3, 80, 80, seed=1)
    other = degraded.clone()
    other[..., :8, :8] = 1 - other[..., :8, :8]
    far = (branch.residual(other, drawn) - branch.residual(degraded, drawn))[..., 60:, 60:].abs().max()
    closed = parse({k: torch.zeros_like(v) if k.endswith("gate.weight") else v for k, v in weights_of().items()}, "test", "file")
    assert far > 1e-6 and torch.equal(closed.residual(other, drawn)[..., 60:, 60:], closed.residual(degraded, drawn)[..., 60:, 60:])


def test_degraded_pictures_are_brought_to_size():
    u = random(2, 6, 4, 4)      # with an alpha channel
    found = fitting(u, 5, (12, 8))
    assert found.shape == (5, 3, 12, 8) and found.min() >= 0 and found.max() <= 1
    for i in range(5):
        assert torch.equal(found[i], fitting(u[i % 2:i % 2 + 1], 1, (12, 8))[0])
    assert torch.equal(fitting(u, 2, (6, 4)), u[..., :3].movedim(-1, 1))
    flat = torch.full((1, 16, 16, 3), 0.25)
    for size in ((32, 32), (8, 4)):
        torch.testing.assert_close(fitting(flat, 1, size), torch.full((1, 3, *size), 0.25))


@pytest.mark.parametrize("change, message", [
    (lambda w: {}, "it has none"),
    (lambda w: w | {"conv_in.weight": torch.zeros(2, 2)}, "conv_in.weight"),
    (lambda w: {k: v for k, v in w.items() if k != "guide.project.bias"}, "guide.project.bias missing"),
    (lambda w: {k: v for k, v in w.items() if not k.startswith("body.0.blocks.0.gate")}, "body.0.blocks.0.gate.weight"),
    (lambda w: {k: v for k, v in w.items() if not k.startswith("body.0.")}, "body.0.tail.weight"),
    (lambda w: w | {"body.1.tail.weight": torch.zeros(5, 4, 3, 3)}, r"body.1.tail.weight has the shape \[5, 4, 3, 3\]: a convolution of 5 to 5"),
    (lambda w: w | {"leave.weight": torch.zeros(3, 5, 2, 2)}, "odd kernel"),
    (lambda w: w | {"fuse.enter.weight": torch.zeros(5, 5, 3, 3)}, "8 to 5")])
def test_wrong_files_are_named(change, message):
    with pytest.raises(BadInput, match=message):
        parse(change(weights_of()), "Load Guidance Branch", "file", "a file")


def test_the_bundled_file():
    from lodestar.demo.weights_file import FOLDER, read
    branch = parse(read(NAME), "test", "file")
    assert branch.width == WIDTH and os.path.getsize(os.path.join(FOLDER, f"{NAME}.safetensors")) < 500_000
    with open(os.path.join(FOLDER, f"{NAME}.json"), encoding="utf-8") as f:
        figures = json.load(f)
    assert figures["loss"] < 0.5 * figures["loss_without_training"]


def test_wrong_values_are_named():
    with pytest.raises(BadInput, match="strength"):
        GuidedDecode(strength=3.0).validate()
