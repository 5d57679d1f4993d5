"""Regional prompts as pure functions: what equal texts, whole regions and separate regions give."""
import pytest
import torch
import torch.nn.functional as F

from lodestar.guidance.attention.edits import Site
from lodestar.guidance.attention.regional import RegionalAttention, RegionalPrompts, Separation, shares
from lodestar.guidance.attention.regions import Region, Regions
from lodestar.guidance.method import BadInput, Step

pytestmark = pytest.mark.method("LodestarRegionalPrompts")
H = W = 4
attend = F.scaled_dot_product_attention


def tensor(tokens, seed, rows=2, heads=2, dim=4):
    return torch.randn(rows, heads, tokens, dim, generator=torch.Generator().manual_seed(seed))


def regions(*boxes, **more):
    return Regions(tuple(Region(boxes=(b,), conditioning=[[torch.zeros(1, 1, 1), {}]], **more) for b in boxes))


LEFT, RIGHT, ALL, CORNER = (0, 0, 0.5, 1), (0.5, 0, 0.5, 1), (0, 0, 1, 1), (0.1, 0.1, 0.3, 0.3)


def edit(found, base_ratio=0.2):
    return RegionalAttention("all", found, base_ratio, tuple(dict.fromkeys(found.prompts)))


def cross(e, q, base, pairs):
    site = Site("cross", None, H, W, extra={"texts": {e: tuple(pairs)}, "plain": attend})
    return e.apply(site, q, *base, lambda a, b, c, bias=None: attend(a, b, c))


def test_shares_sum_to_one_and_follow_coverage():
    found = regions(LEFT, CORNER)
    w = shares(found, 0.25, found.maps(H, W))
    torch.testing.assert_close(w.sum(0), torch.ones(H * W))
    assert (w >= 0).all() and w[1].view(H, W)[3, 0] == 0.75 and w[0].view(H, W)[3, 3] == 1
    corner = w[:, 0]        # the first cell is all of the first region's, and (0.15 / 0.25)^2 of the second's
    share = (0.15 / 0.25) ** 2
    torch.testing.assert_close(corner, torch.tensor([0.25, 0.75 / (1 + share), 0.75 * share / (1 + share)]))
    light = regions(ALL, weight=0.5)
    torch.testing.assert_close(shares(light, 0.0, light.maps(H, W))[1], torch.full((H * W,), 0.5))


@pytest.mark.parametrize("base_ratio", (0.0, 0.2, 1.0))
def test_equal_texts_change_nothing(base_ratio):
    q, k, v = tensor(H * W, 0), tensor(5, 1), tensor(5, 2)
    torch.testing.assert_close(cross(edit(regions(LEFT, CORNER), base_ratio), q, (k, v), [(k, v), (k, v)]), attend(q, k, v))


def test_a_whole_region_is_its_own_prompt():
    q, base, own = tensor(H * W, 0), (tensor(5, 1), tensor(5, 2)), (tensor(3, 3), tensor(3, 4))
    torch.testing.assert_close(cross(edit(regions(ALL), 0.0), q, base, [own]), attend(q, *own))
    torch.testing.assert_close(cross(edit(regions(ALL), 0.3), q, base, [own]), 0.3 * attend(q, *base) + 0.7 * attend(q, *own))


def test_a_region_does_not_feel_the_others_text():
    q, base = tensor(H * W, 0), (tensor(5, 1), tensor(5, 2))
    one, two, other = [(tensor(3, s), tensor(3, s + 1)) for s in (3, 5, 7)]
    e = edit(regions(LEFT, RIGHT))
    a, b = (cross(e, q, base, pairs).view(2, 2, H, W, 4) for pairs in ([one, two], [one, other]))
    assert torch.equal(a[..., :2, :], b[..., :2, :]) and not torch.equal(a[..., 2:, :], b[..., 2:, :])


def test_regions_with_one_conditioning_share_its_text():
    cond = [[torch.zeros(1, 1, 1), {}]]
    found = Regions((Region(boxes=(LEFT,), conditioning=cond), Region(boxes=(CORNER,), conditioning=cond)))
    e = edit(found)
    assert len(e.texts) == 1 and len(RegionalPrompts(regions=found).prompts) == 1
    w, used = e.mixture(Site("cross", None, H, W), torch.device("cpu"), H * W)
    assert w.shape == (2, H * W) and used == (True, True)


# Joint attention: [text, region texts, picture]

L, N = 3, H * W


def joint(e, texts, image=0):
    """q, k, v of a joint call and its outputs with the bias; texts: one seed for each text, the prompt's first."""
    made = [[tensor(L, 10 * s + i) for i in range(3)] for s in texts] + [[tensor(N, 100 + image + i) for i in range(3)]]
    q, k, v = (torch.cat([m[i] for m in made], 2) for i in range(3))
    total = q.shape[2]
    begin = L * len(texts)
    site = Site("joint", None, H, W, slice(0, begin), slice(begin, total), prompt=slice(0, L))
    bias = e.bias(site, [slice(L * i, L * (i + 1)) for i in range(1, len(texts))], total, q.dtype, q.device)
    out = attend(q, k, v, attn_mask=bias)
    return made, out[:, :, begin:], [out[:, :, L * i:L * (i + 1)] for i in range(len(texts))]


def plain(*parts):
    q, k, v = (torch.cat([m[i] for m in parts], 2) for i in range(3))
    return attend(q, k, v)


@pytest.mark.parametrize("base_ratio", (0.0, 0.2, 0.9))
def test_joint_equal_texts_on_whole_regions_change_nothing(base_ratio):
    made, picture, texts = joint(edit(regions(ALL, ALL), base_ratio), (1, 1, 1))
    expected = plain(made[0], made[-1])
    torch.testing.assert_close(picture, expected[:, :, L:])
    torch.testing.assert_close(texts[0], expected[:, :, :L])
    torch.testing.assert_close(texts[1], expected[:, :, :L])


def test_joint_a_whole_region_is_its_own_prompt():
    made, picture, texts = joint(edit(regions(ALL), 0.0), (1, 2))
    expected = plain(made[1], made[-1])
    torch.testing.assert_close(picture, expected[:, :, L:])
    torch.testing.assert_close(texts[1], expected[:, :, :L])
    torch.testing.assert_close(texts[0], plain(made[0], made[-1])[:, :, :L])       # the prompt's own stream goes on as before


def test_joint_regions_are_closed_to_each_other():
    e = edit(regions(LEFT, RIGHT), 0.2)
    (_, a, ta), (_, b, tb) = joint(e, (1, 2, 3)), joint(e, (1, 2, 4))
    a, b = a.view(2, 2, H, W, 4), b.view(2, 2, H, W, 4)
    torch.testing.assert_close(a[..., :2, :], b[..., :2, :], atol=0, rtol=0)
    assert torch.equal(ta[0], tb[0]) and torch.equal(ta[1], tb[1]) and not torch.equal(a[..., 2:, :], b[..., 2:, :])


def test_separation_closes_regions_to_each_other_alone():
    e = Separation("all", regions((0, 0, 0.5, 0.5), (0.5, 0, 0.5, 0.5)))
    q, k, v = tensor(N, 0), tensor(N, 1), tensor(N, 2)
    site = Site("self", None, H, W)

    def run(v):
        return e.apply(site, q, k, v, lambda a, b, c, bias: attend(a, b, c, attn_mask=bias)).view(2, 2, H, W, 4)
    changed = v.view(2, 2, H, W, 4).clone()
    changed[:, :, :2, 2:] += 1.0
    a, b = run(v), run(changed.view(v.shape))
    same = (a == b).all(-1).all(0).all(0)
    assert same[:2, :2].all() and not same[2:].any() and not same[:2, 2:].any()
    free = Separation("all", regions(ALL)).apply(site, q, k, v, lambda a, b, c, bias: attend(a, b, c, attn_mask=bias))
    torch.testing.assert_close(free, attend(q, k, v))


def test_windows_and_neutral():
    method = RegionalPrompts(regions=regions(LEFT), separate="all", separate_end=0.5)
    assert not method.neutral() and RegionalPrompts(regions=regions(LEFT), base_ratio=1.0).neutral()
    step = Step(torch.zeros(1, 4, 8, 8), torch.tensor([5.0]), percent_to_sigma=lambda p: 10 * (1 - p))
    assert [type(e).__name__ for e in method.edits(step)] == ["RegionalAttention", "Separation"]
    late = Step(torch.zeros(1, 4, 8, 8), torch.tensor([2.0]), percent_to_sigma=lambda p: 10 * (1 - p))
    assert [type(e).__name__ for e in method.edits(late)] == ["RegionalAttention"]


def test_a_region_without_prompt_is_named():
    with pytest.raises(BadInput, match="Regional Prompts.*region 1.*Prompt with Regions"):
        RegionalPrompts(regions=Regions((Region(boxes=(LEFT,), prompt="a ball"),))).validate()
    with pytest.raises(ValueError, match="another node changes the tokens"):
        edit(regions(LEFT)).mixture(Site("cross", "output.3", H, W), torch.device("cpu"), 7)
