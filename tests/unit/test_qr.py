"""The scanning-robust loss against codes that a library makes and a reader reads, and Refine by Loss."""
import math

import pytest
import torch

from lodestar.guidance.loss.base import LossContext
from lodestar.guidance.loss.picture import PictureLoss
from lodestar.guidance.loss.qr import POINTS, Code, ScanningRobust, corners, find_code, grid, kernel, misread, modules, surrounded, wrong_share
from lodestar.guidance.loss.refine import LossRefinement
from lodestar.guidance.method import BadInput
from lodestar.nodes.qr import _draw, _read

pytest.importorskip("segno")
pytest.importorskip("zxingcpp")
pytestmark = pytest.mark.method("LodestarLossRefinement")
CONTEXT, TEXT = LossContext(), "https://example.org/a"


def code(side=200, module=0, level="M", text=TEXT):
    return _draw(text, side, side, level, module, 2)[0].movedim(-1, 1)


def loss(y, **values):
    return ScanningRobust(**{"finders": 0.0, **values}, decoder=lambda d: d, target=y).check()


@pytest.mark.parametrize("level, side", (("L", 200), ("Q", 264), ("H", 300)))
def test_a_code_is_found_and_is_its_own_least_value(level, side):
    y = code(side, level=level)
    found = find_code(y[0])
    assert (found.count - 17) % 4 == 0 and wrong_share(y, found).item() == 0
    u = y.clone().requires_grad_()
    for values in ({}, {"finders": 1.0, "only_wrong": False, "quiet_zone": 2}):
        value = loss(y, **values).value(u, CONTEXT)
        assert value.abs().max() == 0 and torch.autograd.grad(value.sum(), u)[0].abs().max() == 0
    assert _read(y.movedim(1, -1), y.movedim(1, -1)).outputs == (TEXT, 1.0, 0.0)
    larger = torch.nn.functional.interpolate(y, (2 * side, 2 * side), mode="bilinear")      # the picture of the code may have another size
    assert torch.equal(find_code(larger[0]).light, found.light)
    torch.testing.assert_close(torch.tensor(find_code(larger[0]).box), torch.tensor(found.box), atol=0.5 / side, rtol=0)


def test_the_formula_on_modules_of_twenty_pixels():
    """Against the loss written out on pixels, as the paper has it; a gray picture is wrong on both kinds of modules."""
    y = code(21 * 20 + 200, 20, "L", "a")
    found = find_code(y[0])
    u = torch.rand(y.shape, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.3
    left, top = (round(v * y.shape[-1]) for v in found.box[:2])
    gray = 0.2999 * u[:, 0] + 0.587 * u[:, 1] + 0.1114 * u[:, 2]
    k = kernel()
    assert k.max() == 1 and 0 < (k > 0).sum() < k.numel() and not ((k > 0) & (k < 0.1)).any()
    total = 0.0
    for i in range(found.count):
        for j in range(found.count):
            cell = gray[0, top + 20 * i:top + 20 * i + 20, left + 20 * j:left + 20 * j + 20]
            inner = cell[6:14, 6:14].mean()      # the middle, four pixels to each side
            if found.light[i, j]:
                total += float(inner < 0.65) * float((k * 2 * (0.65 - cell).clamp(min=0)).sum())
            else:
                total += float(inner > 0.45) * float((k * 2 * (cell - 0.45).clamp(min=0)).sum())
    assert math.ceil(POINTS / 6) == 4
    torch.testing.assert_close(loss(y).value(u, CONTEXT).item(), total / found.count ** 2, rtol=1e-4, atol=1e-6)
    middle = torch.full_like(y, 0.55)
    assert loss(y).value(middle, CONTEXT) > 0.1 and wrong_share(middle, found) == 1


def test_only_wrong_modules_and_finders_count():
    y = code(200, 8, "L", "a")
    found = find_code(y[0])
    u = (y * 0.9 + 0.05)
    top, left = (round(v * 200) for v in (found.box[1], found.box[0]))
    u[:, :, top + 8 * 10:top + 8 * 11, left + 8 * 12:left + 8 * 13] = 0.5      # one data module
    u = u.requires_grad_()
    slope, = torch.autograd.grad(loss(y).value(u, CONTEXT).sum(), u)
    rows, columns = slope[0].abs().sum(0).nonzero().T
    assert len(rows) and rows.min() >= top + 80 and rows.max() < top + 88 and columns.min() >= left + 96 and columns.max() < left + 104
    assert loss(y, only_wrong=False, dark_below=0.0, light_above=1.0).value(u, CONTEXT) > 5 * loss(y).value(u, CONTEXT)
    part = corners(found)
    assert part.sum() == 3 * 64 and part[:8, :8].all() and not part[8:, 8:].any()
    marked = loss(y, finders=1.0, dark_below=0.0, light_above=1.0)
    slope, = torch.autograd.grad(marked.value(u, CONTEXT).sum(), u)
    assert (slope[0, :, top:top + 56, left:left + 56].abs().sum(0) > 0).all()      # all of a finder, not only middles


def test_the_quiet_zone_is_light_and_stays_in_the_picture():
    y = code(200, 8, "L", "a")
    found = find_code(y[0])
    wide = surrounded(found, 2)
    assert wide.count == found.count + 4 and wide.light[:2].all() and torch.equal(wide.light[2:-2, 2:-2], found.light) and corners(wide)[:10, :10].all()
    assert surrounded(Code((0.0, 0.0, 1.0, 1.0), found.light), 4).count == found.count      # no room
    dark = y * 0.8 + 0.1
    dark[:, :, :8] = dark[..., :8] = 0.0
    assert loss(y, quiet_zone=0).value(dark, CONTEXT) == 0 and loss(y, quiet_zone=3).value(dark, CONTEXT) > 0


def test_samples_do_not_meet_and_each_may_have_its_code():
    y = torch.cat((code(200, 8, "L", "a"), code(200, 8, "L", "b")))
    u = torch.rand(4, 3, 200, 200, generator=torch.Generator().manual_seed(1))
    both = loss(y, finders=1.0)
    first, second = loss(y[:1], finders=1.0), loss(y[1:], finders=1.0)
    torch.testing.assert_close(both.value(u, CONTEXT), torch.cat((first.value(u[:2], CONTEXT), second.value(u[2:], CONTEXT))))
    torch.testing.assert_close(first.value(u, CONTEXT)[2:3], first.value(u[2:3], CONTEXT))
    with pytest.raises(BadInput, match="QR Code Loss.*2 codes.*3 pictures"):
        both.value(u[:3], CONTEXT)
    mask = torch.zeros(1, 200, 200)
    mask[:, :84] = 1
    upper = loss(y[:1], mask=mask)
    v = u[:1].clone().requires_grad_()
    slope, = torch.autograd.grad(upper.value(v, CONTEXT).sum(), v)
    assert slope[:, :, 92:].abs().max() == 0 and slope[:, :, :76].abs().max() > 0


def test_pictures_without_a_code_are_refused():
    for picture, why in ((torch.ones(3, 64, 64), "no dark module"), (torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)), "no"), (code()[0].rot90(2, (1, 2)), "without")):
        with pytest.raises(BadInput, match=f"QR Code Loss.*({why})"):
            find_code(picture)
    with pytest.raises(BadInput, match="QR Code.*text"):
        _draw("", 200, 200, "M", 0, 4)
    with pytest.raises(BadInput, match=r"QR Code.*200 x 200.*290 x 290"):
        _draw("a", 200, 200, "M", 10, 4)
    with pytest.raises(BadInput, match="holds; shorten"):
        _draw("a" * 3000, 4000, 4000, "H", 0, 4)


class Bowl(PictureLoss):
    """The mean square of a latent's distance to one."""

    title = "Bowl"

    def measure(self, u, m, context):
        return (u - 1).square().mean((1, 2, 3))


def test_refining_goes_downhill_by_its_rule_and_rests():
    bowl, z = Bowl(space="latent"), torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    out, values = LossRefinement(bowl, steps=3, rate=8.0).run(z)
    expected = z
    for _ in range(3):
        expected = expected - 8.0 * 2 * (expected - 1) / 64
    torch.testing.assert_close(out, expected)
    assert values.shape == (4, 3) and (values[1:] < values[:-1]).all()
    adam, _ = LossRefinement(bowl, steps=1, rate=0.02, optimiser="Adam").run(z)
    torch.testing.assert_close((adam - z).abs(), torch.full_like(z, 0.02), rtol=1e-3, atol=1e-4)
    singles = torch.cat([LossRefinement(bowl, steps=3, rate=8.0).run(z[i:i + 1])[0] for i in range(3)])
    torch.testing.assert_close(out, singles)
    mask = torch.zeros_like(z)
    mask[..., :2] = 1
    kept, _ = LossRefinement(bowl, steps=5, rate=1.0).run(z, mask)
    assert torch.equal(kept[..., 2:], z[..., 2:]) and not torch.equal(kept[..., :2], z[..., :2])
    near, _ = LossRefinement(bowl, steps=60, rate=8.0, keep=1.0).run(z)
    torch.testing.assert_close(near, (z + 1) / 2, rtol=1e-3, atol=1e-3)      # between the start and the goal
    z[1] = 1.0
    rested, values = LossRefinement(bowl, steps=40, rate=30.0, stop_at=1e-4).run(z)
    assert torch.equal(rested[1], z[1]) and len(values) < 41 and (values[-1] <= 1e-4).all()


def test_refining_refuses_what_has_no_gradient():
    class Black(Bowl):
        differentiable = False

    with pytest.raises(BadInput, match="Refine by Loss.*Bowl.*gradient"):
        LossRefinement(Black(space="latent")).run(torch.zeros(1, 4, 4, 4))
    assert LossRefinement(None, steps=0).neutral() and LossRefinement(None, rate=0.0).neutral()


def test_modules_are_sampled_at_pixel_centres_where_they_have_twenty():
    y = code(21 * 20 + 80, 20, "L", "a")
    found = find_code(y[0])
    u = torch.rand(y.shape, generator=torch.Generator().manual_seed(3))
    left, top, size = round(found.box[0] * y.shape[-1]), round(found.box[1] * y.shape[-2]), 20 * found.count
    cut = u[..., top:top + size, left:left + size]
    gray = 0.2999 * cut[:, :1] + 0.587 * cut[:, 1:2] + 0.1114 * cut[:, 2:]
    torch.testing.assert_close(modules(u, found), gray, atol=1e-4, rtol=0)
    assert grid(found, 500, 500, u).shape == (1, size, size, 2)
    assert torch.equal(misread(modules(y, found), found.light, 0.45, 0.65), torch.zeros(1, 1, found.count, found.count, dtype=torch.bool))
