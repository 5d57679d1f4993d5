"""Dense Correspondence: matches of shifted features, their refinement, warping."""
import pytest
import torch
import torch.nn.functional as F

from lodestar.guidance.layers import Geometry, Layer
from lodestar.guidance.method import BadInput
from lodestar.guidance.reading.correspondence import DenseCorrespondence, Summed, confidence, default_layers, drawn, listed, match, together, warped

WINDOW = (0.0, 0.0, 1.0, 1.0)


def features(height=8, width=10, dim=32, seed=0):
    return F.normalize(torch.randn(height * width, dim, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.mark.parametrize("rows", (7, 1024))
def test_a_shift_is_found(rows):
    first = features().view(8, 10, 32)
    second = torch.roll(first, (2, 3), (0, 1))
    found = match(first.flatten(0, 1), second.flatten(0, 1), 8, 10, rows=rows)
    y, x = torch.meshgrid(torch.arange(8), torch.arange(10), indexing="ij")
    expected = torch.stack((((x + 3) % 10 + 0.5) / 10, ((y + 2) % 8 + 0.5) / 8), -1)
    torch.testing.assert_close(found.places, expected, atol=2e-3, rtol=0)
    assert found.mutual.all() and float(found.score.min()) > 0.999


def test_a_picture_matches_itself():
    f = features()
    found = match(f, f, 8, 10)
    y, x = torch.meshgrid((torch.arange(8) + 0.5) / 8, (torch.arange(10) + 0.5) / 10, indexing="ij")
    torch.testing.assert_close(found.places, torch.stack((x, y), -1), atol=2e-3, rtol=0)
    picture = torch.rand(16, 20, 3, generator=torch.Generator().manual_seed(0))
    exact = torch.stack(torch.meshgrid((torch.arange(16) + 0.5) / 16, (torch.arange(20) + 0.5) / 20, indexing="ij")[::-1], -1)
    torch.testing.assert_close(warped(picture, exact), picture, atol=1e-5, rtol=0)
    assert float(confidence(found, (16, 20)).min()) > 0.99


def test_places_between_cells():
    """Features that change evenly: a shift by half a cell is found as one."""
    def ramp(shift):
        at = (torch.arange(10) + 0.5 - shift)
        return F.normalize(torch.stack([torch.cos(k * at / 10 * 3.14159) for k in range(1, 6)], -1), dim=-1)
    found = match(ramp(0.0), ramp(0.5), 1, 10, reach=1, temperature=0.02)
    inner = found.places[0, 2:8, 0] * 10 - 0.5 - torch.arange(2, 8)
    assert inner.mean() == pytest.approx(0.5, abs=0.15)


def test_what_does_not_find_back_is_not_trusted():
    first = features()
    second = first.clone()
    second[5] = features(seed=1)[5]      # the second picture has no such part
    found = match(first, second, 8, 10)
    assert not found.mutual.flatten()[5] and found.mutual.float().mean() > 0.95


def test_layers_are_put_together():
    a = torch.randn(2, 16, 4, generator=torch.Generator().manual_seed(0))
    b = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(1))
    found = {"x": [2 * a, 2, (1, 4, 4), WINDOW], "y": [b, 1, (1, 2, 2), WINDOW]}
    f, grid = together(found)
    assert f.shape == (2, 16, 10) and grid == (4, 4)
    torch.testing.assert_close(f.norm(dim=-1), torch.ones(2, 16))
    one, _ = together({"x": [a, 1, (1, 4, 4), WINDOW]})
    torch.testing.assert_close(one, F.normalize(a - a.mean((0, 1)), dim=-1))
    with pytest.raises(BadInput, match="layers"):
        DenseCorrespondence().matches({})


def test_default_layers():
    def unet(inputs, outputs):
        return Geometry("unet", (*(Layer("input", i) for i in inputs), Layer("middle", 0), *(Layer("output", i) for i in outputs)))
    assert default_layers(unet((1, 2, 4, 5, 7, 8), range(3, 12))) == "output.6"
    assert default_layers(unet((4, 5, 7, 8), range(6))) == "output.3" and default_layers(unet((1, 3), range(4))) == "output.2"
    assert default_layers(Geometry("flux", (Layer("double", 0), Layer("single", 0)))) == "single.50%-100%"


def test_what_several_predictions_saw_is_summed():
    summed, total = Summed(), torch.ones(2, 4, 3)
    for _ in range(3):
        summed.take(None, {"x": [total, 2, (1, 2, 2), WINDOW]})
    assert torch.equal(summed.found["x"][0], 3 * total) and summed.found["x"][1] == 6 and torch.equal(total, torch.ones(2, 4, 3))
    summed.clear()
    assert not summed.found


def test_listed_matches_are_mutual_and_spread():
    f = features()
    matches = match(f, f, 8, 10)
    matches.mutual[:4] = False
    points = listed(matches, 5)
    assert 1 < len(points) <= 5 and all(p["from"][1] > 0.5 for p in points)
    assert len({(int(p["from"][0] * 10) // 4, int(p["from"][1] * 8) // 4) for p in points}) == len(points)
    assert all(abs(a - b) < 0.01 for p in points for a, b in zip(p["from"], p["to"])) and points == sorted(points, key=lambda p: -p["score"])
    assert listed(matches, 0) == []
    picture = torch.zeros(16, 20, 3)
    sheet = drawn(picture, picture + 1, points)
    assert sheet.shape == (16, 40, 3) and float(sheet.max()) == 1 and torch.equal(drawn(picture, picture + 1, []), torch.cat((picture, picture + 1), 1))
