"""Directed Diffusion as a pure function of attention maps."""
import pytest
import torch

from lodestar.guidance.attention.directed import DirectedAttention, DirectedDiffusion, gaussian
from lodestar.guidance.attention.edits import Site
from lodestar.guidance.attention.regions import Region, Regions
from lodestar.guidance.method import BadInput, Step

pytestmark = pytest.mark.method("LodestarDirectedDiffusion")
H = W = 4
N, L = H * W, 8
LEFT, RIGHT = (0, 0, 0.5, 1), (0.5, 0, 0.5, 1)


def regions(*boxes):
    return Regions(tuple(Region(boxes=(b,), words="w", tokens=(1 + i,)) for i, b in enumerate(boxes)), length=L, spans=((1, 5),))


def maps(edit, seed=0, part=slice(0, N)):
    a = torch.randn(2, 2, N, L, generator=torch.Generator().manual_seed(seed)).softmax(-1)
    return a[:, :, part], edit.weights(Site("cross", None, H, W, prompt=slice(0, L)), a[:, :, part].clone(), part)


def test_factors_of_one_and_no_gaussian_change_nothing():
    a, out = maps(DirectedAttention("all", regions(LEFT, RIGHT), inside=1.0, outside=1.0, spread=0.0))
    assert torch.equal(a, out)


def test_words_grow_inside_and_nearly_vanish_outside():
    a, out = maps(DirectedAttention("all", regions(LEFT), inside=9.0, outside=0.01, spread=0.0, trailing=2))
    left = torch.arange(N) % W < 2
    for column in (1, 5, 6):      # the word, and the two tokens behind the prompt
        torch.testing.assert_close(out[:, :, left, column], 9 * a[:, :, left, column])
        torch.testing.assert_close(out[:, :, ~left, column], 0.01 * a[:, :, ~left, column])
    assert torch.equal(out[..., [0, 2, 3, 4, 7]], a[..., [0, 2, 3, 4, 7]])


def test_trailing_tokens_belong_to_all_regions():
    a, out = maps(DirectedAttention("all", regions(LEFT, RIGHT), inside=2.0, outside=0.0, spread=0.0, trailing=1))
    torch.testing.assert_close(out[..., 5], 2 * a[..., 5])
    assert out[..., 1].view(2, 2, H, W)[..., 2:].abs().max() == 0 and out[..., 2].view(2, 2, H, W)[..., :2].abs().max() == 0


def test_others_and_sums():
    a, out = maps(DirectedAttention("all", regions(LEFT), inside=1.0, outside=0.01, spread=0.0, trailing=0, weaken_others=True))
    torch.testing.assert_close(out[..., [0, 2, 3]], 0.01 * a[..., [0, 2, 3]])
    _, out = maps(DirectedAttention("all", regions(LEFT), inside=9.0, renormalise=True))
    torch.testing.assert_close(out.sum(-1), torch.ones(2, 2, N))


def test_parts_are_the_whole():
    edit = DirectedAttention("all", regions(LEFT, RIGHT), inside=3.0)
    _, whole = maps(edit)
    torch.testing.assert_close(torch.cat([maps(edit, part=slice(i, min(i + 3, N)))[1] for i in range(0, N, 3)], 2), whole)


def test_the_gaussian_is_a_density_in_cells():
    region = Region(boxes=((0.25, 0.25, 0.25, 0.25),))
    for size in (64, 96):
        g = gaussian(region, size, size)
        assert g.sum().item() == pytest.approx(1.0, abs=0.05) and g.argmax().item() % size in (size * 3 // 8 - 1, size * 3 // 8)
    moving = gaussian(Region(boxes=((0, 0, 0.5, 1), (0.5, 0, 0.5, 1))), 4, 8, frames=2)
    assert moving[0].sum(0).argmax() < 4 <= moving[1].sum(0).argmax()


def test_steps():
    def found(index, total=10, **k):
        return DirectedDiffusion(regions=regions(LEFT), strength=2.0, **k).edits(Step(torch.zeros(1, 1, 1, 1), torch.ones(1), sigmas=torch.zeros(total + 1), index=index))
    assert [e.inside for i in range(10) for e in found(i, steps=0.3)] == pytest.approx([18.0, 9.0, 0.0])
    assert [e.inside for e in found(0, steps=0.01)] == [18.0] and found(1, steps=0.01) == ()
    assert DirectedDiffusion(regions=regions(LEFT), steps=0.0).neutral()
    with pytest.raises(BadInput, match="Directed Diffusion.*region 1"):
        DirectedDiffusion(regions=Regions((Region(boxes=(LEFT,), words="ball"),))).validate()
