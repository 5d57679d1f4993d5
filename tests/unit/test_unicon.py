"""UniCon on tensors: what two streams see of each other, weight files, and the latent that holds both."""
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lodestar.demo.unicon import blocks, depth, fresh, nearness
from lodestar.guidance.attention.joint_lora import parse
from lodestar.guidance.attention.joint_streams import Rows, placed_in
from lodestar.guidance.attention.unicon import APART, MODES, JointStreams, UniCon, joint_latent, levels, split
from lodestar.guidance.method import POSITIVE, BadInput, Step

pytestmark = pytest.mark.method("LodestarUniCon")
WIDTH, TEXT, HEADS, TOKENS = 8, 6, 2, 5
BLOCK = "mid_block.attentions.0.transformer_blocks.0"


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def attend(q, k, v):
    q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """An attention of a U-Net's block."""

    def __init__(self, given, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.to_q, self.to_k, self.to_v = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(given, WIDTH, bias=False), nn.Linear(given, WIDTH, bias=False)
        self.to_out = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Identity())

    def forward(self, x, context=None):
        context = x if context is None else context
        return self.to_out(attend(self.to_q(x), self.to_k(context), self.to_v(context)))


class Block(nn.Module):
    """The attentions of a transformer block, one behind the other."""

    def __init__(self):
        super().__init__()
        self.attn1, self.attn2 = Attention(WIDTH, 1), Attention(TEXT, 2)

    def forward(self, x, text):
        x = x + self.attn1(x)
        return x + self.attn2(x, text)


def file_of(strength=1.0, own=True, fused=True, seed=0):
    g, w = torch.Generator().manual_seed(seed), {}
    for attention, names in (("attn1n", ("xy", "yx")), *((("attn1", ("y",)), ("attn2", ("y",))) if own else ())):
        for part in ("q", "k", "v", "out.0"):
            given = TEXT if attention == "attn2" and part in "kv" else WIDTH
            for name in names:
                w[f"{BLOCK}.{attention}.to_{part}.lora_A.{name}_lora.weight"] = torch.randn(2, given, generator=g)
                w[f"{BLOCK}.{attention}.to_{part}.lora_B.{name}_lora.weight"] = torch.randn(WIDTH, 2, generator=g) * strength * 0.3
    side = WIDTH * (2 if fused else 1)
    w[f"{BLOCK}.conv1n.weight"] = torch.randn(side, side, generator=g) * strength * 0.3
    return w


def run(module, x, text, block, joined=(True,), **k):
    """The block with the streams in place."""
    rows, touched = Rows(len(joined), len(x) // len(joined), joined), []
    for at, make in placed_in(module, block, rows, attend, **k):
        touched.append(at)
        at.forward = make(at.forward)
    try:
        return module(x, text)
    finally:
        for at in touched:
            at.__dict__.pop("forward")


@pytest.fixture(scope="module")
def block():
    return Block().requires_grad_(False).eval()


def made(**k):
    return parse(file_of(**k), "test", "file").blocks["middle"][0]


def lora(w, name, which, x, attention="attn1n"):
    return x @ w[f"{BLOCK}.{attention}.to_{name}.lora_A.{which}_lora.weight"].T @ w[f"{BLOCK}.{attention}.to_{name}.lora_B.{which}_lora.weight"].T


@pytest.mark.parametrize("fused", [True, False])
def test_a_pair_is_the_papers_formula(block, fused):
    """Written out with weights of its own for each stream: the network's matrix and the LoRA's product in one."""
    w = file_of(fused=fused)
    x, y, tx, ty = (random(1, *s, seed=i) for i, s in enumerate(((TOKENS, WIDTH), (TOKENS, WIDTH), (3, TEXT), (3, TEXT))))
    out = run(block, torch.cat((x, y)), torch.cat((tx, ty)), parse(w, "test", "file").blocks["middle"][0], scale=(0.7, 0.7))
    a1, a2 = block.attn1, block.attn2

    def through(m, q, k, which=None, attention="attn1n"):
        more = (lambda name, t: lora(w, name, which, t, attention)) if which else (lambda name, t: 0)
        o = attend(m.to_q(q) + more("q", q), m.to_k(k) + more("k", k), m.to_v(k) + more("v", k))
        return m.to_out(o) + more("out.0", o)
    ox, oy = through(a1, x, y, "xy"), through(a1, y, x, "yx")
    post = w[f"{BLOCK}.conv1n.weight"].T
    px, py = (torch.cat((ox, oy), -1) @ post).chunk(2, -1) if fused else (ox @ post, oy @ post)
    hx, hy = x + through(a1, x, x) + 0.7 * px, y + through(a1, y, y, "y", "attn1") + 0.7 * py
    hx, hy = hx + through(a2, hx, tx), hy + through(a2, hy, ty, "y", "attn2")
    torch.testing.assert_close(out, torch.cat((hx, hy)), atol=1e-5, rtol=1e-5)


def test_weights_of_zero_leave_every_bit(block):
    x, text = random(6, TOKENS, WIDTH), random(6, 3, TEXT, seed=1)
    assert torch.equal(run(block, x, text, made(strength=0.0)), block(x, text))
    assert torch.equal(run(block, x, text, made(), scale=(0.0, 0.0), amount=0.0), block(x, text))


def test_streams_apart_do_not_know_of_each_other(block):
    x, text = random(6, TOKENS, WIDTH), random(6, 3, TEXT, seed=1)
    apart = run(block, x, text, made(), joined=(False,))
    assert torch.equal(apart[:3], block(x, text)[:3]) and not torch.equal(apart[3:], block(x, text)[3:])
    assert torch.equal(apart, run(block, x, text, made(), scale=(0.0, 0.0)))
    other = torch.cat((x[:3], random(3, TOKENS, WIDTH, seed=5)))
    assert torch.equal(run(block, other, text, made(), joined=(False,))[:3], apart[:3])
    assert (run(block, other, text, made())[:3] - run(block, x, text, made())[:3]).abs().max() > 1e-2
    one_way = run(block, x, text, made(), scale=(1.0, 0.0))
    assert torch.equal(one_way[3:], apart[3:]) and (one_way[:3] - apart[:3]).abs().max() > 1e-2


def test_prompts_and_pairs_of_a_call_are_what_they_are_alone(block):
    """Three prompts of two pairs: one whose streams see each other, one apart, one that is none of ours."""
    x, text = random(12, TOKENS, WIDTH), random(12, 3, TEXT, seed=1)
    out = run(block, x, text, made(), joined=(True, False, None))
    torch.testing.assert_close(out[:4], run(block, x[:4], text[:4], made()))
    torch.testing.assert_close(out[4:8], run(block, x[4:8], text[4:8], made(), joined=(False,)))
    assert torch.equal(out[8:], block(x, text)[8:])
    for i in range(2):
        rows = [i, i + 2]
        torch.testing.assert_close(run(block, x[rows], text[rows], made()), out[rows])


def test_gradients_pass_both_streams(block):
    w = {k: v.clone().requires_grad_() for k, v in file_of().items()}
    x = random(2, TOKENS, WIDTH).requires_grad_()
    out = run(block, x, random(2, 3, TEXT, seed=1), parse(w, "test", "file").blocks["middle"][0])
    slope, = torch.autograd.grad(out[0].square().sum(), x, retain_graph=True)
    assert slope[1].abs().max() > 1e-3      # the image sees the condition
    out.square().sum().backward()
    assert all(v.grad is not None and v.grad.abs().max() > 0 for v in w.values())


def test_files_in_both_layouts():
    w = file_of()
    folder = {}
    for key, value in w.items():
        for name in ("xy_lora", "yx_lora", "y_lora"):
            if f".{name}." in key:
                stem = key.replace(f".{name}.weight", "").replace(".lora_A", ".lora.down").replace(".lora_B", ".lora.up")
                folder[f"{name}.unet.{stem}.weight"] = value
    folder[f"{BLOCK}.conv1n.weight"] = w[f"{BLOCK}.conv1n.weight"]
    assert len(folder) == len(w)
    one, two = parse(w, "t", "f").blocks["middle"][0], parse(folder, "t", "f").blocks["middle"][0]
    for table in ("cross", "own"):
        for key, parts in getattr(one, table).items():
            assert all(torch.equal(a, b) for p in parts for a, b in zip(parts[p], getattr(two, table)[key][p]))
    assert one.fused and not made(fused=False).fused and not made(own=False).own
    many = {k.replace("mid_block.attentions.0", f"up_blocks.{i}.attentions.{j}"): v for i, j in ((10, 0), (2, 1)) for k, v in file_of(seed=i).items()}
    found = parse(many, "t", "f").blocks["output"]
    assert torch.equal(found[0].post, many["up_blocks.2.attentions.1.transformer_blocks.0.conv1n.weight"]) and len(found) == 2      # counted, not spelt


@pytest.mark.parametrize("change, message", [
    (lambda w: {"lora_unet_x.lora_up.weight": torch.zeros(2, 2)}, "holds no pair of streams"),
    (lambda w: w | {"other": torch.zeros(2)}, "keys are not known"),
    (lambda w: {k: v for k, v in w.items() if "conv1n" not in k}, "conv1n missing"),
    (lambda w: {k: v for k, v in w.items() if "to_k.lora_B.xy" not in k}, r"attn1n.to_k \(xy_lora, lora_B\) missing"),
    (lambda w: {k: v[:3] if "conv1n" in k else v for k, v in w.items()}, r"conv1n of .* \[16, 16\] or \[8, 8\]"),
    (lambda w: {k: v[:1] if "to_q.lora_A.xy" in k else v for k, v in w.items()}, "would be right"),
    (lambda w: w | {k.replace("mid_block", "up_blocks.0"): v for k, v in file_of(own=False).items()}, "some have none")])
def test_wrong_files_are_named(change, message):
    with pytest.raises(BadInput, match=message):
        parse(change(file_of()), "Load UniCon Weights", "file", "a file")


def test_joint_latents_say_what_is_made():
    image, condition = {"samples": random(2, 4, 4, 6)}, {"samples": random(2, 4, 4, 6, seed=1)}
    for mode, noise, kept in zip(MODES, ((1, 0), (0, 1), (1, 1)), ((False, True), (True, False), (False, False))):
        out = joint_latent(mode, image, condition)
        assert out["samples"].shape == (4, 4, 4, 6) and out["noise_mask"].shape == (4, 1, 4, 6)
        for half, mask, amount, given, keep in zip(out["samples"].chunk(2), out["noise_mask"].chunk(2), noise, (image, condition), kept):
            assert bool((mask == amount).all()) and torch.equal(half, given["samples"] if keep else torch.zeros_like(half))
    part = torch.zeros(1, 4, 6)
    part[..., 3:] = 1.0
    out = joint_latent(MODES[3], {**image, "noise_mask": part}, {"samples": condition["samples"][:1]}, 1.0, 0.5)
    assert torch.equal(out["samples"][:2], image["samples"]) and torch.equal(out["noise_mask"][0, 0], part[0]) and bool((out["noise_mask"][2:] == 0.5).all())
    assert torch.equal(out["samples"][2], out["samples"][3])
    for one, other in zip(split(out, "test"), out["samples"].chunk(2)):
        assert torch.equal(one["samples"], other) and "noise_mask" not in one


@pytest.mark.parametrize("given, message", [
    (dict(mode=MODES[0], image=None, condition=None), "condition = None"), (dict(mode=MODES[1], image=None, condition={"samples": torch.zeros(1, 4, 4, 4)}), "image = None"),
    (dict(mode=MODES[2], image=None, condition=None), "empty latent"), (dict(mode=MODES[2], image={"samples": torch.zeros(1, 4, 4, 4)}, condition={"samples": torch.zeros(1, 4, 4, 6)}), "one size"),
    (dict(mode=MODES[2], image={"samples": torch.zeros(2, 4, 4, 4)}, condition={"samples": torch.zeros(3, 4, 4, 4)}), "one for all"),
    (dict(mode=MODES[2], image={"samples": torch.zeros(1, 4, 2, 4, 4)}, condition=None), "latent of pictures"),
    (dict(mode=MODES[2], image={"samples": torch.zeros(2, 4, 4, 4), "noise_mask": torch.ones(3, 4, 4)}, condition=None), "one mask for all")])
def test_joint_latents_refuse_what_cannot_be(given, message):
    with pytest.raises(BadInput, match=message):
        joint_latent(**given)
    with pytest.raises(BadInput, match="as many images as conditions"):
        split({"samples": torch.zeros(3, 4, 4, 4)}, "Split Joint Latent")


def test_levels_follow_the_schedule():
    mask = torch.tensor([0.0, 0.25, 0.5, 1.0])
    assert levels(mask, lambda p: 10 * (1 - p)).tolist() == [0.0, 2.5, 5.0, math.inf]
    assert levels(torch.tensor([0.0001, 0.9999]), lambda p: 10 * (1 - p)).tolist() == [0.0, math.inf]


def test_parameters():
    step = Step(torch.zeros(2, 4, 4, 4), torch.ones(2))
    method = UniCon(joint_scale=0.8, condition_sees=0.5, condition_guidance=2.0)
    edit, = method.edits(step)
    assert isinstance(edit, JointStreams) and edit.scale == (0.8, 0.4) and edit.wanted(None) and method.edits(step) == method.edits(step)
    assert method.branches(step) == (POSITIVE, APART) and UniCon().branches(step) == ()
    a, b, base = (random(2, 4, 4, 4, seed=i) for i in range(3))
    torch.testing.assert_close(method.delta(step, base, {POSITIVE: a, APART: b}, {}), 2 * (a - b))
    assert not UniCon().delta(step, base, {}, {}).any()
    assert UniCon(joint_scale=0.0, lora_scale=0.0).neutral() and not UniCon(joint_scale=0.0).neutral()
    with pytest.raises(BadInput, match="joint_scale"):
        UniCon(joint_scale=3.0).validate()


def test_the_bundled_pair():
    import json
    import os
    import random as rng

    from lodestar.demo.scenes import random_scene
    from lodestar.demo.unicon import NAME
    from lodestar.demo.weights_file import FOLDER, read
    weights = read(NAME)
    assert {k: tuple(v.shape) for k, v in weights.items()} == {k: tuple(v.shape) for k, v in fresh().items()}
    found = parse(weights, "test", "file").blocks
    assert [b.width for s in ("input", "middle", "output") for b in found[s]] == [w for n, w in sorted(blocks(), key=lambda b: (b[0].startswith("up"), b[0].startswith("mid")))]
    assert os.path.getsize(os.path.join(FOLDER, f"{NAME}.safetensors")) < 2_000_000
    with open(os.path.join(FOLDER, f"{NAME}.json"), encoding="utf-8") as f:
        figures = json.load(f)
    assert figures["loss"] < 0.9 * figures["loss_without_training"]
    scene = random_scene(rng.Random(3), 2)
    seen = depth(scene)
    assert seen.shape == (3, 64, 64) and seen.min() == 0 and torch.isclose(seen.max(), torch.tensor(max(map(nearness, scene.things))), atol=1e-5)
