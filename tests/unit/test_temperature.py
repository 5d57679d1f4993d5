"""Temporal Attention Temperature: the distance map, the temperatures, the edit."""
import pytest
import torch
import torch.nn.functional as F

from lodestar.guidance.attention.edits import Site
from lodestar.guidance.attention.temperature import Temperature, TemporalAttentionTemperature, distances, temperatures
from lodestar.guidance.layers import Geometry, Layer
from lodestar.guidance.method import BadInput

attend = F.scaled_dot_product_attention


def test_distances_are_euclidean():
    mask = torch.zeros(9, 13, dtype=torch.bool)
    points = [(2, 3), (7, 11), (0, 0)]
    for y, x in points:
        mask[y, x] = True
    expected = torch.tensor([[min(((y - a) ** 2 + (x - b) ** 2) ** 0.5 for a, b in points) for x in range(13)] for y in range(9)])
    torch.testing.assert_close(distances(mask), expected)


def test_temperatures():
    mask = torch.zeros(2, 32, 64)
    mask[0, 0, 0], mask[1, 31, 63] = 1, 1
    tau = temperatures(mask, 8, 16, 3.0)
    assert tau.shape == (8, 16) and float(tau[0, 0]) == 1 == float(tau[7, 15])      # in any frame
    assert float(tau[0, 1]) == pytest.approx(1 + 3 / (0.5 * (8 ** 2 + 16 ** 2) ** 0.5))
    assert float(temperatures(mask, 8, 16, 0.0).max()) == 1


def test_the_edit():
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2 * 12, 2, 5, 8, generator=g) for _ in range(3))       # two videos of 3 x 4 cells, 5 frames
    mask = torch.zeros(1, 3, 4)
    mask[0, 1, 2] = 1
    site = Site("temporal", None, 3, 4)
    out = Temperature("all", mask, 2.0).apply(site, q, k, v, attend)
    tau = temperatures(mask, 3, 4, 2.0).flatten()
    for row in (0, 6, 11, 12, 18, 23):
        z = q[row] @ k[row].transpose(-1, -2) / 8 ** 0.5 / tau[row % 12]
        torch.testing.assert_close(out[row], z.softmax(-1) @ v[row])
    torch.testing.assert_close(out[6], attend(q, k, v)[6])      # inside the mask
    flat = Temperature("all", mask, 1e9).apply(site, q, k, v, attend)
    torch.testing.assert_close(flat[0], v[0].mean(-2, keepdim=True).expand_as(v[0]))


def test_bad_input():
    class Facts:
        geometry, network = Geometry("unet", (Layer("input", 1, None, ("self", "cross")),)), "UNetModel"

    with pytest.raises(BadInput, match="Temporal Attention Temperature: model = 'UNetModel'"):
        TemporalAttentionTemperature(mask=torch.ones(1, 4, 4)).fitted(Facts)
    for bad in (torch.zeros(1, 4, 4), torch.ones(4, 4)):
        with pytest.raises(BadInput, match="mask"):
            TemporalAttentionTemperature(mask=bad).validate()
    assert TemporalAttentionTemperature(mask=torch.ones(1, 4, 4), gain=0.0).neutral()
