"""Methods that take regions or words of the prompt, on every family of the host's networks."""
import pytest
import torch

pytest.importorskip("torch")

import lodestar.tests.architectures as zoo      # noqa: E402
from lodestar.guidance.attention.dense import DenseModulation      # noqa: E402
from lodestar.guidance.attention.directed import DirectedAttention      # noqa: E402
from lodestar.guidance.attention.edits import AttentionEdit      # noqa: E402
from lodestar.guidance.attention.nasa import SteerAway      # noqa: E402
from lodestar.guidance.attention.prompt_to_prompt import Pair, PictureMaps, WordMaps      # noqa: E402
from lodestar.guidance.attention.regional import RegionalAttention, Separation      # noqa: E402
from lodestar.guidance.attention.regions import Region, Regions      # noqa: E402
from lodestar.guidance.attention.structured import StructuredAttention      # noqa: E402
from lodestar.guidance.host import geometry      # noqa: E402
from lodestar.guidance.host.joined import REFUSED      # noqa: E402
from lodestar.guidance.method import POSITIVE, Branch      # noqa: E402

ALL = sorted(zoo.FAMILIES)
FAMILY = {"chroma": "flux", "sd35": "sd3", "zimage": "lumina"}
REFUSING = [n for n in ALL if FAMILY.get(n, n) in REFUSED]
TEXTS = [n for n in ALL if n not in REFUSING]
APPROXIMATE = ("qwen",)      # its text tokens have places, which are others behind the prompt


@pytest.fixture(scope="module", autouse=True)
def modern(host):
    from lodestar.guidance.host.features import wrappers
    if not wrappers():
        pytest.skip("this host has no attention override; its U-Nets are tested in test_regions_host")


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


def regional(lab, session, boxes, texts, **settings):
    prompts = [lab.prompt(session, t) for t in texts]
    items = Regions(tuple(Region(boxes=(b,), conditioning=p.cond) for b, p in zip(boxes, prompts)), length=lab.specimen.tokens)
    items._cache["prompts"] = tuple(prompts)
    return RegionalAttention(**{"layers": "all", "regions": items, "base_ratio": 0.2, "texts": tuple(prompts), **settings})


LEFT, RIGHT, ALL_OF_IT = (0, 0, 0.5, 1), (0.5, 0, 0.5, 1), (0, 0, 1, 1)


class Watching(AttentionEdit):
    """Notes the sites."""

    kinds = ("self", "cross", "joint")
    log = []

    def apply(self, site, q, k, v, attend):
        Watching.log.append((site, q.shape[2], k.shape[2]))
        return attend(q, k, v)


@pytest.mark.parametrize("name", ALL)
def test_grids_windows_and_prompts(make, name):
    """Every call says what part of the picture its grid spans, its frames, and where the prompt's tokens are."""
    lab = make(name)
    Watching.log.clear()
    lab.run([Branch(edits=(Watching("all"),))], [lab.inputs(1)])
    net = geometry.of_network(lab.specimen.net)
    shape = lab.specimen.shape
    whole = Regions((Region(boxes=(ALL_OF_IT,)), Region(boxes=((0, 0, 1, 0.5),))))
    assert Watching.log
    for site, queries, keys in Watching.log:
        tokens = site.frames * site.height * site.width
        assert tokens == (queries if site.kind != "joint" else site.image.stop - site.image.start)
        assert site.frames == (shape[1] if len(shape) == 4 else 1)
        assert site.window == pytest.approx((0.0, 0.0, site.width * net.patch[2] / shape[-1], site.height * net.patch[1] / shape[-2]))
        maps = whole.at(site)
        assert torch.equal(maps[0], torch.ones(tokens)) and maps[1].view(site.frames, -1)[:, 0].eq(1).all()
        if site.kind == "self":
            assert site.prompt is None
        else:
            assert site.prompt.stop - site.prompt.start == lab.specimen.tokens and site.prompt.stop <= keys
            assert site.text is None or site.text.start <= site.prompt.start and site.prompt.stop <= site.text.stop


@pytest.mark.method("LodestarRegionalPrompts")
@pytest.mark.parametrize("name", TEXTS)
def test_regional_prompts_touch_the_positive_alone(make, name):
    lab = make(name, rows=2)
    a, b = lab.inputs(1), lab.inputs(2)
    plain, session = lab.plain([a, b]), lab.session()
    edit = regional(lab, session, (LEFT, RIGHT), (lab.text(7), lab.text(8, 4)))
    for layers in ("all", lab.specimen.names()[-1]):
        edit = regional(lab, session, (LEFT, RIGHT), (lab.text(7), lab.text(8, 4)), layers=layers)
        out, _ = lab.run([POSITIVE, Branch("negative")], [a, b], session, [edit])
        assert out.shape == plain.shape and torch.isfinite(out).all()
        close(out[2:], plain[2:])
        assert (out[:2] - plain[:2]).abs().max() > 1e-3 * plain.abs().max()
    single, _ = lab.run([POSITIVE], [(a[0][:1], a[1][:1])], session, [edit])
    close(single, out[:1], 1e-4)


@pytest.mark.method("LodestarRegionalPrompts")
@pytest.mark.parametrize("name", TEXTS)
def test_a_whole_region_is_its_prompt(make, name):
    """Nothing of the base prompt, one region of everything: the network with the region's text, however long it is."""
    lab = make(name)
    a = lab.inputs(1)
    for tokens in (6, 3, 9):
        session = lab.session()
        out, _ = lab.run([POSITIVE], [a], session, [regional(lab, session, (ALL_OF_IT,), (lab.text(9, tokens),), base_ratio=0.0)])
        expected = lab.plain([(a[0], lab.text(9, tokens))])
        if name in APPROXIMATE:
            assert (out - expected).abs().max() < 0.3 * (expected - lab.plain([a])).abs().max()
        else:
            close(out, expected, 1e-4)
    session = lab.session()
    same, _ = lab.run([POSITIVE], [a], session, [regional(lab, session, (ALL_OF_IT, ALL_OF_IT), (a[1], a[1]), base_ratio=0.4)])
    if name not in APPROXIMATE:
        close(same, lab.plain([a]), 1e-4)


@pytest.mark.method("LodestarRegionalPrompts")
@pytest.mark.parametrize("name", TEXTS)
def test_beside_other_edits(make, name):
    """A degraded branch of the positive prompt carries the regions too; the others do not."""
    from lodestar.guidance.perturbation.pag import IdentitySelfAttention
    lab = make(name)
    a, session = lab.inputs(1), lab.session()
    edit = regional(lab, session, (LEFT, RIGHT), (lab.text(7), lab.text(8, 4)))
    degraded = (IdentitySelfAttention("all"),)
    both, _ = lab.run([POSITIVE, Branch(edits=degraded), Branch("negative", edits=degraded)], [a, a, a], session, [edit])
    close(both[:1], lab.run([POSITIVE], [a], session, [edit])[0], 1e-4)
    close(both[2:], lab.run([Branch("negative", edits=degraded)], [a], session)[0], 1e-4)
    assert (both[1] - both[2]).abs().max() > 1e-4 * both.abs().max() and (both[1] - both[0]).abs().max() > 1e-4 * both.abs().max()


@pytest.mark.method("LodestarRegionalPrompts")
@pytest.mark.parametrize("name", REFUSING)
def test_regional_prompts_say_where_they_cannot_be(make, name):
    lab = make(name)
    session = lab.session()
    with pytest.raises(ValueError, match=f"Regional Prompts is not possible on {FAMILY.get(name, name)} networks"):
        lab.run([POSITIVE], [lab.inputs(1)], session, [regional(lab, session, (LEFT,), (lab.text(7),))])


@pytest.mark.method("LodestarRegionalPrompts")
@pytest.mark.parametrize("name", ALL)
def test_separation(make, name):
    lab = make(name)
    a = lab.inputs(1)
    found = Regions((Region(boxes=(LEFT,)), Region(boxes=(RIGHT,))))
    out, _ = lab.run([POSITIVE, Branch(edits=(Separation("all", found),))], [a, a])
    plain = lab.plain([a])
    close(out[:1], plain)
    assert torch.isfinite(out).all() and (out[1:] - plain).abs().max() > 1e-4 * plain.abs().max()
    whole, _ = lab.run([Branch(edits=(Separation("all", Regions((Region(boxes=(ALL_OF_IT,)),))),))], [a])
    close(whole, plain)


def worded(lab, *boxes):
    """Regions with words of the prompt: its tokens 1, 2 and 3, 4."""
    return Regions(tuple(Region(boxes=(b,), words="w", tokens=(1 + 2 * i, 2 + 2 * i)) for i, b in enumerate(boxes)), length=lab.specimen.tokens, spans=((1, 5),))


@pytest.mark.method("LodestarDirectedDiffusion")
@pytest.mark.parametrize("name", ALL)
def test_directed_diffusion(make, name):
    lab = make(name, rows=2)
    a, b = lab.inputs(1), lab.inputs(2)
    plain = lab.plain([a, b])
    edit = DirectedAttention("all", worded(lab, LEFT, (0, 0, 1, 0.5)), inside=5.0)
    if name in zoo.JOINT:
        with pytest.raises(ValueError, match="Directed Diffusion changes cross attention"):
            lab.run([POSITIVE], [a], lab.session(), [edit])
        return
    out, _ = lab.run([POSITIVE, Branch("negative")], [a, b], lab.session(), [edit])
    assert torch.isfinite(out).all() and (out[:2] - plain[:2]).abs().max() > 1e-3 * plain.abs().max()
    close(out[2:], plain[2:])
    none, _ = lab.run([POSITIVE], [a], lab.session(), [DirectedAttention("all", worded(lab, LEFT), inside=1.0, outside=1.0, spread=0.0)])
    close(none, plain[:2], 1e-4)


@pytest.mark.method("LodestarDenseDiffusion")
@pytest.mark.parametrize("name", ALL)
def test_dense_diffusion(make, name):
    """Acts on its rows alone; no strength is the network's own attention written out."""
    lab = make(name, rows=2)
    a, b = lab.inputs(1), lab.inputs(2)
    plain, session = lab.plain([a, b]), lab.session()
    out, _ = lab.run([POSITIVE, Branch("negative")], [a, b], session, [DenseModulation("all", worded(lab, LEFT, (0, 0, 1, 0.5)), 0.8, 0.3)])
    assert torch.isfinite(out).all()
    close(out[2:], plain[2:])
    none, _ = lab.run([POSITIVE, Branch("negative")], [a, b], lab.session(), [DenseModulation("all", worded(lab, LEFT), 0.0, 0.0)])
    close(none, plain, 1e-4)
    # the edit moves logits in proportion to their spread, which is tiny in some random networks: measured against the rounding of writing attention out
    noise = max(float((none - plain).abs().max()), 1e-7)
    for cross, own in ((0.8, 0.3), (0.8, 0.0), (0.0, 0.3)):
        one = DenseModulation("all", worded(lab, LEFT, (0, 0, 1, 0.5)), cross, own)
        assert (lab.run([POSITIVE], [a], lab.session(), [one])[0] - none[:2]).abs().max() > 5 * noise, (cross, own)


@pytest.mark.parametrize("name", [n for n in TEXTS if n in zoo.JOINT])
def test_dense_diffusion_beside_regional_prompts(make, name):
    """The regional texts' bias is part of the attention that is written out."""
    lab = make(name)
    a, session = lab.inputs(1), lab.session()
    edit = regional(lab, session, (LEFT, RIGHT), (lab.text(7), lab.text(8, 4)))
    alone, _ = lab.run([POSITIVE], [a], session, [edit])
    with_none, _ = lab.run([POSITIVE], [a], session, [edit, DenseModulation("all", worded(lab, LEFT), 0.0, 0.0)])
    close(with_none, alone, 1e-4)
    both, _ = lab.run([POSITIVE], [a], session, [edit, DenseModulation("all", worded(lab, LEFT), 0.8, 0.3)])
    assert torch.isfinite(both).all() and (both - with_none).abs().max() > 5 * max(float((with_none - alone).abs().max()), 1e-7)


@pytest.mark.method("LodestarNegativeAwaySteerAttention")
@pytest.mark.parametrize("name", ALL)
def test_steer_away(make, name):
    lab = make(name, rows=2)
    a, b = lab.inputs(1), lab.inputs(2)
    plain, session = lab.plain([a, b]), lab.session()
    if name in zoo.JOINT:
        with pytest.raises(ValueError, match="Negative-Away Steer Attention changes cross attention"):
            lab.run([POSITIVE], [a], session, [SteerAway("all", lab.prompt(session, lab.text(9)))])
        return
    for tokens in (6, 9):
        out, _ = lab.run([POSITIVE, Branch("negative")], [a, b], session, [SteerAway("all", lab.prompt(session, lab.text(9, tokens)))])
        assert torch.isfinite(out).all() and (out[:2] - plain[:2]).abs().max() > 1e-3 * plain.abs().max()
        close(out[2:], plain[2:])
    own, _ = lab.run([POSITIVE], [a], session, [SteerAway("all", lab.prompt(session, a[1][:1]), 0.3, True)])      # its own text, brought back to its norm
    close(own, plain[:2], 1e-4)


@pytest.mark.method("LodestarStructuredDiffusionGuidance")
@pytest.mark.parametrize("name", ALL)
def test_structured(make, name):
    lab = make(name, rows=2)
    a, b = lab.inputs(1), lab.inputs(2)
    plain, session = lab.plain([a, b]), lab.session()

    def edit(mode, *texts):
        return StructuredAttention("all", tuple(lab.prompt(session, t) for t in texts), mode)
    if name in zoo.JOINT:
        with pytest.raises(ValueError, match="Structured Diffusion Guidance changes cross attention"):
            lab.run([POSITIVE], [a], session, [edit("values", lab.text(9))])
        return
    for given in (edit("values", lab.text(9)), edit("keys", lab.text(8), lab.text(9))):
        out, _ = lab.run([POSITIVE, Branch("negative")], [a, b], session, [given])
        assert torch.isfinite(out).all() and (out[:2] - plain[:2]).abs().max() > 1e-3 * plain.abs().max()
        close(out[2:], plain[2:])
    for given in (edit("values", a[1][:1]), edit("keys", a[1][:1], a[1][:1], a[1][:1])):
        close(lab.run([POSITIVE], [a], session, [given])[0], plain[:2], 1e-4)


@pytest.mark.method("LodestarPromptToPrompt")
@pytest.mark.parametrize("name", ALL)
def test_pairs(make, name):
    """The source is as it was, the target takes its maps; equal prompts and equal noise give equal pictures."""
    lab = make(name, rows=2)
    (x, _), (y, _) = lab.inputs(1), lab.inputs(2)
    x, size = x[:1].expand(2, *x.shape[1:]), lab.specimen.tokens
    text = torch.cat((lab.text(1), lab.text(2)))
    mapping = torch.eye(size)
    mapping[:, [1, 2]] = mapping[:, [2, 1]]
    share, factor = torch.ones(size), torch.ones(size)
    share[4], factor[3] = 0.0, 2.0
    edits = [WordMaps("all", Pair(mapping, share, factor)), PictureMaps("all")]
    plain = lab.plain([(x, text), (y, text)])
    out, _ = lab.run([POSITIVE, Branch("negative")], [(x, text), (y, text)], lab.session(), edits)
    close(out[:1], plain[:1], 1e-4)
    close(out[2:], plain[2:])
    assert torch.isfinite(out).all() and (out[1] - plain[1]).abs().max() > 1e-4 * plain.abs().max()
    one = Pair(torch.eye(size), torch.ones(size), torch.ones(size))
    same, _ = lab.run([POSITIVE], [(x, text[:1].expand(2, -1, -1))], lab.session(), [WordMaps("all", one), PictureMaps("all")])
    close(same[:1], same[1:], 1e-4)
    close(same, lab.plain([(x, text[:1].expand(2, -1, -1))]), 1e-4)
