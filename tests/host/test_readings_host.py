"""Readings of a given picture on small random networks of the real ComfyUI: exact where they must be, per picture, and without a trace."""
import pytest
import torch

pytest.importorskip("torch")

from lodestar.guidance.reading.classifier import DiffusionClassifier      # noqa: E402
from lodestar.guidance.reading.correspondence import DenseCorrespondence, Summed      # noqa: E402
from lodestar.guidance.reading.information import PromptInformation      # noqa: E402
from lodestar.guidance.reading.segmentation import CrossAttentionSegmentation, Seen      # noqa: E402

CLASSIFIER, INFORMATION, SEGMENTATION, CORRESPONDENCE = ("LodestarDiffusionClassifier", "LodestarPromptInformation", "LodestarCrossAttentionSegmentation",
                                                         "LodestarDenseCorrespondence")
KINDS = pytest.mark.parametrize("kind", ("unet", "flux"))


@pytest.fixture(scope="module")
def lab(host):
    import lodestar.tests.tiny as tiny
    from lodestar.guidance.attention.words import PromptWords
    from lodestar.guidance.host.attach import attach
    from lodestar.guidance.host.features import wrappers
    from lodestar.guidance.host.geometry import of_model
    from lodestar.guidance.host.probe import probe
    from lodestar.guidance.perturbation.pag import PerturbedAttentionGuidance

    class Lab:
        pass

    lab = Lab()
    lab.tiny, lab.probe, lab.modern, lab.of_model = tiny, probe, wrappers(), of_model
    with torch.inference_mode():
        lab.models = {"unet": tiny.unet(), **({"flux": tiny.flux()} if lab.modern else {})}
        lab.prompts = {i: tiny.prompt(i) for i in range(4)} | {"longer": tiny.prompt(9, tokens=12)}
        lab.pictures = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    lab.guided = lambda kind: attach(lab.models[kind], PerturbedAttentionGuidance(scale=3.0))
    lab.words = words = PromptWords("a b", ("a", "b"), ((1,), (2, 3)), (1, 2, 3), 6)

    def scores(model, names=(0, 1, 2), pictures=lab.pictures, **k):
        method = DiffusionClassifier(**{"samples": 6, "stages": "3:2", "batch": 4, **k}).validate()
        with torch.inference_mode():
            found = probe(model, {i: lab.prompts[n] for i, n in enumerate(names)}, {"samples": pictures},
                          lambda p: [method.scores(p.x0[i:i + 1], len(names), p.each, p.sigma, p.flow) for i in range(len(p.x0))], total=12)
        return [{n: s.errors[i] for i, n in enumerate(names)} for s in found], [tuple(names[i] for i in s.order) for s in found]

    def information(model, names=(0, 1, 2, 3), pictures=lab.pictures, **k):
        method = PromptInformation(**{"samples": 4, "batch": 2, **k}).validate()
        with torch.inference_mode():
            return probe(model, dict(zip(("base", "first", "second", "both"), (lab.prompts[n] for n in names))), {"samples": pictures},
                         lambda p: method.decomposition(p.x0, p.each, *method.span(p.sigma, p.flow), p.flow))

    def classes(model, pictures=lab.pictures, **k):
        method, seen = CrossAttentionSegmentation(**{"samples": 2, **k}).validate(), Seen()
        observers = method.observers(words, of_model(model))
        with torch.inference_mode():
            probe(model, {"positive": lab.prompts[0]}, {"samples": pictures}, lambda p: method.look(p.x0, p.observed, p.sigma, p.flow), observers=observers, take=seen.take)
        return method.maps(*(seen[o] for o in observers), *((None,) if len(observers) == 1 else ()), words, 16, 16)

    def matches(model, pictures=lab.pictures, **k):
        method, summed = DenseCorrespondence(**{"samples": 2, **k}).validate(), Summed()
        with torch.inference_mode():
            probe(model, {"positive": lab.prompts[0]}, {"samples": pictures}, lambda p: method.look(p.x0, p.observed, p.sigma, p.flow),
                  observers=(method.observer(of_model(model)),), take=summed.take)
        return method.matches(summed.found)

    def run(model):
        with torch.inference_mode():
            return tiny.sample(model, lab.prompts[0], lab.prompts[1], steps=2)

    lab.scores, lab.information, lab.classes, lab.matches, lab.run = scores, information, classes, matches, run
    return lab


def usable(lab, kind):
    if kind not in lab.models:
        pytest.skip("this host has no Flux")


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(torch.tensor(a[name]), torch.tensor(b[name]), rtol=1e-4, atol=1e-6)


@pytest.mark.method(CLASSIFIER)
@KINDS
def test_classifier(lab, kind):
    """Own scores for every picture, whatever the order and number of prompts and the nodes on the model; equal prompts tie."""
    usable(lab, kind)
    model = lab.models[kind]
    found, orders = lab.scores(model)
    assert [len(order) for order in orders] == [3, 3] and all(len(found[0][n]) == (6 if n == orders[0][0] or n == orders[0][1] else 3) for n in found[0])
    assert lab.scores(lab.guided(kind)) == (found, orders)
    for i in range(2):
        alone, order = lab.scores(model, pictures=lab.pictures[i:i + 1], names=(2, 0, 1), batch=6)
        same(alone[0], found[i])
        assert order[0] == orders[i]
    equal, _ = lab.scores(model, names=(1, "longer", 3), stages="")
    assert torch.isfinite(torch.tensor(list(equal[0].values()))).all()
    tie = DiffusionClassifier(samples=4, stages="")
    with torch.inference_mode():
        scores, = lab.probe(model, {0: lab.prompts[1], 1: lab.prompts[1]}, {"samples": lab.pictures[:1]}, lambda p: [tie.scores(p.x0, 2, p.each, p.sigma, p.flow)])
    same({0: scores.errors[0]}, {0: scores.errors[1]})


@pytest.mark.method(INFORMATION)
@KINDS
def test_information(lab, kind):
    usable(lab, kind)
    model = lab.models[kind]
    found = lab.information(model)
    assert found.first.shape == (2, 8, 8) and float(found.first.min()) >= 0 and float(found.both.max()) > 0
    torch.testing.assert_close(found.redundancy + found.unique_first + found.unique_second + found.synergy, found.both)
    again = lab.information(lab.guided(kind))
    assert all(torch.equal(v, getattr(again, k)) for k, v in vars(found).items())
    alone = lab.information(model, pictures=lab.pictures[1:])
    torch.testing.assert_close(alone.first[0], found.first[1], rtol=1e-3, atol=1e-5)
    told = lab.information(model, names=(0, 0, 1, 1))      # the first prompt is the base
    scale = float(told.second.max())
    assert float(told.first.abs().max()) < 1e-6 * scale and float((told.second - told.both).abs().max()) < 1e-5 * scale and float(told.synergy.abs().max()) < 1e-5 * scale
    assert float(lab.information(model, form="standard").first.min()) < 0


@pytest.mark.method(SEGMENTATION)
@KINDS
def test_segmentation(lab, kind):
    usable(lab, kind)
    model = lab.models[kind]
    maps = lab.classes(model)
    assert maps.shape == (2, 2, 16, 16) and float(maps.min()) == 0 and float(maps.max()) == 1
    assert torch.equal(lab.classes(lab.guided(kind)), maps)
    for i in range(2):
        torch.testing.assert_close(lab.classes(model, pictures=lab.pictures[i:i + 1])[0], maps[i], rtol=1e-3, atol=1e-3)
    assert (lab.classes(model, refine=0) - maps).abs().max() > 1e-3
    with pytest.raises(ValueError, match="nowhere"):
        lab.classes(model, layers="nowhere")


@pytest.mark.method(CORRESPONDENCE)
@KINDS
def test_correspondence(lab, kind):
    """A picture matches itself; the second picture's parts are found where they were moved to."""
    usable(lab, kind)
    model = lab.models[kind]
    large = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(7))
    found = lab.matches(model, pictures=torch.cat((large, large)), level=0.05, layers="all", features="queries" if kind == "unet" else "keys")
    height, width = found.score.shape
    y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    off = (found.places - torch.stack((x, y), -1)).abs() * height
    assert found.mutual.all() and float(found.score.min()) > 0.999 and float(off.max()) < 2
    first, second = lab.matches(model), lab.matches(lab.guided(kind))
    assert torch.equal(first.places, second.places) and torch.isfinite(first.score).all()
    assert float(first.places.min()) >= 0 and float(first.places.max()) <= 1


@pytest.mark.method(CLASSIFIER, INFORMATION, SEGMENTATION, CORRESPONDENCE)
@KINDS
def test_nothing_is_left_behind(lab, kind):
    """An interrupted reading, and one that ended, leave the model as it was."""
    usable(lab, kind)
    model = lab.models[kind]
    before = lab.run(model)

    class Stop(Exception):
        pass

    def stop(p):
        p.observed(p.x0, torch.full((2,), p.sigma(0.5)))
        raise Stop

    method = CrossAttentionSegmentation()
    with torch.inference_mode(), pytest.raises(Stop):
        lab.probe(model, {"positive": lab.prompts[0]}, {"samples": lab.pictures}, stop, observers=method.observers(lab.words, lab.of_model(model)), take=Seen().take)
    lab.classes(model)
    assert torch.equal(lab.run(model), before) and "lodestar" not in model.model_options


@pytest.mark.method(CLASSIFIER, INFORMATION, SEGMENTATION, CORRESPONDENCE)
def test_half_precision(lab):
    for dtype in (torch.bfloat16, torch.float16):
        with torch.inference_mode():
            model = lab.tiny.unet(dtype=dtype)
        one = lab.pictures[:1]
        assert torch.isfinite(torch.tensor(lab.scores(model, names=(0, 1), pictures=one, samples=2, stages="")[0][0][0])).all()
        assert torch.isfinite(lab.information(model, pictures=one, samples=1).both).all()
        assert torch.isfinite(lab.classes(model, pictures=one, samples=1)).all() and torch.isfinite(lab.matches(model, samples=1).places).all()
