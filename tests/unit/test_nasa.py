"""Negative-Away Steer Attention as a pure function."""
import pytest
import torch
import torch.nn.functional as F

from lodestar.guidance.attention.edits import Site
from lodestar.guidance.attention.nasa import NegativeAwaySteerAttention, SteerAway, steered

pytestmark = pytest.mark.method("LodestarNegativeAwaySteerAttention")


def tensor(tokens, seed):
    return torch.randn(2, 3, tokens, 4, generator=torch.Generator().manual_seed(seed))


def test_identities():
    plus, minus, other = tensor(6, 0), tensor(6, 1), tensor(6, 2)
    assert torch.equal(steered(plus, minus, 0.0), plus)
    torch.testing.assert_close(steered(plus, plus, 0.3), 0.7 * plus)
    torch.testing.assert_close(steered(plus, 2 * minus + other, 0.3), plus - 0.6 * minus - 0.3 * other)
    out = steered(plus, minus, 0.5, renormalise=True)
    torch.testing.assert_close(torch.linalg.vector_norm(out, dim=(1, 3)), torch.linalg.vector_norm(plus, dim=(1, 3)))
    torch.testing.assert_close(steered(plus, plus, 0.3, renormalise=True), plus)
    assert torch.isfinite(steered(plus, plus, 1.0, renormalise=True)).all() and steered(plus.half(), minus.half(), 0.3).dtype == torch.float16


def test_the_edit_subtracts_attention_to_the_negative_with_the_same_queries():
    q, k, v, kn, vn = (tensor(n, s) for n, s in ((6, 0), (5, 1), (5, 2), (4, 3), (4, 4)))
    attend = F.scaled_dot_product_attention
    edit = SteerAway("all", None, 0.4)
    out = edit.apply(Site("cross", None, extra={"tokens": {edit: (kn, vn)}, "plain": attend}), q, k, v, attend)
    torch.testing.assert_close(out, attend(q, k, v) - 0.4 * attend(q, kn, vn))
    assert torch.equal(edit.apply(Site("cross", None), q, k, v, attend), attend(q, k, v))


def test_neutral():
    assert NegativeAwaySteerAttention(negative=[], scale=0.0).neutral() and not NegativeAwaySteerAttention(negative=[]).neutral()
