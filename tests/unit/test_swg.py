"""Sliding Window Guidance: the windows, and the push written out."""
from __future__ import annotations

import pytest
import torch
from lodestar.guidance.method import POSITIVE, BadInput, Windows
from lodestar.guidance.perturbation.swg import SlidingWindowGuidance
from lodestar.tests.toys import a_step

pytestmark = pytest.mark.method("LodestarSlidingWindowGuidance")


@pytest.mark.parametrize("size,share,count", [(64, 0.625, 2), (32, 0.625, 2), (63, 0.6, 3), (17, 0.4, 5), (9, 1.0, 4), (10, 0.5, 1)])
def test_windows_reach_from_border_to_border(size, share, count):
    found = Windows(share, count).axis(size)
    length = round(share * size)
    assert all(n == length for _, n in found)
    if length == size or count == 1:
        assert len(found) == 1
        return
    assert len(found) == count and found[0][0] == 0 and found[-1][0] + length == size
    assert all(a < b for (a, _), (b, _) in zip(found, found[1:]))


def test_the_papers_windows():
    """40 of 64 cells, 2 x 2: they start at 0 and 24; they overlap in the middle 16 rows and columns."""
    windows = Windows(0.625, 2)
    assert windows.of((1, 4, 64, 64)) == [(40, 40, y, x) for y in (0, 24) for x in (0, 24)]
    overlaps = windows.overlaps((1, 4, 64, 64))
    assert overlaps[0, 0] == 1 and overlaps[0, 30] == 2 and overlaps[30, 30] == 4
    assert int((overlaps > 1).sum()) == 64 * 64 - 4 * 24 * 24


@pytest.mark.parametrize("masked", (True, False))
def test_the_push(masked):
    g = torch.Generator().manual_seed(0)
    base, cond, neg = (torch.randn(2, 3, 16, 24, generator=g) for _ in range(3))
    method = SlidingWindowGuidance(scale=0.7, masked=masked)
    predictions = {POSITIVE: cond, method.branch: neg}
    count = torch.zeros(16, 24)
    for y in (0, 6):
        for x in (0, 9):
            count[y:y + 10, x:x + 15] += 1
    mask = (count > 1).float() if masked else torch.ones(16, 24)
    out = base + method.delta(a_step(base), base, predictions, {})
    torch.testing.assert_close(out, base + 0.7 * mask * (cond - neg))
    assert method.delta(a_step(base), base, {POSITIVE: cond, method.branch: cond}, {}).abs().max() == 0
    video = torch.randn(1, 3, 2, 16, 24, generator=g)
    assert method.delta(a_step(video), video, {POSITIVE: video, method.branch: 0 * video}, {}).shape == video.shape


def test_a_local_denoiser_is_not_pushed_where_windows_overlap_by_more_than_it_sees():
    """A moving average over three cells, in windows that overlap by eight: inside the overlap no crop's border is in reach of both."""
    blur = lambda t: torch.nn.functional.avg_pool2d(torch.nn.functional.pad(t, (1, 1, 1, 1), mode="replicate"), 3, 1)
    x = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    method = SlidingWindowGuidance(scale=1.0)
    windows, total, count = method.branch.windows, torch.zeros_like(x), torch.zeros_like(x)
    for h, w, top, left in windows.of(x.shape):
        total[..., top:top + h, left:left + w] += blur(x[..., top:top + h, left:left + w])
        count[..., top:top + h, left:left + w] += 1
    delta = method.delta(a_step(x), x, {POSITIVE: blur(x), method.branch: total / count}, {})[0, 0]
    (_, length), (second, _) = windows.axis(32)
    inside = torch.zeros(32, dtype=torch.bool)
    inside[second + 1:length - 1] = True
    assert delta[inside][:, inside].abs().max() < 1e-6
    assert delta.abs().max() > 1e-3                  # at the windows' borders it is


def test_off_and_bad_input():
    assert SlidingWindowGuidance(scale=0.0).neutral() and SlidingWindowGuidance(crop=1.0).neutral() and not SlidingWindowGuidance().neutral()
    with pytest.raises(BadInput, match="crop"):
        SlidingWindowGuidance(crop=0.0).validate()
