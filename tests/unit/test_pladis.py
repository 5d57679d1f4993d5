"""PLADIS: entmax and sparsemax against their definitions, and the mix."""
import pytest
import torch
import torch.nn.functional as F

from lodestar.guidance.attention.edits import Site
from lodestar.guidance.attention.explicit import query_chunks
from lodestar.guidance.attention.pladis import NORMALISERS, PLADIS, SparseMix, entmax15, sparsemax
from lodestar.guidance.method import BadInput

attend = F.scaled_dot_product_attention


def logits(shape=(50, 12), seed=0, scale=3.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_bisection(z, power):
    """max((alpha - 1) z - tau, 0)^(1 / (alpha - 1)) with tau by bisection."""
    y = z.double() * (1 / power)
    low, high = y.amax(-1, keepdim=True) - 1, y.amax(-1, keepdim=True)
    for _ in range(80):
        middle = (low + high) / 2
        above = (y - middle).clamp(min=0).pow(power).sum(-1, keepdim=True) >= 1
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return (y - low).clamp(min=0).pow(power)


@pytest.mark.parametrize("weights,power", ((entmax15, 2), (sparsemax, 1)))
@pytest.mark.parametrize("scale", (0.1, 1.0, 5.0, 200.0))
def test_against_bisection(weights, power, scale):
    z = logits(scale=scale)
    torch.testing.assert_close(weights(z).double(), by_bisection(z, power), atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("weights", (entmax15, sparsemax))
def test_limits(weights):
    torch.testing.assert_close(weights(torch.zeros(3, 7)), torch.full((3, 7), 1 / 7))
    one = torch.zeros(1, 7)
    one[0, 2] = 50.0
    assert torch.equal(weights(one), F.one_hot(torch.tensor([2]), 7).float())
    hidden = logits()
    hidden[:, 5:] = -torch.inf
    torch.testing.assert_close(weights(hidden)[:, :5], weights(hidden[:, :5]))
    assert weights(hidden)[:, 5:].abs().max() == 0


def test_two_logits():
    for d in (0.0, 0.3, 1.0, 1.7, 2.0, 3.0):
        z = torch.tensor([d, 0.0])
        expected = 0.5 + d / 8 * (8 - d * d) ** 0.5 if d <= 2 else 1.0
        assert float(entmax15(z)[0]) == pytest.approx(expected, abs=1e-6)
        assert float(sparsemax(z)[0]) == pytest.approx(min(1.0, (1 + d) / 2), abs=1e-6)


@pytest.mark.parametrize("normaliser,weights", zip(NORMALISERS, (entmax15, sparsemax)))
@pytest.mark.parametrize("amount", (0.5, 1.0, 2.0))
def test_the_mix(normaliser, weights, amount):
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8, generator=g) for n in (20, 7, 7))
    mask = torch.zeros(2, 1, 1, 7)
    mask[1, ..., 4:] = -torch.inf
    z = q @ k.transpose(-1, -2) / 8 ** 0.5 + mask
    a = (1 - amount) * z.softmax(-1) + amount * weights(z)
    torch.testing.assert_close(a.sum(-1), torch.ones(2, 3, 20))
    out = SparseMix("all", amount, normaliser).apply(Site("cross", None, mask=mask), q, k, v, lambda *x: attend(*x, attn_mask=mask))
    torch.testing.assert_close(out, a @ v)
    assert PLADIS(amount=0.0).neutral()


def test_chunks_stay_within_the_budget():
    parts = list(query_chunks(2, 8, 1000, 77, copies=6, budget=2 ** 20))
    assert [p.start for p in parts] == [0, *(p.stop for p in parts[:-1])] and parts[-1].stop == 1000
    assert all((p.stop - p.start) * 2 * 8 * 77 * 6 * 4 <= 2 ** 20 for p in parts)
    assert len(list(query_chunks(1, 1, 3, 10 ** 9))) == 3


def test_joint_attention_is_refused_by_name():
    from lodestar.guidance.layers import Geometry, Layer

    class Facts:
        geometry, network = Geometry("flux", (Layer("double", 0, None, ("joint",), ("double_block", 0)),)), "Flux"

    with pytest.raises(BadInput, match="PLADIS: model = 'Flux'"):
        PLADIS().fitted(Facts)
