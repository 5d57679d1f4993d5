"""Block-Wise Semantics (MegaSR) on tensors: what a block sees of the picture, how the maps enter, files."""
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from lodestar.demo import block_semantics as demo
from lodestar.demo.pixel_aware import layers
from lodestar.guidance.attention.edits import Site
from lodestar.guidance.attention.module_edits import ModuleSite
from lodestar.guidance.inverse.block_semantics import MAPS, BlockWiseSemantics, Guided, SeesPicture, parse
from lodestar.guidance.method import BadInput, Step

pytestmark = pytest.mark.method("LodestarBlockWiseSemantics")
SKIPS = [seen for *_, seen in layers()]
SHAPES = {"mid_block.resnets.1.conv2": (128, 128, 3, 3)}
_before = 128
for (_up, _layer), _width, _seen in layers():
    SHAPES |= {f"up_blocks.{_up}.resnets.{_layer}": (), f"up_blocks.{_up}.resnets.{_layer}.conv1": (_width, _before + _seen, 3, 3), f"up_blocks.{_up}.resnets.{_layer}.conv2": (_width, _width, 3, 3)}
    _before = _width


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weights(seed=0):
    """The bundled layout with something in every place."""
    return {k: v + 0.05 * random(*v.shape, seed=i) for i, (k, v) in enumerate(demo.fresh(seed).items())}


def image(n=2, size=64, seed=3):
    return torch.rand(n, size, size, 3, generator=torch.Generator().manual_seed(seed))


def facts(shapes=SHAPES, blocks=demo.BLOCKS, width=128, network="UNet"):
    return SimpleNamespace(network=network, module_shapes=None if shapes is None else shapes.get, attention_widths={b: (64, width) for b in blocks})


def fitted(w=None, **values):
    return BlockWiseSemantics(**{"weights": parse(weights() if w is None else w, "test", "file"), "image": image(), **values}).fitted(facts())


def edits(method):
    return method.edits(Step(torch.zeros(1, 16, 8, 8), torch.ones(1)))


def plain(q, k, v, bias=None):
    return F.scaled_dot_product_attention(q, k, v)


def site(edit, pairs, layer="output.1"):
    return Site("cross", layer, extra={"texts": {edit: pairs}, "plain": plain})


def test_a_blocks_gate_and_its_weights_of_the_levels():
    """out + semantics g sum softmax(a) attn(Q, K s, V s), each level with a softmax of its own."""
    w = weights()
    w["blocks.output.1.gate"], w["blocks.output.1.levels"] = torch.tensor([0.5]), torch.tensor([0.0, 1.0, -2.0])
    edit, _ = edits(fitted(w, semantics=0.8))
    assert isinstance(edit, SeesPicture) and edit.layers == ",".join(demo.BLOCKS) and len(edit.texts) == 3
    q, k, v = random(2, 2, 6, 4), random(2, 2, 5, 4, seed=1), random(2, 2, 5, 4, seed=2)
    pairs = tuple((random(2, 2, n, 4, seed=3 + n), random(2, 2, n, 4, seed=4 + n)) for n in (2, 4, 9))
    out = edit.apply(site(edit, pairs), q, k, v, plain)
    share = torch.tensor([0.0, 1.0, -2.0]).softmax(0)
    torch.testing.assert_close(out, plain(q, k, v) + 0.8 * 0.5 * sum(s * plain(q, *p) for s, p in zip(share, pairs)))
    w["blocks.output.1.gate"].zero_()
    closed, _ = edits(fitted(w))
    assert torch.equal(closed.apply(site(closed, pairs), q, k, v, plain), plain(q, k, v))
    assert torch.equal(edit.apply(SimpleNamespace(extra=None, layer="output.1"), q, k, v, plain), plain(q, k, v))


def test_tokens_are_those_of_the_picture():
    """Coarse to fine, of unit scale, one row for each picture; a picture alone has the tokens that it has in a batch."""
    edit, _ = edits(fitted())
    tokens = [prompt.cond[0][0] for prompt in edit.texts]
    assert [tuple(t.shape) for t in tokens] == [(2, 4, 128), (2, 16, 128), (2, 64, 128)]
    alone, _ = edits(fitted(image=image()[1:]))
    for a, b in zip(tokens, (p.cond[0][0] for p in alone.texts)):
        torch.testing.assert_close(a[1:], b, atol=1e-5, rtol=1e-5)
        assert (a[0] - a[1]).abs().max() > 1e-2


def test_maps_enter_in_two_stages():
    """(1 + c) f + d: without edges' weights the features of depth and segments alone, without theirs what the edges add."""
    w, n = weights(), len(SKIPS)
    maps = {name: torch.rand(2, channels, 64, 64, generator=torch.Generator().manual_seed(i)) for i, (name, channels) in enumerate(MAPS.items())}
    whole = parse(w, "test", "file").guides(maps)
    assert [tuple(g.shape[1:]) for g in whole] == [(SKIPS[0], 4, 4), (SKIPS[1], 4, 4), (SKIPS[2], 8, 8), (SKIPS[3], 8, 8)]
    no_edges = {**w, **{k: torch.zeros_like(v) for k, v in w.items() if k.startswith("edges.leave")}}
    no_structure = {**w, **{k: torch.zeros_like(v) for k, v in w.items() if k.startswith("structure.leave")}}
    features, shifts = parse(no_edges, "test", "file").guides(maps), parse(no_structure, "test", "file").guides(maps)
    other = parse(no_edges, "test", "file").guides({**maps, "edges": 1 - maps["edges"]})
    for i in range(n):
        assert torch.equal(features[i], other[i]) and features[i].abs().max() > 0
        assert (whole[i] - shifts[i] - features[i]).abs().max() > 1e-4      # the product of both
        double = {**w, **{k: 2 * v for k, v in w.items() if k.startswith("structure.leave")}}
        torch.testing.assert_close(parse(double, "test", "file").guides(maps)[i] - shifts[i], 2 * (whole[i] - shifts[i]), atol=1e-5, rtol=1e-4)      # linear in the features


def test_guidance_is_added_to_the_skip_connection():
    method = fitted(guidance=0.5)
    guided = edits(method)[1]
    assert isinstance(guided, Guided) and guided.names() == tuple(f"up_blocks.{i}.resnets.{j}" for (i, j), *_ in layers())
    given = random(4, 128 + SKIPS[1], 4, 4)
    there = ModuleSite(torch.tensor([0, 1, 0, 1]), lambda key, make: make(), None, None, None)
    out = guided.enter(there, "up_blocks.0.resnets.1", None, given)
    assert torch.equal(out[:, :128], given[:, :128])
    torch.testing.assert_close(out[:, 128:], given[:, 128:] + 0.5 * method.weights.guides[1].repeat(2, 1, 1, 1))
    larger = guided.enter(there, "up_blocks.0.resnets.1", None, random(4, 128 + SKIPS[1], 6, 10))
    assert larger.shape == (4, 128 + SKIPS[1], 6, 10)
    assert guided.result(there, "up_blocks.0.resnets.1", None, given, None) is given


def test_maps_that_are_given_take_the_place_of_those_found():
    w = weights()
    found, given = fitted(w), fitted(w, depth=image(1, 32, 5))
    assert all((a - b).abs().max() > 1e-5 for a, b in zip(found.weights.guides, given.weights.guides))
    bare = {k: v for k, v in w.items() if not k.startswith("extract")}
    with pytest.raises(BadInput, match="has no network that finds it: connect"):
        fitted(bare, depth=image())
    every = {name: image(1, 64, i) for i, name in enumerate(MAPS)}
    assert all(torch.equal(a, b) for a, b in zip(fitted(bare, **every).weights.guides, fitted(w, **every).weights.guides))
    gray = {**every, "edges": every["edges"].mean(-1, keepdim=True).expand(-1, -1, -1, 3)}
    for a, b in zip(fitted(w, **every).weights.guides, fitted(w, **gray).weights.guides):
        torch.testing.assert_close(a, b)


def test_before_its_training_a_file_adds_nothing():
    method = fitted(demo.fresh())
    assert not any(g.any() for g in method.weights.guides) and not any(method.weights.weights.shares(b).any() for b in demo.BLOCKS)
    assert BlockWiseSemantics(semantics=0.0, guidance=0.0).neutral() and not BlockWiseSemantics(semantics=0.0).neutral()
    assert len(edits(fitted(semantics=0.0))) == len(edits(fitted(guidance=0.0))) == 1
    assert {e.reach for e in edits(fitted())} == {"all"} and {e.reach for e in edits(fitted(negative_rows="off"))} == {"positive"}


@pytest.mark.parametrize("change, message", [
    (lambda w: {"conv_in.weight": torch.zeros(1)}, "holds no block-wise semantics"),
    (lambda w: {k: v for k, v in w.items() if k != "semantics.norm.bias"}, "semantics.norm.bias is missing"),
    (lambda w: {k: v for k, v in w.items() if k != "edges.leave.0.weight"}, "edges.leave.0.weight is missing"),
    (lambda w: {k: v for k, v in w.items() if k != "extract.leave.bias"}, "extract.leave.bias is missing"),
    (lambda w: {**w, "blocks.input.1.levels": torch.zeros(2)}, r"blocks.input.1 needs gate \[1\] and levels \[3\]"),
    (lambda w: {k: v for k, v in w.items() if k != "blocks.input.1.gate"}, r"blocks.input.1 needs gate \[1\]"),
])
def test_files(change, message):
    with pytest.raises(BadInput, match=message):
        parse(change(weights()), "Load Block-Wise Semantics", "file", "a file")


def test_what_cannot_be_is_named():
    given = {"weights": parse(weights(), "test", "file"), "image": image()}
    with pytest.raises(BadInput, match="Connect Load Block-Wise Semantics"):
        BlockWiseSemantics().fitted(facts())
    with pytest.raises(BadInput, match="Use a U-Net"):
        BlockWiseSemantics(**given).fitted(facts(None, network="Flux"))
    with pytest.raises(BadInput, match="block input.1 attends to text of width 128, UNet has no such block"):
        BlockWiseSemantics(**given).fitted(facts(width=768))
    with pytest.raises(BadInput, match="block output.3"):
        BlockWiseSemantics(**given).fitted(facts(blocks=demo.BLOCKS[:-1]))
    with pytest.raises(BadInput, match=r"structure.leave.3 should make 96 channels for up_blocks.1.resnets.1"):
        BlockWiseSemantics(**given).fitted(facts({**SHAPES, "up_blocks.1.resnets.1.conv1": (64, 160, 3, 3)}))
    for wrong in (None, torch.zeros(1, 8, 8, 1), torch.zeros(0, 8, 8, 3)):
        with pytest.raises(BadInput, match="three colours"):
            BlockWiseSemantics(**{**given, "image": wrong}).fitted(facts())


def test_the_bundled_file():
    import json
    import os

    from lodestar.demo.weights_file import FOLDER, read
    w = read(demo.NAME)
    assert {k: tuple(v.shape) for k, v in w.items()} == {k: tuple(v.shape) for k, v in demo.fresh().items()}
    assert os.path.getsize(os.path.join(FOLDER, f"{demo.NAME}.safetensors")) < 2_000_000
    assert all(w[f"blocks.{b}.gate"].abs() > 1e-3 for b in demo.BLOCKS)      # every gate has opened
    with open(os.path.join(FOLDER, f"{demo.NAME}.json"), encoding="utf-8") as f:
        figures = json.load(f)
    assert figures["loss"] < 0.3 * figures["loss_without_training"]
