"""The degradations of the perturbation family on every family of the host's networks, and on a video U-Net."""
import dataclasses

import pytest
import torch

pytest.importorskip("torch")

import lodestar.tests.architectures as zoo      # noqa: E402
from lodestar.guidance.method import POSITIVE      # noqa: E402
from lodestar.guidance.perturbation.s2 import StochasticSelfGuidance      # noqa: E402
from lodestar.guidance.perturbation.seg import SmoothedEnergyGuidance      # noqa: E402
from lodestar.guidance.perturbation.slg import SkipLayerGuidance      # noqa: E402
from lodestar.guidance.perturbation.stg import SpatiotemporalSkipGuidance      # noqa: E402
from lodestar.guidance.perturbation.tpg import TokenPerturbationGuidance      # noqa: E402

ALL = sorted(zoo.FAMILIES)
VIDEO = ("cosmos", "cosmos1", "hunyuan", "ltx", "wan", "wan_i2v")
METHODS = {
    "seg": SmoothedEnergyGuidance(), "seg blur": SmoothedEnergyGuidance(blur_sigma=1.0, layers="all"), "slg": SkipLayerGuidance(),
    "stg": SpatiotemporalSkipGuidance(), "stg attention": SpatiotemporalSkipGuidance(mode="attention"), "tpg": TokenPerturbationGuidance(),
    "tpg frames": TokenPerturbationGuidance(frames_apart=True, fraction=0.7), "s2": StochasticSelfGuidance(drop=0.5),
}
AXES = {axis: SpatiotemporalSkipGuidance(mode="attention", axis=axis, layers="all") for axis in ("temporal", "spatial")}


@pytest.fixture(scope="module", autouse=True)
def modern(host):
    from lodestar.guidance.host.features import wrappers
    if not wrappers():
        pytest.skip("this host has U-Nets alone; they are tested in test_perturbation")


def build(name, rows=2):
    with torch.inference_mode():
        try:
            return zoo.Lab(dataclasses.replace(zoo.pixart(), shape=(4, 34, 36)) if name == "pixart" else zoo.build(name), rows)
        except (ImportError, TypeError) as error:
            pytest.skip(f"this host's {name} is missing or another one: {error}")


def acts_on_its_rows_alone(lab, method, floor=5e-6):
    """The degraded rows change, the others do not, and both are what they are alone. (Attention of small random networks is nearly flat: the floor is low.)"""
    a, b = lab.inputs(1), lab.inputs(2)
    plain, (branch, *_) = lab.plain([a, b]), [x for x in method.branches(None) if x != POSITIVE]
    n, size = lab.rows, plain.abs().max()
    out, _ = lab.run([POSITIVE, branch], [a, b])
    assert torch.isfinite(out).all()
    assert (out[:n] - plain[:n]).abs().max() <= 2e-5 * size
    assert (out[n:] - plain[n:]).abs().max() > floor * size
    swapped, _ = lab.run([branch, POSITIVE], [b, a])
    assert (swapped - torch.cat((out[n:], out[:n]))).abs().max() <= 2e-5 * size
    alone, _ = lab.run([branch], [b])
    assert (alone - out[n:]).abs().max() <= 2e-5 * size
    return out[n:]


def marked(methods):
    return [pytest.param(n, marks=pytest.mark.method(m.node_id)) for n, m in methods.items()]


@pytest.mark.parametrize("method", marked(METHODS))
@pytest.mark.parametrize("name", ALL)
def test_every_family(name, method):
    lab = build(name)
    out = acts_on_its_rows_alone(lab, METHODS[method])
    b = lab.inputs(2)
    single, _ = zoo.Lab(lab.specimen, 1).run([x for x in METHODS[method].branches(None) if x != POSITIVE][:1], [(b[0][:1], b[1][:1])])
    assert (single - out[:1]).abs().max() <= 1e-4 * out.abs().max()


@pytest.mark.parametrize("method", marked(AXES))
@pytest.mark.parametrize("name", ALL)
def test_one_axis_of_a_video(name, method):
    lab = build(name)
    branch = AXES[method].branch
    if name in VIDEO:
        outs = [acts_on_its_rows_alone(lab, m) for m in (AXES[method], SpatiotemporalSkipGuidance(mode="attention", layers="all"))]
        assert (outs[0] - outs[1]).abs().max() > 0
        one = lab.inputs(1)
        with pytest.raises(ValueError, match="one frame"):
            lab.run([branch], [(one[0][:, :, :1], one[1])])
    else:
        with pytest.raises(ValueError, match="one frame"):
            lab.run([branch], [lab.inputs(1)])
    with pytest.raises(ValueError, match="over the frames"):
        lab.run([SpatiotemporalSkipGuidance(axis=method).branch], [lab.inputs(1)])


@pytest.mark.method("LodestarSpatiotemporalSkipGuidance")
@pytest.mark.parametrize("frames", (3, 16))
def test_one_axis_of_a_video_unet(frames):
    with torch.inference_mode():
        lab = zoo.Lab(zoo.svd(frames), rows=frames)
    outs = [acts_on_its_rows_alone(lab, SpatiotemporalSkipGuidance(mode=mode, axis=axis, layers="all"))
            for mode in ("residual", "attention") for axis in ("joint", "temporal", "spatial")]
    different = outs[:3] + outs[4:]        # attention, joint: the spatial attention, as in Perturbed-Attention Guidance
    for i, x in enumerate(different):
        for y in different[:i]:
            assert (x - y).abs().max() > 1e-5 * x.abs().max()


@pytest.mark.parametrize("method", marked({n: m for n, m in METHODS.items() if n in ("slg", "stg", "tpg", "s2")}))
def test_blocks_of_a_network_whose_attention_is_out_of_reach(method):
    acts_on_its_rows_alone(build("pixart"), METHODS[method], 1e-4)


@pytest.mark.method("LodestarSmoothedEnergyGuidance")
def test_attention_that_is_out_of_reach_is_named():
    lab = build("pixart")
    for method in (METHODS["seg"], METHODS["stg attention"]):
        with pytest.raises(ValueError, match="PixArtMS"):
            lab.run([method.branch], [lab.inputs(1)])


@pytest.mark.method("LodestarTokenPerturbationGuidance")
def test_shuffled_tokens_of_a_video_unet():
    with torch.inference_mode():
        lab = zoo.Lab(zoo.svd(3), rows=3)
    acts_on_its_rows_alone(lab, TokenPerturbationGuidance(layers="all"), 1e-4)
    acts_on_its_rows_alone(lab, SkipLayerGuidance(layers="middle"), 1e-4)
