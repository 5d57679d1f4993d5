"""Regions: exact area shares on any grid, windows, frames, strokes, and errors that name what is wrong."""
import pytest
import torch

from lodestar.guidance.attention.regions import WHOLE, Region, Regions, columns
from lodestar.guidance.method import BadInput


def box(*values, **more):
    return Region(boxes=(values,), **more)


def test_a_box_covers_its_share_of_every_cell():
    found = box(0.25, 0.5, 0.5, 0.25).map(4, 4)[0]
    expected = torch.zeros(4, 4)
    expected[2, 1:3] = 1
    torch.testing.assert_close(found, expected)
    for size in ((3, 5), (7, 6), (64, 64), (1, 1)):
        torch.testing.assert_close(box(0.1, 0.2, 0.33, 0.47).map(*size).mean(), torch.tensor(0.33 * 0.47))


def test_a_mask_is_averaged_by_area_up_and_down():
    g = torch.Generator().manual_seed(0)
    mask = torch.rand(1, 12, 20, generator=g)
    region = Region(mask=mask)
    torch.testing.assert_close(region.map(12, 20), mask)
    torch.testing.assert_close(region.map(3, 5), torch.nn.functional.avg_pool2d(mask[:, None], (4, 4))[:, 0])
    torch.testing.assert_close(region.map(24, 40), mask.repeat_interleave(2, 1).repeat_interleave(2, 2))
    for size in ((5, 7), (1, 1), (11, 3)):
        torch.testing.assert_close(region.map(*size).mean(), mask.mean())


def test_a_box_and_its_mask_agree_on_every_window():
    mask = torch.zeros(40, 40)
    mask[8:20, 10:30] = 1
    drawn, named = Region(mask=mask), box(0.25, 0.2, 0.5, 0.3)
    for window in (WHOLE, (0.5, 0.0, 0.5, 0.5), (0.1, 0.15, 0.7, 0.33), (0.0, 0.0, 8 / 7, 8 / 7)):
        torch.testing.assert_close(drawn.map(5, 6, window=window), named.map(5, 6, window=window))
    # the window is a cut-out of the finer map
    torch.testing.assert_close(named.map(4, 4, window=(0.5, 0.5, 0.5, 0.5)), named.map(8, 8)[:, 4:, 4:])


def test_a_padded_grid_ends_at_the_picture():
    """Three cells of 2 over a latent of 5: the last cell is half outside, and a region of the whole picture fills it."""
    assert torch.equal(box(0, 0, 1, 1).map(3, 3, window=(0.0, 0.0, 6 / 5, 6 / 5)), torch.ones(1, 3, 3))
    assert torch.equal(Region(mask=torch.ones(10, 10)).map(3, 3, window=(0.0, 0.0, 6 / 5, 6 / 5)), torch.ones(1, 3, 3))


def test_frames():
    moving = Region(boxes=((0, 0, 0.5, 1), (0.5, 0, 0.5, 1)))
    found = moving.map(1, 4, frames=3)
    torch.testing.assert_close(found[:, 0], torch.tensor([[1.0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]))
    still = box(0, 0, 0.5, 1).map(1, 2, frames=3)
    assert torch.equal(still, torch.tensor([1.0, 0]).expand(3, 1, 2))
    masks = torch.zeros(4, 2, 2)
    masks[:2, :, 0], masks[2:, :, 1] = 1, 1
    assert torch.equal(Region(mask=masks).map(2, 2, frames=2), masks[::2])
    with pytest.raises(BadInput, match="4 frames.*a picture takes one"):
        Region(mask=masks).map(2, 2)
    maps = Regions((moving, box(0, 0, 1, 1))).maps(2, 4, frames=3)
    assert maps.shape == (2, 24) and torch.equal(maps[1], torch.ones(24))


def test_hard_maps_keep_at_least_a_cell_and_whole_strokes():
    small = Regions((box(0.02, 0.02, 0.05, 0.05), box(0, 0, 0.5, 0.5)))
    hard = small.hard(4, 4)
    assert hard[0].sum() == 1 and hard[0, 0] and hard[1].sum() == 4
    line = torch.zeros(64, 64)
    line[31:33, 4:60] = 1
    stroke = Regions((Region(mask=line, scribble=True),)).hard(8, 8)[0].view(8, 8)
    assert stroke[3:5].all() and stroke.sum() == 16
    outside = Regions((box(0, 0, 0.25, 0.25),)).hard(4, 4, window=(0.5, 0.5, 0.5, 0.5))
    assert not outside.any()


def test_bounds():
    mask = torch.zeros(10, 20)
    mask[2:5, 4:12] = 1
    assert Region(mask=mask).bounds() == pytest.approx((0.2, 0.2, 0.4, 0.3))
    assert Region(boxes=((0, 0, 0.5, 1), (0.5, 0, 0.5, 1))).bounds(0.5) == pytest.approx((0.25, 0, 0.5, 1))


def test_columns_of_a_repeated_prompt_and_of_a_joint_call():
    assert columns((2, 3), 8, slice(0, 8)) == [2, 3]
    assert columns((2, 3), 8, slice(0, 24)) == [2, 3, 10, 11, 18, 19]
    assert columns((2, 3), 8, slice(5, 13)) == [7, 8]
    with pytest.raises(ValueError, match="10 tokens.*8"):
        columns((2, 3), 8, slice(0, 10))
    with pytest.raises(ValueError, match="cannot be told"):
        columns((2, 3), 8, None)


def test_one_wire_is_one_prompt():
    cond, other = [[torch.zeros(1, 2, 3), {}]], [[torch.zeros(1, 2, 3), {}]]
    regions = Regions((box(0, 0, 1, 1, conditioning=cond), box(0, 0, 1, 1), box(0, 0, 1, 1, conditioning=cond), box(0, 0, 1, 1, conditioning=other)))
    a, b, c, d = regions.prompts
    assert a == c and b is None and a != d and regions.prompts is regions.prompts


@pytest.mark.parametrize("make,words", (
    (lambda: Region(), "either boxes or a mask"),
    (lambda: Region(boxes=((0, 0, 1, 1),), mask=torch.ones(2, 2)), "either boxes or a mask"),
    (lambda: box(0.5, 0, 0.6, 1), "inside the picture"),
    (lambda: box(0, 0, 0, 1), "greater than 0"),
    (lambda: box(0, 0, float("nan"), 1), "four numbers"),
    (lambda: box(0, 0, 1), "four numbers"),
    (lambda: box(0, 0, 1, 1, weight=-1.0), "weight = -1.0"),
    (lambda: Region(mask=torch.zeros(4, 4)), "Nothing is marked"),
    (lambda: Region(mask=torch.full((4, 4), float("nan"))), "not finite"),
    (lambda: Region(mask=torch.ones(1, 3, 4, 4)), "MASK"),
    (lambda: Regions((box(0, 0, 1, 1, words="ball"),)).need("Node", words=True), "Node.*region 1 .ball. without words.*Prompt with Regions"),
    (lambda: Regions((box(0, 0, 1, 1),)).need("Node", words=True), "Write which words"),
    (lambda: Regions((box(0, 0, 1, 1, prompt="a ball"),)).need("Node", prompts=True), "Prompt with Regions"),
    (lambda: Regions().need("Node"), "at least one region")))
def test_errors_name_the_field_and_what_would_be_right(make, words):
    with pytest.raises(BadInput, match=words):
        make()
