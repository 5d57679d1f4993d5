"""Shaping an adapter's attention, on tensors."""
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from lodestar.guidance.attention.adapter_shaping import AdapterAttentionShaping, ShapedAdapter, minmax, power, renormalised, soft_mask
from lodestar.guidance.attention.decoupled_prompt import DecoupledPrompt, SecondText
from lodestar.guidance.attention.edits import Site, chain
from lodestar.guidance.layers import Geometry, Layer
from lodestar.guidance.method import NEGATIVE, POSITIVE, BadInput, Branch, Prompt, Step

pytestmark = pytest.mark.method("LodestarAdapterAttentionShaping")


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


Q, K, V = noise(2, 3, 12, 8), noise(2, 3, 7, 8, seed=1), noise(2, 3, 7, 8, seed=2)
KA, VA = noise(2, 3, 4, 8, seed=3) * 3, noise(2, 3, 4, 8, seed=4)


def adapter(q, k, v, bias=None, weight=0.8):
    """The prompt's attention and an adapter's, as decoupled cross-attention adds them."""
    return F.scaled_dot_product_attention(q, k, v) + weight * F.scaled_dot_product_attention(q, KA, VA)


def written(q, k, v, bias=None):
    """The same written out, as hosts without fused attention compute it: heads in the rows."""
    def one(k_, v_):
        flat = lambda t: t.flatten(0, 1)
        return ((flat(q) * 8 ** -0.5) @ flat(k_).transpose(-1, -2)).softmax(dim=-1).matmul(flat(v_)).view(2, 3, 12, 8)
    return one(k, v) + 0.8 * one(KA, VA)


def run(edit, attend=adapter, stage="output", step=None):
    return edit.apply(Site("cross", Layer(stage, 1), 3, 4, batch=2, step=step), Q, K, V, attend)


def maps():
    return (Q @ KA.transpose(-1, -2) * 8 ** -0.5).softmax(-1)


def test_neutral_numbers_change_nothing():
    plain = adapter(Q, K, V)
    for edit in (ShapedAdapter(exponent=1.0, decoder=1.0), ShapedAdapter(strength=0.0, decoder=3.0), ShapedAdapter(strength=0.0, mode="soft mask")):
        torch.testing.assert_close(run(edit), plain)
    assert torch.equal(run(ShapedAdapter(), lambda q, k, v: F.scaled_dot_product_attention(q, k, v)), F.scaled_dot_product_attention(Q, K, V))      # the prompt's own is not touched
    assert AdapterAttentionShaping(strength=0.0).validate().neutral()


@pytest.mark.parametrize("attend", [adapter, written])
@pytest.mark.parametrize("stage,factor", [("output", 1.45), ("input", 1.55)])
def test_power(attend, stage, factor):
    a = maps()
    wanted = F.scaled_dot_product_attention(Q, K, V) + 0.8 * ((factor * a ** 1.3).clamp(max=10) @ VA)
    torch.testing.assert_close(run(ShapedAdapter(), attend, stage), wanted, rtol=1e-4, atol=1e-5)
    half = run(ShapedAdapter(strength=0.5), attend, stage)
    torch.testing.assert_close(half, (wanted + adapter(Q, K, V)) / 2, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attend", [adapter, written])
def test_soft_mask_is_the_formula(attend):
    edit = ShapedAdapter(mode="soft mask", quantile=0.65, steep=7.5, decoder=1.55)
    a = maps()
    wanted = torch.empty_like(a)
    for b in range(2):
        for t in range(4):
            x = 1 - a[b, :, :, t] if t == 0 else a[b, :, :, t]
            q = torch.quantile(x, 0.65, dim=-1, keepdim=True).clamp(min=1e-6)
            y = torch.sigmoid(7.5 * ((x - x.min()) / (x.max() - x.min()) - q))
            y = (y - y.min()) / (y.max() - y.min()) * 1.55
            wanted[b, :, :, t] = y.amax(-1, keepdim=True) - y if t == 0 else y
    torch.testing.assert_close(soft_mask(a, 0.65, 7.5, 1.55, 1), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(run(edit, attend), F.scaled_dot_product_attention(Q, K, V) + 0.8 * (wanted @ VA), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(soft_mask(a[:1], 0.65, 7.5, 1.55, 1), soft_mask(a, 0.65, 7.5, 1.55, 1)[:1])      # samples do not meet
    assert not minmax(torch.ones(2, 3), (1,)).any() and power(torch.tensor([100.0]), 1.0, 1.0) == 10


def test_statistics_of_before():
    t, plain = noise(5, 6), noise(5, 6, seed=1) * 3 + 1
    out = renormalised(t, plain, 0.0)
    torch.testing.assert_close(out.mean(-1), plain.mean(-1), atol=1e-4, rtol=0)
    torch.testing.assert_close(out.std(-1), plain.std(-1), atol=1e-4, rtol=0)
    torch.testing.assert_close(renormalised(t, plain, 0.7), 0.7 * t + 0.3 * out)
    a, edit = maps(), ShapedAdapter(shaped=0.7)
    shaped = renormalised(1.45 * a ** 1.3, a, 0.7) @ VA
    wanted = F.scaled_dot_product_attention(Q, K, V) + 0.8 * renormalised(shaped, a @ VA, 0.7)
    torch.testing.assert_close(run(edit), wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="shaped to 1"):
        run(edit, written)


@pytest.mark.parametrize("fused", [True, False])
def test_an_adapter_with_as_many_tokens_as_the_prompt(fused):
    """Told from the prompt's attention by its keys, or as the second of two."""
    def both(q, k, v):
        if fused:
            return F.scaled_dot_product_attention(q, k, v) + F.scaled_dot_product_attention(q, K2, V)
        return (q @ k.transpose(-1, -2) * 8 ** -0.5).softmax(-1) @ v + (q @ K2.transpose(-1, -2) * 8 ** -0.5).softmax(-1) @ V
    K2 = K.flip(2) * 2
    a = (Q @ K2.transpose(-1, -2) * 8 ** -0.5).softmax(-1)
    torch.testing.assert_close(run(ShapedAdapter(), both), F.scaled_dot_product_attention(Q, K, V) + 1.45 * a ** 1.3 @ V, rtol=1e-4, atol=1e-5)


def test_attention_in_parts_is_named():
    def parts(q, k, v):
        return torch.cat([((part.flatten(0, 1) * 8 ** -0.5) @ KA.flatten(0, 1).transpose(-1, -2)).softmax(-1) for part in q.split(6, 2)], 1)
    with pytest.raises(ValueError, match="use-pytorch-cross-attention"):
        run(ShapedAdapter(), parts)


def test_rows_steps_and_a_missing_adapter():
    edit = ShapedAdapter()
    assert edit.wanted(POSITIVE) and edit.wanted(Branch(Prompt([], "text-free"))) and not edit.wanted(NEGATIVE) and not edit.wanted(None)
    method = AdapterAttentionShaping(decoder="1, 2, 3", steep="4")
    step = Step(torch.zeros(1, 4, 2, 2), torch.ones(1))
    assert [(e.decoder, e.steep) for i in (0, 1, 2, 9) for e in method.edits(Step(step.x, step.sigma, index=i))] == [(1, 4), (2, 4), (3, 4), (3, 4)]
    with pytest.raises(BadInput, match="no adapter"):
        method.finish(step, step.x, {}, {})
    state = {}
    run(edit, step=step)
    assert method.finish(step, step.x, {}, state) is step.x and state["seen"] == 1
    with pytest.raises(BadInput, match="U-Nets"):
        method.fitted(SimpleNamespace(geometry=Geometry("flux", ()), network="Flux"))
    for field, value in (("decoder", "a"), ("steep", ""), ("encoder", "-1")):
        with pytest.raises(BadInput, match=field):
            AdapterAttentionShaping(**{field: value}).validate()


# Decoupled Prompt

@pytest.mark.method("LodestarDecoupledPrompt")
def test_a_second_prompt_has_a_softmax_of_its_own_and_can_be_shaped():
    second, plain = Prompt([], "second"), lambda q, k, v: F.scaled_dot_product_attention(q, k, v)
    edit = SecondText("all", (second,), 0.25)
    site = Site("cross", Layer("output", 1), 3, 4, batch=2, extra={"texts": {edit: ((KA, VA),)}, "plain": plain})
    torch.testing.assert_close(edit.apply(site, Q, K, V, plain), 0.75 * plain(Q, K, V) + 0.25 * plain(Q, KA, VA))
    assert torch.equal(edit.apply(Site("cross", None, extra=None), Q, K, V, plain), plain(Q, K, V))
    both = chain((ShapedAdapter(), edit), site, plain)(Q, K, V)
    torch.testing.assert_close(both, 0.75 * plain(Q, K, V) + 0.25 * (1.45 * maps() ** 1.3 @ VA), rtol=1e-4, atol=1e-5)
    assert DecoupledPrompt(strength=0.0).neutral()
    with pytest.raises(BadInput, match="one attention"):
        DecoupledPrompt(second=[]).fitted(SimpleNamespace(geometry=Geometry("flux", (Layer("double", 0, attentions=("joint",)),)), network="Flux"))
