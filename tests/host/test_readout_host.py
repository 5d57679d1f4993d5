"""Readout Guidance and the training of its heads on a real ComfyUI with small random networks."""
import pytest
import torch

from lodestar.guidance.attention.readout_guidance import ReadoutGuidance
from lodestar.guidance.loss.flow import Flow

pytestmark = pytest.mark.method("LodestarReadoutGuidance", "LodestarTrainReadoutHead")
BOTH = pytest.mark.parametrize("kind", ("unet", "flux"))


@pytest.fixture(scope="module")
def lab(host):
    from lodestar.guidance.host.attach import attach
    from lodestar.tests.sampler_lab import SamplerLab
    lab = SamplerLab()
    lab.attach, lab.euler = attach, lab.samplers.ksampler("euler")
    lab.latent = {"samples": torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(4))}
    lab.image = torch.rand(4, 16, 16, 3, generator=torch.Generator().manual_seed(5))
    lab.heads = {}
    return lab


def trained(lab, kind, what="spatial"):
    if not lab.modern:
        pytest.skip("the features of this host's networks cannot be read")
    if (kind, what) not in lab.heads:
        given = {"image": lab.image} if what == "spatial" else {"groups": "0, 1, 0, 1"} if what == "appearance" else {"flow": Flow(torch.ones(2, 2, 64, 64))}
        with torch.inference_mode():
            lab.heads[kind, what] = lab.node("LodestarTrainReadoutHead", model=lab.models[kind], positive=lab.positive, latent=lab.latent, steps=3, batch=3, width=32, **given)[0]
    return lab.heads[kind, what]


@BOTH
@pytest.mark.parametrize("what", ("spatial", "appearance", "correspondence"))
def test_acts_by_entry_repeats_itself_and_off_is_the_model(lab, kind, what):
    given = {"image": lab.image[:1]} if what == "spatial" else {"reference": {"samples": lab.latent["samples"][:1]}}
    given |= {"readout": trained(lab, kind, what), "end_percent": 1.0, "drags": "0.2, 0.2 > 0.8, 0.8"}
    plain = lab.sample(lab.euler, kind, batch=2, steps=2)
    assert torch.equal(lab.sample(lab.euler, model=lab.attach(lab.models[kind], ReadoutGuidance(step_size=0.0, **given)), batch=2, steps=2), plain)
    model = lab.attach(lab.models[kind], ReadoutGuidance(step_size=0.1, **given))
    out = lab.sample(lab.euler, model=model, batch=2, steps=2)
    assert torch.isfinite(out).all() and (out - plain).abs().max() > 1e-3
    assert torch.equal(out, lab.sample(lab.euler, model=model, batch=2, steps=2))
    if what == "spatial":      # signs of gradients near 0 may differ with the batch: most numbers agree
        assert ((lab.sample(lab.euler, model=model, steps=2) - out[:1]).abs() < 1e-2 * out.abs().max()).float().mean() > 0.9
    assert torch.equal(lab.sample(lab.euler, kind, batch=2, steps=2), plain)


@pytest.mark.newest
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_half_precision(lab, dtype):
    """The moves of the network in half precision are mostly those of the same weights in single precision: the sampled latents differ by less than a move."""
    from lodestar.tests import tiny
    with torch.inference_mode():
        half, single = tiny.unet(dtype=dtype), tiny.unet()
    method = ReadoutGuidance(readout=trained(lab, "unet"), image=lab.image[:1], step_size=0.1, end_percent=1.0)
    out, expected = (lab.sample(lab.euler, model=lab.attach(m, method), steps=1) for m in (half, single))
    assert torch.isfinite(out).all()
    moved = (expected - lab.sample(lab.euler, model=single, steps=1)).abs().mean()
    assert (out - expected).abs().mean() < moved


@pytest.mark.newest
def test_another_networks_head_and_videos_are_refused(lab):
    from lodestar.tests import tiny
    method = ReadoutGuidance(readout=trained(lab, "unet"), image=lab.image[:1])
    with pytest.raises(ValueError, match="selects no layer"):
        lab.attach(lab.models["flux"], method)


@pytest.mark.newest
def test_what_an_inpainting_run_keeps_is_kept_and_a_mask_acts(lab):
    given = {"readout": trained(lab, "unet"), "image": lab.image[:1], "step_size": 0.1, "end_percent": 1.0}
    left = torch.zeros(1, 16, 16)
    left[..., :8] = 1
    whole, part = (lab.sample(lab.euler, model=lab.attach(lab.models["unet"], ReadoutGuidance(mask=m, **given)), steps=2) for m in (None, left))
    assert torch.isfinite(part).all() and (part - whole).abs().max() > 1e-3
    known, hole = lab.latent["samples"][:1], torch.zeros(1, 1, 8, 8)
    hole[..., :4] = 1
    painted, plain = (lab.sample(lab.euler, model=m, latent=known, mask=hole, steps=2) for m in (lab.attach(lab.models["unet"], ReadoutGuidance(**given)), lab.models["unet"]))
    torch.testing.assert_close(painted[..., 4:], known[..., 4:], atol=1e-4, rtol=0)
    assert (painted - plain)[..., :4].abs().max() > 1e-3


def test_its_inputs_and_file(lab, monkeypatch, tmp_path):
    from safetensors.torch import load_file

    from lodestar.guidance.host import weight_files
    from lodestar.guidance.training.readout import parse
    readout = trained(lab, "unet")
    monkeypatch.setattr(weight_files._folders(), "get_output_directory", lambda: str(tmp_path))
    path, = lab.node("LodestarSaveReadoutHead", readout=readout, prefix="head")
    assert parse(load_file(path)).layers == readout.layers
    for given in ({}, {"image": lab.image[:1]}, {"groups": "1"}, {"groups": "0, 1"}, {"groups": "0, 1, 0, 1", "image": lab.image}, {"flow": Flow(torch.ones(4, 2, 8, 8))}):
        with pytest.raises(ValueError, match="Train Readout Head"):
            lab.node("LodestarTrainReadoutHead", model=lab.models["unet"], positive=lab.positive, latent=lab.latent, steps=1, **given)
    with pytest.raises(ValueError, match="Load Readout Head"):
        lab.node("LodestarLoadReadoutHead", file="other.safetensors")
    bundled, = lab.node("LodestarLoadReadoutHead")
    assert (bundled.kind, bundled.channels) == ("spatial", 1)
    with pytest.raises(ValueError, match="belongs to another one"):
        lab.sample(lab.euler, model=lab.attach(lab.models["unet"], ReadoutGuidance(readout=bundled, image=lab.image[:1])), steps=1)


def test_old_hosts_say_so(lab):
    if lab.modern:
        pytest.skip("this host has gradients through the network")
    with pytest.raises(ValueError, match="December 2024"):
        lab.node("LodestarTrainReadoutHead", model=lab.models["unet"], positive=lab.positive, latent=lab.latent, steps=1, groups="0, 1, 0, 1")
