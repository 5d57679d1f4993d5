"""StyleAligned on tensors: AdaIN, shared keys, and what each reference serves."""
import pytest
import torch
import torch.nn.functional as F

from lodestar.guidance.attention import sharing
from lodestar.guidance.attention.edits import Shared, Site, chain
from lodestar.guidance.attention.sources import Held, Source
from lodestar.guidance.attention.style_aligned import StyleAligned, StyleSharing
from lodestar.guidance.method import BadInput, Branch

pytestmark = pytest.mark.method("LodestarStyleAligned")
REFERENCE = Branch(source=Source(Held({"samples": torch.zeros(1, 4, 2, 3)})))


def qkv(rows=4, heads=2, tokens=6, dim=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, heads, tokens, dim, generator=g) for _ in range(3)]


def attend(q, k, v, bias=None):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def site(kind="self", batch=2, reference=None, text=None, image=slice(None), **k):
    return Site(kind, None, 2, 3, text, image, batch=batch, shared={REFERENCE: reference} if reference is not None else {}, **k)


def edit(**k):
    return StyleSharing("all", REFERENCE, **k)


def test_adain_takes_the_statistics():
    a, b = qkv()[0], qkv(seed=3)[0] * 2 + 1
    out = sharing.adain(a, b)
    torch.testing.assert_close(out.mean(2), b.mean(2))
    torch.testing.assert_close(out.std(2), b.std(2), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(sharing.adain(b, b), b)
    assert torch.equal(sharing.adain(a, b, 0.0), a)
    torch.testing.assert_close(sharing.adain(a, b, 0.5), 0.5 * (a + out))
    assert torch.isfinite(sharing.adain(torch.ones(1, 1, 4, 4), b[:1, :1])).all()      # constant tokens
    assert torch.isfinite(sharing.adain(a[:, :, :1], b)).all()                          # one token


@pytest.mark.parametrize("weight", (1.0, 0.3, 4.0))
def test_a_reference_equal_to_the_picture_changes_nothing(weight):
    q, k, v = qkv()
    out = edit(weight=weight).apply(site(reference=Shared(q[:2], k[:2], v[:2])), *(torch.cat((t[:2], t[:2])) for t in (q, k, v)), attend)
    torch.testing.assert_close(out, attend(q[:2], k[:2], v[:2]).repeat(2, 1, 1, 1), rtol=1e-4, atol=1e-5)
    batch = StyleSharing("all").apply(site(batch=2), *(t[:1].repeat(2, 1, 1, 1) for t in (q, k, v)), attend)
    torch.testing.assert_close(batch[1], attend(q[:1], k[:1], v[:1])[0], rtol=1e-4, atol=1e-5)


def test_the_formula():
    q, k, v = qkv(2)
    s = Shared(*qkv(2, seed=5))
    out = edit(weight=2.0, key_scale=0.5).apply(site(reference=s), q, k, v, attend)
    adain = lambda t, r: (t - t.mean(2, keepdim=True)) / (t.var(2, keepdim=True) + 1e-5).sqrt() * (r.var(2, keepdim=True) + 1e-5).sqrt() + r.mean(2, keepdim=True)
    logits = adain(q, s.q) @ torch.cat((adain(k, s.k), 0.5 * s.k), 2).transpose(-1, -2) / 2.0
    logits[..., 6:] += torch.log(torch.tensor(2.0))
    torch.testing.assert_close(out, logits.softmax(-1) @ torch.cat((v, s.v), 2), rtol=1e-4, atol=1e-5)


def test_small_strength_approaches_the_plain_attention():
    q, k, v = qkv(2)
    s = Shared(*qkv(2, seed=5))
    plain = attend(q, k, v)
    gaps = [(edit(weight=w).apply(site(reference=s), q, k, v, attend) - plain).abs().max() for w in (1.0, 0.1, 1e-6)]
    assert gaps[0] > gaps[1] > gaps[2] and gaps[2] < 1e-4
    assert StyleAligned(strength=0.0).neutral()


def test_entries_use_their_own_reference_in_every_prompts_rows():
    q, k, v = qkv(4)       # two prompts, two pictures
    s = Shared(*qkv(2, seed=5))
    out = edit().apply(site(reference=s), q, k, v, attend)
    for row in range(4):
        alone = edit().apply(site(batch=1, reference=Shared(*(t[row % 2: row % 2 + 1] for t in (s.q, s.k, s.v)))), *(t[row:row + 1] for t in (q, k, v)), attend)
        torch.testing.assert_close(out[row:row + 1], alone)


def test_within_a_batch_the_first_picture_is_the_style():
    q, k, v = qkv(6)
    out = StyleSharing("all").apply(site(batch=3), q, k, v, attend)
    for row in range(6):
        first = row // 3 * 3
        s = Shared(*(t[first:first + 1] for t in (q, k, v)))
        torch.testing.assert_close(out[row:row + 1], edit().apply(site(batch=1, reference=s), *(t[row:row + 1] for t in (q, k, v)), attend))
    torch.testing.assert_close(out[0], attend(q, k, v)[0], rtol=1e-4, atol=1e-5)
    assert torch.equal(StyleSharing("all").apply(site(batch=1), q, k, v, attend), attend(q, k, v))


@pytest.mark.parametrize("text,image", ((slice(0, 3), slice(3, 9)), (slice(6, 9), slice(0, 6)), (slice(0, 2), slice(2, 8))))
@pytest.mark.parametrize("partial", (True, False))
def test_in_joint_attention_the_text_stays(text, image, partial):
    q, k, v = qkv(2, tokens=9)
    s = Shared(*qkv(2, seed=5))
    out = edit().apply(site("joint", reference=s, text=text, image=image, partial=partial), q, k, v, attend)
    plain = attend(q, k, v)
    keep = torch.ones(9, dtype=torch.bool)
    keep[image] = False
    torch.testing.assert_close(out[:, :, keep], plain[:, :, keep])
    assert (out[:, :, image] - plain[:, :, image]).abs().max() > 0.1
    style = Shared(q[:, :, image], k[:, :, image], v[:, :, image])
    same = edit(weight=1.0, adain=1.0).apply(site("joint", reference=style, text=text, image=image, partial=partial), q, k, v, attend)
    doubled = attend(q, torch.cat((k, k[:, :, image]), 2), torch.cat((v, v[:, :, image]), 2))
    torch.testing.assert_close(same[:, :, image], doubled[:, :, image], rtol=1e-4, atol=1e-5)


def test_two_edits_add_their_biases_and_keys():
    q, k, v = qkv(2)
    s = Shared(*qkv(2, seed=5))
    plain = {"adain": 0.0}
    two = chain([edit(weight=2.0, **plain), edit(weight=3.0, **plain)], site(reference=s), attend)(q, k, v)
    logits = q @ torch.cat((k, s.k, s.k), 2).transpose(-1, -2) / 2.0
    logits[..., 6:12] += torch.log(torch.tensor(2.0))
    logits[..., 12:] += torch.log(torch.tensor(3.0))
    torch.testing.assert_close(two, logits.softmax(-1) @ torch.cat((v, s.v, s.v), 2), rtol=1e-4, atol=1e-5)


def test_half_precision_and_wrong_inputs():
    q, k, v = (t.half() for t in qkv(2))
    s = Shared(*(t.half() for t in qkv(2, seed=5)))
    out = edit(weight=2.0).apply(site(reference=s), q, k, v, attend)
    assert out.dtype == torch.float16 and torch.isfinite(out).all()
    latent = {"samples": torch.zeros(1, 4, 2, 2)}
    with pytest.raises(BadInput, match="StyleAligned: reference.*trajectory"):
        StyleAligned(reference=latent, trajectory=object()).validate()
    with pytest.raises(BadInput, match="StyleAligned: strength"):
        StyleAligned(strength=-1.0).validate()
    a, b = StyleAligned(reference=latent).edits(None), StyleAligned(reference=latent).edits(None)
    assert a == b and [e.reach for e in a] == ["positive", "negative"] and [e.reference.prompt for e in a] == ["positive", "negative"]
    assert [e.reach for e in StyleAligned(reference=latent, negative_rows="off").edits(None)] == ["positive"]
    assert [(e.reach, e.references) for e in StyleAligned().edits(None)] == [("all", ())]
