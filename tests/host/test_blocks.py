"""Block edits on every family of the host's networks: blocks left out, or given other tokens, for some rows of a call."""
import dataclasses
from typing import ClassVar

import pytest
import torch

pytest.importorskip("torch")

import lodestar.tests.architectures as zoo      # noqa: E402
from lodestar.guidance.attention.blocks import BlockEdit, SkipBlock, SkipTimeBlock      # noqa: E402
from lodestar.guidance.attention.nag import NegativeAttention      # noqa: E402
from lodestar.guidance.frozen import frozen
from lodestar.guidance.host import geometry      # noqa: E402
from lodestar.guidance.layers import LayerError      # noqa: E402
from lodestar.guidance.method import POSITIVE, Branch      # noqa: E402
from lodestar.guidance.perturbation.pag import IdentitySelfAttention      # noqa: E402

ALL = sorted(zoo.FAMILIES) + ["pixart"]


@pytest.fixture(scope="module", autouse=True)
def modern(host):
    from lodestar.guidance.host.features import wrappers
    if not wrappers():
        pytest.skip("this host has U-Nets alone; they are tested in test_perturbation")


@pytest.fixture
def make(modern):
    def build(name, rows=1):
        with torch.inference_mode():
            try:
                return zoo.Lab(dataclasses.replace(zoo.pixart(), shape=(4, 34, 36)) if name == "pixart" else zoo.build(name), rows)
            except (ImportError, TypeError) as error:
                pytest.skip(f"this host's {name} is missing or another one: {error}")
    return build


def close(a, b, share=2e-5):
    assert (a - b).abs().max() <= share * b.abs().max()


def skip(layers):
    return Branch(blocks=(SkipBlock(layers),))


@frozen
class Seen(BlockEdit):
    """Changes nothing; notes what it is shown."""

    log: ClassVar[list] = []

    def leave(self, site, given, made):
        image = given["image"][:, site.image]
        Seen.log.append((str(site.layer), image.shape[1], site.frames, site.height, site.width, "text" in given, given["image"].shape[0]))
        assert set(made) <= set(given) and all(made[k].shape == given[k].shape for k in made)
        return made


class Without:
    """A network whose blocks of one layer are gone, as a reference: the module's forward gives back what came in."""

    def __init__(self, lab, layer):
        found = next(x for x in geometry.of_network(lab.specimen.net).layers if str(x) == layer)
        self.module = geometry.block_modules(lab.specimen.net, found)["space"]
        self.family = geometry.of_network(lab.specimen.net).family
        self.stage = found.stage

    def __enter__(self):
        def forward(*args, **kwargs):
            values = [v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)]
            named = {"image_tokens": "text_tokens", "img": "txt", "hidden_states": "encoder_hidden_states"}
            for image, text in named.items():
                if image in kwargs:
                    if kwargs.get(text) is None:
                        return kwargs[image]
                    return (kwargs[text], kwargs[image]) if self.family == "qwen" else (kwargs[image], kwargs[text])
            if self.family in ("sd3", "aura") and self.stage == "double":
                return values[0], values[1]
            return values[0]
        self.module.forward = forward

    def __exit__(self, *error):
        del self.module.forward


@pytest.mark.parametrize("name", ALL)
def test_a_block_left_out_is_the_network_without_it_and_other_rows_stay(make, name):
    lab = make(name, rows=2)
    a, b = lab.inputs(1), lab.inputs(2)
    plain = lab.plain([a, b])
    for layer in (lab.specimen.names()[0], lab.specimen.names()[-1]):
        with Without(lab, layer):
            gone = lab.plain([a, b])
        out, _ = lab.run([POSITIVE, skip(layer)], [a, b])
        assert torch.isfinite(out).all()
        close(out[:2], plain[:2])
        close(out[2:], gone[2:])
        assert (out[2:] - plain[2:]).abs().max() > 1e-4 * plain.abs().max(), layer
        close(lab.run([skip(layer)], [b])[0], gone[2:])
        close(lab.run([skip(layer), POSITIVE], [b, a])[0], torch.cat((gone[2:], plain[:2])))
        close(lab.run([POSITIVE, Branch("negative")], [a, b], plan_blocks={"negative": (SkipBlock(layer),)})[0], out)
    assert torch.equal(lab.plain([a, b]), plain)


@pytest.mark.parametrize("name", ALL)
def test_nothing_left_out_is_bit_equal(make, name):
    lab = make(name)
    a, b = lab.inputs(1), lab.inputs(2)
    assert torch.equal(lab.run([POSITIVE, skip("none")], [a, b])[0], lab.plain([a, b]))
    assert not any("forward" in vars(m) for m in lab.specimen.net.modules())


@pytest.mark.parametrize("name", ALL)
def test_an_edit_is_shown_the_pictures_tokens_of_its_rows(make, name):
    lab = make(name, rows=2)
    a, b = lab.inputs(1), lab.inputs(2)
    Seen.log.clear()
    out, _ = lab.run([Branch(blocks=(Seen("all"),)), POSITIVE], [a, b])
    close(out, lab.plain([a, b]))
    shape = lab.specimen.shape
    patch = 1 if name == "ltx" else 2
    frames, height, width = shape[1] if len(shape) == 4 else 1, -(-shape[-2] // patch), -(-shape[-1] // patch)
    assert [entry[0] for entry in Seen.log] == lab.specimen.names()
    for layer, tokens, *grid, text, rows in Seen.log:
        assert tokens == frames * height * width and grid == [frames, height, width] and rows == 2, layer
        assert text == (layer.startswith("double") and (name, layer) not in (("sd3", "double.2"), ("sd35", "double.2")))      # SD3's last block ends the text


@pytest.mark.parametrize("name", ALL)
def test_a_layer_that_does_not_exist(make, name):
    lab = make(name)
    with pytest.raises(LayerError, match=lab.specimen.names()[-1]):
        lab.run([skip("input.3")], [lab.inputs(1)])
    with pytest.raises(ValueError, match="over the frames"):
        lab.run([Branch(blocks=(SkipTimeBlock("all"),))], [lab.inputs(1)])


@pytest.mark.parametrize("name", [n for n in ALL if n not in ("hidream", "pixart")])
def test_beside_edits_of_attention_and_a_second_text(make, name):
    """Rows with a block left out, rows with attention edits and rows with a negative prompt inside attention, in one call, are what they are alone."""
    lab = make(name, rows=2)
    a, b, c = lab.inputs(1), lab.inputs(2), lab.inputs(3)
    session, layer = lab.session(), lab.specimen.names()[1]
    edit = NegativeAttention("all", lab.prompt(session, lab.text(9)), 3.0)
    identity = Branch("negative", edits=(IdentitySelfAttention("all"),))
    out, _ = lab.run([POSITIVE, Branch("negative", blocks=(SkipBlock(layer),)), identity], [a, b, c], session, [edit])
    close(out[:2], lab.run([POSITIVE], [a], session, [edit])[0], 1e-4)
    close(out[2:4], lab.run([skip(layer)], [b])[0], 1e-4)
    close(out[4:], lab.run([identity], [c])[0], 1e-4)
    both, _ = lab.run([Branch(blocks=(SkipBlock(layer),)), POSITIVE], [a, b], session, [edit])
    close(both[:2], lab.run([Branch(blocks=(SkipBlock(layer),))], [a], session, [edit])[0], 1e-4)
    close(both[2:], lab.run([POSITIVE], [b], session, [edit])[0], 1e-4)


def test_other_packs_block_replacements_keep_acting(make):
    lab = make("flux")
    a, b = lab.inputs(1), lab.inputs(2)

    def half(args, extra):
        out = extra["original_block"](args)
        return {"img": 0.5 * out["img"], "txt": out["txt"]}

    from lodestar.guidance.host import block_hooks
    install = block_hooks.install

    def before(call, options):
        options["transformer_options"]["patches_replace"] = {"dit": {("double_block", 1): half}}
        install(call, options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_hooks, "install", before)
        plain, _ = lab.run([POSITIVE, POSITIVE], [a, b])
        out, _ = lab.run([POSITIVE, skip("double.1")], [a, b])
    close(out[:1], plain[:1])
    close(out[1:], lab.run([skip("double.1")], [b])[0])
    assert (plain - lab.plain([a, b])).abs().max() > 1e-3 * plain.abs().max()


@pytest.mark.parametrize("frames", (3, 16))
def test_blocks_over_the_frames_of_a_video_unet(make, frames):
    with torch.inference_mode():
        lab = zoo.Lab(zoo.svd(frames), rows=frames)
    a, b = lab.inputs(1), lab.inputs(2)
    plain = lab.plain([a, b])
    outs = []
    for edit in (SkipTimeBlock("all"), SkipBlock("middle")):
        out, _ = lab.run([POSITIVE, Branch(blocks=(edit,))], [a, b])
        close(out[:frames], plain[:frames])
        assert (out[frames:] - plain[frames:]).abs().max() > 1e-4 * plain.abs().max()
        outs.append(out)
    assert (outs[0] - outs[1]).abs().max() > 1e-4 * plain.abs().max()
    assert torch.equal(lab.plain([a, b]), plain)
