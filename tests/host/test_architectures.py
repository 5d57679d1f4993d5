"""Layers and attention edits on every family of the host's networks: tiny random networks of the host's own classes."""
import contextlib

import pytest
import torch

pytest.importorskip("torch")

import lodestar.tests.architectures as zoo      # noqa: E402
from lodestar.guidance.attention.nag import NegativeAttention      # noqa: E402
from lodestar.guidance.host import attention_hooks, geometry      # noqa: E402
from lodestar.guidance.layers import LayerError, select      # noqa: E402
from lodestar.guidance.method import POSITIVE, Branch      # noqa: E402
from lodestar.guidance.perturbation.pag import IdentitySelfAttention      # noqa: E402

ALL = sorted(zoo.FAMILIES)


@pytest.fixture(scope="module", autouse=True)
def modern(host):
    from lodestar.guidance.host.features import wrappers
    if not wrappers():
        pytest.skip("this host has no attention override; its U-Nets are tested in test_engine")


@pytest.fixture
def make(modern):
    def build(name, rows=1):
        with torch.inference_mode():
            try:
                return zoo.Lab(zoo.build(name), rows)
            except (ImportError, TypeError) as error:
                pytest.skip(f"this host's {name} is missing or another one: {error}")
    return build


def close(a, b, share=2e-5):
    assert (a - b).abs().max() <= share * b.abs().max()


def identity(layers):
    return Branch(edits=(Counting(layers),))


class Counting(IdentitySelfAttention):
    """The edit of PAG, with a record of where it ran and what it changed."""

    log = []

    def apply(self, site, q, k, v, attend):
        out = super().apply(site, q, k, v, attend)
        plain = attend(q, k, v)
        Counting.log.append((str(site.layer), site.kind, site.height, site.width, out.shape == plain.shape,
                             None if site.text is None else torch.equal(out[:, :, site.text], plain[:, :, site.text]),
                             bool((out[:, :, site.image] != plain[:, :, site.image]).any())))
        return out


@pytest.mark.parametrize("name", ALL)
def test_layers_in_execution_order(make, name):
    lab = make(name)
    found = geometry.of_network(lab.specimen.net)
    assert [str(x) for x in found.layers] == lab.specimen.names()
    assert set(lab.specimen.kinds) <= {k for x in found.layers for k in x.attentions}
    assert select(found, "middle") and "transformer blocks" in found.describe()
    assert len(geometry.checkpoint_modules(lab.specimen.net)) == len(found.layers)


@pytest.mark.parametrize("name", ALL)
def test_an_edit_touches_its_rows_and_layers_only(make, name):
    lab = make(name, rows=2)
    a, b = lab.inputs(1), lab.inputs(2)
    plain = lab.plain([a, b])
    for layers in (lab.specimen.names()[0], lab.specimen.names()[-1], "all"):
        Counting.log.clear()
        out, _ = lab.run([POSITIVE, identity(layers)], [a, b])
        assert torch.isfinite(out).all()
        close(out[:2], plain[:2])
        assert (out[2:] - plain[2:]).abs().max() > 1e-4 * plain.abs().max(), layers
        expected = lab.specimen.names() if layers == "all" else [layers]
        ran = [entry[0] for entry in Counting.log if entry[1] != "self" or name != "sd35"]
        assert ran == expected
        height, width = -(-lab.specimen.shape[-2] // (1 if name == "ltx" else 2)), -(-lab.specimen.shape[-1] // (1 if name == "ltx" else 2))
        for _, kind, h, w, same_shape, text_kept, changed in Counting.log:
            assert (h, w) == (height, width) and same_shape and changed and text_kept is not False
            assert kind == ("self" if text_kept is None else "joint")
    single, _ = lab.run([identity("all")], [b])
    close(single, out[2:])
    swapped, _ = lab.run([identity("all"), POSITIVE], [b, a])
    close(swapped, torch.cat((out[2:], out[:2])))


@pytest.mark.parametrize("name", ALL)
def test_nothing_edited_is_bit_equal(make, name):
    lab = make(name)
    a, b = lab.inputs(1), lab.inputs(2)
    assert torch.equal(lab.run([POSITIVE, POSITIVE], [a, b])[0], lab.plain([a, b]))
    assert torch.equal(lab.run([POSITIVE, identity("none")], [a, b])[0], lab.plain([a, b]))


@pytest.mark.parametrize("name", ALL)
def test_a_layer_that_does_not_exist(make, name):
    lab = make(name)
    with pytest.raises(LayerError, match=lab.specimen.names()[-1]):
        lab.run([identity("input.3")], [lab.inputs(1)])


# A negative prompt inside attention

SHADOWED = [n for n in ALL if n != "hidream"]


def nag(lab, session, tokens, **settings):
    return NegativeAttention(**{"layers": "all", "negative": lab.prompt(session, tokens), "scale": 3.0, **settings})


@pytest.mark.parametrize("tokens", (6, 4))
@pytest.mark.parametrize("name", SHADOWED)
def test_negative_attention(make, name, tokens):
    """Only the positive rows change; the negative equal to the positive, or a strength of nothing, leaves them."""
    lab = make(name, rows=2)
    a, b = lab.inputs(1), lab.inputs(2)
    plain = lab.plain([a, b])
    chunks, branches = [a, b], [POSITIVE, Branch("negative")]
    session = lab.session()
    out, seen = lab.run(branches, chunks, session, [nag(lab, session, lab.text(9, tokens))])
    assert out.shape == plain.shape and torch.isfinite(out).all()
    close(out[2:], plain[2:])
    assert (out[:2] - plain[:2]).abs().max() > 1e-3 * plain.abs().max()
    assert seen["rows"] == (4 if name in zoo.CROSS else 6)
    again, _ = lab.run(branches, chunks, session, [nag(lab, session, lab.text(9, tokens))])
    assert torch.equal(again, out)
    first, _ = lab.run([POSITIVE], [(a[0][:1], a[1][:1])], session, [nag(lab, session, lab.text(9, tokens))])
    close(first, out[:1], 1e-4)
    for settings, negative in (({"scale": 0.0}, lab.text(9, tokens)), ({"alpha": 0.0}, lab.text(9, tokens)), ({}, a[1][:1])):
        session = lab.session()
        same, _ = lab.run(branches, chunks, session, [nag(lab, session, negative, **settings)])
        close(same, plain)


@pytest.mark.parametrize("name", SHADOWED)
def test_longer_negative(make, name):
    lab = make(name)
    a, b = lab.inputs(1), lab.inputs(2)
    session = lab.session()
    edits = [nag(lab, session, lab.text(9, 9))]
    if name in ("lumina", "zimage"):
        with pytest.raises(ValueError, match="9 tokens"):
            lab.run([POSITIVE, POSITIVE], [a, b], session, edits)
        return
    out, _ = lab.run([Branch("negative"), POSITIVE], [a, b], session, edits)
    plain = lab.plain([a, b])
    close(out[:1], plain[:1])
    assert (out[1:] - plain[1:]).abs().max() > 1e-3 * plain.abs().max()
    session = lab.session()
    close(lab.run([Branch("negative"), POSITIVE], [a, b], session, [nag(lab, session, lab.text(9, 9), scale=0.0)])[0], plain)


@pytest.mark.parametrize("name", SHADOWED)
def test_the_negative_acts_as_if_it_were_the_text(make, name):
    """The whole push (alpha 1, no limit) at scale -1 leaves the attention to the negative alone: the network with the negative as its text, however long both are."""
    lab = make(name)
    a = lab.inputs(1)
    for tokens in (6, 3, 9):
        if name in ("lumina", "zimage") and tokens != 6:
            continue            # there the place of the picture depends on the length of the text
        session = lab.session()
        out, _ = lab.run([POSITIVE], [a], session, [nag(lab, session, lab.text(9, tokens), scale=-1.0, alpha=1.0, tau=1e9)])
        close(out, lab.plain([(a[0], lab.text(9, tokens))]), 1e-4)


@pytest.mark.parametrize("name", ("lumina", "zimage"))
def test_padding_of_a_shorter_negative_is_hidden(make, name):
    """What fills a shorter negative up does not matter."""
    from lodestar.guidance.host import shadow
    lab = make(name)
    a, outs, pad = lab.inputs(1), [], shadow._pad
    for value in (0.0, 5.0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(shadow, "_pad", lambda t, n: pad(t, n) if t.shape[1] == n else torch.cat((t, torch.full((t.shape[0], n - t.shape[1], t.shape[2]), value)), 1))
            session = lab.session()
            outs.append(lab.run([POSITIVE], [a], session, [nag(lab, session, lab.text(9, 3))])[0])
    close(outs[0], outs[1])


@pytest.mark.parametrize("name", SHADOWED)
def test_negative_attention_beside_an_edited_branch(make, name):
    lab = make(name)
    a = lab.inputs(1)
    session = lab.session()
    edit = nag(lab, session, lab.text(9))
    both, _ = lab.run([POSITIVE, Branch(edits=(IdentitySelfAttention("all"),)), Branch("negative", edits=(IdentitySelfAttention("all"),))], [a, a, a], session, [edit])
    alone, _ = lab.run([POSITIVE], [a], session, [edit])
    degraded, _ = lab.run([Branch("negative", edits=(IdentitySelfAttention("all"),))], [a], session)
    close(both[:1], alone, 1e-4)
    close(both[2:], degraded, 1e-4)
    assert (both[1] - both[2]).abs().max() > 1e-4 * both.abs().max()


def test_hidream_says_why_not(make):
    lab = make("hidream")
    session = lab.session()
    with pytest.raises(ValueError, match="hidream.*language model"):
        lab.run([POSITIVE], [lab.inputs(1)], session, [nag(lab, session, lab.text(9))])


@pytest.mark.parametrize("name", ("wan", "ltx", "cosmos"))
def test_as_many_text_tokens_as_picture_tokens(make, name):
    """The number of keys tells nothing here."""
    lab = make(name)
    frames, height, width = lab.specimen.shape[1:]
    count = frames * (height * width if name == "ltx" else -(-height // 2) * -(-width // 2))
    for own, negative in ((count, 5), (count - 5, 5)):
        a, b = lab.inputs(1, own), lab.inputs(2, own)
        plain = lab.plain([a, b])
        Counting.log.clear()
        out, _ = lab.run([POSITIVE, identity("block.1")], [a, b])
        close(out[:1], plain[:1])
        assert [entry[0] for entry in Counting.log] == ["block.1"] and (out[1:] - plain[1:]).abs().max() > 1e-4 * plain.abs().max()
        session = lab.session()
        out, _ = lab.run([Branch("negative"), POSITIVE], [a, b], session, [nag(lab, session, lab.text(9, negative), scale=-1.0, alpha=1.0, tau=1e9)])
        close(out[:1], plain[:1])
        close(out[1:], lab.plain([(b[0], lab.text(9, negative))]), 1e-4)


@pytest.mark.parametrize("name", ("flux", "qwen"))
def test_reference_pictures(make, name):
    """Their tokens belong to the picture's side: they follow the text's push, and the identity reaches the target's tokens alone."""
    lab = make(name)
    a, b = lab.inputs(1), lab.inputs(2)
    if name == "flux" and "ref_latents" not in __import__("inspect").signature(lab.specimen.net.forward).parameters:
        pytest.skip("this host's Flux takes no reference pictures")
    references = [torch.randn(2, *lab.specimen.shape, generator=torch.Generator().manual_seed(3))]
    one = [references[0][1:]]
    plain = lab.plain([a, b], ref_latents=references)
    Counting.log.clear()
    out, _ = lab.run([POSITIVE, identity("all")], [a, b], ref_latents=references)
    close(out[:1], plain[:1])
    assert [entry[0] for entry in Counting.log] == lab.specimen.names()
    session = lab.session()
    out, _ = lab.run([Branch("negative"), POSITIVE], [a, b], session, [nag(lab, session, lab.text(9, 4), scale=-1.0, alpha=1.0, tau=1e9)], ref_latents=references)
    close(out[:1], plain[:1])
    close(out[1:], lab.plain([(b[0], lab.text(9, 4))], ref_latents=one), 1e-4)


@pytest.mark.parametrize("name", ("sd35", "lumina", "wan", "wan_i2v"))
def test_gradient_through_recomputed_blocks(make, monkeypatch, name):
    """A block that is computed again for its gradient is edited again; where its layer cannot be told, the run says so."""
    import comfy.model_management
    from lodestar.guidance.host import gradients
    if hasattr(comfy.model_management, "in_training"):
        monkeypatch.setattr(comfy.model_management, "in_training", True)
    make(name)
    lab = zoo.Lab(zoo.FAMILIES[name]())
    lab.specimen.takes_control = zoo.build(name).takes_control
    lab.specimen.net.requires_grad_(False)
    slopes = []
    for recompute in (False, True):
        x, text = lab.inputs(1)
        x.requires_grad_(True)
        with torch.enable_grad(), (gradients.recomputed(lab.specimen.net) if recompute else contextlib.nullcontext()):      # forward and backward, as a steering method has them
            out, _ = lab.run([identity(lab.specimen.names()[0])], [(x, text)], context=torch.enable_grad)
            try:
                slopes.append(torch.autograd.grad(out.square().sum(), x)[0])
            except RuntimeError as error:
                assert "autograd formula" in str(error)
                pytest.skip("this host's kernels have no backward")
            except ValueError as error:
                assert recompute and "checkpoint" in str(error) and name == "lumina"
                return
    close(slopes[1], slopes[0], 1e-4)


# Nothing silent

def test_a_network_whose_attention_is_out_of_reach(make):
    with torch.inference_mode():
        lab = zoo.Lab(zoo.pixart())
    assert [str(x) for x in geometry.of_network(lab.specimen.net).layers] == lab.specimen.names()
    with pytest.raises(ValueError, match="PixArtMS"):
        lab.run([identity("all")], [lab.inputs(1)])
    session = lab.session()
    with pytest.raises(ValueError, match="PixArtMS"):
        lab.run([POSITIVE], [lab.inputs(1)], session, [nag(lab, session, lab.text(9))])

    class Strange(torch.nn.Module):
        pass

    lab.specimen.net = Strange()
    with pytest.raises(ValueError, match="Strange"):
        lab.run([identity("all")], [lab.inputs(1)])


def test_attention_of_the_wrong_kind(make):
    lab = make("wan")

    class CrossOnly(IdentitySelfAttention):
        kinds = ("joint",)

    with pytest.raises(ValueError, match="CrossOnly changes joint attention.*WanModel have cross, self"):
        lab.run([Branch(edits=(CrossOnly("all"),))], [lab.inputs(1)])


@pytest.mark.parametrize("name", ("flux", "wan", "lumina"))
def test_an_edit_that_is_lost_is_an_error(make, name):
    """Another hook that takes the override away inside a block, on a host that would not say so."""
    lab = make(name)
    session, forward = lab.session(), lab.specimen.net.forward

    def robbed(*args, transformer_options, **kwargs):
        kept = {**transformer_options, "optimized_attention_override": lambda func, *a, **k: func(*a, **k)}
        if name == "lumina":        # seen, but not at the blocks
            options = transformer_options["lodestar_net"]
            options["seen"] = True
        return forward(*args, transformer_options=kept, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lab.specimen.net, "forward", robbed)
        with pytest.raises(RuntimeError, match=f"Counting did not reach the attention of {lab.specimen.names()[1]} in {type(lab.specimen.net).__name__}"):
            lab.run([identity(lab.specimen.names()[1])], [lab.inputs(1)], session)
    with pytest.raises(RuntimeError, match="never reached"):
        attention_hooks.check_run(session)
    lab.run([identity("all")], [lab.inputs(1)])


def test_a_skipped_network_or_block_is_no_error(make):
    """Step caches run no block; another pack's block replacement may run no attention."""
    lab = make("flux")
    session = lab.session()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lab.specimen.net, "forward", lambda x, *args, **kwargs: x)
        out, _ = lab.run([identity("all")], [lab.inputs(1)], session)
    assert torch.equal(out, lab.inputs(1)[0])
    lab.run([identity("all")], [lab.inputs(1)], session)
    attention_hooks.check_run(session)


# Video U-Nets

@pytest.mark.parametrize("frames", (3, 16, 5))
def test_temporal_blocks_of_a_video_unet_are_left_alone(make, frames):
    """16 frames of 4 x 4 cells: rows and tokens of both kinds of attention are the same."""
    with torch.inference_mode():
        lab = zoo.Lab(zoo.svd(frames), rows=frames)
    names = [str(x) for x in geometry.of_network(lab.specimen.net).layers]
    a, b = lab.inputs(1), lab.inputs(2)
    plain = lab.plain([a, b])
    assert torch.equal(lab.run([POSITIVE, identity("none")], [a, b])[0], plain)
    Counting.log.clear()
    out, _ = lab.run([POSITIVE, identity("all")], [a, b])
    close(out[:frames], plain[:frames])
    assert [entry[0] for entry in Counting.log] == names and all(entry[2:4] == (4, 4) for entry in Counting.log)
    assert (out[frames:] - plain[frames:]).abs().max() > 1e-4 * plain.abs().max()
    session = lab.session()
    out, _ = lab.run([Branch("negative"), POSITIVE], [a, b], session, [nag(lab, session, lab.text(9, 4))])
    close(out[:frames], plain[:frames])
    assert (out[frames:] - plain[frames:]).abs().max() > 1e-4 * plain.abs().max()
    session = lab.session()
    same, _ = lab.run([Branch("negative"), POSITIVE], [a, b], session, [nag(lab, session, lab.text(9, 4), scale=0.0)])
    close(same, plain)
