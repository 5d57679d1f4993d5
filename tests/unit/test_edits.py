"""Attention edits as pure functions: identities of the perturbed self-attention and of normalized attention guidance."""
import pytest
import torch
import torch.nn.functional as F

from lodestar.guidance.attention.edits import AttentionEdit, AttentionObserver, Site, apply_rows, by_groups, chain, merge_groups, tempered
from lodestar.guidance.attention.nag import NegativeAttention, normalised
from lodestar.guidance.perturbation.pag import IdentitySelfAttention, PerturbedAttentionGuidance
from lodestar.guidance.method import NEGATIVE, POSITIVE, Branch, Step

PAG = pytest.mark.method("LodestarPerturbedAttentionGuidance")
NAG = pytest.mark.method("LodestarNormalizedAttentionGuidance")


def qkv(rows=2, heads=2, tokens=6, dim=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, heads, tokens, dim, generator=g) for _ in range(3)]


attend = F.scaled_dot_product_attention


@PAG
def test_identity_attention_returns_v():
    q, k, v = qkv()
    assert torch.equal(IdentitySelfAttention("middle").apply(Site("self", None), q, k, v, attend), v)
    one = [t[:, :, :1] for t in (q, k, v)]
    torch.testing.assert_close(IdentitySelfAttention().apply(Site("self", None), *one, attend), attend(*one))
    same = v[:, :, :1].expand_as(v)
    torch.testing.assert_close(same, attend(q, k, same))      # equal values: attention changes nothing either


@PAG
@pytest.mark.parametrize("text_first", (True, False))
def test_identity_in_joint_attention_is_the_masked_softmax(text_first):
    q, k, v = qkv(tokens=7)
    text, image = (slice(0, 3), slice(3, 7)) if text_first else (slice(4, 7), slice(0, 4))
    mask = torch.zeros(7, 7)
    mask[image, image] = float("-inf")
    mask[image, image] = torch.where(torch.eye(4, dtype=torch.bool), 0.0, float("-inf"))
    out = IdentitySelfAttention().apply(Site("joint", None, 2, 2, text, image), q, k, v, attend)
    torch.testing.assert_close(out, attend(q, k, v, attn_mask=mask))


@PAG
def test_pag_delta_and_its_scale():
    step = Step(torch.zeros(1, 1, 2, 2), torch.ones(1), sigmas=torch.linspace(1, 0, 6), index=2)
    method = PerturbedAttentionGuidance(scale=3.0)
    cond, worse = torch.full((1, 1, 2, 2), 2.0), torch.full((1, 1, 2, 2), 1.5)
    predictions = {POSITIVE: cond, method.branch: worse}
    assert torch.equal(method.delta(step, cond, predictions, {}), torch.full_like(cond, 1.5))
    assert PerturbedAttentionGuidance(scale=0.0).neutral()
    fading = PerturbedAttentionGuidance(scale=1.0, adaptive=5.0)
    assert fading.branches(step) == () and fading.delta(step, cond, {}, {}).abs().max() == 0


@PAG
def test_full_rescale_restores_the_standard_deviation():
    g = torch.Generator().manual_seed(0)
    cond, worse = torch.randn(2, 3, 4, 4, generator=g), torch.randn(2, 3, 4, 4, generator=g)
    method = PerturbedAttentionGuidance(scale=4.0, rescale=1.0)
    step = Step(cond, torch.ones(2))
    out = cond + method.delta(step, cond, {POSITIVE: cond, method.branch: worse}, {})
    torch.testing.assert_close(out.std((1, 2, 3)), cond.std((1, 2, 3)))


@NAG
def test_nag_identities():
    plus, minus = qkv()[0], qkv(seed=1)[0]
    assert torch.equal(normalised(plus, plus, 4.0, 2.5, 0.25), plus)
    assert torch.equal(normalised(plus, minus, 4.0, 2.5, 0.0), plus)
    torch.testing.assert_close(normalised(plus, minus, 3.0, 1e9, 1.0), plus + 3.0 * (plus - minus))
    for norm, order in (("L1", 1), ("L2", 2)):
        out = normalised(plus, minus, 50.0, 2.5, 1.0, norm)
        grown = torch.linalg.vector_norm(out, order, dim=(1, 3)) / torch.linalg.vector_norm(plus, order, dim=(1, 3))
        torch.testing.assert_close(grown, torch.full_like(grown, 2.5), rtol=1e-4, atol=1e-4)
    assert torch.isfinite(normalised(torch.zeros_like(plus), minus, 4.0, 2.5, 0.25)).all()


@NAG
def test_nag_ignores_the_order_of_negative_tokens():
    q, k, v = qkv()
    _, kn, vn = qkv(seed=2)
    edit = NegativeAttention("all", None, 3.0)
    order = torch.tensor([3, 1, 5, 0, 4, 2])

    def out(kn_, vn_):
        site = Site("cross", None, extra={"tokens": {edit: (kn_, vn_)}, "plain": attend})
        return edit.apply(site, q, k, v, attend)
    torch.testing.assert_close(out(kn, vn), out(kn[:, :, order], vn[:, :, order]))
    assert (out(kn, vn) - attend(q, k, v)).abs().max() > 0.01


class Add(AttentionEdit):
    """Adds a number to the output."""

    def __init__(self, value):
        object.__setattr__(self, "value", value)

    def __eq__(self, other):
        return isinstance(other, Add) and other.value == self.value

    def __hash__(self):
        return hash(self.value)

    def apply(self, site, q, k, v, attend):
        return attend(q, k, v) + self.value


def test_rows_are_edited_by_their_own_edits_and_chains_nest():
    q, k, v = qkv(rows=6)
    groups = merge_groups([(), (Add(1.0),), (Add(1.0), Add(2.0))], 2)
    base = lambda q_, k_, v_, start, stop: attend(q_, k_, v_)
    out = apply_rows(groups, q, k, v, base, Site("self", None))
    plain = attend(q, k, v)
    torch.testing.assert_close(out - plain, torch.tensor([0.0, 0, 1, 1, 3, 3])[:, None, None, None].expand_as(out), atol=1e-5, rtol=1e-5)
    assert merge_groups([(), (), (Add(1.0),)], 2) == [(0, 4, ()), (4, 6, (Add(1.0),))]
    doubled = chain([Add(1.0), Add(5.0)], Site("self", None), attend)(q, k, v)
    torch.testing.assert_close(doubled, plain + 6.0)


class Watch(AttentionObserver):
    """Notes what it is shown."""

    seen = []

    def observe(self, site, q, k):
        Watch.seen.append((q, k, site.mask))


def test_observers_change_nothing_and_see_what_attention_is_given():
    q, k, v = qkv(rows=4)
    Watch.seen.clear()
    calls = []

    def base(q_, k_, v_, start, stop):
        calls.append((start, stop))
        return attend(q_, k_, v_)
    mask = torch.arange(4.0).view(4, 1, 1, 1)
    out = apply_rows(merge_groups([(Watch(),), ()], 2), q, k, v, base, Site("self", None, mask=mask))
    assert torch.equal(out, attend(q, k, v)) and calls == [(0, 4)]      # one call for all rows, with or without an observer
    seen_q, seen_k, seen_mask = Watch.seen.pop()
    assert torch.equal(seen_q, q[:2]) and torch.equal(seen_k, k[:2]) and torch.equal(seen_mask, mask[:2])

    class Double(Add):
        def apply(self, site, q_, k_, v_, attend_):
            return attend_(2 * q_, k_, v_)
    apply_rows(merge_groups([(Watch(), Double(0.0)), ()], 2), q, k, v, base, Site("self", None))
    assert torch.equal(Watch.seen.pop()[0], 2 * q[:2])


def test_which_rows_carry_an_edit():
    class Everywhere(Add):
        everywhere = True
    roles = (POSITIVE, NEGATIVE, Branch(edits=(Add(1.0),)), Branch("negative", sigma_factor=2.0), None)
    assert [Add(1.0).wanted(r) for r in roles] == [True, False, True, False, False]
    assert all(Everywhere(1.0).wanted(r) for r in roles)


def test_nothing_to_edit_is_one_call_of_everything():
    calls = []

    def base(q, k, v, start, stop):
        calls.append((start, stop))
        return attend(q, k, v)
    q, k, v = qkv(rows=4)
    apply_rows(merge_groups([(), ()], 2), q, k, v, base, Site("self", None))
    assert calls == [(0, 4)]


def test_messages_call_an_edit_by_its_nodes_title():
    from lodestar.guidance.attention.blocks import SkipBlock
    from lodestar.guidance.attention.directed import DirectedAttention
    from lodestar.guidance.attention.edits import titled
    from lodestar.guidance.attention.nasa import SteerAway
    from lodestar.guidance.attention.regional import RegionalAttention
    assert [titled(e()) for e in (DirectedAttention, SteerAway, RegionalAttention)] == ["Directed Diffusion", "Negative-Away Steer Attention", "Regional Prompts"]
    assert titled(SkipBlock()) == "SkipBlock"      # serves several nodes


def test_a_factor_on_the_logits_goes_to_the_networks_scale_where_it_has_one():
    q, k, v = qkv(rows=4)
    asked = []

    class Sharper(AttentionEdit):
        def apply(self, site, q, k, v, attend):
            return tempered(attend, q, k, v, 1.5)

    class Watch(AttentionObserver):
        def observe(self, site, q, k):
            asked.append(q)

    def base(q, k, v, start, stop, bias=None):
        return F.scaled_dot_product_attention(q, k, v, bias)

    def scaled(q, k, v, start, stop, factor):
        asked.append((start, stop, factor))
        return F.scaled_dot_product_attention(q, k, v, scale=factor * q.shape[-1] ** -0.5)

    def run(edits, own):
        asked.clear()
        return by_groups(merge_groups([edits, ()], 2), q, k, v, base, lambda start, stop: Site("self", None), own)

    wanted = torch.cat((attend(q[:2] * 1.5, k[:2], v[:2]), attend(q[2:], k[2:], v[2:])))
    torch.testing.assert_close(run((Sharper(),), scaled), wanted)
    assert asked == [(0, 2, 1.5)]
    assert torch.equal(run((Sharper(),), None), wanted)
    torch.testing.assert_close(run((Sharper(),), lambda *a: None), wanted)
    torch.testing.assert_close(run((Sharper(), Watch()), scaled), wanted)      # what stands further in sees the queries that count
    assert torch.equal(asked[0], q[:2] * 1.5)
    assert tempered(lambda *a: a, q, k, v, 1.0)[0] is q


def test_only_functions_that_use_a_scale_are_given_one():
    from lodestar.guidance.host.scales import takes_scale

    def named(function):
        function.__module__, function.__qualname__ = "comfy.ldm.modules.attention", function.__name__
        return function

    def heedful(q, k, v, heads, scale=None):
        return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], scale=scale)[:, 0]

    def deaf(q, k, v, heads, **kwargs):
        return heedful(q, k, v, heads)

    def strict(q, k, v, heads):
        return heedful(q, k, v, heads)

    q = qkv(dim=8)[0]
    assert not takes_scale(heedful, q) and not takes_scale(None, q)      # not the host's own
    assert takes_scale(named(heedful), q) and takes_scale(heedful, q.to(torch.bfloat16))
    assert not takes_scale(named(deaf), q) and not takes_scale(named(strict), q)
