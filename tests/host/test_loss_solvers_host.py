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
    import comfy.samplers

    from lodestar import nodes
    from lodestar.guidance.host import features
    from lodestar.tests import tiny

    class Lab:
        modern, samplers, definitions = features.wrappers(), comfy.samplers, nodes.definitions()

        def node(self, node_id, **given):
            d = self.definitions[node_id]
            return d.call({**{i.name: i.default for i in d.inputs if i.widget or i.optional}, **given})[0]

        def sample(self, sampler, kind="unet", batch=1, model=None, first=0, mask=None, steps=3):
            if kind not in self.models:
                pytest.skip("this host has no Flux")
            model = model or self.models[kind]
            guider = self.samplers.CFGGuider(model)
            guider.set_conds(self.positive, self.negative)
            guider.set_cfg(3.0)
            sigmas = self.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)
            noise = torch.cat([torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(first + i)) for i in range(batch)])
            with torch.inference_mode():
                return guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, denoise_mask=mask, disable_pbar=True, seed=0)

    lab = Lab()
    lab.tiny = tiny
    with torch.inference_mode():
        lab.models = {"unet": tiny.unet()} | ({"flux": tiny.flux()} if lab.modern else {})
        lab.positive, lab.negative = tiny.prompt(1), tiny.prompt(2)
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
    """Every loss of the menu through Universal Guidance, in bf16 or fp16: finite, and it acts."""
    from lodestar.guidance.host.attach import attach
    from lodestar.guidance.loss.universal import UniversalGuidance
    from lodestar.nodes.losses import _classes
    image, region = torch.rand(1, 8, 8, 3, generator=torch.Generator().manual_seed(5)), torch.zeros(1, 8, 8)
    region[:, 2:6, 1:5] = 1
    dtypes = (torch.bfloat16, torch.float16)
    with torch.inference_mode():
        half = {dtype: lab.tiny.unet(dtype=dtype) for dtype in dtypes}
    plain = {dtype: lab.sample(lab.samplers.ksampler("euler"), model=model, steps=2) for dtype, model in half.items()}
    for i, cls in enumerate(_classes()):
        with torch.inference_mode():
            model = half[dtypes[i % 2]]
            names = {x.name for x in lab.definitions["Lodestar" + cls.title.replace(" ", "")].inputs}
            more = {k: v for k, v in {"image": image, "region": region, "others": "#808080"}.items() if k in names}
            loss, = lab.node("Lodestar" + cls.title.replace(" ", ""), model=model, space="small", **more)
            guided = attach(model, UniversalGuidance(loss=loss, route="none" if not lab.modern else "network"))
        out = lab.sample(lab.samplers.ksampler("euler"), model=guided, steps=2)
        assert torch.isfinite(out).all(), cls.title
        assert cls.title == "Range Loss" or (out - plain[dtypes[i % 2]]).abs().max() > 1e-3, cls.title
