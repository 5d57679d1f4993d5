"""CorrFill, Feature-Correspondence Guidance and Spatial Prompt Weighting on every family of the host's networks."""
import pytest
import torch

pytest.importorskip("torch")

import lodestar.tests.architectures as zoo      # noqa: E402
from lodestar.guidance.attention import votes, warps      # noqa: E402
from lodestar.guidance.attention.corrfill import CorrespondingKeys      # noqa: E402
from lodestar.guidance.attention.feature_correspondence import WatchedValues      # noqa: E402
from lodestar.guidance.attention.reference_attention import ReferenceKeys      # noqa: E402
from lodestar.guidance.attention.regions import Region, Regions      # noqa: E402
from lodestar.guidance.attention.sources import Held, Source, Trajectory      # noqa: E402
from lodestar.guidance.attention.spatial_weighting import WeightedWords      # noqa: E402
from lodestar.guidance.method import POSITIVE, Branch, Step      # noqa: E402

ALL = sorted(zoo.FAMILIES)


@pytest.fixture(scope="module", autouse=True)
def modern(host):
    from lodestar.guidance.host.features import wrappers
    if not wrappers():
        pytest.skip("this host has no attention override; its U-Nets are tested in test_correspondence_host")


@pytest.fixture
def make(modern):
    def build(name, rows=2):
        with torch.inference_mode():
            try:
                return zoo.Lab(zoo.build(name), rows)
            except (ImportError, TypeError) as error:
                pytest.skip(f"this host's {name} is missing or another one: {error}")
    return build


def close(a, b, share=1e-4):
    assert (a - b).abs().max() <= share * b.abs().max()


@pytest.mark.method("LodestarCorrFill", "LodestarFeatureCorrespondenceGuidance")
@pytest.mark.parametrize("name", ALL)
def test_a_picture_beside_its_reference(make, name):
    """Votes bias the picture's rows alone; without them it is Reference Attention; features are noted and nothing changes. Videos are refused by name."""
    lab = make(name)
    a, r = lab.inputs(1), lab.inputs(3)
    reference = Branch(source=Source(trajectory=Held(Trajectory(torch.tensor([zoo.SIGMA]), r[0][None]))))
    step = Step(a[0], torch.full((2,), zoo.SIGMA))
    layers = frozenset(map(str, lab.session().geometry.layers))
    edit = lambda **k: CorrespondingKeys("all", reference, weight=2.0, **k)
    run = lambda e: lab.run([POSITIVE, reference], [a, (torch.zeros_like(r[0]), r[1])], plan_edits=(e,), step=step)[0]
    plain = run(ReferenceKeys("all", reference, weight=2.0))
    close(run(edit(boost=3.0, hide=True, voters=layers)), plain, 1e-5)      # nobody holds the votes
    watched = WatchedValues("all", reference, warps.view_warp(torch.ones(1, 8, 8), right=0.1))
    untouched = lab.plain([a, r])
    close(run(watched), untouched, 1e-5)
    step.maps["corrfill", reference] = book = votes.Votes(64, 0, 0.0, 2.0)
    step.maps["feature correspondence", reference] = notes = []
    if a[0].ndim == 5 and a[0].shape[2] > 1:
        for refused, title in ((edit(boost=3.0, voters=layers), "CorrFill"), (watched, "Feature-Correspondence Guidance")):
            with pytest.raises(ValueError, match=f"{title}.*a video"):
                run(refused)
        return
    steered = run(edit(boost=20.0, hide=True, voters=layers))
    assert torch.isfinite(steered).all() and book.share.shape == (2,) and (book.share > 0).all()
    assert (steered[:2] - plain[:2]).abs().max() > 1e-6 * plain.abs().max()
    close(steered[2:], untouched[2:])
    close(run(watched), untouched, 1e-5)
    assert notes and all(n.shape == (2,) and (n >= 0).all() and (n <= 1).all() for n in notes)


@pytest.mark.method("LodestarSpatialPromptWeighting")
@pytest.mark.parametrize("name", ALL)
def test_words_weigh_more_in_their_region(make, name):
    """The positive rows change, and with a region that covers everything and names every token nothing does in cross-attention."""
    lab = make(name)
    a, b = lab.inputs(1), lab.inputs(2)
    plain = lab.plain([a, b])
    run = lambda regions: lab.run([POSITIVE, Branch("negative")], [a, b], plan_edits=(WeightedWords("all", regions, 3.0),))[0]
    out = run(Regions((Region(boxes=((0, 0, 0.5, 1),), words="w", tokens=(1, 2)),), length=lab.specimen.tokens))
    assert torch.isfinite(out).all() and (out[:2] - plain[:2]).abs().max() > 5e-6 * plain.abs().max()
    close(out[2:], plain[2:])
    if not {"joint"} & {k for x in lab.session().geometry.layers for k in x.attentions}:
        close(run(Regions((Region(boxes=((0, 0, 1, 1),), words="w", tokens=tuple(range(lab.specimen.tokens))),), length=lab.specimen.tokens)), plain)
