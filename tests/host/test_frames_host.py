"""Frame Guidance, scene-grounding, observation and sound guidance and Motion Guidance on a real ComfyUI with small random networks, videos and sound among them."""
import pytest
import torch

SAMPLERS = {"LodestarFrameGuidance": ({"rounds": 1, "rate": 0.2}, {"rounds": 0}), "LodestarReferenceSequenceGuidance": ({"rho": 2.0}, {"rho": 0.0, "eta": 0.0}),
            "LodestarObservationSelfGuidance": ({}, {"scale": 0.0, "form": "DDIM"}), "LodestarSoundGuidance": ({}, {"scale": 0.0, "eta": 0.0}),
            "LodestarMotionGuidance": ({"scale": 3.0, "repeats": 2}, {"scale": 0.0})}
EVERY = pytest.mark.parametrize("node_id", [pytest.param(n, marks=pytest.mark.method(n)) for n in SAMPLERS])


@pytest.fixture(scope="module")
def lab(host):
    from lodestar.tests.sampler_lab import SamplerLab
    lab = SamplerLab()
    with torch.inference_mode():
        target = torch.rand(1, 8, 8, 3, generator=torch.Generator().manual_seed(5))
        lab.losses = {kind: lab.node("LodestarWaveletTargetLoss", model=model, image=target, space="small")[0] for kind, model in lab.models.items()}
    return lab


@EVERY
@pytest.mark.parametrize("kind", ("unet", "flux"))
def test_acts_by_entry_repeats_itself_and_off_is_euler(lab, node_id, kind):
    if kind not in lab.models:
        pytest.skip("this host has no Flux")
    on, off = SAMPLERS[node_id]
    sampler = lab.node(node_id, loss=lab.losses[kind], **on)[0]
    if not lab.modern:
        with pytest.raises(ValueError, match="Dreamguider"):
            lab.sample(sampler, kind)
        return
    plain = lab.sample(lab.samplers.ksampler("euler"), kind, batch=2)
    assert torch.equal(lab.sample(lab.node(node_id, loss=lab.losses[kind], **off)[0], kind, batch=2), plain)
    out = lab.sample(sampler, kind, batch=2)
    assert torch.isfinite(out).all() and (out - plain).abs().max() > 1e-3
    assert torch.equal(out, lab.sample(sampler, kind, batch=2))
    assert (lab.sample(sampler, kind) - out[:1]).abs().max() < 1e-3 * out.abs().max()


class Video:
    """A video VAE of a few numbers: the first latent is one picture, each later one four."""

    vae_dtype, latent_dim = torch.float32, 3

    def __init__(self):
        self.first_stage_model = torch.nn.Linear(1, 1)
        self.first_stage_model.decode = lambda z: torch.cat((z[:, :3, :1], z[:, :3, 1:].repeat_interleave(4, 2)), 2).repeat_interleave(2, 3).repeat_interleave(2, 4)


def sample(name, sampler, latent=None, cfg=3.0, steps=2):
    """A run of a tiny network of the zoo: (latents, model)."""
    import comfy.samplers
    from lodestar.tests.zoo.models import latent_of, model_of, tokens_of
    from lodestar.tests.zoo.specimens import ALL
    with torch.inference_mode():
        specimen = ALL[name]()
        model = model_of(specimen)
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(tokens_of(specimen, 1), tokens_of(specimen, 2))
        guider.set_cfg(cfg)
        noise = latent_of(specimen, 0)["samples"]
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps)
        return guider.sample(noise, torch.zeros_like(noise), sampler(model, noise), sigmas, disable_pbar=True, seed=0)


@pytest.mark.newest
@pytest.mark.method("LodestarFrameGuidance")
@pytest.mark.parametrize("name", ("wan", "ltx"))
def test_a_key_frame_and_a_loop_of_a_video(lab, name):
    euler = lambda model, noise: lab.samplers.ksampler("euler")
    frames = []

    def guided(model, noise):
        pictures = 1 + 4 * (noise.shape[2] - 1)
        image = torch.rand(1, 2 * noise.shape[-2], 2 * noise.shape[-1], 3, generator=torch.Generator().manual_seed(1))
        key = lab.node("LodestarWaveletTargetLoss", model=model, image=image, vae=Video(), levels=1)[0]
        first = lab.node("LodestarLossOfFrames", loss=key, frames=str(pictures - 2), shrink=1.0)[0]
        loop = lab.node("LodestarFrameConsistencyLoss", model=model, vae=Video(), pairs="ends")[0]
        frames.append(noise.shape[2])
        loss, = lab.node("LodestarCombineLosses", a=first, b=loop)
        return lab.node("LodestarFrameGuidance", loss=loss, rounds=1, rate=0.2, travel_start=0.0)[0]
    out, plain = sample(name, guided), sample(name, euler)
    moved = (out - plain).abs().amax((0, 1, 3, 4))
    assert torch.isfinite(out).all() and bool((moved > 1e-4).all())      # every frame follows, by the network


@pytest.mark.newest
@pytest.mark.method("LodestarReferenceSequenceGuidance")
def test_a_rendered_sequence_of_a_video(lab):
    class PerFrame(Video):
        def __init__(self):
            super().__init__()
            self.first_stage_model.decode = lambda z: z[:, :3]
    seen = []

    def guided(model, noise):
        image = torch.rand(noise.shape[2], *noise.shape[-2:], 3, generator=torch.Generator().manual_seed(1))
        mask = torch.ones(noise.shape[2], *noise.shape[-2:])
        mask[1] = 0
        loss, = lab.node("LodestarReferenceSequenceLoss", model=model, image=image, mask=mask, vae=PerFrame())
        part = type(loss).part
        object.__setattr__(loss, "part", lambda *given: seen.append(given[0].shape[2]) or part(loss, *given))
        return lab.node("LodestarReferenceSequenceGuidance", loss=loss, rho=1.0, eta=0.0)[0]
    out, plain = sample("wan", guided), sample("wan", lambda model, noise: lab.samplers.ksampler("euler"))
    assert torch.isfinite(out).all() and (out - plain).abs().max() > 1e-4 and seen == [1] * len(seen) and len(seen) == 2 * out.shape[2]


@pytest.mark.newest
@pytest.mark.method("LodestarSoundGuidance")
@pytest.mark.parametrize("name", ("audio", "ace"))
def test_sound_goes_on_from_what_is_known(lab, name):
    known = []

    def guided(model, noise):
        y = {"samples": torch.randn(noise.shape, generator=torch.Generator().manual_seed(3))}
        context, m = lab.node("LodestarSoundContext", latent={"samples": noise * 0}, sound=y, seconds=10.0, fade=0.0)
        known.append(y["samples"])
        loss, = lab.node("LodestarSoundContextLoss", model=model, context=context, known=m)
        style, = lab.node("LodestarSoundStyleLoss", model=model, latent=y)
        loss, = lab.node("LodestarCombineLosses", a=loss, b=style)
        return lab.node("LodestarSoundGuidance", loss=loss, context=context, known=m)[0]
    out = sample(name, guided)
    half = out.shape[-1] // 2
    assert torch.isfinite(out).all() and (out - known[0])[..., :half].abs().max() < 1e-4 < 0.1 < (out - known[0])[..., half:].abs().max()


@pytest.mark.method("LodestarMotionGuidance")
@pytest.mark.newest
def test_motion_on_the_bundled_model(lab):
    """It acts, and what the edit mask leaves out is the source; the example shows what it does."""
    import comfy.samplers
    with torch.inference_mode():
        model, clip, vae = lab.node("LodestarLoadDemoModel", model="unet")
        prompt = clip.encode_from_tokens_scheduled(clip.tokenize("a red circle"))
        source = {"samples": 0.2 * torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(1))}
        mask = torch.zeros(1, 128, 128)
        mask[:, 30:90, 20:80] = 1
        flow, _, both = lab.node("LodestarFlowFromMask", mask=mask, dx=30.0)
        loss, = lab.node("LodestarFlowMotionLoss", model=model, image=vae.decode(source["samples"]), flow=flow, vae=vae)
        sampler, still = (lab.node("LodestarMotionGuidance", loss=loss, scale=scale, repeats=1, edit_mask=both, latent=source)[0] for scale in (300.0, 0.0))
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(prompt, prompt)
        guider.set_cfg(1.0)
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 3)
        noise = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(2))
        run = lambda s: guider.sample(noise, torch.zeros_like(noise), s, sigmas, disable_pbar=True, seed=0)
        out, plain = run(sampler), run(still)
    assert torch.isfinite(out).all() and (out - plain).abs().max() > 1e-3 and (out - source["samples"])[..., 13:, :].abs().max() < 1e-4


@pytest.mark.newest
@pytest.mark.method("LodestarMotionGuidance")
def test_raft_is_torchvisions(lab):
    from lodestar.guidance.loss.flow import raft_of
    from lodestar.guidance.method import BadInput
    from torchvision.models.optical_flow import raft_small
    torch.manual_seed(0)
    network = raft_small(weights=None).eval()
    a, b = torch.rand(2, 1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    weights = network.state_dict()
    estimator = raft_of(weights, updates=1)
    with torch.no_grad():
        torch.testing.assert_close(estimator(a, b), network(a * 2 - 1, b * 2 - 1, num_flow_updates=1)[-1])
    assert estimator.name == "RAFT small" and estimator.size(64, 100) == (128, 200)
    u = b.clone().requires_grad_()
    assert float(torch.autograd.grad(estimator(a, u).sum(), u)[0].abs().max()) > 0
    for wrong in ({k: v for k, v in weights.items() if "update_block" not in k}, {"module.fnet.conv1.weight": a}):
        with pytest.raises(BadInput, match="torchvision"):
            raft_of(wrong)
    with pytest.raises(BadInput, match="optical_flow"):
        lab.node("LodestarLoadFlowNetwork", file="none.safetensors")
    with torch.inference_mode():
        bundled, = lab.node("LodestarLoadFlowNetwork")
    assert not any(p.is_inference() for p in bundled.network.parameters()) and bundled(a, b).shape == (1, 2, 128, 128)
