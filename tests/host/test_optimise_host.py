"""EDICT and the optimisers of noise and text on a real ComfyUI with small random networks."""
import pytest
import torch

EDICT = pytest.mark.method("LodestarEDICTSampler", "LodestarEDICTInversion")
NOISE, TEXT = "LodestarOptimiseInitialNoise", "LodestarOptimiseLatentAndText"


@pytest.fixture(scope="module")
def lab(host):
    from lodestar.guidance.loss.smooth import Symmetry
    from lodestar.tests.sampler_lab import SamplerLab
    lab = SamplerLab()
    with torch.inference_mode(False):
        lab.loss = Symmetry(space="latent").check()
    lab.noise = lambda batch=1: torch.cat([torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(batch)])
    return lab


class Noise:
    seed = 0

    def __init__(self, t):
        self.t = t

    def generate_noise(self, latent):
        return self.t


def search(lab, node_id, kind="unet", batch=1, model=None, noise_mask=None, latent=None, **given):
    with torch.inference_mode():
        latent = {"samples": torch.zeros(batch, 4, 8, 8) if latent is None else latent} | ({} if noise_mask is None else {"noise_mask": noise_mask})
        return lab.node(node_id, model=model or lab.models[kind], positive=lab.positive, negative=lab.negative, latent_image=latent, loss=given.pop("loss", lab.loss),
                        noise=Noise(lab.noise(batch)), **{"cfg": 3.0, "steps": 2, **given})


def again(lab, sampler, noise, sigmas, kind="unet", batch=1, cfg=3.0, positive=None, negative=None, model=None):
    """SamplerCustomAdvanced from a NOISE over sigmas."""
    guider = lab.samplers.CFGGuider(model or lab.models[kind])
    guider.set_conds(positive or lab.positive, negative or lab.negative)
    guider.set_cfg(cfg)
    latent = torch.zeros(batch, 4, 8, 8)
    with torch.inference_mode():
        return guider.sample(noise.generate_noise({"samples": latent}), latent, sampler, sigmas, disable_pbar=True, seed=0)


def value(lab, z):
    return (z - z.flip(-1)).square().flatten(1).mean(1)


@EDICT
@pytest.mark.parametrize("kind", ("unet", "flux"))
def test_inversion_gives_the_picture_back_under_cfg(lab, kind):
    if kind not in lab.models:
        pytest.skip("this host has no Flux")
    picture = 0.5 * lab.noise(2)
    with torch.inference_mode():
        inverted, noise, sigmas, sampler = lab.node("LodestarEDICTInversion", model=lab.models[kind], positive=lab.positive, negative=lab.negative, latent_image={"samples": picture}, steps=4, cfg=4.0)
    assert inverted["samples"].shape == picture.shape and (inverted["samples"] - picture).abs().max() > 0.1
    back = again(lab, sampler, noise, sigmas, kind, 2, 4.0)
    assert (back - picture).abs().max() < 2e-3
    plain = again(lab, lab.node("LodestarEDICTSampler")[0], noise, sigmas, kind, 2, 4.0)      # without the second state it is another picture
    assert torch.isfinite(plain).all() and (plain - picture).abs().max() > 2e-3
    inside = torch.zeros(1, 1, 8, 8)
    inside[..., :4] = 1
    assert torch.isfinite(lab.sample(lab.node("LodestarEDICTSampler")[0], kind, mask=inside)).all()
    with torch.inference_mode(), pytest.raises(ValueError, match="negative prompt"):
        lab.node("LodestarEDICTInversion", model=lab.models[kind], positive=lab.positive, latent_image={"samples": picture})


@pytest.mark.method(NOISE)
@pytest.mark.parametrize("memory", ("checkpoint", "invertible"))
@pytest.mark.parametrize("kind", ("unet", "flux"))
def test_noise_is_optimised_and_gives_its_picture_again(lab, kind, memory):
    if not lab.modern:
        with pytest.raises(ValueError, match="December 2024"):
            search(lab, NOISE)
        return
    found, noise, sigmas, sampler = search(lab, NOISE, kind, 2, iterations=2, clip=0.02, memory=memory)
    plain, first, _, plainly = search(lab, NOISE, kind, 2, iterations=0, memory=memory)
    assert (value(lab, found["samples"]) < value(lab, plain["samples"])).all()
    assert (again(lab, sampler, noise, sigmas, kind, 2) - found["samples"]).abs().max() < 1e-3 * found["samples"].abs().max()
    if memory == "checkpoint":
        assert torch.equal(plain["samples"], lab.sample(lab.samplers.ksampler("euler"), kind, batch=2, steps=2))
        single = search(lab, NOISE, kind, iterations=2, clip=0.02)[0]["samples"]
        assert (single - found["samples"][:1]).abs().max() < 2e-3 * found["samples"].abs().max()
    else:
        assert torch.equal(plain["samples"], lab.sample(lab.node("LodestarEDICTSampler")[0], kind, batch=2, steps=2))
    length = lambda n: n.generate_noise({"samples": plain["samples"] * 0}).flatten(1).norm(dim=1)
    torch.testing.assert_close(length(noise), length(first))


@pytest.mark.method(TEXT)
@pytest.mark.parametrize("each_step", (True, False))
def test_noise_and_text_are_optimised_and_give_the_picture_again(lab, each_step):
    if not lab.modern:
        with pytest.raises(ValueError, match="December 2024"):
            search(lab, TEXT)
        return
    found, noise, sigmas, positive, negative = search(lab, TEXT, batch=2, iterations=2, rate=0.05, each_step=each_step)
    plain, *_, untouched, _ = search(lab, TEXT, batch=2, iterations=0)
    assert torch.equal(plain["samples"], lab.sample(lab.samplers.ksampler("euler"), batch=2, steps=2)) and untouched[0][0] is lab.positive[0][0]
    assert (value(lab, found["samples"]) < value(lab, plain["samples"])).all()
    assert len(positive) == len(negative) == (2 if each_step else 1)
    euler = lab.samplers.ksampler("euler")
    replay = again(lab, euler, noise, sigmas, batch=2, positive=positive, negative=negative)
    assert (replay - found["samples"]).abs().max() < 1e-3 * found["samples"].abs().max()
    without = again(lab, euler, noise, sigmas, batch=2)
    assert (without - found["samples"]).abs().max() > 1e-2
    if each_step:
        return
    latent_only = search(lab, TEXT, batch=2, iterations=1, positive_text=0.0, negative_text=0.0)
    assert latent_only[3] is lab.positive and torch.isfinite(latent_only[0]["samples"]).all()
    mask = torch.zeros(1, 64, 64)
    mask[:, :, :32] = 1
    kept = search(lab, TEXT, batch=2, iterations=3, rate=0.05, mask=mask, keep=1e3, blend=1.0)[0]["samples"]
    moved = (kept - plain["samples"]).square()
    assert moved[..., 4:].mean() < 0.2 * moved[..., :4].mean()


@pytest.mark.newest
@pytest.mark.method(NOISE, TEXT)
def test_flux_blocks_half_precision_masks_and_methods(lab):
    from lodestar.guidance.host.attach import attach
    from lodestar.guidance.loss.universal import UniversalGuidance
    from lodestar.guidance.perturbation.pag import PerturbedAttentionGuidance
    from lodestar.tests import tiny
    text = search(lab, TEXT, "flux", iterations=1)[0]["samples"]
    recomputed = search(lab, TEXT, "flux", iterations=1, recompute_blocks=True)[0]["samples"]
    torch.testing.assert_close(recomputed, text, rtol=1e-3, atol=1e-3)
    for dtype, node_id, given in ((torch.float16, NOISE, {"clip": 0.02}), (torch.float16, TEXT, {}), (torch.bfloat16, NOISE, {"memory": "invertible"})):
        with torch.inference_mode():
            half = tiny.unet(dtype=dtype)
        assert torch.isfinite(search(lab, node_id, model=half, iterations=1, **given)[0]["samples"]).all()
    inside = torch.zeros(1, 64, 64)
    inside[:, :, :32] = 1
    for given in ({"memory": "checkpoint"}, {"memory": "invertible"}):
        masked, noise, *_ = search(lab, NOISE, latent=0.3 * torch.ones(1, 4, 8, 8), noise_mask=inside, iterations=1, clip=0.05, **given)
        assert (masked["samples"][..., 5:] - 0.3).abs().max() < 1e-5
        moved = noise.generate_noise({"samples": torch.zeros(1, 4, 8, 8)}) - search(lab, NOISE, latent=0.3 * torch.ones(1, 4, 8, 8), noise_mask=inside, iterations=0)[1].generate_noise({"samples": torch.zeros(1, 4, 8, 8)})
        assert moved[..., 5:].abs().max() < 1e-5 < moved[..., :4].abs().max()      # what is kept has no gradient and no movement
    with torch.inference_mode():
        steered = attach(lab.models["unet"], UniversalGuidance(loss=lab.loss))
        perturbed = attach(lab.models["unet"], PerturbedAttentionGuidance(scale=2.0))
    with pytest.raises(ValueError, match="Optimise Initial Noise: model = 'Universal Guidance'"):
        search(lab, NOISE, model=steered)
    found, noise, sigmas, sampler = search(lab, NOISE, model=perturbed, iterations=1, clip=0.02)
    assert (again(lab, sampler, noise, sigmas, model=perturbed) - found["samples"]).abs().max() < 1e-3 * found["samples"].abs().max()


@pytest.mark.method(NOISE, TEXT)
@pytest.mark.parametrize("node_id", (NOISE, TEXT))
def test_interruption_leaves_the_model_as_it_was(lab, node_id):
    if not lab.modern:
        pytest.skip("for hosts with gradients through the network")
    import comfy.model_management as management
    from lodestar.guidance.loss.smooth import Symmetry
    before = lab.sample(lab.samplers.ksampler("euler"))

    class Stops(Symmetry):
        def value(self, denoised, context):
            management.interrupt_current_processing(True)
            return super().value(denoised, context)
    with torch.inference_mode(False):
        loss = Stops(space="latent").check()
    try:
        with pytest.raises(BaseException) as stopped:
            search(lab, node_id, iterations=3, loss=loss)
        assert "Interrupt" in type(stopped.value).__name__
    finally:
        management.interrupt_current_processing(False)
    assert torch.equal(lab.sample(lab.samplers.ksampler("euler")), before)
