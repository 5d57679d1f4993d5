"""Score distillation inside the host's own sampling call: what is on the MODEL acts, prompts and second models, entries of a batch, masks, interruption."""
import pytest
import torch

GUIDANCES = {"LodestarSDSGuidance": {}, "LodestarHiFAGuidance": {"rgb": 0.0, "steps": 2}, "LodestarDenoisedScoreDistillation": {}, "LodestarIntervalScoreMatching": {"steps": 1},
             "LodestarTrajectoryScoreMatching": {"steps": 1}}
METHODS = [*GUIDANCES, "LodestarHybridDistillation", "LodestarScoreDistillation"]
EVERY = pytest.mark.parametrize("node_id", [pytest.param(n, marks=pytest.mark.method(n)) for n in GUIDANCES])


@pytest.fixture(scope="module")
def lab(host):
    from lodestar.tests.sampler_lab import SamplerLab
    return SamplerLab()


class Vae:
    """Pictures of the latent's own size: the first three channels, and back."""

    vae_dtype = torch.float32

    def __init__(self):
        self.first_stage_model = torch.nn.Linear(1, 1)
        self.first_stage_model.decode = lambda latent: latent[:, :3]
        self.first_stage_model.encode = lambda picture: torch.cat((picture, picture[:, :1]), 1)


def guidance(lab, node_id="LodestarSDSGuidance", model="unet", **given):
    with torch.inference_mode():
        return lab.node(node_id, model=lab.models[model] if isinstance(model, str) else model, positive=given.pop("positive", lab.positive), negative=lab.negative,
                        **{"cfg": 3.0, **GUIDANCES.get(node_id, {}), **given})[0]


def distil(lab, guided, z, steps=2, **given):
    with torch.inference_mode():
        return lab.node("LodestarScoreDistillation", guidance=guided, latent={"samples": z, **given.pop("with_", {})}, steps=steps, **given)[0]["samples"].clone()


def start(batch=2):
    return torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(0))


@EVERY
@pytest.mark.parametrize("kind", ("unet", pytest.param("flux", marks=pytest.mark.newest)))
def test_moves_by_entry_and_repeats_itself(lab, node_id, kind):
    if kind not in lab.models:
        pytest.skip("this host has no Flux")
    guided, z = guidance(lab, node_id, kind), start()
    out = distil(lab, guided, z)
    assert out.shape == z.shape and bool(torch.isfinite(out).all()) and (out - z).abs().max() > 1e-2
    assert torch.equal(out, distil(lab, guided, z))
    alone = distil(lab, guided, z[1:], with_={"batch_index": [1]})
    assert (alone - out[1:]).abs().max() < 2e-2 * out.abs().max()      # Adam's first steps follow signs


@pytest.mark.method("LodestarSDSGuidance", "LodestarScoreDistillation")
def test_the_gradient_is_what_sampling_predicts(lab):
    """SGD at rate 1 with W = s / a moves z to the guided estimate: that of an Euler step from the same noisy latent."""
    from lodestar.guidance.distillation.base import drawn
    z, model = torch.zeros(1, 4, 8, 8), lab.models["unet"]
    sigma = torch.tensor([2.0])
    guided = guidance(lab, sigmas=sigma, weighting="s / a")
    out = distil(lab, guided, z, steps=1, rate=1.0, last_rate=1.0, optimiser="SGD", seed=4)
    noise = drawn((1, 4, 8, 8), 4, 0, 0, 0, 0)
    with torch.inference_mode():
        guider = lab.samplers.CFGGuider(model)
        guider.set_conds(lab.positive, lab.negative)
        guider.set_cfg(3.0)
        wanted = guider.sample(noise, z, lab.samplers.ksampler("euler"), torch.tensor([2.0, 0.0]), disable_pbar=True, seed=0)
    torch.testing.assert_close(out, wanted.float().cpu(), atol=2e-3, rtol=2e-3)


@pytest.mark.method(*METHODS)
def test_methods_on_the_model_act_and_masks_keep(lab):
    from lodestar.guidance.host.attach import attach
    from lodestar.guidance.rules.apg import AdaptiveProjectedGuidance
    from lodestar.guidance.rules.interval import GuidanceInterval
    z = start(1)
    sgd = dict(rate=1.0, optimiser="SGD")      # Adam's first steps are of one size whatever the gradient
    plain = distil(lab, guidance(lab), z, **sgd)
    for method in (AdaptiveProjectedGuidance(eta=0.0), GuidanceInterval(start_percent=0.9, end_percent=1.0)):
        with torch.inference_mode():
            model = attach(lab.models["unet"], method)
        assert (distil(lab, guidance(lab, model=model), z, **sgd) - plain).abs().max() > 1e-3, method.title
    mask = torch.zeros(1, 64, 64)
    mask[:, :, 32:] = 1
    kept = distil(lab, guidance(lab), z, with_={"noise_mask": mask})
    torch.testing.assert_close(kept[..., :3], z[..., :3])
    assert (kept[..., 5:] - z[..., 5:]).abs().max() > 1e-2
    assert torch.equal(distil(lab, guidance(lab), z, steps=0), z)


@pytest.mark.method("LodestarHybridDistillation")
def test_two_models_at_once_and_one_network_with_two_sets_of_weights(lab):
    from lodestar.tests import tiny
    z = start(1)
    with torch.inference_mode():
        other = tiny.unet(seed=7)
        patched = lab.models["unet"].clone()
        name = "diffusion_model.input_blocks.0.0.weight"
        weight = lab.models["unet"].model.state_dict()[name]
        patched.add_patches({name: (torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * 0.3,)})
    sgd = dict(steps=1, rate=1.0, last_rate=1.0, optimiser="SGD")
    for second in (other, patched):
        a, b = guidance(lab), guidance(lab, "LodestarSDSGuidance", second)
        both, = lab.node("LodestarHybridDistillation", a=a, b=b, weight_a=0.5, weight_b=2.0, same_noise=True)
        moves = [distil(lab, g, z, **sgd) - z for g in (a, b)]
        assert (moves[0] - moves[1]).abs().max() > 1e-3
        torch.testing.assert_close(distil(lab, both, z, **sgd) - z, 0.5 * moves[0] + 2.0 * moves[1], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(distil(lab, guidance(lab), z, **sgd) - z, distil(lab, a, z, **sgd) - z)


@pytest.mark.method("LodestarDistilPictures", "LodestarCompositeDistillation", "LodestarHiFAGuidance")
def test_pictures_and_composites(lab, monkeypatch):
    from lodestar.guidance.method import BadInput
    monkeypatch.setattr("comfy.model_management.load_models_gpu", lambda models, *a, **k: None)      # the VAE is none of the host's
    vae = Vae()
    image = torch.rand(2, 8, 8, 3, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        guided = guidance(lab, "LodestarHiFAGuidance", rgb=0.5, vae=vae)
        out, = lab.node("LodestarDistilPictures", guidance=guided, image=image, steps=2)
        assert out.shape == image.shape and 0 <= float(out.min()) and float(out.max()) <= 1 and (out - image).abs().max() > 1e-3
        again, = lab.node("LodestarDistilPictures", guidance=guided, image=image, steps=2)
        assert torch.equal(out, again)
        mask = torch.zeros(1, 8, 8)
        mask[..., :4] = 1
        kept, = lab.node("LodestarDistilPictures", guidance=guided, image=image, mask=mask, steps=2)
        torch.testing.assert_close(kept[:, :, 4:], image[:, :, 4:])
        latent = distil(lab, guided, start(1))      # the picture's error through the decoder
        assert bool(torch.isfinite(latent).all())
        thing, cover = torch.rand(1, 4, 4, 3, generator=torch.Generator().manual_seed(2)), torch.ones(1, 4, 4)
        composite, where, text = lab.node("LodestarCompositeDistillation", guidance=guided, object=thing, mask=cover, background=image, steps=2, rate=0.1)
        assert composite.shape == image.shape and where.shape == (2, 8, 8) and '"gain"' in text
        plain, *_ = lab.node("LodestarCompositeDistillation", guidance=guided, object=thing, mask=cover, background=image, steps=0)
        torch.testing.assert_close(plain[:, 2:6, 2:6], thing.expand(2, -1, -1, -1))
        assert (composite - plain).abs().max() > 1e-2
        with pytest.raises(BadInput, match="SDS Guidance.*vae"):
            lab.node("LodestarDistilPictures", guidance=guidance(lab), image=image, steps=1)


@pytest.mark.method(*METHODS)
def test_bad_input_and_interruption(lab):
    import comfy.model_management as management
    from lodestar.guidance.method import BadInput
    guided, z = guidance(lab), start(1)
    with pytest.raises(BadInput, match="Score Distillation.*latent.*not finite"):
        distil(lab, guided, z / 0)
    with pytest.raises(BadInput, match="Score Distillation.*latent.*channels"):
        distil(lab, guided, torch.randn(1, 3, 8, 8))
    management.interrupt_current_processing(True)
    try:
        with pytest.raises(BaseException) as stopped:
            distil(lab, guided, z)
        assert "Interrupt" in type(stopped.value).__name__
    finally:
        management.interrupt_current_processing(False)
    assert bool(torch.isfinite(distil(lab, guided, z)).all())      # nothing is left behind


@pytest.mark.newest
@pytest.mark.method("LodestarSDSGuidance")
def test_half_precision(lab):
    from lodestar.tests import tiny
    for dtype in (torch.bfloat16, torch.float16):
        with torch.inference_mode():
            model = tiny.unet(dtype=dtype)
        assert bool(torch.isfinite(distil(lab, guidance(lab, "LodestarTrajectoryScoreMatching", model), start(1))).all())


@pytest.mark.method("LodestarSpatialWordAttention")
@pytest.mark.parametrize("kind", ("unet", "flux"))
def test_words_are_amplified_in_sampling_and_distillation(lab, kind):
    from lodestar.guidance.attention.spatial_words import SpatialWordAttention
    from lodestar.guidance.attention.words import PromptWords
    from lodestar.guidance.host.attach import attach
    if kind not in lab.models:
        pytest.skip("this host has no Flux")
    words = PromptWords("a left of b", ("left of",), ((1, 2),), (1, 2, 3), 6)
    euler, sgd = lab.samplers.ksampler("euler"), dict(rate=1.0, optimiser="SGD")
    plain, z = lab.sample(euler, kind), start(1)
    distilled = distil(lab, guidance(lab, model=kind), z, **sgd)
    for factor, acts in ((25.0, True), (1.0, False)):
        with torch.inference_mode():
            model = attach(lab.models[kind], SpatialWordAttention(words=words, factor=factor))
        assert torch.equal(lab.sample(euler, model=model), plain) != acts
        assert torch.equal(distil(lab, guidance(lab, model=model), z, **sgd), distilled) != acts
