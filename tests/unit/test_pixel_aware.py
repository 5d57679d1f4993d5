"""Pixel-Aware Attention (PASD) on tensors: what a layer sees of the degraded picture, which features belong to it, files."""
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from lodestar.demo.pixel_aware import NAME, fresh, layers
from lodestar.guidance.attention.module_edits import ModuleSite
from lodestar.guidance.attention.sources import Held
from lodestar.guidance.inverse.pixel_aware import LooksAtPixels, PixelAwareAttention, Placed, encoded, looked, parse
from lodestar.guidance.method import BadInput, Step

pytestmark = pytest.mark.method("LodestarPixelAwareAttention")
SHAPES = {name: shape for i, (place, width, seen) in enumerate(layers()) for name, shape in
          ((f"up_blocks.{place[0]}.resnets.{place[1]}", ()), (f"up_blocks.{place[0]}.resnets.{place[1]}.conv2", (width, width, 3, 3)), (f"up_blocks.{place[0]}.attentions.{place[1]}", ()))}


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weights(encoder=True, seed=0):
    """The bundled layout with something in every place."""
    w = {k: v + 0.1 * random(*v.shape, seed=i) for i, (k, v) in enumerate(fresh(seed).items())}
    return w if encoder else {k: v for k, v in w.items() if not k.startswith("pixel_encoder")}


def facts(shapes=SHAPES, network="UNet"):
    return SimpleNamespace(network=network, module_shapes=None if shapes is None else shapes.get, heads=lambda width: width // 32, inward=lambda z: 2 * z)


def site(n, control=None, rows=None, size=None):
    kept = {}

    def keep(key, make):
        if key not in kept:
            kept[key] = make()
        return kept[key]
    return ModuleSite(torch.arange(n) % (size or n), keep, None, control, rows)


def edit_of(w=None, latent=None, **values):
    method = PixelAwareAttention(weights=parse(weights() if w is None else w, "test", "file"), latent={"samples": random(2, 16, 16, 16)} if latent is None else latent, **values)
    return method.fitted(facts()).edits(Step(torch.zeros(1, 16, 16, 16), torch.ones(1)))[0]


def test_a_pixel_looks_at_pixels_alone():
    """Other pixels' features reach a pixel by attention, whatever their order; with one pixel of features it is a plain sum."""
    w = parse(weights(), "test", "file").layers[1, 0]
    h, f = random(2, 64, 4, 6), random(2, 64, 4, 6, seed=1)
    out = looked(w, h, f, 2)
    assert out.shape == h.shape
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    shuffled = f.flatten(2)[:, :, order].view_as(f)
    torch.testing.assert_close(looked(w, h, shuffled, 2), out, atol=1e-5, rtol=1e-5)
    both = looked(w, h[..., order.view(4, 6) // 6, order.view(4, 6) % 6], f, 2)      # the picture's pixels in another order: the same, in that order
    torch.testing.assert_close(both, out.flatten(2)[:, :, order].view_as(out), atol=1e-5, rtol=1e-5)
    none = {**w, "proj_out.weight": torch.zeros_like(w["proj_out.weight"]), "proj_out.bias": torch.zeros_like(w["proj_out.bias"])}
    assert not looked(none, h, f, 2).any()
    conv = {**w, "proj_in.weight": w["proj_in.weight"][..., None, None], "proj_out.weight": w["proj_out.weight"][..., None, None]}      # as in Stable Diffusion 1.5
    assert torch.equal(looked(conv, h, f, 2), out)
    for i in range(2):
        torch.testing.assert_close(looked(w, h[i:i + 1], f[i:i + 1], 2), out[i:i + 1])


def test_the_encoders_maps_are_those_of_the_skip_connections():
    w, z = parse(weights(), "test", "file").encoder, random(2, 16, 16, 12)
    found = encoded(w, z)
    assert [tuple(f.shape[1:]) for f in found] == [(128, 8, 6), (64, 8, 6), (64, 16, 12), (64, 16, 12)]
    fine = F.silu(F.conv2d(z, w["enter.weight"], w["enter.bias"], padding=1))
    torch.testing.assert_close(found[3], F.conv2d(fine, w["leave.3.weight"], w["leave.3.bias"], padding=1))
    coarse = F.silu(F.conv2d(fine, w["down.0.weight"], w["down.0.bias"], 2, 1))
    torch.testing.assert_close(found[0], F.conv2d(coarse, w["leave.0.weight"], w["leave.0.bias"], padding=1))


def test_features_enter_the_skip_and_are_looked_at():
    latent = {"samples": random(2, 16, 16, 16)}
    edit = edit_of(latent=latent, strength=0.5, control=0.7)
    found = encoded(parse(weights(), "test", "file").encoder, 2 * latent["samples"])      # as the model sees it
    given, out = random(4, 128 + 64, 8, 8), random(4, 128, 8, 8, seed=2)
    there = site(4, size=2)
    entered = edit.enter(there, "up_blocks.0.resnets.1", None, given)
    assert torch.equal(entered[:, :128], given[:, :128])
    torch.testing.assert_close(entered[:, 128:], given[:, 128:] + 0.7 * found[1].repeat(2, 1, 1, 1))
    result = edit.result(there, "up_blocks.0.attentions.1", None, out, given)
    torch.testing.assert_close(result, out + 0.5 * looked(parse(weights(), "test", "file").layers[0, 1], out, found[1].repeat(2, 1, 1, 1), 4), atol=1e-5, rtol=1e-5)
    assert torch.equal(edit.result(there, "up_blocks.0.resnets.1", None, out, given), out)
    assert set(edit.names()) == {n for n in SHAPES if not n.endswith("conv2")}
    other = edit.result(site(2), "up_blocks.1.attentions.0", None, random(2, 64, 20, 16), None)      # another size: the features are brought to it
    assert other.shape == (2, 64, 20, 16)


def test_a_controlnets_residuals_are_the_features():
    edit = edit_of(weights(encoder=False), latent={}, strength=1.0)
    assert set(edit.names()) == {n for n in SHAPES if ".attentions." in n}
    residuals = [random(3, c, s, s, seed=i) for i, (c, s) in enumerate(((64, 16), (64, 16), (64, 8), (128, 8)))]      # the host takes them from the end
    out = random(3, 64, 16, 16, seed=9)
    w = parse(weights(encoder=False), "test", "file").layers[1, 1]
    result = edit.result(site(3, {"output": residuals}), "up_blocks.1.attentions.1", None, out, None)
    torch.testing.assert_close(result, out + looked(w, out, residuals[0], 2))
    rows = torch.tensor([2, 0])
    part = edit.result(site(2, {"output": residuals}, rows), "up_blocks.1.attentions.1", None, out[rows], None)
    torch.testing.assert_close(part, result[rows], atol=1e-5, rtol=1e-5)
    for control in ({}, {"output": [None, *residuals[1:]]}, {"output": residuals[3:]}):      # it has ended, or gives nothing here
        assert torch.equal(edit.result(site(3, control), "up_blocks.1.attentions.1", None, out, None), out)
    with pytest.raises(ValueError, match="no prompt has a ControlNet"):
        edit.result(site(3, None), "up_blocks.1.attentions.1", None, out, None)


def test_files():
    whole = {f"unet.{k}" if k.startswith("up_") else k: v for k, v in weights().items()} | {"down_blocks.0.resnets.0.conv1.weight": torch.zeros(1), "conv_in.weight": torch.zeros(1)}
    found = parse(whole, "test", "file")
    assert list(found.layers) == [p for p, *_ in layers()] and [found.width(p) for p in found.layers] == [w for _, w, _ in layers()] and [found.seen(p) for p in found.layers] == [s for *_, s in layers()]
    for change, message in ((lambda w: {"conv_in.weight": torch.zeros(1)}, "holds no pixel-aware attention"),
                            (lambda w: {k: v for k, v in w.items() if "1.pixel_attentions.0.transformer_blocks.0.attn2.to_k" not in k}, r"up_blocks.1.pixel_attentions.0 is not complete: .*attn2.to_k"),
                            (lambda w: {k: v for k, v in w.items() if not k.startswith("pixel_encoder.leave.3")}, "pixel_encoder.leave.3.weight missing")):
        with pytest.raises(BadInput, match=message):
            parse(change(weights()), "Load Pixel-Aware Attention", "file", "a file")


def test_what_cannot_be_is_named():
    file = parse(weights(), "test", "file")
    latent = {"samples": torch.zeros(1, 16, 4, 4)}
    with pytest.raises(BadInput, match="Connect Load Pixel-Aware Attention"):
        PixelAwareAttention().fitted(facts())
    with pytest.raises(BadInput, match="Use a U-Net"):
        PixelAwareAttention(weights=file, latent=latent).fitted(facts(None, "Flux"))
    with pytest.raises(BadInput, match="encoder of its own"):
        PixelAwareAttention(weights=file).fitted(facts())
    with pytest.raises(BadInput, match="with 16 channels"):
        PixelAwareAttention(weights=file, latent={"samples": torch.zeros(1, 4, 4, 4)}).fitted(facts())
    with pytest.raises(BadInput, match="another model: up_blocks.0.resnets.0.conv2"):
        PixelAwareAttention(weights=file, latent=latent).fitted(facts({**SHAPES, "up_blocks.0.resnets.0.conv2": (320, 320, 3, 3)}))
    with pytest.raises(BadInput, match=r"up_blocks.1.pixel_attentions.1, and UNet has no such layer"):
        PixelAwareAttention(weights=file, latent=latent).fitted(facts({k: v for k, v in SHAPES.items() if "1.resnets.1" not in k}))
    method = PixelAwareAttention(weights=file, latent=latent, negative_rows="off")
    made = method.fitted(facts())
    edit, = made.edits(Step(torch.zeros(1, 16, 4, 4), torch.ones(1)))
    assert isinstance(made.weights, Placed) and isinstance(edit, LooksAtPixels) and edit.reach == "positive" and not edit.everywhere and edit.latent == Held(edit.latent.value)
    assert PixelAwareAttention(weights=file, strength=0.0, control=0.0).neutral() and not PixelAwareAttention(weights=file, strength=0.0).neutral()
    assert PixelAwareAttention(weights=parse(weights(False), "t", "f"), strength=0.0).neutral()


def test_the_bundled_file():
    import json
    import os

    from lodestar.demo.weights_file import FOLDER, read
    found = parse(read(NAME), "test", "file")
    assert {k: tuple(v.shape) for k, v in read(NAME).items()} == {k: tuple(v.shape) for k, v in fresh().items()} and found.encoder
    assert os.path.getsize(os.path.join(FOLDER, f"{NAME}.safetensors")) < 2_000_000
    with open(os.path.join(FOLDER, f"{NAME}.json"), encoding="utf-8") as f:
        figures = json.load(f)
    assert figures["loss"] < 0.95 * figures["loss_without_training"]
