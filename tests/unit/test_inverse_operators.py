"""Every operator: adjoint, pseudo-inverse, shapes, dtypes, gradients; and what each one does."""

from __future__ import annotations

import math

import pytest
import torch
from lodestar.guidance.inverse.operators import OPERATORS, Colourisation, GaussianBlur, Inpainting, Jpeg, KernelBlur, LowLight, MissingTraces, MotionBlur, Quantisation, RandomProjection, SensorExposure, SuperResolution, Wavelet
from lodestar.guidance.inverse.operators.base import Operator
from lodestar.guidance.method import BadInput


def hole(height=16, width=16):
    mask = torch.zeros(1, height, width)
    mask[:, 3:9, 4:12] = 1
    return mask


def disc():
    y, x = torch.meshgrid(torch.arange(5) - 2, torch.arange(7) - 3, indexing="ij")
    return ((x * x + y * y) < 6).float()[None, :, :, None].expand(1, 5, 7, 3)


ALL = (Inpainting(hole()), Inpainting(hole(40, 24)), MissingTraces(), MissingTraces(0.75, "rows", "regular"), SuperResolution(), SuperResolution(3), SuperResolution(4, "bicubic"),
       SuperResolution(2, "bilinear"), GaussianBlur(1.0), GaussianBlur(3.0), MotionBlur(7.0, 30.0), MotionBlur(40.0, 90.0), KernelBlur(disc()), Colourisation(), RandomProjection(),
       RandomProjection(1.0, 3), Wavelet(), Wavelet(2, "details"), Wavelet(9, "all"), Jpeg(), Jpeg(50, half_colour=True), Jpeg(30, "real"), Quantisation(), LowLight(), LowLight(4.0, 2.0), SensorExposure())
NAMES = [f"{type(o).__name__}{i}" for i, o in enumerate(ALL)]
SIZES = ((2, 3, 16, 16), (1, 3, 13, 22), (2, 3, 2, 8, 9))


def random(shape, seed=0, dtype=torch.float64):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture(params=SIZES, ids=str)
def size(request):
    return request.param


def test_every_operator_is_tested():
    assert {type(o) for o in ALL} == set(OPERATORS)


@pytest.mark.parametrize("operator", [o for o in ALL if o.linear], ids=[n for n, o in zip(NAMES, ALL) if o.linear])
def test_linear(operator, size):
    u, v = random(size), random(size, 1)
    y = operator.measure(u)
    torch.testing.assert_close(operator.measure(2 * u - 3 * v), 2 * y - 3 * operator.measure(v), atol=1e-9, rtol=0)
    # the dot-product test
    other = random(y.shape, 2)
    left, right = (y * other).sum(), (u * operator.adjoint(other, u)).sum()
    assert abs(left - right) < 1e-9 * (y.norm() * other.norm())
    assert operator.adjoint(other, u).shape == u.shape
    # A A+ A u = A u, up to what the class says is cut off; A+ A A+ = A+; and A+ A is symmetric
    part = operator.project(u)
    slack = getattr(operator, "cut", 0.0)
    assert (operator.measure(part) - y).norm() <= (2 * slack + 1e-9) * u.norm()
    torch.testing.assert_close(operator.project(part), part, atol=1e-7, rtol=0)
    assert abs((part * v).sum() - (u * operator.project(v)).sum()) < 1e-7 * u.norm() * v.norm()
    if operator.gram(u) is not None:
        measured = operator.settle(operator.measure(v))
        torch.testing.assert_close(operator.measure(operator.adjoint(measured, u)), operator.gram(u) * measured, atol=1e-9, rtol=0)
    torch.testing.assert_close(operator.settle(y), y)


@pytest.mark.parametrize("operator", [o for o in ALL if o.linear], ids=[n for n, o in zip(NAMES, ALL) if o.linear])
@pytest.mark.parametrize("noise", (0.3, 1e-3))
def test_solve_inverts_the_covariance_of_the_measurement(operator, noise):
    """Each operator's own way (one number, singular values, Fourier) agrees with conjugate gradients; at noise 0 it is the pseudo-inverse."""
    u = random((2, 3, 11, 14))
    r = operator.settle(operator.measure(u) - 0.3)
    mine = operator.solve(r, 0.7, noise, u)
    torch.testing.assert_close(mine, Operator.filtered(operator, r, 0.7, noise, u, rounds=400), atol=2e-4 * float(mine.abs().max()), rtol=0)
    torch.testing.assert_close(operator.solve(r, 0.7, 0, u), operator.pseudo_inverse(r, u) / 0.7)


@pytest.mark.parametrize("operator", ALL, ids=NAMES)
def test_shapes_dtypes_gradients(operator, size):
    u = random(size, dtype=torch.float32).requires_grad_(True)
    y = operator.measure(u)
    slope, = torch.autograd.grad(y.square().sum(), u)
    assert slope.shape == u.shape and bool(torch.isfinite(slope).all()) and bool(slope.any())
    y = y.detach()
    if size[0] == 2:      # batch entries don't mix
        torch.testing.assert_close(torch.cat([operator.measure(u[i:i + 1]).detach() for i in range(2)]), y)
    if u.ndim == 5 and not isinstance(operator, RandomProjection):      # a video is its frames (random projections are drawn for each)
        torch.testing.assert_close(torch.stack([operator.measure(u[:, :, f]).detach() for f in range(u.shape[2])], 2), y)
    for dtype, close in ((torch.float16, 2e-2), (torch.bfloat16, 1e-1)):
        half = operator.measure(u.detach().to(dtype))
        assert half.dtype == dtype
        if operator.linear:
            torch.testing.assert_close(half.float(), y, atol=close, rtol=close)
    shown = operator.show(y)
    assert shown.shape[1] == 3
    torch.testing.assert_close(operator.read(shown), operator.settle(y))


@pytest.mark.parametrize("operator", [Jpeg(20), Quantisation(5), LowLight(0.25, 2.2), LowLight(4.0, 0.5)], ids=lambda o: type(o).__name__)
def test_curved_operators_have_a_right_inverse(operator):
    u = 0.2 + 0.6 * random((2, 3, 16, 24))
    y = operator.measure(u)
    assert (y - u).abs().max() > 0.01
    torch.testing.assert_close(operator.measure(operator.pseudo_inverse(y, u)), y, atol=1e-9, rtol=0)


def test_jpeg_is_that_of_the_files():
    """The computed codec is close to Pillow's, at several qualities; the rest is the rounding of its integers."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 48), torch.linspace(0, 1, 64), indexing="ij")
    u = torch.stack([x, y, 0.5 + 0.4 * torch.sin(20 * x * y)])[None] * 0.8 + 0.1
    for quality in (10, 30, 75, 95):
        mine, theirs = Jpeg(quality).measure(u), Jpeg(quality, "real").measure(u)
        assert (mine.clamp(0, 1) - theirs).abs().mean() < 0.006
    assert (Jpeg(10).measure(u) - u).square().mean() > 4 * (Jpeg(75).measure(u) - u).square().mean()


def test_straight_through_gradients_are_of_the_identity():
    for operator in (Quantisation(3), Jpeg(15), Jpeg(15, "real")):
        u = random((1, 3, 16, 16)).requires_grad_(True)
        g = random((1, 3, 16, 16), 4)
        slope, = torch.autograd.grad((operator.measure(u) * g).sum(), u)
        torch.testing.assert_close(slope, g, atol=1e-5, rtol=0)      # the colour matrix and its rounded inverse


@pytest.mark.parametrize("operator", [LowLight(0.2), LowLight(4.0, 0.5), LowLight(0.25, 2.2)], ids=lambda o: f"{o.gain} {o.gamma}")
def test_estimates_beyond_what_an_exposure_shows_come_back(operator):
    """Black and burnt pixels have a gradient towards the measurement, and none where they agree with it."""
    u = torch.tensor([-3.0, 0.5, 40.0], dtype=torch.float64).view(1, 1, 1, 3).expand(1, 3, 2, 3).clone().requires_grad_(True)
    seen = operator.measure(u)
    torch.testing.assert_close(seen[..., 0].detach(), torch.zeros_like(seen[..., 0]), atol=5e-3, rtol=0)
    assert bool((seen[..., 2] == 1).all())
    up, = torch.autograd.grad(0.5 * (seen - 0.4).square().sum(), u, retain_graph=True)
    assert bool((up[..., 0] < 0).all()) and bool((up[..., 2] > 0).all())
    none, = torch.autograd.grad(0.5 * (seen - seen.detach()).square().sum(), u)
    assert not none.any()
    inside = torch.full((1, 3, 2, 3), 0.06, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(operator.measure, inside)


def test_average_is_the_mean_and_its_inverse_repeats():
    u = random((1, 1, 6, 7))
    y = SuperResolution(4).measure(u)
    assert y.shape == (1, 1, 2, 2)
    torch.testing.assert_close(y[0, 0, 1, 1], u[0, 0, 4:, 4:].mean())
    torch.testing.assert_close(SuperResolution(4).pseudo_inverse(y, u)[0, 0, :4, 4:], y[0, 0, 0, 1].expand(4, 3))


def test_blurs_keep_brightness_and_motion_has_its_length():
    u = torch.ones(1, 1, 20, 20, dtype=torch.float64)
    for operator in (GaussianBlur(4.0), MotionBlur(9.0, 20.0), KernelBlur(disc())):
        torch.testing.assert_close(operator.measure(u), u)
    point = torch.zeros(1, 1, 21, 21, dtype=torch.float64)
    point[..., 10, 10] = 1
    row = MotionBlur(7.0).measure(point)[0, 0]
    assert row[10, 7:14].sum() > 0.999 and row[10, 7:14].min() > 0.05
    column = MotionBlur(7.0, 90.0).measure(point)[0, 0]
    torch.testing.assert_close(column, row.T)
    spread = GaussianBlur(2.0).measure(point)[0, 0].sum(0)
    at = torch.arange(21) - 10.0
    assert math.isclose(float((spread * at**2).sum()), 4.0, rel_tol=0.03)


def test_haar_is_orthonormal_at_any_size():
    for size in ((1, 1, 8, 8), (1, 2, 13, 7), (1, 1, 1, 5)):
        u = random(size)
        y = Wavelet(3, "all").measure(u)
        torch.testing.assert_close(y.norm(), u.norm())
        torch.testing.assert_close(Wavelet(3, "coarse").measure(u) + Wavelet(3, "details").measure(u), y)
    u = random((1, 1, 2, 2))
    (p, q), (r, s) = u[0, 0]
    torch.testing.assert_close(Wavelet(1, "all").measure(u)[0, 0], torch.stack([torch.stack([p + q + r + s, p - q + r - s]), torch.stack([p + q - r - s, p - q - r + s])]) / 2)


def test_masks_of_other_sizes_and_batches():
    u = torch.ones(2, 4, 8, 8)
    small = Inpainting(hole(64, 64)).measure(u)
    assert small[0, 0, 0, :3].tolist() == [0, 0, 1] and small[0, 0, :3, 0].tolist() == [0, 0, 1]      # rows 3 to 9 and columns 4 to 12 of 64 touch the cells 0 and 1
    assert Inpainting(hole(4, 4)).measure(u).shape == u.shape
    each = torch.stack([torch.zeros(8, 8), torch.ones(8, 8)])
    assert Inpainting(each).measure(u).flatten(1).sum(1).tolist() == [256.0, 0.0]
    frames = Inpainting(torch.stack([torch.zeros(8, 8), torch.ones(8, 8), torch.zeros(8, 8)])).measure(torch.ones(1, 4, 3, 8, 8))
    assert frames.sum((0, 1, 3, 4)).tolist() == [256.0, 0.0, 256.0]
    with pytest.raises(BadInput, match="Inpainting Operator: mask = '3 masks'"):
        Inpainting(torch.zeros(3, 8, 8)).measure(u)


def test_bad_values_are_named():
    with pytest.raises(BadInput, match="Super-Resolution Operator: factor = 0"):
        SuperResolution(0).validate()
    with pytest.raises(BadInput, match="Wavelet Operator: kept"):
        Wavelet(kept="some").validate()
    with pytest.raises(BadInput, match="black kernel"):
        KernelBlur(torch.zeros(1, 5, 5, 3)).measure(torch.zeros(1, 3, 8, 8))


def test_random_choices_are_reproducible():
    u = random((1, 3, 12, 12))
    assert torch.equal(RandomProjection(0.3, 5).measure(u), RandomProjection(0.3, 5).measure(u))
    assert not torch.equal(RandomProjection(0.3, 5).measure(u), RandomProjection(0.3, 6).measure(u))
    kept = RandomProjection(0.3).keep(torch.zeros(1, 3, 64, 64)).mean()
    assert abs(kept - 0.3) < 4 * math.sqrt(0.3 * 0.7 / (3 * 64 * 64))


def test_sensor_counts_photons():
    """Mean and variance of what is drawn; a shorter exposure and the rest of the time add up to the full time's distribution; other operators have no noise of their own."""
    u, operator = torch.full((1, 1, 200, 200), 0.6), SensorExposure(8.0, 400.0, 3.0)
    draw = lambda seed, sensor=operator: sensor.drawn(u, torch.Generator().manual_seed(seed)) * sensor.photons
    y, expected = draw(0), 0.6 / 8 * 400
    assert abs(float(y.mean()) - expected) < 5 * math.sqrt((expected + 9) / y.numel()) and abs(float(y.var()) / (expected + 9) - 1) < 5 * math.sqrt(2 / y.numel())
    assert torch.equal(y, draw(0)) and not torch.equal(y, draw(1))
    counts = y + draw(1, SensorExposure(8 / 7, 400.0, 0.0))
    assert abs(float(counts.mean()) - 240) < 5 * math.sqrt(249 / y.numel()) and abs(float(counts.var()) / 249 - 1) < 5 * math.sqrt(2 / y.numel())
    assert torch.equal(GaussianBlur(1.0).drawn(u, None), GaussianBlur(1.0).measure(u))
