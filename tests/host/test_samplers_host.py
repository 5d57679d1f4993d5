"""CFG++ and DDIM inversion on a real ComfyUI, with small random networks."""
import pytest
import torch

CFGPP = pytest.mark.method("LodestarCFGPlusPlusSampler")
DDIM = pytest.mark.method("LodestarDDIMInversion")


@pytest.fixture(scope="module")
def lab(host):
    import comfy.samplers

    from lodestar.guidance.host import features, inversion, sampler_cfgpp
    from lodestar.guidance.inversion.ddim import DDIMInversion
    from lodestar.guidance.samplers.cfgpp import CFGPlusPlusSampler
    from lodestar.tests import tiny

    class Lab:
        pass

    lab = Lab()
    lab.tiny, lab.samplers, lab.modern, lab.host = tiny, comfy.samplers, features.wrappers(), host
    lab.cfgpp = lambda **k: sampler_cfgpp.sampler(CFGPlusPlusSampler(**k))
    lab.invert = lambda model, latent, negative=None, **k: inversion.invert(DDIMInversion(**k), model, lab.positive, negative, {"samples": latent})
    with torch.inference_mode():
        lab.models = {"unet": tiny.unet()} | ({"flux": tiny.flux()} if lab.modern else {})
        lab.positive, lab.negative = tiny.prompt(1), tiny.prompt(2)
    return lab


def model_of(lab, kind):
    if kind not in lab.models:
        pytest.skip("this host has no Flux")
    return lab.models[kind]


def sample(lab, model, sampler, steps=4, negative=None, batch=1, cfg=4.0, noise=None, sigmas=None, seed=0, scheduler="normal", latent=None):
    guider = lab.samplers.CFGGuider(model)
    guider.set_conds(lab.positive, negative or lab.negative)
    guider.set_cfg(cfg)
    if sigmas is None:
        sigmas = lab.samplers.calculate_sigmas(model.get_model_object("model_sampling"), scheduler, steps)
    if noise is None:
        noise = torch.cat([torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed + i)) for i in range(batch)])
    latent = torch.zeros_like(noise) if latent is None else latent
    with torch.inference_mode():
        return guider.sample(noise, latent, sampler, sigmas, disable_pbar=True, seed=seed)


@CFGPP
def test_first_order_equals_the_hosts_own(lab):
    if "euler_cfg_pp" not in lab.samplers.KSampler.SAMPLERS:
        pytest.skip("this host has no euler_cfg_pp")
    model = lab.models["unet"]
    theirs = sample(lab, model, lab.samplers.ksampler("euler_cfg_pp"), cfg=0.6)
    mine = sample(lab, model, lab.cfgpp(scale=0.6), cfg=7.0)      # the sampler's own scale counts, not the guider's
    assert (mine - theirs).abs().max() < 1e-5 * theirs.abs().max()


@CFGPP
@pytest.mark.parametrize("kind", ("unet", "flux"))
@pytest.mark.parametrize("order", (1, 2))
def test_equal_prompts_are_the_plain_step_and_batches_are_singles(lab, kind, order):
    model = model_of(lab, kind)
    plain = sample(lab, model, lab.samplers.ksampler("euler"), negative=lab.positive, cfg=1.0)
    if order == 1:
        mine = sample(lab, model, lab.cfgpp(order=1), negative=lab.positive)
        assert (mine - plain).abs().max() < 1e-4 * plain.abs().max()
    together = sample(lab, model, lab.cfgpp(order=order, eta=0.5), batch=2)
    assert torch.isfinite(together).all()
    assert torch.equal(together, sample(lab, model, lab.cfgpp(order=order, eta=0.5), batch=2))


@CFGPP
@pytest.mark.parametrize("kind", ("unet", "flux"))
def test_methods_act_under_cfgpp(lab, kind):
    from lodestar.guidance.host.attach import attach
    from lodestar.guidance.perturbation.pag import PerturbedAttentionGuidance
    from lodestar.guidance.rules.interval import GuidanceInterval
    model = model_of(lab, kind)
    base = sample(lab, model, lab.cfgpp())
    both = attach(attach(model, PerturbedAttentionGuidance(scale=1.0)), GuidanceInterval(start_percent=0.3, end_percent=0.7))
    out = sample(lab, both, lab.cfgpp())
    assert torch.isfinite(out).all() and (out - base).abs().max() > 1e-3
    assert torch.equal(base, sample(lab, attach(model, PerturbedAttentionGuidance(scale=0.0)), lab.cfgpp()))


@pytest.mark.newest
@DDIM
@pytest.mark.parametrize("kind", ("unet", "flux"))
def test_round_trip_with_refinement(lab, kind):
    """Replaying Euler down the inverted levels returns the latent; each refinement brings it nearer."""
    model = model_of(lab, kind)
    latent = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5)) * 0.5
    errors = []
    for refine in (0, 2, 8):
        with torch.inference_mode():
            _, noise, sigmas = lab.invert(model, latent, steps=12, strength=0.4, refine=refine)
            start = noise.generate_noise({"samples": latent})
        back = sample(lab, model, lab.samplers.ksampler("euler"), cfg=1.0, noise=start, sigmas=sigmas, latent=latent)
        errors.append(float((back - latent).square().mean().sqrt()))
    assert errors[2] < errors[1] < errors[0] and errors[2] < 0.3 * errors[0]


@DDIM
def test_wrong_inputs_are_named(lab):
    latent = torch.zeros(1, 4, 8, 8)
    with pytest.raises(ValueError, match="DDIM Inversion: cfg"), torch.inference_mode():
        lab.invert(lab.models["unet"], latent, cfg=3.0)
    with torch.inference_mode():
        _, noise, _ = lab.invert(lab.models["unet"], latent + 0.1, steps=2, refine=0)
    with pytest.raises(ValueError, match="shape"):
        noise.generate_noise({"samples": torch.zeros(1, 4, 4, 4)})
