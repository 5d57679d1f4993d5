"""Reading attention maps on the real ComfyUI: nothing changes, every family is read, every picture of the batch has its own maps."""
import pytest
import torch

pytest.importorskip("torch")

import lodestar.tests.architectures as zoo      # noqa: E402
from lodestar.guidance.attention.capture import FeatureCapture, MapCapture, MapGraph, MapRecord, SelfCapture, SelfGraph      # noqa: E402
from lodestar.guidance.inspection.attention_maps import CaptureAttention      # noqa: E402
from lodestar.guidance.method import NEGATIVE, POSITIVE, Step      # noqa: E402

pytestmark = pytest.mark.method("LodestarCaptureAttention", "LodestarCrossAttentionSegmentation", "LodestarDenseCorrespondence")


@pytest.fixture(scope="module")
def lab(host):
    import lodestar.tests.tiny as tiny
    from lodestar.guidance.host.attach import attach
    from lodestar.guidance.host.features import wrappers
    from lodestar.guidance.perturbation.pag import PerturbedAttentionGuidance

    class Lab:
        pass

    lab = Lab()
    lab.tiny, lab.attach, lab.modern, lab.pag = tiny, attach, wrappers(), PerturbedAttentionGuidance(scale=2.0)
    with torch.inference_mode():
        lab.models = {"unet": tiny.unet(), **({"flux": tiny.flux()} if lab.modern else {})}
        lab.positive, lab.negative, lab.other = tiny.prompt(1), tiny.prompt(2), tiny.prompt(3, tokens=12)

    def run(patcher, positive=None, negative=None, **k):
        with torch.inference_mode():
            return tiny.sample(patcher, positive or lab.positive, negative or lab.negative, **k)

    def captured(kind, model=None, capture=None, **k):
        record = MapRecord()
        out = run(attach(model or lab.models[kind], CaptureAttention(record=record, **(capture or {}))), **k)
        return out, record
    lab.run, lab.captured = run, captured
    return lab


def usable(lab, kind):
    if kind not in lab.models:
        pytest.skip("this host has no Flux")


KINDS = pytest.mark.parametrize("kind", ("unet", "flux"))


@KINDS
def test_nothing_changes_bit_for_bit(lab, kind):
    usable(lab, kind)
    out, record = lab.captured(kind, batch=3)
    assert torch.equal(out, lab.run(lab.models[kind], batch=3))
    assert record.steps == 4 and record.length == 6
    guided = lab.attach(lab.models[kind], lab.pag)
    assert torch.equal(lab.captured(kind, guided, {"role": "branches"}, batch=2)[0], lab.run(guided, batch=2))


@KINDS
def test_weights_sum_to_one_and_grids_are_the_networks(lab, kind):
    usable(lab, kind)
    _, record = lab.captured(kind, batch=2, size=12)
    sizes = {(1, 6, 6)} if kind == "flux" else {(1, 12, 12), (1, 6, 6)}
    assert {key[:3] for key in record.grids} == sizes
    for total, count in record.grids.values():
        torch.testing.assert_close(total.sum(1) / count, torch.ones(2, *total.shape[2:]))
    assert record.picture(12, 12).shape == (2, 6, 1, 12, 12)
    small = lab.captured(kind, capture={"side": 4}, size=12)[1]
    assert {key[:3] for key in small.grids} == {(1, 4, 4)}


@KINDS
def test_every_picture_has_its_own_maps(lab, kind):
    usable(lab, kind)
    _, record = lab.captured(kind, batch=3)
    together = record.picture(8, 8)
    for i in (0, 2):
        torch.testing.assert_close(lab.captured(kind, seed=i)[1].picture(8, 8)[0], together[i], atol=2e-4, rtol=1e-3)
    assert (together[0] - together[1]).abs().max() > 1e-4
    again = lab.captured(kind, batch=3)[1].picture(8, 8)
    assert torch.equal(again, together)


@KINDS
def test_roles_windows_and_layers(lab, kind):
    usable(lab, kind)
    positive, negative = (lab.captured(kind, capture={"role": r})[1].picture(8, 8) for r in ("positive", "negative"))
    assert (positive - negative).abs().max() > 1e-3
    swapped = lab.captured(kind, positive=lab.negative, negative=lab.positive, cfg=1.0)[1]
    assert swapped.length == 6
    _, record = lab.captured(kind, lab.attach(lab.models[kind], lab.pag), {"role": "branches"})
    assert record.length == 6
    assert lab.captured(kind, capture={"role": "branches"})[1].picture(8, 8) is None      # no branch: nothing to read
    _, record = lab.captured(kind, capture={"start_percent": 0.5})
    assert 0 < record.steps < 4
    layer = "output.0" if kind == "unet" else "double.1"
    _, record = lab.captured(kind, capture={"layers": layer})
    assert sum(count for _, count in record.grids.values()) == 4


def test_prompts_of_other_lengths_in_one_call(lab):
    """The host repeats the shorter text to batch both: its maps are those of the text alone."""
    _, alone = lab.captured("unet", positive=lab.positive, negative=lab.positive)
    record = MapRecord()
    reader = CaptureAttention(record=record)
    lab.run(lab.attach(lab.models["unet"], reader), positive=lab.positive, negative=lab.other, cfg=1.0)
    assert record.length in (6, 12) and alone.length == 6


@KINDS
def test_an_interrupted_run_leaves_nothing(lab, kind):
    usable(lab, kind)
    import comfy.sample
    record = MapRecord()
    model = lab.attach(lab.models[kind], CaptureAttention(record=record))

    class Stop(Exception):
        pass

    def stop(step, *rest):
        if step == 1:
            raise Stop

    with torch.inference_mode(), pytest.raises(Stop):
        comfy.sample.sample(model, torch.randn(1, 4, 8, 8), 4, 4.0, "euler", "normal", lab.positive, lab.negative, torch.zeros(1, 4, 8, 8), callback=stop, disable_pbar=True, seed=0)
    assert record.steps == 2
    lab.run(model)
    assert record.steps == 4      # the next run starts anew


def test_half_precision(lab):
    for dtype in (torch.bfloat16, torch.float16):
        with torch.inference_mode():
            model = lab.tiny.unet(dtype=dtype)
        _, record = lab.captured("unet", model)
        assert torch.isfinite(record.picture(8, 8)).all()


def test_an_area_is_put_where_it_lies(lab):
    if not lab.modern:
        pytest.skip("this host does not say which conditioning a row belongs to")
    positive = [[lab.positive[0][0], {**lab.positive[0][1], "area": (16, 8, 0, 8), "strength": 1.0}]]
    _, record = lab.captured("unet", positive=positive, negative=lab.negative, size=16)
    picture = record.picture(16, 16)
    assert picture[..., :8].abs().max() == 0 and picture[..., 8:].min() > 0


# On every family

@pytest.mark.parametrize("name", sorted(zoo.FAMILIES))
def test_every_family(lab, name):
    if not lab.modern:
        pytest.skip("this host has no attention override")
    with torch.inference_mode():
        try:
            net = zoo.Lab(zoo.build(name), 2)
        except (ImportError, TypeError) as error:
            pytest.skip(f"this host's {name} is missing or another one: {error}")
    a, b = net.inputs(1), net.inputs(2)
    plain = net.plain([a, b])
    step = Step(a[0], torch.full((2,), zoo.SIGMA))
    capture, graph, own, summed, features = MapCapture(), MapGraph(), SelfGraph(), SelfCapture("all"), FeatureCapture("all")
    out, _ = net.run([POSITIVE, NEGATIVE], [a, b], None, [capture, graph, own, summed, features], step=step)
    assert torch.equal(out, plain)
    (key, (total, count)), = step.maps[capture].items()
    height, width = -(-net.specimen.shape[-2] // (1 if name == "ltx" else 2)), -(-net.specimen.shape[-1] // (1 if name == "ltx" else 2))
    frames = net.specimen.shape[1] if len(net.specimen.shape) == 4 else 1
    assert key[:3] == (frames, height, width) and total.shape[:2] == (2, net.specimen.tokens)
    layers = [str(r.site.layer) for r in step.maps[graph]]
    assert layers == net.specimen.names() and count == len(layers)
    torch.testing.assert_close(total.sum(1) / count, torch.ones(2, frames, height, width))
    for reading in step.maps[graph]:
        torch.testing.assert_close(reading.weights.sum(2), torch.ones(reading.weights.shape[:2] + (frames, height, width)))
    assert {str(r.site.layer) for r in step.maps[own]} == set(net.specimen.names())
    torch.testing.assert_close(step.maps[own][0].weights.flatten(3).sum(-1), torch.ones(2, 1, frames * height * width))
    (_, (total_own, times)), = step.maps[summed].items()
    torch.testing.assert_close(total_own / times, torch.stack([r.weights[:, 0] for r in step.maps[own]]).mean(0))
    assert {name.split()[0] for name in step.maps[features]} == set(net.specimen.names())
    for total_features, n, grid, _ in step.maps[features].values():
        assert n == 1 and grid == (frames, height, width) and total_features.shape[:2] == (2, frames * height * width) and torch.isfinite(total_features).all()
    other = Step(b[0], torch.full((2,), zoo.SIGMA))
    net.run([NEGATIVE, POSITIVE], [b, a], None, [capture], step=other)
    torch.testing.assert_close(next(iter(other.maps[capture].values()))[0], total)
