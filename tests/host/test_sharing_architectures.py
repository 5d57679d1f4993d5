"""Edits that look at a reference, on every family of the host's networks."""
import pytest
import torch

pytest.importorskip("torch")

import lodestar.tests.architectures as zoo      # noqa: E402
from lodestar.guidance.attention.ctrl_x import AppearanceValues, StructureAttention      # noqa: E402
from lodestar.guidance.attention.mutual import MutualKeys      # noqa: E402
from lodestar.guidance.attention.reference_attention import ReferenceKeys      # noqa: E402
from lodestar.guidance.attention.sources import Held, Source, Trajectory      # noqa: E402
from lodestar.guidance.attention.style_aligned import StyleSharing      # noqa: E402
from lodestar.guidance.method import POSITIVE, Branch      # noqa: E402

ALL = sorted(zoo.FAMILIES)
EDITS = {"style": lambda reference, layers: StyleSharing(layers, reference, "positive", 2.0),
         "reference": lambda reference, layers: ReferenceKeys(layers, reference, "positive", 2.0, 0.8),
         "structure": lambda reference, layers: StructureAttention(layers, structure=reference),
         "appearance": lambda reference, layers: AppearanceValues(layers, appearance=reference),
         "mutual": lambda reference, layers: MutualKeys(layers, reference, "positive", 0.6)}
ALWAYS = ("mutual", "structure")                # edits that change nothing anywhere where the reference is the picture itself
UNCHANGED = ("style", "reference")    # edits that leave self-attention as it is where the reference is the picture itself
pytestmark = pytest.mark.method("LodestarStyleAligned", "LodestarReferenceAttention", "LodestarMutualSelfAttention", "LodestarCtrlX")


@pytest.fixture(scope="module", autouse=True)
def modern(host):
    from lodestar.guidance.host.features import wrappers
    if not wrappers():
        pytest.skip("this host has no attention override; its U-Nets are tested in test_sharing")


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


def following(x):
    """A reference whose rows hold x."""
    return Branch(source=Source(trajectory=Held(Trajectory(torch.tensor([zoo.SIGMA]), x[None]))))


@pytest.mark.parametrize("edit", sorted(EDITS))
@pytest.mark.parametrize("name", ALL)
def test_the_picture_sees_its_reference(make, name, edit):
    """The reference's rows are the network's own; only the positive rows change, each by its own reference; the order of the chunks does not matter."""
    lab = make(name, rows=2)
    a, b, r = lab.inputs(1), lab.inputs(2), lab.inputs(3)
    reference = following(r[0])
    plain = lab.plain([a, b, r])
    branches = [POSITIVE, Branch("negative"), reference]
    out, _ = lab.run(branches, [a, b, (torch.zeros_like(r[0]), r[1])], plan_edits=(EDITS[edit](reference, "all"),))
    assert torch.isfinite(out).all()
    close(out[2:], plain[2:], 1e-4)
    assert (out[:2] - plain[:2]).abs().max() > 5e-6 * plain.abs().max()       # queries and keys of small random networks say little
    swapped, _ = lab.run(branches[::-1], [r, b, a], plan_edits=(EDITS[edit](reference, "all"),))
    close(swapped[4:], out[:2], 1e-4)
    single = following(r[0][1:])
    alone, _ = lab.run([single, POSITIVE], [(r[0][1:], r[1][1:]), (a[0][1:], a[1][1:])], plan_edits=(EDITS[edit](single, "all"),))
    close(alone[1:], out[1:2], 1e-4)


@pytest.mark.parametrize("edit", UNCHANGED + ALWAYS)
@pytest.mark.parametrize("name", ALL)
def test_a_reference_equal_to_the_picture(make, name, edit):
    """Nothing changes in self-attention. In joint attention the picture's tokens are there twice; its text keeps its own view."""
    lab = make(name, rows=2)
    a = lab.inputs(1)
    reference = following(a[0])
    out, _ = lab.run([POSITIVE, reference], [a, a], plan_edits=(EDITS[edit](reference, "all"),))
    if name in zoo.CROSS or edit in ALWAYS:
        close(out[:2], out[2:], 1e-4)
    else:
        assert torch.isfinite(out).all() and (out[:2] - out[2:]).abs().max() > 1e-5 * out.abs().max()


@pytest.mark.parametrize("edit", ("style", "mutual"))
@pytest.mark.parametrize("name", ALL)
def test_within_a_batch(make, name, edit):
    lab = make(name, rows=3)
    a = lab.inputs(1)
    plain = lab.plain([a])
    edit = EDITS[edit](None, "all")
    out, _ = lab.run([POSITIVE], [a], plan_edits=(edit,))
    close(out[:1], plain[:1], 1e-4)
    assert torch.isfinite(out).all() and (out[1:] - plain[1:]).abs().max() > 1e-4 * plain.abs().max()
    pair = [0, 2]
    two, _ = zoo.Lab(lab.specimen, 2).run([POSITIVE], [(a[0][pair], a[1][pair])], plan_edits=(edit,))
    close(two, out[pair], 1e-4)


@pytest.mark.parametrize("name", [n for n in zoo.JOINT if n != "hidream"])
def test_beside_a_negative_prompt_inside_attention(make, name):
    """The second text's rows look at the reference too: a negative equal to the text leaves what the sharing gives."""
    from lodestar.guidance.attention.nag import NegativeAttention
    lab = make(name, rows=2)
    a, r = lab.inputs(1), lab.inputs(3)
    reference = following(r[0])
    sharing = StyleSharing("all", reference, "positive", 2.0)
    alone, _ = lab.run([POSITIVE, reference], [a, r], plan_edits=(sharing,))
    session = lab.session()
    nag = NegativeAttention("all", negative=lab.prompt(session, a[1][:1]), scale=3.0)
    both, _ = lab.run([POSITIVE, reference], [a, r], session, plan_edits=(sharing, nag))
    close(both, alone, 1e-4)
