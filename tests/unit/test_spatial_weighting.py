"""Spatial Prompt Weighting on tensors."""
import math

import pytest
import torch
import torch.nn.functional as F

from lodestar.guidance.attention.edits import Site
from lodestar.guidance.attention.regions import Region, Regions
from lodestar.guidance.attention.spatial_weighting import LAWS, SpatialPromptWeighting, WeightedWords, level, spread
from lodestar.guidance.method import BadInput, Step

pytestmark = pytest.mark.method("LodestarSpatialPromptWeighting")
H = W = 4
N, L = H * W, 6


def tensor(tokens, seed):
    return torch.randn(2, 3, tokens, 8, generator=torch.Generator().manual_seed(seed))


def attend(q, k, v, bias=None):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def regions(*items):
    return Regions(tuple(Region(boxes=(box,), words="w", tokens=tokens, weight=weight) for box, tokens, weight in items), length=L)


TWO = regions(((0, 0, 0.5, 1), (1, 2), 1.0), ((0, 0.5, 1, 0.5), (4,), 2.0))
COVER = torch.stack([(torch.arange(N) % 4 < 2).float(), (torch.arange(N) // 4 >= 2).float()])


def test_cross_attention_is_the_formula():
    q, k, v = tensor(N, 0), tensor(L, 1), tensor(L, 2)
    z = q @ k.transpose(-1, -2) * 8 ** -0.5
    std = z.flatten(2).std(2, unbiased=False)[..., None, None]
    torch.testing.assert_close(spread(q, k), std)
    wanted = z.clone()
    wanted[..., [1, 2]] += 0.7 * std * COVER[0][:, None]
    wanted[..., [4]] += 0.7 * std * 2.0 * COVER[1][:, None]
    out = WeightedWords("all", TWO, 0.7).apply(Site("cross", None, H, W, prompt=slice(0, L)), q, k, v, attend)
    torch.testing.assert_close(out, wanted.softmax(-1) @ v, rtol=1e-4, atol=1e-5)


def test_joint_attention_changes_the_pictures_queries_and_the_prompts_columns():
    q, k, v = (tensor(N + L + 1, i) for i in range(3))
    site = Site("joint", None, H, W, slice(0, L + 1), slice(L + 1, L + 1 + N), prompt=slice(1, L + 1))
    out = WeightedWords("all", TWO, 0.7).apply(site, q, k, v, attend)
    assert torch.allclose(out[:, :, :L + 1], attend(q, k, v)[:, :, :L + 1], atol=1e-6)
    z = q[:, :, L + 1:] @ k.transpose(-1, -2) * 8 ** -0.5
    std = z[..., :L + 1].flatten(2).std(2, unbiased=False)[..., None, None]
    z[..., [2, 3]] += 0.7 * std * COVER[0][:, None]
    z[..., [5]] += 0.7 * std * 2.0 * COVER[1][:, None]
    torch.testing.assert_close(out[:, :, L + 1:], z.softmax(-1) @ v, rtol=1e-4, atol=1e-5)


def test_what_changes_nothing():
    """Everything everywhere is a constant; strength 0 and noise level 0 are off; samples and heads do not meet."""
    q, k, v = tensor(N, 0), tensor(L, 1), tensor(L, 2)
    everything = regions(((0, 0, 1, 1), tuple(range(L)), 1.0))
    site = Site("cross", None, H, W, prompt=slice(0, L))
    torch.testing.assert_close(WeightedWords("all", everything, 3.0).apply(site, q, k, v, attend), attend(q, k, v), rtol=1e-4, atol=1e-5)
    assert SpatialPromptWeighting(regions=TWO, strength=0.0).neutral()
    assert SpatialPromptWeighting(regions=TWO).edits(Step(q, torch.zeros(2))) == ()
    one = WeightedWords("all", TWO, 2.0).apply(site, q[:1], k[:1], v[:1], attend)
    torch.testing.assert_close(one, WeightedWords("all", TWO, 2.0).apply(site, q, k, v, attend)[:1], rtol=1e-4, atol=1e-5)


def test_the_level():
    step = lambda s, flow=False: Step(torch.zeros(1, 4, 2, 2), torch.tensor([s]), flow)
    assert level(step(3.0), LAWS[0]) == pytest.approx(math.log(10.0)) and level(step(3.0), LAWS[1]) == pytest.approx(math.log(4.0))
    assert level(step(0.75, True), LAWS[1]) == pytest.approx(math.log(4.0)) and math.isfinite(level(step(1.0, True), LAWS[0]))
    edit, = SpatialPromptWeighting(regions=TWO, strength=0.5).edits(step(3.0))
    assert edit.amount == pytest.approx(0.5 * math.log(10.0))
    with pytest.raises(BadInput, match="without words"):
        SpatialPromptWeighting(regions=Regions((Region(boxes=((0, 0, 1, 1),)),))).validate()
    with pytest.raises(ValueError, match="6 tokens|found in one of"):
        WeightedWords("all", TWO, 1.0).apply(Site("cross", None, H, W, prompt=slice(0, 7)), tensor(N, 0), tensor(7, 1), tensor(7, 2), attend)
