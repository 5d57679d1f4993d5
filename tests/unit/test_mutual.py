"""Mutual self-attention on tensors: whose keys and values, masks, mixing."""
import pytest
import torch
import torch.nn.functional as F

from lodestar.guidance.attention.edits import Shared, Site
from lodestar.guidance.attention.mutual import MutualKeys, MutualSelfAttention
from lodestar.guidance.attention.sources import Held, Source
from lodestar.guidance.layers import Geometry, Layer, select
from lodestar.guidance.method import BadInput, Branch

pytestmark = pytest.mark.method("LodestarMutualSelfAttention")
REFERENCE = Branch(source=Source(Held({"samples": torch.zeros(1, 4, 2, 3)})))


def qkv(rows=2, heads=2, tokens=6, dim=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, heads, tokens, dim, generator=g) for _ in range(3)]


def attend(q, k, v, bias=None):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def site(reference=None, batch=2, kind="self", text=None, image=slice(None)):
    return Site(kind, None, 2, 3, text, image, batch=batch, shared={REFERENCE: reference} if reference is not None else {})


def test_queries_stay_and_keys_come_from_the_source():
    q, k, v = qkv()
    s = Shared(*qkv(seed=4))
    edit = MutualKeys("all", REFERENCE)
    torch.testing.assert_close(edit.apply(site(s), q, k, v, attend), attend(q, s.k, s.v))
    torch.testing.assert_close(edit.apply(site(Shared(q, k, v)), q, k, v, attend), attend(q, k, v))
    half = MutualKeys("all", REFERENCE, alpha=0.5).apply(site(s), q, k, v, attend)
    torch.testing.assert_close(half, attend(q, (k + s.k) / 2, (v + s.v) / 2))
    assert MutualSelfAttention(alpha=0.0).neutral()


def test_alpha_for_each_entry():
    """Linear in alpha in keys and values; 0 is the target alone, 1 the source."""
    q, k, v = qkv(rows=4)      # two prompts, two pictures
    s = Shared(*qkv(seed=4))
    out = MutualKeys("all", REFERENCE, alpha=(0.0, 1.0)).apply(site(s), q, k, v, attend)
    torch.testing.assert_close(out[[0, 2]], attend(q, k, v)[[0, 2]])
    torch.testing.assert_close(out[[1, 3]], attend(q[[1, 3]], s.k[[1, 1]], s.v[[1, 1]]))


def test_masks_keep_object_and_background_apart():
    q, k, v = qkv()
    s = Shared(*qkv(seed=4))
    source = torch.tensor([[[1.0, 1, 0], [0, 0, 0]]])
    target = torch.tensor([[[0.0, 0, 1], [1, 0, 0]]])
    edit = MutualKeys("all", REFERENCE, source_mask=Held(source), target_mask=Held(target))
    out = edit.apply(site(s), q, k, v, attend)
    inside = attend(q, s.k[:, :, :2], s.v[:, :, :2])
    outside = attend(q, s.k[:, :, 2:], s.v[:, :, 2:])
    torch.testing.assert_close(out[:, :, [2, 3]], inside[:, :, [2, 3]])
    torch.testing.assert_close(out[:, :, [0, 1, 4, 5]], outside[:, :, [0, 1, 4, 5]])
    for full in (torch.ones(1, 2, 3), torch.zeros(1, 4, 6)):       # an empty side hides nothing
        whole = MutualKeys("all", REFERENCE, source_mask=Held(full)).apply(site(s), q, k, v, attend)
        torch.testing.assert_close(whole, attend(q, s.k, s.v))
    with pytest.raises(BadInput, match="3 masks"):
        MutualKeys("all", REFERENCE, source_mask=Held(torch.ones(3, 2, 3))).apply(site(s), q, k, v, attend)


@pytest.mark.parametrize("text,image", ((slice(0, 3), slice(3, 9)), (slice(6, 9), slice(0, 6))))
def test_joint_attention_keeps_the_text(text, image):
    q, k, v = qkv(tokens=9)
    s = Shared(*qkv(seed=4))
    out = MutualKeys("all", REFERENCE).apply(site(s, kind="joint", text=text, image=image), q, k, v, attend)
    keys, values = k.clone(), v.clone()
    keys[:, :, image], values[:, :, image] = s.k, s.v
    torch.testing.assert_close(out[:, :, image], attend(q, keys, values)[:, :, image])
    torch.testing.assert_close(out[:, :, text], attend(q, k, v)[:, :, text])


def test_the_default_layers_are_the_papers():
    def unet(*stages):
        return Geometry("unet", tuple(Layer(stage, i) for stage, found in stages for i in found))
    edit = MutualKeys()
    sd15 = unet(("input", (1, 2, 4, 5, 7, 8)), ("middle", (0,)), ("output", range(3, 12)))
    assert [str(x) for x in select(sd15, edit.default_layers(sd15))] == [f"output.{i}" for i in range(6, 12)]
    sdxl = unet(("input", (4, 5, 7, 8)), ("middle", (0,)), ("output", range(6)))
    assert [str(x) for x in select(sdxl, edit.default_layers(sdxl))] == ["output.3", "output.4", "output.5"]
    flux = Geometry("flux", tuple(Layer(s, i) for s, n in (("double", 19), ("single", 38)) for i in range(n)))
    assert {x.stage for x in select(flux, edit.default_layers(flux))} == {"single"}
    wan = Geometry("wan", tuple(Layer("block", i) for i in range(30)))
    assert [x.index for x in select(wan, edit.default_layers(wan))] == list(range(15, 30))
