"""Warps, and Feature-Correspondence Guidance on tensors."""
import math

import pytest
import torch

from lodestar.guidance.attention import warps
from lodestar.guidance.attention.edits import Shared, Site
from lodestar.guidance.attention.feature_correspondence import FeatureCorrespondenceGuidance, WatchedFeatures, WatchedValues, default_layers, distance
from lodestar.guidance.attention.sources import Held, Source
from lodestar.guidance.layers import Geometry, Layer
from lodestar.guidance.method import BadInput, Branch, Step
from lodestar.nodes.warps import NODES

pytestmark = pytest.mark.method("LodestarFeatureCorrespondenceGuidance")
REFERENCE = Branch(source=Source(Held({"samples": torch.zeros(1, 4, 6, 8)})))
FLAT = torch.ones(1, 6, 8)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_no_movement_is_the_identity():
    warp = warps.view_warp(FLAT)
    x = noise(2, 3, 6, 8)
    torch.testing.assert_close(warp.apply(x), x, atol=1e-5, rtol=0)
    assert warp.seen.all() and distance(x, x, warp).abs().max() < 1e-6
    torch.testing.assert_close(warps.with_detail(warp.apply(x), x, 0.2), x, atol=1e-5, rtol=0)


def test_a_plane_in_front_of_the_camera():
    """Sideways by one cell's width at distance 1: all of the picture moves by a cell. Forward by d: the middle grows by 1 + d."""
    cell = 2 * math.tan(math.radians(30)) / 8
    x = noise(1, 2, 6, 8)
    moved = warps.view_warp(FLAT, right=cell)
    torch.testing.assert_close(moved.apply(x)[..., :-1], x[..., 1:], atol=1e-4, rtol=0)
    assert moved.seen[..., :-1].all() and not moved.seen[..., -1].any()
    torch.testing.assert_close(warps.view_warp(FLAT, down=cell).apply(x)[..., :-1, :], x[..., 1:, :], atol=1e-4, rtol=0)
    grown = warps.view_warp(FLAT, forward=0.25).points - 0.5
    torch.testing.assert_close(grown, (warps.view_warp(FLAT).points - 0.5) / 1.25, atol=1e-6, rtol=0)
    far = warps.view_warp(FLAT * 2, right=cell).points - warps.view_warp(FLAT).points
    torch.testing.assert_close(far[..., 0], torch.full((1, 6, 8), 0.5 / 8))      # twice as far moves half as much
    assert not warps.view_warp(FLAT, forward=-2.0).seen.any()      # behind the camera


def test_turning():
    """A turn by half of the field of view brings the border to the middle; roll turns about the middle; depth does not matter."""
    assert torch.equal(warps.rotation(0, 0, 0), torch.eye(3))
    line = torch.ones(1, 1, 9)
    turned = warps.view_warp(line, fov=60, yaw=30.0)
    assert turned.points[0, 0, 4, 0].item() == pytest.approx(1.0, abs=1e-5)
    torch.testing.assert_close(warps.view_warp(line * 3, fov=60, yaw=30.0).points, turned.points)
    square = torch.ones(1, 5, 5)
    x, y = warps.view_warp(square).points.unbind(-1)
    torch.testing.assert_close(warps.view_warp(square, roll=90.0).points, torch.stack((1 - y, x), -1), atol=1e-5, rtol=0)
    assert warps.rotation(0, 20.0, 0)[1, 2] < 0      # upwards is -y


def test_distances_and_frequencies():
    depth = torch.tensor([[[[0.0] * 3, [1.0] * 3]]])
    torch.testing.assert_close(warps.distances(depth, 2.0, 8.0), torch.tensor([[[8.0, 2.0]]]))
    a, b = noise(1, 2, 16, 16), noise(1, 2, 16, 16, seed=1)
    assert torch.equal(warps.with_detail(a, b, 0.5), a)
    mixed = torch.fft.fft2(warps.with_detail(a, b, 0.25))
    torch.testing.assert_close(mixed[..., 2, 3], torch.fft.fft2(a)[..., 2, 3], atol=1e-3, rtol=0)
    torch.testing.assert_close(mixed[..., 7, 3], torch.fft.fft2(b)[..., 7, 3], atol=1e-3, rtol=0)


def test_other_grids_and_batches():
    warp = warps.view_warp(FLAT, forward=0.25)
    points, seen = warp.at(12, 16)
    torch.testing.assert_close(points[:, 3:-3, 3:-3], warps.view_warp(torch.ones(1, 12, 16), forward=0.25).points[:, 3:-3, 3:-3], atol=1e-5, rtol=0)
    assert seen.shape == (1, 12, 16) and warp.apply(noise(3, 2, 5, 6, 8)).shape == (3, 2, 5, 6, 8)
    with pytest.raises(BadInput, match="2 warps"):
        warps.view_warp(FLAT.expand(2, -1, -1)).apply(noise(3, 2, 6, 8))


def test_the_distance_is_least_at_the_warped_features():
    warp, old = warps.view_warp(FLAT, right=0.2), noise(2, 5, 6, 8)
    old = torch.nn.functional.normalize(old, dim=1)
    assert distance(3.0 * warp.apply(old), old, warp).abs().max() < 1e-5
    assert torch.allclose(distance(-warp.apply(old), old, warp), torch.ones(2), atol=1e-5)
    view = noise(2, 5, 6, 8, seed=2).requires_grad_(True)
    value = distance(view, old, warp)
    slope, = torch.autograd.grad(value.sum(), view)
    assert (distance(view - 0.1 * slope / slope.norm(), old, warp) < value).all()
    assert not slope[..., -1].any()      # what the old view does not show pulls nowhere


def site(step, kind="self", **k):
    return Site(kind, Layer("output", 1), 6, 8, batch=2, step=step, **k)


def test_the_edits_change_nothing_and_note_the_distance():
    warp, step, found = warps.view_warp(FLAT, right=0.1), Step(torch.zeros(2, 4, 6, 8), torch.ones(2)), []
    h, old = noise(4, 5, 6, 8), noise(2, 5, 6, 8, seed=1)
    edit = WatchedFeatures("all", reference=REFERENCE, warp=warp)
    assert edit.residual(site(step, shared={REFERENCE: old}), h) is h
    step.maps["feature correspondence", REFERENCE] = found
    assert edit.residual(site(step, shared={REFERENCE: old}), h) is h
    torch.testing.assert_close(found[0], distance((h[:2] + h[2:]) / 2, old, warp))
    v, s = noise(2, 2, 53, 3), noise(2, 2, 48, 3, seed=4)
    values = WatchedValues("all", reference=REFERENCE, warp=warp)
    out = values.apply(site(step, "joint", image=slice(5, None), text=slice(0, 5), shared={REFERENCE: Shared(s, s, s)}), v, v, v, lambda q, k, v_: v_)
    assert out is v
    grid = lambda t: t.permute(0, 1, 3, 2).reshape(2, 6, 6, 8)
    torch.testing.assert_close(found[1], distance(grid(v[:, :, 5:]), grid(s), warp))


@pytest.mark.parametrize("normalise", ["none", "unit rms"])
def test_the_step_is_the_formula_and_goes_down(normalise):
    """D - scale s^2 / a grad L: the sign that lowers the loss."""
    warp = warps.view_warp(FLAT, right=0.1)
    method = FeatureCorrespondenceGuidance(warp=warp, reference={"samples": torch.zeros(1, 4, 6, 8)}, scale=0.3, normalise=normalise)
    reference, target = method.edits(None)[0].reference, noise(2, 4, 6, 8, seed=3)
    step = Step(noise(2, 4, 6, 8), torch.full((2,), 2.0))

    def evaluate(x):
        step.maps["feature correspondence", reference].append(distance(x, target, warp))
        return 0.2 * x
    out = method.steer(step, evaluate, {})
    x = step.x.clone().requires_grad_(True)
    slope, = torch.autograd.grad(distance(x, target, warp).sum(), x)
    unit = slope / slope.square().mean((1, 2, 3), keepdim=True).sqrt()
    wanted = 4.0 * slope if normalise == "none" else 4.0 / 5.0 * unit
    torch.testing.assert_close(out, 0.2 * step.x - 0.3 * wanted, rtol=1e-4, atol=1e-6)
    assert not step.maps
    assert (distance(step.x + (out - 0.2 * step.x), target, warp) < distance(step.x, target, warp)).all()
    with pytest.raises(RuntimeError, match="no features were seen"):
        method.steer(step, lambda x_: 0.2 * x_, {})


def test_default_layers():
    layers = tuple(Layer("output", i) for i in range(3, 12)) + (Layer("middle", 0),)
    unet = Geometry("unet", layers)
    assert default_layers({i: (i - 3) // 3 + 1 for i in range(3, 12)}, unet) == "output.8"      # SD1.5 and SD2: the second of four up blocks with attention
    assert default_layers({}, Geometry("flux", tuple(Layer("double", i) for i in range(19)))) == "double.9"


def test_nodes_and_bad_input():
    view, apply = ({n.node_id: n for n in NODES}[i] for i in ("LodestarViewWarp", "LodestarApplyWarp"))
    values = {i.name: i.default for i in view.inputs}
    warp, = view.run(**{**values, "width": 64, "height": 48})
    assert warp.points.shape == (1, 6, 8, 2)
    latent, image, hidden = apply.run(warp, 0.3125, {"samples": noise(2, 4, 6, 8), "batch_index": [0]}, torch.rand(1, 48, 64, 3))
    assert latent["samples"].shape == (2, 4, 6, 8) and latent["batch_index"] == [0] and image.shape == (1, 48, 64, 3) and hidden.shape == (1, 48, 64) and not hidden.any()
    back, = view.run(**{**values, "width": 64, "height": 48, "forward": -0.3})
    assert apply.run(back, 0.5, {"samples": noise(2, 4, 6, 8)}, None)[2][0, 0, 0] == 1
    with pytest.raises(BadInput, match="near"):
        view.run(**{**values, "near": 20.0, "depth": torch.rand(1, 6, 8, 3)})
    with pytest.raises(BadInput, match="Apply Warp"):
        apply.run(warp, 0.5, None, None)
    with pytest.raises(BadInput, match="Feature-Correspondence Guidance: reference"):
        FeatureCorrespondenceGuidance(warp=warp).validate()
    assert FeatureCorrespondenceGuidance(warp=warp, scale=0.0).validate().neutral()
