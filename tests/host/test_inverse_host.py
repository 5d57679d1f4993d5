"""The measurement solvers on a real ComfyUI, with small random networks."""
import pytest
import torch

BACKWARD = ("LodestarDiffusionPosteriorSampling", "LodestarLossGuidedDiffusion", "LodestarPseudoinverseGuidance", "LodestarLatentPosteriorSampling", "LodestarReSample")
FORWARD = ("LodestarNullSpaceSampler", "LodestarManifoldPreservingGuidance", "LodestarREDdiff", "LodestarRePaint")
pytestmark = pytest.mark.method(*BACKWARD, *FORWARD)


class Eye(torch.nn.Module):
    """A small autoencoder: latents of 4 channels, pictures of twice the size."""

    def __init__(self):
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.mix = torch.nn.Parameter(torch.linalg.qr(torch.randn(4, 4, generator=g))[0][:3], requires_grad=False)

    def decode(self, z):
        return torch.nn.functional.interpolate(torch.einsum("ij,njhw->nihw", self.mix, z), scale_factor=2.0).mul_(0.5)      # in place, as the host's blocks

    def encode(self, u):
        return torch.einsum("ij,nihw->njhw", self.mix, torch.nn.functional.avg_pool2d(2 * u, 2))


class Vae:
    vae_dtype = torch.float32

    def __init__(self):
        self.first_stage_model = Eye()


@pytest.fixture(scope="module")
def lab(host):
    from lodestar.tests.sampler_lab import SamplerLab

    class Lab(SamplerLab):
        def operator(self, size):
            mask = torch.zeros(1, size, size)
            mask[:, 2:6, 2:] = 1
            return self.node("LodestarInpaintingOperator", mask=mask)[0]

        def measured(self, rgb=False, batch=1, noise=0.1):
            g = torch.Generator().manual_seed(7)
            if rgb:
                image = torch.rand(batch, 16, 16, 3, generator=g)
                return self.node("LodestarMeasurement", operator=self.operator(16), image=image, vae=self.vae, noise=noise)[0]
            latent = {"samples": torch.randn(batch, 4, 8, 8, generator=g)}
            return self.node("LodestarMeasurement", operator=self.operator(8), latent=latent, noise=noise)[0]

        def solver(self, node_id, measurement, **given):
            if node_id in BACKWARD and not self.modern:
                pytest.skip("this host gives no gradients through the network")
            quick = {"LodestarLossGuidedDiffusion": {"samples": 2}, "LodestarRePaint": {"jump": 1, "rounds": 2}, "LodestarNullSpaceSampler": {"repeats": 2},
                     "LodestarReSample": {"every": 1, "rounds": 3, "ahead": 1}}
            return self.node(node_id, measurement=measurement, **{**quick.get(node_id, {}), **given})[0]

    lab = Lab()
    with torch.inference_mode():
        lab.vae = Vae()
    return lab


@pytest.mark.parametrize("kind", ("unet", "flux"))
@pytest.mark.parametrize("node_id", BACKWARD + FORWARD)
def test_latents(lab, node_id, kind):
    """It acts, is finite, repeats itself; the second of a batch is what it is alone with another measurement for the first."""
    sampler = lab.solver(node_id, lab.measured())
    out = lab.sample(sampler, kind, batch=2)
    assert torch.isfinite(out).all() and (out - lab.sample(lab.samplers.ksampler("euler"), kind, batch=2)).abs().max() > 1e-3
    assert torch.equal(out, lab.sample(sampler, kind, batch=2))
    alone = lab.sample(sampler, kind, batch=1)
    assert (alone - out[:1]).abs().max() < 1e-3 * out.abs().max()


@pytest.mark.parametrize("node_id", BACKWARD + FORWARD)
def test_pictures_through_the_decoder(lab, node_id):
    from lodestar.guidance.host.measurements import bind
    from lodestar.guidance.inverse.problem import distance
    given = lab.measured(rgb=True)
    strong = {"rate": 0.3, "inner": 5} if node_id == "LodestarREDdiff" else {}
    out = lab.sample(lab.solver(node_id, given, **strong), batch=2)
    plain = lab.sample(lab.samplers.ksampler("euler"), batch=2)
    latent_format = lab.models["unet"].get_model_object("latent_format")
    away = lambda latent: float(distance(bind(given, latent_format, latent), latent_format.process_in(latent)).mean())
    assert torch.isfinite(out).all() and (out - plain).abs().max() > 1e-3
    if node_id in FORWARD:      # a random network's gradients lead nowhere in three steps
        assert away(out) < away(plain)


@pytest.mark.parametrize("kind", ("unet", "flux"))
@pytest.mark.parametrize("node_id", ("LodestarDiffusionPosteriorSampling", "LodestarPseudoinverseGuidance", "LodestarNullSpaceSampler", "LodestarManifoldPreservingGuidance"))
def test_scale_zero_is_euler_bit_by_bit(lab, node_id, kind):
    out = lab.sample(lab.node(node_id, measurement=lab.measured(), scale=0.0, eta=0.0)[0], kind, batch=2)
    assert torch.equal(out, lab.sample(lab.samplers.ksampler("euler"), kind, batch=2))


@pytest.mark.parametrize("node_id", ("LodestarDiffusionPosteriorSampling", "LodestarNullSpaceSampler", "LodestarREDdiff"))
def test_what_a_mask_keeps_is_kept(lab, node_id):
    latent = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 4:] = 1
    out = lab.sample(lab.solver(node_id, lab.measured()), batch=2, mask=mask, latent=latent)
    assert torch.isfinite(out).all()
    torch.testing.assert_close(out[..., :4], latent[..., :4], atol=1e-4, rtol=1e-4)
    assert (out[..., 4:] - latent[..., 4:]).abs().max() > 1e-2


def test_an_interrupted_run_leaves_nothing(lab):
    import comfy.model_management as management
    if not lab.modern:
        pytest.skip("this host gives no gradients through the network")
    plain = lab.sample(lab.samplers.ksampler("euler"))
    network = lab.models["unet"].model.diffusion_model
    before = {name: set(vars(module)) for name, module in network.named_modules()}
    training = getattr(management, "in_training", None)
    calls = []

    def stopping(*args):
        calls.append(torch.is_grad_enabled())
        if len(calls) == 2:
            management.interrupt_current_processing(True)
        return forward(*args)
    forward = lab.vae.first_stage_model.decode
    lab.vae.first_stage_model.decode = stopping
    try:
        with pytest.raises(management.InterruptProcessingException):
            lab.sample(lab.solver("LodestarDiffusionPosteriorSampling", lab.measured(rgb=True)))
    finally:
        del lab.vae.first_stage_model.decode
        management.interrupt_current_processing(False)
    assert calls == [True, True]
    assert getattr(management, "in_training", None) == training and torch.is_grad_enabled()
    assert {name: set(vars(module)) for name, module in network.named_modules()} == before
    assert torch.equal(lab.sample(lab.samplers.ksampler("euler")), plain)


@pytest.mark.newest
def test_beside_a_method_on_the_model_and_in_half_precision(lab):
    from lodestar.guidance.host.attach import attach
    from lodestar.guidance.perturbation.pag import PerturbedAttentionGuidance
    from lodestar.tests import tiny
    for node_id in ("LodestarPseudoinverseGuidance", "LodestarNullSpaceSampler"):
        sampler = lab.solver(node_id, lab.measured())
        both = lab.sample(sampler, model=attach(lab.models["unet"], PerturbedAttentionGuidance(scale=2.0)))
        assert torch.isfinite(both).all() and (both - lab.sample(sampler)).abs().max() > 1e-3
        with torch.inference_mode():
            half = tiny.unet(dtype=torch.bfloat16)
        assert torch.isfinite(lab.sample(sampler, model=half)).all()


@pytest.mark.parametrize("name", ("SD15", "SD3", "Flux", "Wan21"))
def test_latents_are_measured_in_the_units_of_the_vae(lab, name):
    """A latent as the VAE gives it and the same as the model has it agree, whatever scale and shift is between them, channel by channel; so does the noise."""
    import comfy.latent_formats

    from lodestar.guidance.host.measurements import bind
    if not hasattr(comfy.latent_formats, name):
        pytest.skip("this host has no such latents")
    latent_format = getattr(comfy.latent_formats, name)()
    shape = (2, latent_format.latent_channels, *((3,) if name == "Wan21" else ()), 8, 8)
    z = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for node_id in ("Inpainting", "SuperResolution", "GaussianBlur", "MotionBlur", "RandomProjection", "Wavelet", "MissingTraces"):
        given = {"mask": torch.eye(8)[None]} if node_id == "Inpainting" else {}
        operator, = lab.node(f"Lodestar{node_id}Operator", **given)
        degraded, = lab.node("LodestarApplyOperatorToLatent", operator=operator, latent={"samples": z})
        noisy, = lab.node("LodestarApplyOperatorToLatent", operator=operator, latent={"samples": z}, noise=0.5)
        measurement, = lab.node("LodestarMeasurement", operator=operator, latent=degraded, noise=0.5)
        problem = bind(measurement, latent_format, z)
        assert problem.residual(latent_format.process_in(z)).abs().max() < 1e-4, node_id
        away = bind(lab.node("LodestarMeasurement", operator=operator, latent=noisy)[0], latent_format, z).residual(latent_format.process_in(z))
        away = (away.square().sum() / (2 * problem.count(2))).sqrt()
        assert 0.7 < float(away) / problem.noise < 1.45, node_id      # of a few dozen to a few thousand numbers, with scales that differ by channel


def test_wrong_inputs_are_named(lab):
    large = lab.node("LodestarMeasurement", operator=lab.node("LodestarSuperResolutionOperator", factor=2)[0], latent={"samples": torch.zeros(1, 4, 8, 8)})[0]
    with pytest.raises(ValueError, match="size of the degraded latent = .4, 8, 8."):
        lab.sample(lab.solver("LodestarNullSpaceSampler", large))
    if not lab.modern:
        with pytest.raises(ValueError, match="Diffusion Posterior Sampling: ComfyUI.*December 2024"):
            lab.sample(lab.node("LodestarDiffusionPosteriorSampling", measurement=lab.measured())[0])
