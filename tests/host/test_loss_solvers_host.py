"""Losses of pictures and the samplers that are led by them, on a real ComfyUI with small random networks."""
import pytest
import torch

SAMPLERS = {"LodestarTrainingFreeGuidance": {"rho": 3.0, "iterations": 1, "samples": 2}, "LodestarUniversalGuidanceSampler": {"backward_steps": 2, "repeats": 2}, "LodestarGeoGuide": {},
            "LodestarDreamguider": {"first": 0.05}}
WITHOUT = {"LodestarTrainingFreeGuidance": {"rho": 0.0}, "LodestarUniversalGuidanceSampler": {"scale": 0.0}, "LodestarGeoGuide": {"through": "estimate"}, "LodestarDreamguider": {}}
OFF = {"LodestarTrainingFreeGuidance": {"rho": 0.0, "mu": 0.0, "repeats": 1}, "LodestarUniversalGuidanceSampler": {"scale": 0.0, "backward_steps": 0, "repeats": 1},
       "LodestarGeoGuide": {"scale": 0.0}, "LodestarDreamguider": {"strength": 0.0}}
EVERY = pytest.mark.parametrize("node_id", [pytest.param(n, marks=pytest.mark.method(n)) for n in SAMPLERS])


@pytest.fixture(scope="module")
def lab(host):
    from lodestar.tests.sampler_lab import SamplerLab
    lab = SamplerLab()
    with torch.inference_mode():
        target = torch.rand(1, 8, 8, 3, generator=torch.Generator().manual_seed(5))
        lab.losses = {kind: lab.node("LodestarWaveletTargetLoss", model=model, image=target, space="small")[0] for kind, model in lab.models.items()}
    return lab


def given_for(lab, node_id):
    return SAMPLERS[node_id] if lab.modern else {**SAMPLERS[node_id], **WITHOUT[node_id]}


@EVERY
@pytest.mark.parametrize("kind", ("unet", "flux"))
def test_acts_by_entry_repeats_itself_and_off_is_euler(lab, node_id, kind):
    if kind not in lab.models:
        pytest.skip("this host has no Flux")
    loss = lab.losses[kind]
    sampler = lab.node(node_id, loss=loss, **given_for(lab, node_id))[0]
    plain = lab.sample(lab.samplers.ksampler("euler"), kind, batch=2)
    off = lab.node(node_id, loss=loss, eta=0.0, **OFF[node_id])[0]
    assert torch.equal(lab.sample(off, kind, batch=2), plain)
    out = lab.sample(sampler, kind, batch=2)
    assert torch.isfinite(out).all() and (out - plain).abs().max() > 1e-3
    assert torch.equal(out, lab.sample(sampler, kind, batch=2))
    assert (lab.sample(sampler, kind) - out[:1]).abs().max() < 1e-3 * out.abs().max()
    inside = torch.zeros(1, 1, 8, 8)
    inside[..., :4] = 1
    masked = lab.sample(sampler, kind, mask=inside)
    assert torch.isfinite(masked).all() and masked[..., 5:].abs().max() < 1e-5      # what is kept is the empty latent


@EVERY
def test_old_hosts_name_what_needs_no_gradient(lab, node_id):
    if lab.modern:
        pytest.skip("for hosts without gradients through the network")
    if node_id == "LodestarDreamguider":
        assert torch.isfinite(lab.sample(lab.node(node_id, loss=lab.losses["unet"])[0])).all()
        return
    with pytest.raises(ValueError, match="Dreamguider"):
        lab.sample(lab.node(node_id, loss=lab.losses["unet"])[0])


@pytest.mark.method("LodestarUniversalGuidance")
def test_losses_by_universal_guidance_in_half_precision(lab):
    """Every loss that can do without a VAE through Universal Guidance, in bf16 or fp16: finite, and it acts."""
    from lodestar.guidance.host.attach import attach
    from lodestar.guidance.loss.universal import UniversalGuidance
    from lodestar.nodes.losses import _classes
    from lodestar.tests import tiny
    image, region = torch.rand(1, 8, 8, 3, generator=torch.Generator().manual_seed(5)), torch.zeros(1, 8, 8)
    region[:, 2:6, 1:5] = 1
    dtypes = (torch.bfloat16, torch.float16)
    with torch.inference_mode():
        half = {dtype: tiny.unet(dtype=dtype) for dtype in dtypes}
    plain = {dtype: lab.sample(lab.samplers.ksampler("euler"), model=model, steps=2) for dtype, model in half.items()}
    for i, cls in enumerate(c for c in _classes() if "small" in c.spaces):
        with torch.inference_mode():
            model = half[dtypes[i % 2]]
            names = {x.name for x in lab.definitions["Lodestar" + cls.title.replace(" ", "")].inputs}
            more = {k: v for k, v in {"image": image, "region": region, "others": "#808080"}.items() if k in names}
            loss, = lab.node("Lodestar" + cls.title.replace(" ", ""), model=model, space="small", **more)
            guided = attach(model, UniversalGuidance(loss=loss, route="none" if not lab.modern else "network"))
        out = lab.sample(lab.samplers.ksampler("euler"), model=guided, steps=2)
        assert torch.isfinite(out).all(), cls.title
        assert cls.title == "Range Loss" or (out - plain[dtypes[i % 2]]).abs().max() > 1e-3, cls.title
