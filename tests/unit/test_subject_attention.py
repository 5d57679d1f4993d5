"""Masked Subject Attention on tensors: files, tokens, who sees what."""
import math
import os
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from lodestar.guidance.attention import adapter_tokens
from lodestar.guidance.attention.edits import Site
from lodestar.guidance.attention.image_adapter import ImageAdapter, Subject, Subjects, parse
from lodestar.guidance.attention.regions import Region
from lodestar.guidance.attention.subject_attention import Found, MaskedSubjectAttention, SubjectKeys, opened, stretched
from lodestar.guidance.layers import Geometry, Layer
from lodestar.guidance.method import BadInput
from lodestar.nodes.subjects import _subject
from lodestar.tests.adapters import adapter_file

pytestmark = pytest.mark.method("LodestarMaskedSubjectAttention")
LAYERS = tuple(Layer(stage, i, 0, ("self", "cross")) for stage, i in (("input", 1), ("middle", 0), ("output", 3)))
GEOMETRY = Geometry("unet", LAYERS)
LEFT, RIGHT = Region(boxes=((0.0, 0.0, 0.5, 1.0),)), Region(boxes=((0.5, 0.0, 0.5, 1.0),))
HEADS, DIM, SIDE = 2, 4, 4


def adapter(kind="embedding", **values):
    return parse(adapter_file(kind, (8,) * 3, **values), "test")


def seen(seed, kind="embedding"):
    found = torch.randn(1, 5, 12, generator=torch.Generator().manual_seed(seed))
    return found[:, 0] if kind == "embedding" else found


def subjects(*items, kind="embedding", **values):
    made = Subjects(adapter(kind, **values), tuple(items) or (Subject(seen(1, kind)),))
    return made.fitted(GEOMETRY, "test", "UNetModel")


def qkv(rows=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, HEADS, SIDE * SIDE, DIM, generator=g), *(torch.randn(rows, HEADS, 6, DIM, generator=g) for _ in range(2))


def run(edit, q, k, v, layer=LAYERS[0], **values):
    site = Site("cross", layer, SIDE, SIDE, prompt=slice(0, 6), batch=q.shape[0], **values)
    return edit.apply(site, q, k, v, lambda a, b, c: F.scaled_dot_product_attention(a, b, c))


def image_part(edit, q, k, v, **values):
    return (run(edit, q, k, v, **values) - F.scaled_dot_product_attention(q, k, v)) / edit.scale


def test_the_layers_are_counted_as_the_files_do():
    """Encoder, decoder, middle: the published files number the middle block last."""
    assert adapter().order(GEOMETRY, "test", "net") == {"input.1.0": 0, "output.3.0": 1, "middle.0.0": 2}


def test_one_subject_everywhere_is_the_ordinary_adapter():
    given = subjects()
    q, k, v = qkv()
    w = given.adapter.layers[1]
    tokens = F.layer_norm((seen(1) @ given.adapter.parts["image_proj"]["proj.weight"].T + given.adapter.parts["image_proj"]["proj.bias"]).view(1, 3, 16), (16,),
                          given.adapter.parts["image_proj"]["norm.weight"], given.adapter.parts["image_proj"]["norm.bias"])
    keys, values = ((tokens @ m.T).view(1, 3, HEADS, DIM).transpose(1, 2) for m in w)
    weights = (q @ keys.transpose(-1, -2) / DIM ** 0.5).softmax(-1)
    wanted = F.scaled_dot_product_attention(q, k, v) + 0.6 * weights @ values
    torch.testing.assert_close(run(SubjectKeys(subjects=given), q, k, v, LAYERS[2]), wanted)
    whole = subjects(Subject(seen(1), Region(boxes=((0.0, 0.0, 1.0, 1.0),))))
    torch.testing.assert_close(run(SubjectKeys(subjects=whole), q, k, v, LAYERS[2]), wanted)


def test_another_subject_changes_nothing_inside_the_first_ones_place():
    q, k, v = qkv()
    parts = [image_part(SubjectKeys(subjects=subjects(Subject(seen(1), LEFT), Subject(seen(other), RIGHT))), q, k, v).view(2, HEADS, SIDE, SIDE, DIM) for other in (2, 3)]
    torch.testing.assert_close(parts[0][..., :2, :], parts[1][..., :2, :])
    assert (parts[0][..., 2:, :] - parts[1][..., 2:, :]).abs().mean() > 0.05
    alone = image_part(SubjectKeys(subjects=subjects(Subject(seen(1), LEFT))), q, k, v).view(2, HEADS, SIDE, SIDE, DIM)
    torch.testing.assert_close(parts[0][..., :2, :], alone[..., :2, :])
    assert float(alone[..., 2:, :].abs().max()) < 1e-6       # outside all boxes nothing is added


def test_cells_of_two_subjects_see_both_and_the_order_does_not_matter():
    q, k, v = qkv()
    a, b = Subject(seen(1)), Subject(seen(2))
    both = run(SubjectKeys(subjects=subjects(a, b)), q, k, v)
    torch.testing.assert_close(run(SubjectKeys(subjects=subjects(b, a)), q, k, v), both)
    wide = replace(LEFT, boxes=((0.0, 0.0, 1.0, 1.0),))
    torch.testing.assert_close(run(SubjectKeys(subjects=subjects(Subject(seen(1), wide), Subject(seen(2), wide))), q, k, v), both)


def test_a_box_takes_every_cell_that_it_touches_a_mask_those_it_covers():
    thin = Region(boxes=((0.3, 0.3, 0.1, 0.1),))
    mask = torch.zeros(1, 8, 8)
    mask[:, :, :3] = 1.0      # one and a half columns of four
    q, k, v = qkv()
    change = [image_part(SubjectKeys(subjects=subjects(Subject(seen(1), region))), q, k, v).view(2, HEADS, SIDE, SIDE, DIM).abs().sum((0, 1, 4)) > 1e-5
              for region in (thin, Region(mask=mask))]
    wanted = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    wanted[1, 1] = True
    assert torch.equal(change[0], wanted)
    assert torch.equal(change[1], torch.tensor([[True, True, False, False]]).expand(SIDE, SIDE))


def test_weights_scale_a_subjects_values():
    q, k, v = qkv()
    base = image_part(SubjectKeys(subjects=subjects(Subject(seen(1), LEFT), Subject(seen(2), RIGHT))), q, k, v).view(2, HEADS, SIDE, SIDE, DIM)
    half = image_part(SubjectKeys(subjects=subjects(Subject(seen(1), LEFT, weight=0.5), Subject(seen(2), RIGHT))), q, k, v).view(2, HEADS, SIDE, SIDE, DIM)
    torch.testing.assert_close(half[..., :2, :], base[..., :2, :] / 2, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(half[..., 2:, :], base[..., 2:, :])


def test_background_tokens_are_seen_outside_alone():
    given = subjects(Subject(seen(1, "grounded"), LEFT), kind="grounded")
    q, k, v = qkv()
    parts = [image_part(SubjectKeys(subjects=given, outside=o), q, k, v).view(2, HEADS, SIDE, SIDE, DIM) for o in ("nothing", "background tokens")]
    torch.testing.assert_close(parts[0][..., :2, :], parts[1][..., :2, :])
    assert parts[0][..., 2:, :].abs().max() < 1e-6 < 0.05 < parts[1][..., 2:, :].abs().mean()


def test_grounded_queries_are_of_box_and_phrase():
    """MS-Diffusion's grounding, written out for one box: 8 frequencies of its four edges, sine and cosine."""
    w = {k[len("image_proj."):]: t for k, t in adapter_file("grounded").items() if k.startswith("image_proj.")}
    box, phrase = torch.tensor([[0.1, 0.2, 0.6, 0.9]]), torch.randn(6, generator=torch.Generator().manual_seed(3))
    waves = torch.tensor([f(100.0 ** (i / 8) * float(box[0, e])) for i in range(8) for f in (math.sin, math.cos) for e in range(4)])
    torch.testing.assert_close(adapter_tokens.box_waves(box)[0], waves)
    hidden = F.gelu(torch.cat((phrase, waves)) @ w["latent_proj.0.weight"].T + w["latent_proj.0.bias"])
    wanted = F.layer_norm((hidden @ w["latent_proj.2.weight"].T + w["latent_proj.2.bias"]).view(3, 10), (10,), w["latent_norm.weight"], w["latent_norm.bias"])
    torch.testing.assert_close(adapter_tokens.grounded(w, box, [phrase])[0], wanted)
    assert torch.equal(adapter_tokens.grounded(w, box, [None])[0], w["grounding_latents"][0])


def test_the_resampler_attends_to_picture_and_queries():
    """One layer written out with explicit softmaxes, two heads of 64."""
    w = {k[len("image_proj."):]: t for k, t in adapter_file("resampler").items() if k.startswith("image_proj.") and ".layers.1." not in k}
    x = seen(4, "resampler")
    linear = lambda name, t: t @ w[f"{name}.weight"].T + w.get(f"{name}.bias", torch.zeros(()))
    norm = lambda name, t: F.layer_norm(t, t.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])
    z, a = w["latents"][0], linear("proj_in", x)[0]
    a, b = norm("layers.0.0.norm1", a), norm("layers.0.0.norm2", z)
    q, (k, v) = linear("layers.0.0.to_q", b), linear("layers.0.0.to_kv", torch.cat((a, b))).split(128, -1)
    heads = [((q[:, s] @ k[:, s].T) / 8).softmax(-1) @ v[:, s] for s in (slice(0, 64), slice(64, 128))]
    z = z + linear("layers.0.0.to_out", torch.cat(heads, -1))
    z = z + linear("layers.0.1.3", F.gelu(linear("layers.0.1.1", norm("layers.0.1.0", z))))
    torch.testing.assert_close(adapter_tokens.resampled(w, x)[0], norm("norm_out", linear("proj_out", z)), atol=1e-5, rtol=1e-4)


def test_pairs_do_not_see_each_other_but_share_one_norm():
    given = subjects(*(Subject(seen(s, "pairs"), phrase=torch.full((6,), float(s))) for s in (1, 2)), kind="pairs", tokens=32)
    tokens = given.tokens()
    assert tokens.shape == (1, 6, 32) and given.lengths == (3, 3)
    turned = subjects(*reversed(given.items), kind="pairs", tokens=32).tokens()
    torch.testing.assert_close(torch.cat((turned[:, 3:], turned[:, :3]), 1), tokens, atol=1e-5, rtol=1e-4)
    twice = subjects(given.items[0], given.items[0], kind="pairs", tokens=32).tokens()      # equal pairs have the statistics of one
    torch.testing.assert_close(twice[:, :3], subjects(given.items[0], kind="pairs", tokens=32).tokens(), atol=1e-5, rtol=1e-4)
    assert (given.tokens(empty=True) - tokens).abs().mean() > 0.05


def test_the_pair_former_is_made_of_transformer_blocks_of_diffusers():
    if os.environ.get("LODESTAR_REFERENCE"):
        sys.path.append(os.environ["LODESTAR_REFERENCE"])
    diffusers = pytest.importorskip("diffusers.models.attention", reason="diffusers is not here: ./scripts/test fetches it")
    w = adapter_file("pairs", tokens=32)
    former = {k[len("pair_former."):]: t for k, t in w.items() if k.startswith("pair_former.")}
    part = lambda p: {k[len(p) + 1:]: t for k, t in w.items() if k.startswith(p + ".")}
    sketches, texts = torch.cat([seen(s, "pairs") for s in (1, 2)]), torch.randn(2, 6, generator=torch.Generator().manual_seed(2))
    norm = lambda p, t: F.layer_norm(t, (32,), w[f"{p}.norm.weight"], w[f"{p}.norm.bias"])
    words = norm("text_proj", (texts @ w["text_proj.proj.weight"].T + w["text_proj.proj.bias"]).view(2, 2, 32))
    x = torch.cat((former["cls_tokens"][0].expand(2, -1, -1), norm("image_proj", sketches @ w["image_proj.proj.weight"].T + w["image_proj.proj.bias"]), words), 1)
    shape = x.shape
    x = F.group_norm(x.reshape(1, -1, 32).transpose(1, 2), 32, former["norm.weight"], former["norm.bias"], 1e-6).transpose(1, 2)
    mask = torch.block_diag(*[torch.ones(shape[1], shape[1])] * 2).bool()[None]
    for i in range(2):
        block = diffusers.BasicTransformerBlock(32, num_attention_heads=8, attention_head_dim=4, activation_fn="geglu", attention_bias=False, double_self_attention=True)
        block.load_state_dict({k[len(f"transformer_blocks.{i}."):]: t for k, t in former.items() if k.startswith(f"transformer_blocks.{i}.")})
        x = block(hidden_states=x, attention_mask=mask, encoder_attention_mask=mask)
    wanted = x.view(shape)[:, :3]
    torch.testing.assert_close(adapter_tokens.paired(part("image_proj"), part("text_proj"), former, sketches, texts), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ("embedding", "full", "resampler", "grounded", "pairs"))
def test_every_kind_is_told_by_its_keys(kind):
    found = adapter(kind, tokens=32)
    assert (found.kind, found.features, found.width, len(found.layers)) == (kind, 12, 32, 3)
    assert found.phrase == (6 if kind in ("grounded", "pairs") else None)
    made = Subjects(found, (Subject(seen(1, kind)), Subject(seen(2, kind))))
    assert made.tokens().shape == (1, sum(made.lengths), 32) and (made.tokens(empty=True) is None) == (kind == "grounded")


@pytest.mark.parametrize("change, says", (
    (lambda w: w.pop("image_proj.norm.weight"), "not complete"),
    (lambda w: w.pop("ip_adapter.3.to_v_ip.weight"), "Layer 3 needs a key and a value"),
    (lambda w: w.update({"lora.down": torch.zeros(1)}), "FaceID"),
    (lambda w: w.update({"other": torch.zeros(1)}), "not known (other)"),
    (lambda w: [w.pop(k) for k in list(w) if k.startswith("ip_adapter")], "no projection or no keys"),
    (lambda w: w.update({"ip_adapter.1.to_k_ip.weight": torch.zeros(8, 9), "ip_adapter.1.to_v_ip.weight": torch.zeros(8, 9)}), "different widths"),
))
def test_wrong_files_say_what_is_wrong(change, says):
    w = adapter_file()
    change(w)
    with pytest.raises(BadInput) as error:
        parse(w, "Load Image Adapter", "mine.safetensors")
    assert says in str(error.value) and "mine.safetensors" in str(error.value)


def test_layout_from_the_prompt():
    """Nothing is added while the maps are gathered; then a cell belongs to a subject where its words draw more than the threshold."""
    items = tuple(Subject(seen(s), replace(r, tokens=t), length=6) for s, r, t in ((1, LEFT, (1, 2)), (2, RIGHT, (4,))))
    given = subjects(*items)
    method = MaskedSubjectAttention(subjects=given, layout="prompt", layout_steps=2)
    q, k, v = qkv()
    state, sums = {}, 0
    for turn in range(2):
        step = SimpleNamespace(maps={})
        edit, = method.edits(step, state)
        assert edit.quiet and edit.listen
        torch.testing.assert_close(run(edit, q, k, v, step=step), F.scaled_dot_product_attention(q, k, v))
        a = (q @ k.transpose(-1, -2) / DIM ** 0.5).softmax(-1).mean(1)
        sums = sums + torch.stack((a[..., [1, 2]].mean(-1), a[..., 4]), 1)
        torch.testing.assert_close(step.maps[given]["input.1.0", SIDE, SIDE, 1], torch.stack((a[..., [1, 2]].mean(-1), a[..., 4]), 1))
        method.finish(step, None, None, state)
    edits = method.edits(SimpleNamespace(maps={}), state)
    assert [e.reach for e in edits] == ["positive", "negative"]
    wanted = stretched(sums) > 0.5
    assert torch.equal(edits[0].found.places["input.1.0", SIDE, SIDE, 1], wanted)
    shown = opened(wanted, given.lengths)
    keys, values = given.pair(LAYERS[0], q)
    weights = (q @ keys.transpose(-1, -2) / DIM ** 0.5).masked_fill(~shown[:, None], -torch.inf).softmax(-1)
    torch.testing.assert_close(image_part(edits[0], q, k, v), weights @ values * wanted.any(1)[:, None, :, None], atol=1e-5, rtol=1e-4)


def test_what_is_not_possible_says_so():
    with pytest.raises(BadInput, match="Connect Adapter Subject"):
        MaskedSubjectAttention().fitted(None)
    with pytest.raises(BadInput, match="without words"):
        MaskedSubjectAttention(subjects=subjects(), layout="prompt").validate()
    with pytest.raises(BadInput, match="holds no background tokens"):
        MaskedSubjectAttention(subjects=subjects(), outside="background tokens").validate()
    with pytest.raises(BadInput, match="weights for 3 cross-attentions, this model .* has 2"):
        subjects().fitted(Geometry("unet", LAYERS[:2]), "test", "UNetModel")
    with pytest.raises(BadInput, match="U-Nets"):
        subjects().fitted(Geometry("flux", ()), "test", "Flux")
    wide = torch.randn(1, 3, 16, DIM)
    with pytest.raises(BadInput, match="have width 8, this model 12"):
        subjects().pair(LAYERS[0], wide)
    assert MaskedSubjectAttention(scale=0.0).neutral() and MaskedSubjectAttention(scale=0.0).validate()


def vision(width=12, tokens=5):
    return SimpleNamespace(image_embeds=torch.ones(1, width), penultimate_hidden_states=torch.ones(1, tokens, width), last_hidden_state=torch.ones(1, tokens, width))


@pytest.mark.parametrize("kind, change, says", (
    ("embedding", dict(vision=vision(13)), "width 13"),
    ("embedding", dict(vision=object()), "takes image_embeds"),
    ("embedding", dict(vision=SimpleNamespace(image_embeds=torch.full((1, 12), float("nan")))), "not finite"),
    ("embedding", dict(phrase=[[torch.zeros(1, 1, 4), {"pooled_output": torch.zeros(1, 6)}]]), "takes pictures alone"),
    ("grounded", dict(phrase=[[torch.zeros(1, 1, 4), {"pooled_output": torch.zeros(1, 5)}]]), "width 5"),
    ("embedding", dict(region=(LEFT, RIGHT)), "2 are connected"),
    ("embedding", dict(region=(LEFT,), number=2), "from 1 to 1"),
    ("pairs", dict(vision=SimpleNamespace(last_hidden_state=torch.ones(2, 5, 12))), "one sketch for each subject"),
))
def test_the_subject_node_refuses(kind, change, says):
    from lodestar.guidance.attention.regions import Regions
    given = dict(adapter=adapter(kind, tokens=32), vision=vision(), weight=1.0, region=None, phrase=None, number=0, empty=None, subjects=None) | change
    given["region"] = None if given["region"] is None else Regions(given["region"])
    with pytest.raises(BadInput) as error:
        _subject(**given)
    assert says in str(error.value) and "Adapter Subject" in str(error.value)


def test_the_subject_node_makes_subjects():
    one = adapter("grounded")
    phrase = [[torch.zeros(1, 1, 4), {"pooled_output": torch.ones(1, 6)}]]
    from lodestar.guidance.attention.regions import Regions
    first, = _subject(one, vision(), 1.0, Regions((LEFT, RIGHT)), phrase, 2, None, None)
    second, = _subject(one, vision(), 0.5, None, None, 0, vision(), first)
    assert len(second) == 2 and second.items[0].region is RIGHT and second.items[1].weight == 0.5 and second.items[1].empty is not None
    with pytest.raises(BadInput, match="subjects before are of"):
        _subject(adapter("grounded"), vision(), 1.0, None, None, 0, None, first)
    assert isinstance(first.adapter, ImageAdapter) and isinstance(second.regions.items[0], Region) and Found({}).places == {}
