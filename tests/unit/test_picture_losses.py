"""Losses of pictures on tensors: what each is 0 for, what it is, and that its gradient leads there."""
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from lodestar.guidance.loss.base import SCHEDULES, LossContext, LossMax, scaled
from lodestar.guidance.loss.colour import ColourDistribution, moments, shares
from lodestar.guidance.loss.edges import EdgeTarget, sobel
from lodestar.guidance.loss.picture import PictureLoss
from lodestar.guidance.loss.shape import ColouredShape, parse_colour
from lodestar.guidance.loss.smooth import MIRRORS, RangePenalty, Symmetry, TotalVariation
from lodestar.guidance.loss.spectrum import SpectrumTarget
from lodestar.guidance.loss.wavelet import WaveletTarget, haar
from lodestar.guidance.method import BadInput
from lodestar.nodes.losses import _classes, _node, loss_inputs

pytestmark = pytest.mark.method("LodestarUniversalGuidance")
CONTEXT = LossContext()


def pictures(n=2, side=8, seed=0):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


def made(cls, target=None, **values):
    return cls(**values, decoder=lambda d: d, target=target)


def targeted():
    y = pictures(1, seed=5)
    region = torch.zeros(1, 8, 8)
    region[:, 2:6, 1:5] = 1
    return [(made(WaveletTarget, y), y), (made(EdgeTarget, y), y), (made(SpectrumTarget, y), y), *((made(ColourDistribution, y, mode=m), y) for m in ("histogram", "moments", "sliced"))]


@pytest.mark.parametrize("loss, y", targeted(), ids=lambda v: getattr(v, "mode", type(v).__name__) if not isinstance(v, torch.Tensor) else "")
def test_the_target_itself_is_least_and_descent_leads_towards_it(loss, y):
    """0 (up to the smallest terms) for the target, more for others, less after a step along the gradient; samples do not meet."""
    assert loss.value(y, CONTEXT).abs().max() < 1e-5
    u = pictures().requires_grad_()
    found = loss.value(u, CONTEXT)
    assert found.shape == (2,) and (found > 1e-4).all()
    slope, = torch.autograd.grad(found.sum(), u)
    assert torch.isfinite(slope).all()
    with torch.no_grad():
        step = 1e-3 / slope.flatten(1).norm(dim=1)[:, None, None, None]
        assert (loss.value(u - step * slope, CONTEXT) < found).all()
        torch.testing.assert_close(loss.value(u[1:], CONTEXT), found[1:], rtol=1e-4, atol=1e-6)


def test_equal_weights_of_all_bands_are_the_squared_error():
    u, y = pictures(), pictures(1, seed=5)
    for levels in (1, 2, 3):
        torch.testing.assert_close(made(WaveletTarget, y, levels=levels).value(u, CONTEXT), (u - y).square().mean((1, 2, 3)))
    low, *high = haar(u)
    torch.testing.assert_close(low.square().sum() + sum(h.square().sum() for h in high), u.square().sum())
    rough = made(WaveletTarget, F.avg_pool2d(u, 2).repeat_interleave(2, -1).repeat_interleave(2, -2), levels=1, high=0.0)
    assert rough.value(u, CONTEXT).max() < 1e-10      # details do not count


def test_amplitudes_do_not_know_places_and_bands_choose():
    u = pictures()
    loss = made(SpectrumTarget, u.roll((3, 5), (-2, -1)))
    assert loss.value(u, CONTEXT).max() < 1e-6
    lighter = made(SpectrumTarget, u + 0.2)
    assert lighter.value(u, CONTEXT).min() > 1e-3 and made(SpectrumTarget, u + 0.2, lowest=0.1).value(u, CONTEXT).max() < 1e-6
    with pytest.raises(BadInput, match="No frequency"):
        made(SpectrumTarget, u, lowest=1.49, highest=1.495).value(u, CONTEXT)


def test_edges_of_a_step_and_of_a_sketch():
    u = torch.zeros(1, 3, 6, 6)
    u[..., 3:] = 1
    e = sobel(u)
    assert (e[..., 2:4] > 3.9).all() and e[..., :2].max() < 1e-5 and e[..., 4:].max() < 1e-5
    sketch = torch.zeros(1, 3, 6, 6)
    sketch[..., 2:4] = 1
    hit, missed = (made(EdgeTarget, t, sketch=True).value(u, CONTEXT) for t in (sketch, sketch.roll(2, -1)))
    assert hit < 0.1 * missed


def test_variation_symmetry_tiles_and_range():
    u = pictures(1)
    assert made(TotalVariation).value(torch.full((1, 3, 4, 4), 0.3), CONTEXT) == 0 < made(TotalVariation).value(u, CONTEXT)
    by_hand = (u[..., 1:, :] - u[..., :-1, :]).abs().mean() + (u[..., 1:] - u[..., :-1]).abs().mean()
    torch.testing.assert_close(made(TotalVariation).value(u, CONTEXT)[0], by_hand)
    for mirror, axes in zip(MIRRORS[:3], ((-1,), (-2,), (-2, -1))):
        loss = made(Symmetry, mirror=mirror)
        assert loss.value(u + u.flip(axes), CONTEXT) < 1e-10 < 1e-3 < loss.value(u, CONTEXT)
    wave = torch.sin(torch.arange(8) * torch.pi / 4).expand(1, 3, 8, 8)
    ramp = torch.linspace(0, 1, 8).expand(1, 3, 8, 8)
    assert made(Symmetry, mirror="tiles").value(wave, CONTEXT) < 0.2 < 0.5 < made(Symmetry, mirror="tiles").value(ramp, CONTEXT)
    assert made(RangePenalty).value(u, CONTEXT) == 0
    torch.testing.assert_close(made(RangePenalty).value(torch.full((1, 3, 2, 2), 1.5), CONTEXT), torch.tensor([0.25]))


def test_colours_do_not_know_places_and_masks_choose():
    u, y = pictures(), pictures(1, side=12, seed=5)
    mixed = u.flatten(2)[..., torch.randperm(64, generator=torch.Generator().manual_seed(1))].view_as(u)
    for mode in ("histogram", "moments", "sliced"):
        torch.testing.assert_close(made(ColourDistribution, y, mode=mode).value(mixed, CONTEXT), made(ColourDistribution, y, mode=mode).value(u, CONTEXT), rtol=1e-4, atol=1e-6)
    half = torch.zeros(1, 8, 8)
    half[..., :4] = 1
    other = u.clone()
    other[..., 4:] = 0.9
    for mode in ("histogram", "moments", "sliced"):
        loss = made(ColourDistribution, y, mode=mode, mask=half)
        torch.testing.assert_close(loss.value(other, CONTEXT), loss.value(u, CONTEXT), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(shares(u, torch.ones(2, 1, 8, 8), 5).sum(-1), torch.ones(2, 3))
    _, c = moments(u, torch.ones(2, 1, 8, 8))
    torch.testing.assert_close(c[0], torch.cov(u[0].flatten(1), correction=0))


def test_a_coloured_shape_knows_shape_place_and_size():
    u = torch.full((1, 3, 8, 8), 0.5)
    u[:, :, 2:6, 1:5] = torch.tensor(parse_colour("#e61f24", "x"))[:, None, None]
    region = torch.zeros(1, 8, 8)
    region[:, 2:6, 1:5] = 1
    away = region.roll(3, -1)
    assert made(ColouredShape, region=region).value(u, CONTEXT) < 0.01 and made(ColouredShape, region=away).value(u, CONTEXT) > 0.5
    assert made(ColouredShape, shape=0.0, place=1.0, x=3 / 8, y=0.5).value(u, CONTEXT) < 1e-5
    torch.testing.assert_close(made(ColouredShape, shape=0.0, place=1.0, x=7 / 8, y=0.5).value(u, CONTEXT), torch.tensor([0.25]), atol=1e-3, rtol=0)
    assert made(ColouredShape, shape=0.0, size=1.0, area=0.25).value(u, CONTEXT) < 1e-4
    for text in ("red", "#12345", "1, 2, 3", "0.1 0.2"):
        with pytest.raises(BadInput, match="rrggbb"):
            parse_colour(text, "Coloured Shape Loss")
    with pytest.raises(BadInput, match="at least one other"):
        made(ColouredShape, region=region, others="").value(u, CONTEXT)
    with pytest.raises(BadInput, match="needs a region"):
        made(ColouredShape).check()


def test_masks_sizes_and_batches():
    y, u = pictures(1, seed=5), pictures()
    mask = torch.zeros(1, 16, 16)
    mask[..., :8] = 1
    loss = made(WaveletTarget, y, mask=mask)
    torch.testing.assert_close(loss.value(u, CONTEXT), (u - y)[..., :4].square().mean((1, 2, 3)))
    with pytest.raises(BadInput, match="4 x 4"):
        made(WaveletTarget, pictures(1, 4)).value(u, CONTEXT)
    with pytest.raises(BadInput, match="3 pictures"):
        made(WaveletTarget, pictures(3)).value(u, CONTEXT)
    with pytest.raises(BadInput, match="Nothing is marked"):
        made(TotalVariation, mask=torch.zeros(1, 4, 4)).check()
    with pytest.raises(BadInput, match="Choose one of: rgb, small"):
        made(RangePenalty, space="latent").check()
    video = torch.stack((u, u.flip(-1)), 2)      # two frames each: their mean
    torch.testing.assert_close(made(TotalVariation, space="latent").value(video, CONTEXT), made(TotalVariation).value(u, CONTEXT))


def test_sums_largest_windows_schedules_and_one_decoding():
    u, calls = pictures(), []

    def decoder(d):
        calls.append(1)
        return d
    a, b = (cls(decoder=decoder, **k) for cls, k in ((TotalVariation, {}), (RangePenalty, {"weight": 3.0, "end_percent": 0.5})))
    step = SimpleNamespace(index=2, sigmas=torch.linspace(1, 0, 6), s=torch.tensor([[[[0.5]]]]), a=torch.tensor([[[[0.5]]]]), inside=lambda low, high: high > 0.6)
    context = LossContext(step)
    assert torch.equal((a + b).value(u * 2, context), a.value(u * 2, context)) and not (a + b).parts[1].active(step)
    early = LossContext()
    v = u * 2
    calls.clear()
    both = (a + b).value(v, early)
    torch.testing.assert_close(both, a.value(v, early) + b.value(v, early))
    assert len(calls) == 1
    torch.testing.assert_close(LossMax((a, scaled(b, 100.0))).value(v, early), torch.maximum(a.value(v, early), 100 * b.value(v, early)))
    assert [round(LossContext(step).factor(s), 4) for s in SCHEDULES] == [1.0, 0.5, 0.5, 0.5, 0.5]
    torch.testing.assert_close(made(TotalVariation, schedule="rising").value(v, context), a.value(v, early) / 2)


def test_every_loss_has_a_node_made_from_its_fields():
    found = list(_classes())
    assert {WaveletTarget, EdgeTarget, TotalVariation} < set(found) and PictureLoss not in found
    for cls in found:
        node = _node(cls)
        names = [i.name for i in loss_inputs(cls)]
        assert names[-6:] == ["weight", "mask", "space", "schedule", "start_percent", "end_percent"] and "decoder" not in names and "target" not in names
        assert node.description and node.help and all(i.tooltip for i in node.inputs)
