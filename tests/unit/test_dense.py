"""Dense Diffusion as a pure function: where logits go, and what leaves them alone."""
import pytest
import torch
import torch.nn.functional as F

from lodestar.guidance.attention.dense import DenseDiffusion, DenseModulation, modulated, time_left
from lodestar.guidance.attention.edits import Site
from lodestar.guidance.attention.regions import Region, Regions
from lodestar.guidance.method import BadInput, Step

pytestmark = pytest.mark.method("LodestarDenseDiffusion")
H = W = 4
N, L = H * W, 6
LEFT, TOP, ALL = (0, 0, 0.5, 1), (0, 0, 1, 0.5), (0, 0, 1, 1)


def tensor(tokens, seed, rows=2, heads=2, dim=4):
    return torch.randn(rows, heads, tokens, dim, generator=torch.Generator().manual_seed(seed))


def regions(*boxes, **more):
    return Regions(tuple(Region(boxes=(b,), words="w", tokens=(1 + 2 * i, 2 + 2 * i), **more) for i, b in enumerate(boxes)), length=L)


def site(kind):
    if kind == "joint":
        return Site("joint", None, H, W, slice(0, L + 1), slice(L + 1, L + 1 + N), prompt=slice(1, L + 1))
    return Site(kind, None, H, W, prompt=slice(0, L) if kind == "cross" else None)


def logits_after(edit, kind, seed=0):
    """(before, after): logits of the whole matrix, changed in one part and in parts of 3 queries."""
    here = site(kind)
    keys = {"self": N, "cross": L, "joint": L + 1 + N}[kind]
    queries = keys if kind == "joint" else N
    z = torch.randn(2, 2, queries, keys, generator=torch.Generator().manual_seed(seed))
    whole = edit.logits(here, z.clone(), slice(0, queries))
    parts = torch.cat([edit.logits(here, z[:, :, i:i + 3].clone(), slice(i, min(i + 3, queries))) for i in range(0, queries, 3)], 2)
    torch.testing.assert_close(parts, whole)
    return z, whole


def test_modulated():
    z = torch.tensor([[[[0.0, 1.0, 4.0]]]])
    wanted, touched = torch.tensor([[True, False, False]]), torch.tensor([[True, True, False]])
    assert modulated(z, wanted, touched, torch.tensor([[0.5]])).tolist() == [[[[2.0, 0.5, 4.0]]]]
    assert torch.equal(modulated(z, wanted, touched, torch.tensor([[0.0]])), z)


def test_keys_that_are_closed_stay_closed():
    z = torch.tensor([[[[0.0, 2.0, -torch.inf], [-torch.inf] * 3]]])
    out = modulated(z, torch.tensor([[True, False, True]] * 2), torch.ones(2, 3, dtype=torch.bool), torch.full((2, 1), 0.5))
    assert out.tolist() == [[[[1.0, 1.0, -torch.inf], [-torch.inf] * 3]]]


@pytest.mark.parametrize("kind", ("self", "cross", "joint"))
def test_no_strength_changes_nothing(kind):
    before, after = logits_after(DenseModulation("all", regions(LEFT, TOP), 0.0, 0.0), kind)
    assert torch.equal(before, after)


def test_words_are_drawn_to_their_region():
    """Full strength: the region's words get the row's highest value, everything else its lowest; outside only the words are lowered."""
    z, after = logits_after(DenseModulation("all", regions(LEFT), 1.0, 0.0, size=0.0), "cross")
    z, after = z.view(2, 2, H, W, L), after.view(2, 2, H, W, L)
    inside = after[..., :2, :]
    torch.testing.assert_close(inside[..., 1:3], z[..., :2, :].amax(-1, keepdim=True).expand(-1, -1, -1, -1, 2))
    torch.testing.assert_close(inside[..., [0, 3, 4, 5]], z[..., :2, :].amin(-1, keepdim=True).expand(-1, -1, -1, -1, 4))
    outside = after[..., 2:, :]
    assert torch.equal(outside[..., [0, 3, 4, 5]], z[..., 2:, [0, 3, 4, 5]])
    torch.testing.assert_close(outside[..., 1:3], z[..., 2:, :].amin(-1, keepdim=True).expand(-1, -1, -1, -1, 2))


def test_large_regions_get_less():
    """size 1: a region of half the picture is moved half as far as with size 0; one of everything not at all."""
    z, full = logits_after(DenseModulation("all", regions(LEFT), 0.6, 0.0, size=0.0), "cross")
    _, half = logits_after(DenseModulation("all", regions(LEFT), 0.6, 0.0, size=1.0), "cross")
    inside = (torch.arange(N) % W < 2)
    torch.testing.assert_close((half - z)[:, :, inside] * 2, (full - z)[:, :, inside])
    z, whole = logits_after(DenseModulation("all", regions(ALL), 0.6, 0.3, size=1.0), "cross")
    assert torch.equal(z, whole)
    _, heavy = logits_after(DenseModulation("all", regions(LEFT, weight=0.5), 0.6, 0.0, size=0.0), "cross")
    torch.testing.assert_close((heavy - z)[:, :, inside] * 2, (full - z)[:, :, inside])


def test_pixels_of_a_region_are_drawn_together():
    z, after = logits_after(DenseModulation("all", regions(LEFT), 0.0, 1.0, size=0.0), "self")
    inside = (torch.arange(N) % W < 2)
    rows = after[:, :, inside]
    torch.testing.assert_close(rows[..., inside], z[:, :, inside].amax(-1, keepdim=True).expand_as(rows[..., inside]))
    torch.testing.assert_close(rows[..., ~inside], z[:, :, inside].amin(-1, keepdim=True).expand_as(rows[..., ~inside]))
    assert torch.equal(after[:, :, ~inside], z[:, :, ~inside])


def test_joint_is_self_and_cross_in_their_columns():
    edit = DenseModulation("all", regions(LEFT, TOP), 0.5, 0.4)
    z, after = logits_after(edit, "joint")
    assert torch.equal(after[:, :, :L + 1], z[:, :, :L + 1])      # the text's own rows
    picture = z[:, :, L + 1:]
    own = edit.logits(site("self"), picture[..., L + 1:].clone(), slice(0, N))
    torch.testing.assert_close(after[:, :, L + 1:, L + 1:], own)
    from dataclasses import replace
    words = edit.logits(replace(site("cross"), prompt=slice(1, L + 1)), picture[..., :L + 1].clone(), slice(0, N))
    torch.testing.assert_close(after[:, :, L + 1:, :L + 1], words)


def test_the_edit_is_attention_with_those_logits():
    edit, here = DenseModulation("all", regions(LEFT), 0.7, 0.0), site("cross")
    q, k, v = tensor(N, 0), tensor(L, 1), tensor(L, 2)
    attend = F.scaled_dot_product_attention
    out = edit.apply(here, q, k, v, attend)
    z = q @ k.transpose(-1, -2) / 2
    torch.testing.assert_close(out, edit.logits(here, z, slice(0, N)).softmax(-1) @ v)
    none = DenseModulation("all", regions(LEFT), 0.0, 0.0).apply(here, q, k, v, attend)
    torch.testing.assert_close(none, attend(q, k, v))


def test_time_and_fading():
    sigmas = lambda p: 14.6 * (1 - p) ** 3
    step = Step(torch.zeros(1, 4, 8, 8), torch.tensor([sigmas(0.25)]), percent_to_sigma=sigmas)
    assert time_left(step) == pytest.approx(0.75, abs=1e-5)
    assert time_left(Step(torch.zeros(1, 4, 8, 8), torch.tensor([0.4]), flow=True, percent_to_sigma=sigmas)) == pytest.approx(0.4)
    edit, = DenseDiffusion(regions=regions(LEFT), power=2.0).edits(step)
    assert edit.cross == pytest.approx(0.75 ** 2, abs=1e-4) and edit.own == pytest.approx(0.3 * 0.75 ** 2, abs=1e-4)
    assert DenseDiffusion(regions=regions(LEFT), cross_strength=0.0, self_strength=0.0).neutral()


def test_regions_without_words_are_refused():
    with pytest.raises(BadInput, match="Dense Diffusion.*region 1.*Prompt with Regions"):
        DenseDiffusion(regions=Regions((Region(boxes=(LEFT,), words="ball"),))).validate()
    with pytest.raises(ValueError, match="one of 77"):
        DenseModulation("all", Regions(regions(LEFT).items, length=77), 1.0, 0.0).logits(site("cross"), torch.zeros(1, 1, N, L), slice(0, N))
