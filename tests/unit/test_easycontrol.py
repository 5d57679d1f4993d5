"""EasyControl on tensors: what attends to a condition, its weight files, its positions."""
import re
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from lodestar.demo.condition import fresh
from lodestar.guidance.attention.condition_lora import parse
from lodestar.guidance.attention.easycontrol import ConditionKeys, EasyControl, Stream
from lodestar.guidance.attention.edits import Site, chain, rows_of
from lodestar.guidance.attention.sources import Held
from lodestar.guidance.layers import Geometry, Layer
from lodestar.guidance.method import BadInput, Step

pytestmark = pytest.mark.method("LodestarEasyControl")
NETWORK = SimpleNamespace(hidden_size=8, double_blocks=[0, 1], single_blocks=[0])
LATENT = {"samples": torch.zeros(1, 4, 4, 4)}


def qkv(tokens, rows=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, 2, tokens, 4, generator=g) for _ in range(3)]


def attend(q, k, v, bias=None):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


class Given:
    """Stands for the host's streams: keys and values by stream, for rows from `start` on."""

    def __init__(self, found, start=0):
        self.found, self.start = found, start

    def at(self, start):
        return Given(self.found, self.start + start)

    def __call__(self, stream, rows):
        return tuple(t[self.start:self.start + rows] for t in self.found[stream])


def site(found):
    return Site("joint", Layer("double", 0), 2, 2, slice(0, 3), slice(3, 7), streams=Given(found))


def test_every_token_sees_the_condition_and_two_are_one_softmax():
    q, k, v = qkv(7)
    one, two = Stream(Held(LATENT)), Stream(Held({"samples": torch.ones(1, 4, 4, 4)}))
    found = {one: qkv(5, seed=1)[1:], two: qkv(4, seed=2)[1:]}
    edits = (ConditionKeys(stream=one), ConditionKeys(stream=two))
    out = chain(edits, site(found), attend)(q, k, v)
    keys, values = (torch.cat((own, found[one][i], found[two][i]), 2) for i, own in ((0, k), (1, v)))
    torch.testing.assert_close(out, attend(q, keys, values))
    torch.testing.assert_close(chain(edits[::-1], site(found), attend)(q, k, v), out)
    part = chain(edits, rows_of(site(found), 1, 2, 2), attend)(q[1:], k[1:], v[1:])
    torch.testing.assert_close(part, out[1:])      # a part of the rows sees its own condition


def test_weight_multiplies_the_softmax_and_own_keys_twice_change_nothing():
    q, k, v = qkv(7)
    stream = Stream(Held(LATENT))
    torch.testing.assert_close(ConditionKeys(stream=stream).apply(site({stream: (k, v)}), q, k, v, attend), attend(q, k, v))
    kc, vc = qkv(3, seed=4)[1:]
    out = ConditionKeys(stream=stream, weight=2.5).apply(site({stream: (kc, vc)}), q, k, v, attend)
    logits = torch.cat((q @ k.transpose(-1, -2), q @ kc.transpose(-1, -2)), -1) / 2
    share = logits.exp() * torch.tensor([1.0] * 7 + [2.5] * 3)
    torch.testing.assert_close(out, share / share.sum(-1, keepdim=True) @ torch.cat((v, vc), 2))
    tiny = ConditionKeys(stream=stream, weight=1e-6).apply(site({stream: (kc, vc)}), q, k, v, attend)
    torch.testing.assert_close(tiny, attend(q, k, v), atol=1e-4, rtol=1e-4)


def test_parameters():
    assert EasyControl(condition=LATENT, strength=0.0).validate().neutral()
    step = Step(torch.zeros(1, 4, 4, 4), torch.ones(1))
    same, off = (EasyControl(condition=LATENT, negative_rows=n).edits(step)[0] for n in ("same", "off"))
    assert (same.reach, off.reach) == ("all", "positive") and same.stream == off.stream
    assert EasyControl(condition=LATENT).edits(step) == EasyControl(condition=LATENT).edits(step)      # equal at every step: the cache finds it again
    for wrong in (None, {"samples": torch.zeros(1, 4, 2, 4, 4)}):
        with pytest.raises(BadInput, match="EasyControl: condition"):
            EasyControl(condition=wrong).validate()
    for family in ("unet", "sd3", "lumina"):
        facts = SimpleNamespace(geometry=Geometry(family, ()), network="SomeNet")
        with pytest.raises(BadInput, match="model = 'SomeNet'.*Flux"):
            EasyControl(condition=LATENT).fitted(facts)


def test_files_as_the_authors_publish_them_are_read():
    weights = fresh(NETWORK, rank=3)
    found = parse(weights, "Node", "file", "some.safetensors")
    assert found.width == 8 and found.blocks("double") == [0, 1] and found.blocks("single") == [0]
    assert set(found.pairs["single", 0]) == {"q", "k", "v"} and found.pairs["double", 1]["proj"][0].shape == (3, 8)
    found.check("Node", "lora", {"double": 2, "single": 1}, 8, "Flux")
    assert parse({"transformer." + k: v for k, v in weights.items()}, "Node", "file").blocks("double") == [0, 1]
    two = {k.replace("loras.0", "loras.1"): v for k, v in weights.items()}
    assert parse(two, "Node", "file", number=1).width == 8


def _without(part):
    return {k: v for k, v in fresh(NETWORK, rank=3).items() if part not in k}


@pytest.mark.parametrize("weights,number,message", [
    ({"lora_unet_double_blocks_0.lora_down.weight": torch.zeros(1)}, 0, "file = 'f' .*no condition LoRA.*q_loras.0.down.weight.*lora_unet"),
    ({**fresh(NETWORK), "other": torch.zeros(1)}, 0, "1 of its keys.*other"),
    (fresh(NETWORK), 2, "number = 2 .*conditions 0"),
    (_without("1.attn.processor.k_loras.0.up"), 0, "double block 1 is not complete: k_loras.0.up.weight missing"),
    ({**fresh(NETWORK, 3), "single_transformer_blocks.0.attn.processor.v_loras.0.up.weight": torch.zeros(3, 8)}, 0, r"v of single block 0 has down \[3, 8\] and up \[3, 8\]"),
])
def test_wrong_files_say_what_is_wrong(weights, number, message):
    with pytest.raises(BadInput) as error:
        parse(weights, "Node", "file", "f", number)
    assert re.search(message, str(error.value)), error.value


def test_weights_of_another_network_are_refused():
    found = parse(fresh(NETWORK), "Node", "file", "some.safetensors")
    for blocks, width in (({"double": 3, "single": 1}, 8), ({"double": 2, "single": 1}, 16), ({"double": 2}, 8)):
        with pytest.raises(BadInput, match="lora = 'some.safetensors'.*width 8, 2 double and 1 single; this model .Flux. has width"):
            found.check("EasyControl", "lora", blocks, width, "Flux")
    with pytest.raises(BadInput, match="1 .with gaps. double"):
        parse({k: v for k, v in fresh(NETWORK).items() if not k.startswith("transformer_blocks.0")}, "Node", "file").check("Node", "lora", {"double": 2, "single": 1}, 8, "Flux")


def test_outlines_are_lines_of_the_objects():
    import random

    from lodestar.demo.condition import outlines
    from lodestar.demo.scenes import mask_of, random_scene
    scene = random_scene(random.Random(3), 2)
    lines = outlines(scene)
    assert lines.shape == (3, 64, 64) and 0 <= lines.min() and lines.max() > 0.9
    covered = sum(mask_of(t) for t in scene.things)
    inner = F.max_pool2d(-covered[None, None], 7, 1, 3)[0, 0] < -0.99      # three pixels from every border
    assert inner.any() and lines[0][inner].max() < 0.01
    assert 0.02 < lines.mean() < 0.3
