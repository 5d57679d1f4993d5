"""Guidance from a degraded branch: identities of the degradations on tensors, and the formulas written out."""
from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from lodestar.guidance import engine
from lodestar.guidance.attention.blocks import BlockSite, SkipBlock, SkipTimeBlock
from lodestar.guidance.attention.edits import Site
from lodestar.guidance.layers import Geometry, Layer, select
from lodestar.guidance.method import NEGATIVE, POSITIVE, BadInput, Branch, Step
from lodestar.guidance.perturbation.common import blur2d
from lodestar.guidance.perturbation.pag import IdentitySelfAttention, PerturbedAttentionGuidance
from lodestar.guidance.perturbation.s2 import DropBlocks, StochasticSelfGuidance
from lodestar.guidance.perturbation.seg import INFINITE, SmoothedEnergyGuidance, SmoothQueries, smoothed
from lodestar.guidance.perturbation.slg import NEGATIVE_ONLY, SkipLayerGuidance
from lodestar.guidance.perturbation.stg import OneAxisAttention, SpatiotemporalSkipGuidance
from lodestar.guidance.perturbation.tpg import ShuffleTokens, TokenPerturbationGuidance, permutation

SEG, SLG, STG = "LodestarSmoothedEnergyGuidance", "LodestarSkipLayerGuidance", "LodestarSpatiotemporalSkipGuidance"
TPG, S2 = "LodestarTokenPerturbationGuidance", "LodestarStochasticSelfGuidance"
PUSHES = [pytest.param(cls, marks=pytest.mark.method(cls.node_id)) for cls in
          (SmoothedEnergyGuidance, SkipLayerGuidance, SpatiotemporalSkipGuidance, TokenPerturbationGuidance, StochasticSelfGuidance)]

attend = F.scaled_dot_product_attention


def qkv(rows=2, heads=2, tokens=15, dim=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, heads, tokens, dim, generator=g) for _ in range(3)]


def step_of(x, sigma=1.0, **k):
    return Step(x, torch.full((x.shape[0],), sigma), sigmas=torch.linspace(1, 0, 11), **k)


# What all of them share

@pytest.mark.parametrize("cls", PUSHES)
def test_the_push_and_its_rescale(cls):
    g = torch.Generator().manual_seed(0)
    base, cond, worse = (torch.randn(2, 3, 4, 4, generator=g) for _ in range(3))
    method = cls(scale=2.5, rescale=0.0)
    step = step_of(base)
    assert method.branches(step) == (POSITIVE, method.branch) and method.branch != POSITIVE
    predictions = {POSITIVE: cond, method.branch: worse}
    torch.testing.assert_close(base + method.delta(step, base, predictions, {}), base + 2.5 * (cond - worse))
    assert method.delta(step, base, {POSITIVE: cond, method.branch: cond}, {}).abs().max() == 0
    assert cls(scale=0.0).neutral() and not method.neutral()
    method = cls(scale=2.5, rescale=1.0)
    out = base + method.delta(step, base, predictions, {})
    torch.testing.assert_close(out.std((1, 2, 3)), cond.std((1, 2, 3)))
    alone = base[1:] + method.delta(step, base[1:], {k: v[1:] for k, v in predictions.items()}, {})
    torch.testing.assert_close(alone, out[1:])


@pytest.mark.parametrize("cls", PUSHES)
def test_equal_degradations_share_one_branch(cls):
    x = torch.zeros(1, 1, 2, 2)
    pipe = engine.Pipeline((cls(scale=1.0), cls(scale=2.0)))
    active = engine.plan(engine.Run(pipe), step_of(x, percent_to_sigma=lambda p: 1.5 if p <= 0.1 else 0.5), 4.0)
    assert active.branches == (cls().branch,)


# Smoothed Energy Guidance

def reference_blur(x, sigma):
    """A Gaussian blur [h, w] by its definition: sums over mirrored neighbours, 3 sigma to each side."""
    h, w = x.shape
    size = math.ceil(6 * sigma)
    reach = (size + 1 - size % 2) // 2
    at = torch.arange(-reach, reach + 1)
    g = torch.exp(-0.5 * (at.double() / sigma) ** 2)
    g = g / g.sum()

    def mirror(i, n):
        i = abs(i)
        return 2 * (n - 1) - i if i >= n else i
    out = torch.zeros(h, w, dtype=torch.float64)
    for i in range(h):
        for j in range(w):
            for a, ga in zip(at.tolist(), g.tolist()):
                for b, gb in zip(at.tolist(), g.tolist()):
                    out[i, j] += ga * gb * x[mirror(i + a, h), mirror(j + b, w)]
    return out


@pytest.mark.method(SEG)
@pytest.mark.parametrize("sigma", (0.3, 0.5, 1.0))
def test_the_blur_is_the_gaussian_with_mirrored_borders(sigma):
    x = torch.randn(1, 1, 7, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(blur2d(x, sigma)[0, 0], reference_blur(x[0, 0], sigma), rtol=1e-6, atol=1e-6)


@pytest.mark.method(SEG)
@pytest.mark.parametrize("sigma", (0.5, 1.0, 50.0, INFINITE))
def test_blurred_queries_are_blurred_logits(sigma):
    """The paper's formula: the logits Q K^T are blurred along the queries, then softmax; here with the matrix written out."""
    q, k, v = qkv(tokens=15)
    out = SmoothQueries("middle", sigma).apply(Site("self", None, 3, 5), q, k, v, attend)
    logits = q @ k.transpose(-1, -2) / 2.0
    if sigma == INFINITE:
        logits = logits.mean(2, keepdim=True).expand_as(logits)
    else:
        planes = logits.movedim(3, 2).reshape(2, 2 * 15, 3, 5)
        logits = blur2d(planes, sigma).reshape(2, 2, 15, 15).movedim(2, 3)
    torch.testing.assert_close(out, logits.softmax(-1) @ v)


@pytest.mark.method(SEG)
def test_seg_identities():
    q, k, v = qkv()
    site = Site("self", None, 3, 5)
    assert torch.equal(SmoothQueries("middle", 0.0).apply(site, q, k, v, attend), attend(q, k, v))
    torch.testing.assert_close(SmoothQueries("middle", 0.05).apply(site, q, k, v, attend), attend(q, k, v))
    same = q[:, :, :1].expand_as(q)
    for sigma in (1.0, INFINITE):
        torch.testing.assert_close(SmoothQueries("middle", sigma).apply(site, same, k, v, attend), attend(same, k, v))
    out = SmoothQueries("middle", INFINITE).apply(site, q, k, v, attend)
    torch.testing.assert_close(out, out[:, :, :1].expand_as(out))
    assert SmoothedEnergyGuidance(blur_sigma=0.0).neutral()
    wide = smoothed(q, 3, 5, 1000.0)       # a wide kernel is cut to the grid
    assert torch.isfinite(wide).all()
    with pytest.raises(ValueError, match="15 tokens are no grid of 4 x 4"):
        smoothed(q, 4, 4, 1.0)


@pytest.mark.method(SEG)
def test_seg_of_joint_attention_and_of_frames():
    q, k, v = qkv(tokens=3 + 12)
    for text, image in ((slice(0, 3), slice(3, 15)), (slice(12, 15), slice(0, 12))):
        whole = q.clone()
        whole[:, :, image] = torch.cat([smoothed(q[:, :, image][:, :, i:i + 6], 2, 3, 0.7) for i in (0, 6)], 2)      # two frames, each alone
        out = SmoothQueries("middle", 0.7).apply(Site("joint", None, 2, 3, text, image), q, k, v, attend)
        torch.testing.assert_close(out, attend(whole, k, v))
        torch.testing.assert_close(out[:, :, text], attend(q, k, v)[:, :, text])


@pytest.mark.method(SEG)
@pytest.mark.parametrize("split", (False, True))
def test_seg_blurs_what_is_below_a_rotary_embedding(split):
    from lodestar.guidance.host.rotary import Rotation
    q, k, v = qkv(tokens=12)
    angles = torch.rand(1, 1, 12, 2, generator=torch.Generator().manual_seed(3)) * 6
    rotation = Rotation(angles.cos(), angles.sin(), split)
    turned = rotation.turn(q)
    torch.testing.assert_close(rotation.turn(turned, back=True), q)
    torch.testing.assert_close(turned.norm(dim=-1), q.norm(dim=-1))
    out = SmoothQueries("middle", INFINITE).apply(Site("self", None, 3, 4, rotation=rotation), turned, k, v, attend)
    torch.testing.assert_close(out, attend(rotation.turn(q.mean(2, keepdim=True).expand_as(q)), k, v))


@pytest.mark.method(SEG)
def test_seg_keeps_half_precision():
    q, k, v = (t.half() for t in qkv())
    out = SmoothQueries("middle", 2.0).apply(Site("self", None, 3, 5), q, k, v, lambda *t: attend(*(x.float() for x in t)).half())
    assert out.dtype == torch.float16 and torch.isfinite(out).all()


# Blocks left out

def geometry(family="wan", **stages):
    return Geometry(family, tuple(Layer(stage, i, None, ("self",), ("double_block", i)) for stage, n in (stages or {"block": 30}).items() for i in range(n)))


def streams(rows=2, tokens=6, width=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    return {"image": torch.randn(rows, tokens, width, generator=g), "text": torch.randn(rows, 3, width, generator=g)}


def through(edit, site, given, block):
    """A block with an edit around it."""
    return edit.leave(site, given, block(edit.enter(site, given)))


@pytest.mark.method(SLG)
@pytest.mark.method(STG)
def test_a_skipped_block_gives_back_all_that_came():
    given, site = streams(), BlockSite(None)
    out = through(SkipBlock("middle"), site, given, lambda s: {k: torch.tanh(t) for k, t in s.items()})
    assert all(torch.equal(out[k], given[k]) for k in given)
    still = lambda s: {k: t + 0 for k, t in s.items()}          # a block of zero residual: skipping it changes nothing
    assert all(torch.equal(through(SkipBlock("middle"), site, given, still)[k], still(given)[k]) for k in given)


@pytest.mark.method(SLG)
def test_slg_layers_and_modes():
    skip = SkipLayerGuidance().skip
    names = lambda g: [str(x) for x in select(g, skip.default_layers(g))]
    assert names(geometry("sd3", double=24)) == ["double.7", "double.8", "double.9"] and names(geometry()) == ["block.9"]
    assert names(geometry("wan", block=3)) == ["block.1"]                # fewer blocks than the published number: the middle
    assert SkipLayerGuidance(layers="double.3").branch == Branch(blocks=(SkipBlock("double.3"),))
    x = torch.zeros(1, 1, 2, 2)
    only = SkipLayerGuidance(mode=NEGATIVE_ONLY, layers="double.3", start_percent=0.0, end_percent=1.0)
    active = engine.plan(engine.Run(engine.Pipeline((only,))), step_of(x), 4.0)
    assert active.branches == () and active.blocks == {"negative": (SkipBlock("double.3"),)} and not active.wants_negative and not active.idle
    assert only.delta(step_of(x), x, {}, {}).abs().max() == 0
    base, cond = torch.ones(1, 1, 2, 2), torch.full((1, 1, 2, 2), 3.0)
    assert torch.equal(engine.add(engine.Run(engine.Pipeline((only,))), step_of(x), active, base, {POSITIVE: cond, NEGATIVE: cond}), base)
    with pytest.raises(BadInput, match="mode"):
        SkipLayerGuidance(mode="both").validate()


@pytest.mark.method(STG)
def test_stg_shares_branches_with_what_it_equals():
    assert SpatiotemporalSkipGuidance(layers="block.8").branch == SkipLayerGuidance(layers="block.8").branch
    assert SpatiotemporalSkipGuidance(layers="block.8", mode="attention").branch == PerturbedAttentionGuidance(layers="block.8").branch
    names = lambda branch, g: [str(x) for x in select(g, (branch.blocks + branch.edits)[0].default_layers(g))]
    for mode in ("residual", "attention"):
        branch = SpatiotemporalSkipGuidance(mode=mode).branch
        assert names(branch, geometry()) == ["block.8"] and names(branch, geometry("hunyuan", double=20, single=40)) == ["double.2"]
        assert names(branch, geometry("ltx", block=28)) == ["block.19"] and names(branch, geometry("sd3", double=3)) == ["double.1"]
    for axis in ("temporal", "spatial"):
        edit = SpatiotemporalSkipGuidance(axis=axis).branch.blocks[0]
        with pytest.raises(ValueError, match="over the frames"):
            edit.check(geometry(), ())
        edit.check(Geometry("unet", (), temporal=True), ())
        with pytest.raises(ValueError, match="Choose joint"):
            OneAxisAttention("", axis).check(Geometry("unet", ()), ())
    assert isinstance(SpatiotemporalSkipGuidance(axis="temporal").branch.blocks[0], SkipTimeBlock)


@pytest.mark.method(STG)
@pytest.mark.parametrize("axis", ("temporal", "spatial"))
@pytest.mark.parametrize("text", (None, "first", "last"))
def test_stg_of_one_axis_is_the_masked_attention(axis, text):
    """Against the mask written out: temporal skipped, a token sees its own frame; spatial skipped, its own place; the text stays seen."""
    frames, cells, n = 3, 4, 0 if text is None else 2
    q, k, v = qkv(tokens=frames * cells + n)
    where = {"first": slice(0, 2), "last": slice(12, 14), None: None}[text]
    image = slice(2, 14) if text == "first" else slice(0, 12)
    number = torch.arange(frames * cells)
    own = number // cells if axis == "temporal" else number % cells
    mask = torch.zeros(12 + n, 12 + n)
    mask[image, image] = torch.where(own[:, None] == own[None], 0.0, float("-inf"))
    layer = Layer("double", 0)
    site = Site("self" if text is None else "joint", layer, 2, 2, where, image, frames=frames)
    out = OneAxisAttention("", axis).apply(site, q, k, v, attend)
    torch.testing.assert_close(out, attend(q, k, v, attn_mask=mask))
    with pytest.raises(ValueError, match="one frame"):
        OneAxisAttention("", axis).apply(Site("self", layer, 3, 4, frames=1), *qkv(tokens=12), attend)
    apart = Layer("input", 1, 0, ("self", "cross", "temporal"))        # networks with attention of their own for the frames
    assert torch.equal(OneAxisAttention("", axis).apply(Site("temporal" if axis == "temporal" else "self", apart), q, k, v, attend), v)
    other = Site("self" if axis == "temporal" else "temporal", apart)
    assert torch.equal(OneAxisAttention("", axis).apply(other, q, k, v, attend), attend(q, k, v))


# Token Perturbation Guidance

@pytest.mark.method(TPG)
def test_permutations():
    order = permutation(50, 1.0, "a", 1)
    assert sorted(order.tolist()) == list(range(50)) and not torch.equal(order, torch.arange(50))
    assert torch.equal(order, permutation(50, 1.0, "a", 1)) and not torch.equal(order, permutation(50, 1.0, "a", 2))
    assert torch.equal(permutation(50, 0.0, "a"), torch.arange(50)) and torch.equal(permutation(1, 1.0, "a"), torch.arange(1))
    part = permutation(1000, 0.3, "a")
    assert sorted(part.tolist()) == list(range(1000)) and 250 < int((part != torch.arange(1000)).sum()) <= 300


@pytest.mark.method(TPG)
def test_tpg_is_the_shuffled_network():
    """Against the paper's procedure written out: h <- h[:, pi] before the block, never undone; the text and other tokens stay."""
    given = streams(tokens=12)
    layer = Layer("input", 4)
    step = step_of(torch.zeros(2, 1, 2, 2))
    block = lambda s: {k: t * 2 + 1 for k, t in s.items()}          # a layer without attention acts on each token alone
    edit = ShuffleTokens("input", 1.0, seed=5)
    out = through(edit, BlockSite(layer, step=step), given, block)
    order = permutation(12, 1.0, "tokens", 5, 0, layer, 0)
    assert torch.equal(out["image"], block(given)["image"][:, order]) and torch.equal(out["text"], block(given)["text"])
    entered = edit.enter(BlockSite(layer, step=step), given)["image"]
    torch.testing.assert_close(entered.norm(dim=2).sort(1).values, given["image"].norm(dim=2).sort(1).values)
    part = edit.enter(BlockSite(layer, image=slice(2, 10), step=step), given)["image"]
    assert torch.equal(part[:, :2], given["image"][:, :2]) and torch.equal(part[:, 10:], given["image"][:, 10:]) and not torch.equal(part, given["image"])
    alone = edit.enter(BlockSite(layer, step=step), {"image": given["image"][1:]})["image"]
    assert torch.equal(alone, entered[1:])                          # the same for every picture of a batch
    step.index = 1
    later = edit.enter(BlockSite(layer, step=step), given)["image"]
    elsewhere = edit.enter(BlockSite(Layer("input", 5), step=step), given)["image"]
    assert not torch.equal(later, entered) and not torch.equal(elsewhere, later)


@pytest.mark.method(TPG)
def test_tpg_identities():
    given, site = streams(tokens=12), BlockSite(Layer("input", 4), frames=3)
    assert torch.equal(ShuffleTokens("input", 0.0).enter(site, given)["image"], given["image"])
    same = {"image": given["image"][:, :1].expand(-1, 12, -1)}
    assert torch.equal(ShuffleTokens("input").enter(site, same)["image"], same["image"])
    one = {"image": given["image"][:, :1]}
    assert torch.equal(ShuffleTokens("input").enter(site, one)["image"], one["image"])
    framed = ShuffleTokens("input", frames_apart=True).enter(site, given)["image"]
    for i in range(0, 12, 4):
        assert torch.equal(framed[:, i:i + 4].sort(1).values, given["image"][:, i:i + 4].sort(1).values)
    assert not torch.equal(framed, given["image"])
    assert TokenPerturbationGuidance(fraction=0.0).neutral()
    state = torch.random.get_rng_state()
    ShuffleTokens("input").enter(site, given)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.method(TPG)
def test_tpg_default_layers():
    deep = Geometry("unet", tuple(Layer("input", i, d, ("self",), ("input", i, d)) for i, n in ((4, 2), (5, 2), (7, 10), (8, 10)) for d in range(n)))
    chosen = select(deep, ShuffleTokens().default_layers(deep))
    assert [str(x) for x in chosen] == [f"input.7.{d}" for d in range(2, 10)] + [f"input.8.{d}" for d in range(10)] and len(chosen) == 18      # 6 to 23 of 24
    small = Geometry("unet", tuple(Layer(stage, 1) for stage in ("input", "middle", "output")))
    assert [str(x) for x in select(small, ShuffleTokens().default_layers(small))] == ["input.1"]


# Stochastic Self-Guidance

@pytest.mark.method(S2)
def test_s2_draws():
    found = geometry("sd3", double=24)
    edit = DropBlocks(share=0.1)
    layers = select(found, edit.default_layers(found))
    assert len(layers) == 23 and layers[0].index == 1               # the first block is kept
    step = step_of(torch.zeros(1, 1, 2, 2))
    drawn = set()
    for index in range(200):
        step.index = index
        picked = edit.pick(layers, step)
        assert len(picked) == len(set(picked)) == 2 and set(picked) <= set(layers) and picked == edit.pick(layers, step)
        drawn |= set(picked)
    assert drawn == set(layers)
    assert edit.pick(layers, step) != DropBlocks(share=0.1, seed=1).pick(layers, step)
    assert len(DropBlocks(share=0.001).pick(layers, step)) == 1 and len(DropBlocks(share=1.0).pick(layers, step)) == 23
    assert edit.pick(layers[:1], step) == [layers[0]]


@pytest.mark.method(S2)
def test_s2_is_the_papers_formula():
    g = torch.Generator().manual_seed(0)
    c, u, *parts = (torch.randn(2, 3, 4, 4, generator=g) for _ in range(5))
    method, w, omega = StochasticSelfGuidance(scale=0.25, masks=3), 4.0, 0.25
    assert len(set(method.subnetworks)) == 3
    cfg = u + w * (c - u)
    out = cfg + method.delta(step_of(c), cfg, {POSITIVE: c, **dict(zip(method.subnetworks, parts))}, {})
    torch.testing.assert_close(out, u + w * (c - u) - omega / 3 * sum(p - c for p in parts))
    assert StochasticSelfGuidance(drop=0.0).neutral()


def test_the_grid_of_a_unet_layer_from_the_latents_size():
    """Older hosts tell the size of the latent alone; its halves are rounded up."""
    from lodestar.guidance.host.places import unet_grid
    shape = [2, 4, 13, 22]
    assert [unet_grid({"original_shape": shape}, n)[:2] for n in (286, 77, 24, 6)] == [(13, 22), (7, 11), (4, 6), (2, 3)]
    assert unet_grid({"original_shape": shape}, 100)[:2] == (None, None) and unet_grid({}, 4)[:2] == (None, None)
    assert unet_grid({"activations_shape": [1, 8, 3, 5]}, 15)[:2] == (3, 5)
