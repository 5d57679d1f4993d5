"""Spatial Word Attention: the factor on the words' columns, in cross and in joint attention."""
import pytest
import torch
import torch.nn.functional as F
from lodestar.guidance.attention.edits import Site
from lodestar.guidance.attention.spatial_words import AmplifiedWords, SpatialWordAttention
from lodestar.guidance.attention.words import PromptWords
from lodestar.guidance.method import BadInput

pytestmark = pytest.mark.method("LodestarSpatialWordAttention")
attend = F.scaled_dot_product_attention
WORDS = PromptWords("a left of b", ("left of",), ((2, 3),), (1, 2, 3, 4), 6)


def tensors(queries, keys):
    g = torch.Generator().manual_seed(0)
    return torch.randn(2, 2, queries, 8, generator=g), torch.randn(2, 2, keys, 8, generator=g), torch.randn(2, 2, keys, 8, generator=g)


def test_cross_attention_is_the_formula():
    q, k, v = tensors(12, 6)
    site = Site("cross", None, 3, 4, prompt=slice(0, 6))
    a = (q @ k.transpose(-1, -2) / 8 ** 0.5).softmax(-1)
    a[..., 2:4] *= 25.0
    torch.testing.assert_close(AmplifiedWords("all", WORDS, 25.0).apply(site, q, k, v, attend), a @ v, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(AmplifiedWords("all", WORDS, 1.0).apply(site, q, k, v, attend), attend(q, k, v), atol=1e-5, rtol=1e-4)
    # a prompt that the host repeated: both copies
    q, k, v = tensors(12, 12)
    a = (q @ k.transpose(-1, -2) / 8 ** 0.5).softmax(-1)
    a[..., [2, 3, 8, 9]] *= 3.0
    torch.testing.assert_close(AmplifiedWords("all", WORDS, 3.0).apply(Site("cross", None, 3, 4, prompt=slice(0, 12)), q, k, v, attend), a @ v, atol=1e-5, rtol=1e-4)


def test_joint_attention_keeps_its_sum_and_the_texts_rows():
    q, k, v = tensors(18, 18)
    site = Site("joint", None, 3, 4, text=slice(0, 6), image=slice(6, 18), prompt=slice(0, 6))
    out = AmplifiedWords("all", WORDS, 4.0).apply(site, q, k, v, attend)
    torch.testing.assert_close(out[:, :, :6], attend(q, k, v)[:, :, :6], atol=1e-5, rtol=1e-4)
    a = (q @ k.transpose(-1, -2) / 8 ** 0.5).softmax(-1)[:, :, 6:]
    a[..., 2:4] *= 4.0
    torch.testing.assert_close(out[:, :, 6:], a / a.sum(-1, keepdim=True) @ v, atol=1e-5, rtol=1e-4)


def test_off_and_bad_input():
    assert SpatialWordAttention(words=WORDS, factor=1.0).neutral() and not SpatialWordAttention(words=WORDS).neutral()
    with pytest.raises(BadInput, match="Spatial Word Attention.*factor"):
        SpatialWordAttention(words=WORDS, factor=-1.0).validate()
    with pytest.raises(BadInput, match="Spatial Word Attention.*words"):
        SpatialWordAttention(words=PromptWords("", (), (), (), 6)).validate()
    with pytest.raises(ValueError, match="6|tokens"):
        q, k, v = tensors(12, 5)
        AmplifiedWords("all", WORDS).apply(Site("cross", None, 3, 4, prompt=slice(0, 5)), q, k, v, attend)
