"""Attention Entropy Scaling: the factor, and what it does to the entropy of attention."""
import math

import pytest
import torch
import torch.nn.functional as F

from lodestar.guidance.attention.entropy import AttentionEntropyScaling, EntropyScale, factor
from lodestar.guidance.attention.edits import Site
from lodestar.guidance.method import BadInput

attend = F.scaled_dot_product_attention


def qkv(tokens, rows=2, heads=2, dim=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, heads, tokens, dim, generator=g) for _ in range(3)]


def test_the_factor():
    assert factor(256, 256) == 1.0 and factor(1, 50) == 1.0 and factor(50, 1) == 1.0 and factor(4096, 256, 0.0) == 1.0
    assert factor(4096, 256) == pytest.approx(math.sqrt(math.log(4096) / math.log(256)))
    assert factor(64, 256) < 1 < factor(1024, 256)
    assert factor(1024, 256, 2.0) == pytest.approx(factor(1024, 256) ** 2)


@pytest.mark.parametrize("strength", (1.0, 0.5, 2.0))
def test_it_is_attention_with_another_scale(strength):
    """8 x 8 tokens of a latent of 16 x 16 cells; trained at 32 x 32 cells, that is 16 x 16 tokens."""
    q, k, v = qkv(64)
    site = Site("self", None, 8, 8, latent=(1, 4, 16, 16))
    out = EntropyScale("all", 32 * 32, strength).apply(site, q, k, v, attend)
    scale = (math.log(64) / math.log(256)) ** (strength / 2) / math.sqrt(8)
    torch.testing.assert_close(out, attend(q, k, v, scale=scale))


def test_joint_attention_counts_the_text():
    q, k, v = qkv(64 + 6)
    site = Site("joint", None, 8, 8, slice(0, 6), slice(6, 70), latent=(1, 4, 16, 16))
    out = EntropyScale("all", 8 * 8, 1.0).apply(site, q, k, v, attend)
    scale = math.sqrt(math.log(70) / math.log(6 + 16)) / math.sqrt(8)
    torch.testing.assert_close(out, attend(q, k, v, scale=scale))


def test_the_training_size_is_bit_equal():
    q, k, v = qkv(64)
    site = Site("self", None, 8, 8, latent=(1, 4, 16, 16))
    assert torch.equal(EntropyScale("all", 256.0, 1.0).apply(site, q, k, v, attend), attend(q, k, v))
    assert AttentionEntropyScaling(strength=0.0).neutral()


@pytest.mark.parametrize("now", (1024, 64))
def test_the_entropy_is_that_of_training(now):
    """Random logits: at another number of keys the mean entropy moves by about ln(N / T) nats; scaled it stays nearer."""
    def entropy(n, f=1.0):
        g = torch.Generator().manual_seed(1)
        p = (f * 1.5 * torch.randn(256, n, generator=g)).softmax(-1)
        return float(-(p * p.log()).sum(-1).mean())
    trained = 256
    plain, scaled, target = entropy(now), entropy(now, factor(now, trained)), entropy(trained)
    assert plain - target == pytest.approx(math.log(now / trained), abs=0.12)
    assert abs(scaled - target) < abs(plain - target)


def test_an_unknown_training_size_is_an_error():
    class Facts:
        trained_at, network, cell = None, "SomeNet", 8

    with pytest.raises(BadInput, match="Attention Entropy Scaling: train_width = 0.*SomeNet"):
        AttentionEntropyScaling().fitted(Facts)
    Facts.trained_at = 512
    found = AttentionEntropyScaling().fitted(Facts)
    assert (found.train_width, found.train_height) == (512, 512) and found.edits(None)[0].cells == 4096
    assert AttentionEntropyScaling(train_width=640, train_height=320).fitted(Facts).edits(None)[0].cells == 80 * 40
