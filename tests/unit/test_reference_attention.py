"""Reference attention on tensors."""
import pytest
import torch
import torch.nn.functional as F

from lodestar.guidance.attention.edits import Shared, Site
from lodestar.guidance.attention.reference_attention import ReferenceAttention, ReferenceKeys
from lodestar.guidance.attention.sources import Held, Source
from lodestar.guidance.method import BadInput, Branch

pytestmark = pytest.mark.method("LodestarReferenceAttention")
REFERENCE = Branch(source=Source(Held({"samples": torch.zeros(1, 4, 2, 3)})))


def qkv(rows=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, 2, 6, 4, generator=g) for _ in range(3)]


def attend(q, k, v, bias=None):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def run(edit, q, k, v, s):
    return edit.apply(Site("self", None, 2, 3, batch=2, shared={REFERENCE: s}), q, k, v, attend)


def test_the_own_tokens_as_reference_change_nothing():
    q, k, v = qkv()
    for weight in (0.5, 1.0, 3.0):
        torch.testing.assert_close(run(ReferenceKeys("all", REFERENCE, weight=weight), q, k, v, Shared(q, k, v)), attend(q, k, v))


def test_the_formula_and_its_mixture():
    q, k, v = qkv()
    s = Shared(*qkv(seed=3))
    logits = q @ torch.cat((k, s.k), 2).transpose(-1, -2) / 2.0
    logits[..., 6:] += torch.log(torch.tensor(3.0))
    both = logits.softmax(-1) @ torch.cat((v, s.v), 2)
    torch.testing.assert_close(run(ReferenceKeys("all", REFERENCE, weight=3.0), q, k, v, s), both, rtol=1e-4, atol=1e-5)
    mixed = run(ReferenceKeys("all", REFERENCE, weight=3.0, share=0.25), q, k, v, s)
    torch.testing.assert_close(mixed, 0.75 * attend(q, k, v) + 0.25 * both, rtol=1e-4, atol=1e-5)
    gone = run(ReferenceKeys("all", REFERENCE, weight=1e-9), q, k, v, s)
    torch.testing.assert_close(gone, attend(q, k, v), rtol=1e-4, atol=1e-5)


def test_fidelity_says_what_the_negative_rows_see():
    latent = {"samples": torch.zeros(1, 4, 2, 2)}
    paper = ReferenceAttention(reference=latent, fidelity=1.0).edits(None)
    assert [e.reach for e in paper] == ["positive"]
    both = ReferenceAttention(reference=latent, fidelity=0.25).edits(None)
    assert [(e.reach, e.share) for e in both] == [("positive", 1.0), ("negative", 0.75)] and both[0].reference == both[1].reference
    with pytest.raises(BadInput, match="Reference Attention: reference"):
        ReferenceAttention().validate()
    assert ReferenceAttention(strength=0.0).validate().neutral()
