"""Prompt-to-Prompt as pure functions: which token takes whose map, and what the pairs' rows become."""
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from lodestar.guidance.attention.edits import Site
from lodestar.guidance.attention.prompt_to_prompt import Pair, PictureMaps, PromptToPrompt, WordMaps, alignment, factors
from lodestar.guidance.attention.tokens import Words
from lodestar.guidance.method import BadInput, Step

from .test_tokens import Clip

pytestmark = pytest.mark.method("LodestarPromptToPrompt")
L, H, W = 10, 4, 4


def words(text, stream="l", length=L):
    return Words(Clip(stream), text, length)


def chosen(mapping):
    """{target position: [(source position, weight)]} of what is not the identity."""
    return {j: [(i, round(mapping[i, j].item(), 3)) for i in mapping[:, j].nonzero().flatten().tolist()] for j in range(mapping.shape[1])}


def test_equal_prompts_are_the_identity():
    for mode in ("replace", "refine"):
        mapping, share = alignment(words("a red ball"), words("a red ball"), mode)
        assert torch.equal(mapping, torch.eye(L)) and torch.equal(share, torch.ones(L))


def test_replace_exchanges_words_in_their_places():
    mapping, share = alignment(words("a red ball"), words("a blue ball"), "replace")
    assert torch.equal(mapping, torch.eye(L)) and share.all()
    mapping, share = alignment(words("a red ball"), words("a gigantic ball"), "replace")      # one token becomes two
    found = chosen(mapping)
    assert found[2] == [(2, 1.0)] and found[3] == [(2, 1.0)] and found[4] == [(3, 1.0)] and found[5] == [(4, 1.0)] and share.all()
    mapping, _ = alignment(words("a gigantic ball"), words("a red ball"), "replace")
    assert chosen(mapping)[2] == [(2, 0.5), (3, 0.5)] and chosen(mapping)[3] == [(4, 1.0)]
    torch.testing.assert_close(mapping.sum(0), torch.ones(L))
    with pytest.raises(BadInput, match="mode = 'replace'.*Choose refine"):
        alignment(words("a ball"), words("a red ball"), "replace")


def test_refine_keeps_common_words_and_leaves_new_ones():
    mapping, share = alignment(words("a ball on mat"), words("a red ball on mat"), "refine")
    found = chosen(mapping)
    assert found[1] == [(1, 1.0)] and found[2] == [] and found[3] == [(2, 1.0)] and found[5] == [(4, 1.0)] and found[6] == [(5, 1.0)]
    assert share.tolist() == [1, 1, 0, 1, 1, 1, 1, 1, 1, 1]


def test_factors():
    out = factors("red ball: 2.5\nmat = -1", words("a red ball on mat"))
    assert out.tolist() == [1, 1, 2.5, 2.5, 1, -1, 1, 1, 1, 1]
    with pytest.raises(BadInput, match="weights = 'red'"):
        factors("red", words("a red ball"))
    with pytest.raises(BadInput, match="green.*does not contain"):
        factors("green: 2", words("a red ball"))


def site(kind="cross", rows=4, step=None):
    if kind == "joint":
        return Site("joint", None, H, W, slice(0, L), slice(L, L + H * W), batch=rows, prompt=slice(0, L), step=step)
    return Site(kind, None, H, W, batch=rows, prompt=slice(0, L) if kind == "cross" else None, step=step)


def pair(source="a red ball", target="a blue ball", mode="replace", weights="", blend=None):
    mapping, share = alignment(words(source), words(target), mode)
    return Pair(mapping, share, factors(weights, words(target)), blend)


def test_targets_take_the_sources_maps():
    a = torch.randn(4, 2, H * W, L, generator=torch.Generator().manual_seed(0)).softmax(-1)
    out = WordMaps("all", pair()).weights(site(), a, slice(0, H * W))
    assert torch.equal(out[0::2], a[0::2]) and torch.equal(out[1::2], a[0::2])
    refined = WordMaps("all", pair("a ball on mat", "a red ball on mat", "refine")).weights(site(), a, slice(0, H * W))
    assert torch.equal(refined[1::2, ..., 2], a[1::2, ..., 2]) and torch.equal(refined[1::2, ..., 3], a[0::2, ..., 2])
    heavy = WordMaps("all", pair("a red ball", "a red ball", "refine", "red: 3")).weights(site(), a, slice(0, H * W))
    torch.testing.assert_close(heavy[1::2, ..., 2], 3 * a[0::2, ..., 2])
    assert torch.equal(heavy[1::2, ..., 3], a[0::2, ..., 3])
    idle = WordMaps("all", pair(), swap=False).weights(site(), a, slice(0, H * W))
    assert torch.equal(idle, a)


def test_a_repeated_prompt_is_mapped_in_every_turn():
    from dataclasses import replace
    a = torch.rand(2, 1, H * W, 2 * L, generator=torch.Generator().manual_seed(0))
    out = WordMaps("all", pair("a ball on mat", "a red ball on mat", "refine")).weights(replace(site(), prompt=slice(0, 2 * L)), a, slice(0, H * W))
    assert torch.equal(out[1, ..., L + 3], a[0, ..., L + 2]) and torch.equal(out[1, ..., L + 2], a[1, ..., L + 2])
    with pytest.raises(ValueError, match="10 tokens of its two prompts"):
        WordMaps("all", pair()).weights(replace(site(), prompt=slice(0, 7)), a, slice(0, H * W))


def test_joint_rows_keep_their_sum_and_the_text_its_rows():
    a = torch.randn(4, 2, L + H * W, L + H * W, generator=torch.Generator().manual_seed(0)).softmax(-1)
    edit = WordMaps("all", pair("a red ball", "a red ball", "refine", "red: 3"))
    out = edit.weights(site("joint"), a, slice(0, L + H * W))
    torch.testing.assert_close(out.sum(-1), torch.ones_like(out[..., 0]))
    assert torch.equal(out[:, :, :L], a[:, :, :L]) and torch.equal(out[0::2], a[0::2]) and not torch.equal(out[1::2], a[1::2])
    parts = torch.cat([edit.weights(site("joint"), a[:, :, i:i + 7], slice(i, min(i + 7, a.shape[2]))) for i in range(0, a.shape[2], 7)], 2)
    torch.testing.assert_close(parts, out)


def test_picture_maps_give_the_sources_weights_with_the_targets_values():
    q, k, v = (torch.randn(2, 2, H * W, 4, generator=torch.Generator().manual_seed(s)) for s in range(3))
    attend = F.scaled_dot_product_attention
    out = PictureMaps("all").apply(site("self", 2), q, k, v, attend)
    torch.testing.assert_close(out[0], attend(q, k, v)[0])
    torch.testing.assert_close(out[1], attend(q[:1], k[:1], v[1:])[0])


def test_only_coarse_layers_of_a_unet():
    x = torch.zeros(2, 4, 16, 16)
    q, k, v = (torch.randn(2, 1, 16, 4, generator=torch.Generator().manual_seed(s)) for s in range(3))
    for height, changed in ((4, True), (8, False)):
        layer = SimpleNamespace(stage="output")
        here = Site("self", layer, height, height, batch=2, step=Step(x, torch.ones(2)))
        q, k, v = (torch.randn(2, 1, height * height, 4, generator=torch.Generator().manual_seed(s)) for s in range(3))
        out = PictureMaps("all", 4).apply(here, q, k, v, F.scaled_dot_product_attention)
        assert torch.equal(out, F.scaled_dot_product_attention(q, k, v)) != changed


def test_an_odd_batch_is_refused():
    with pytest.raises(ValueError, match="batch has 3 pictures.*pairs"):
        PictureMaps("all").apply(site("self", 3), *[torch.zeros(3, 1, 16, 4)] * 3, None)


def test_blending_changes_the_picture_where_the_phrase_is():
    """The phrase's map is 1 in the first cell: from there (and its neighbours) the target's estimate is kept, elsewhere the source's."""
    method = PromptToPrompt(blend="ball", blend_start=0.0, pair=pair(blend=((3,), (3,))))
    step = Step(torch.zeros(2, 4, 8, 8), torch.ones(2), percent_to_sigma=lambda p: 2.0 - p)
    edit, = [e for e in method.edits(step) if isinstance(e, WordMaps)]
    a = torch.zeros(2, 1, H * W, L)
    a[..., 0] = 1
    a[:, :, 0, 3] = 1
    edit.weights(site(rows=2, step=step), a, slice(0, H * W))
    denoised = torch.cat((torch.zeros(1, 4, 8, 8), torch.ones(1, 4, 8, 8)))
    out = method.finish(step, denoised, {}, {})
    assert torch.equal(out[0], denoised[0]) and out[1, :, :4, :4].eq(1).all() and out[1, :, 4:].eq(0).all() and out[1, :, :, 4:].eq(0).all()
    assert torch.equal(PromptToPrompt(pair=pair()).finish(step, denoised, {}, {}), denoised)


def test_windows_and_errors():
    step = lambda sigma: Step(torch.zeros(2, 4, 8, 8), torch.tensor([sigma]), percent_to_sigma=lambda p: 1.0 - p)
    method = PromptToPrompt(pair=pair())
    assert [type(e).__name__ for e in method.edits(step(0.9))] == ["WordMaps", "PictureMaps"]
    assert [type(e).__name__ for e in method.edits(step(0.5))] == ["WordMaps"] and method.edits(step(0.1)) == ()
    assert PromptToPrompt(pair=pair(), cross_steps=0.0, self_steps=0.0).neutral() and not method.neutral()
    with pytest.raises(BadInput, match="10 and 20 tokens"):
        PromptToPrompt().with_words(words("a red ball"), words("a b c d e f g h i j", length=20), "m")
    made = PromptToPrompt(mode="replace", blend="ball", weights="blue: 2").with_words(words("a red ball"), words("a blue ball"), "m")
    assert made.pair.blend == ((3,), (3,)) and made.pair.factor[2] == 2 and made.mark == "m"
    with pytest.raises(BadInput, match="blend"):
        PromptToPrompt(blend="a|b|c").with_words(words("a red ball"), words("a red ball"), "m")
