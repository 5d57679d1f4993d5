"""Further restoring and loss-led samplers on a real ComfyUI, with small random networks."""
import pytest
import torch

FORWARD = {"LodestarDecoupledPosteriorSampling": {"ahead": 2, "rounds": 2}, "LodestarSpectralSampler": {}, "LodestarSteeredDiffusion": {"repeats": 2}, "LodestarMaskedSampler": {}, "LodestarEstimateProjection": {},
           "LodestarDegradationAwareSampler": {}}
BACKWARD = {"LodestarDiffusionDrivenAdaptation": {}, "LodestarTractableSteering": {"rate": 1.0, "rounds": 1}, "LodestarBlindPosteriorSampling": {"size": 3, "begin": 0.0}, "LodestarFreeDoM": {"start": 0.0, "end": 1.0},
            "LodestarSemanticGradientGuidance": {"strength": 1000.0}}
OFF = {"LodestarSteeredDiffusion": {"scale": 0.0, "eta": 0.0, "repeats": 1}, "LodestarEstimateProjection": {"strength": 0.0}, "LodestarDegradationAwareSampler": {"scale": 0.0, "eta": 0.0},
       "LodestarDiffusionDrivenAdaptation": {"scale": 0.0, "eta": 0.0}, "LodestarTractableSteering": {"rate": 0.0, "start": 1.0}, "LodestarBlindPosteriorSampling": {"scale": 0.0, "eta": 0.0},
       "LodestarFreeDoM": {"scale": 0.0, "eta": 0.0}, "LodestarSemanticGradientGuidance": {"strength": 0.0, "eta": 0.05}}
EVERY = pytest.mark.parametrize("node_id", [pytest.param(n, marks=pytest.mark.method(n)) for n in {**FORWARD, **BACKWARD}])


@pytest.fixture(scope="module")
def lab(host):
    from lodestar.tests.host.test_inverse_host import Vae
    from lodestar.tests.sampler_lab import SamplerLab

    class Lab(SamplerLab):
        def solver(self, node_id, kind="unet", **given):
            if node_id in BACKWARD and not self.modern and node_id != "LodestarDiffusionDrivenAdaptation":
                pytest.skip("this host gives no gradients through the network")
            if node_id == "LodestarDiffusionDrivenAdaptation" and not self.modern:
                given["form"] = "replace"
            g = torch.Generator().manual_seed(4)
            with torch.inference_mode():      # as in the executor
                source, image, mask = {"samples": torch.randn(1, 4, 8, 8, generator=g)}, torch.rand(1, 16, 16, 3, generator=g), torch.zeros(1, 8, 8)
                mask[:, 2:6, 2:] = 1
                operator = self.node("LodestarInpaintingOperator", mask=mask)[0]
                wires = {"LodestarMaskedSampler": {"source": source, "mask": mask}, "LodestarDiffusionDrivenAdaptation": {"source": source}, "LodestarEstimateProjection": {"operator": self.node("LodestarSuperResolutionOperator", factor=2)[0]},
                         "LodestarDegradationAwareSampler": {"measurement": self.node("LodestarMeasurement", operator=self.node("LodestarSuperResolutionOperator", factor=2)[0], image=image[:, :8, :8], vae=self.vae)[0]},
                         "LodestarBlindPosteriorSampling": {"measurement": self.node("LodestarMeasurement", operator=self.node("LodestarMotionBlurOperator", length=3.0)[0], latent=source)[0]}}.get(node_id)
                if node_id in ("LodestarFreeDoM", "LodestarSemanticGradientGuidance"):
                    labels = mask[..., None].expand(-1, -1, -1, 3)
                    wires = {"loss": self.node("LodestarPaletteSegmentationLoss", model=self.models[kind], image=image[:, :8, :8], space="small")[0]} | ({"labels": labels} if "Semantic" in node_id else {})
                wires = wires or {"measurement": self.node("LodestarMeasurement", operator=operator, latent=source, noise=0.1)[0]}
                return self.node(node_id, **wires, **{**{**FORWARD, **BACKWARD}[node_id], **given})

    lab = Lab()
    with torch.inference_mode():
        lab.vae = Vae()
    return lab


@EVERY
@pytest.mark.parametrize("kind", ("unet", pytest.param("flux", marks=pytest.mark.newest)))
def test_acts_repeats_itself_and_off_is_euler(lab, node_id, kind):
    if kind not in lab.models:
        pytest.skip("this host has no Flux")
    sampler, plain = lab.solver(node_id, kind)[0], lab.sample(lab.samplers.ksampler("euler"), kind, batch=2)
    out = lab.sample(sampler, kind, batch=2)
    assert torch.isfinite(out).all() and (out - plain).abs().max() > 1e-3
    assert torch.equal(out, lab.sample(sampler, kind, batch=2))
    if node_id in OFF and "Semantic" not in node_id:
        assert torch.equal(lab.sample(lab.solver(node_id, kind, **OFF[node_id])[0], kind, batch=2), plain)
    if kind == "unet":
        assert (lab.sample(sampler, kind) - out[:1]).abs().max() < 1e-3 * out.abs().max()
        inside = torch.zeros(1, 1, 8, 8)
        inside[..., :4] = 1
        masked = lab.sample(sampler, kind, mask=inside)
        assert torch.isfinite(masked).all() and masked[..., 5:].abs().max() < 1e-5      # what is kept is the empty latent


@EVERY
@pytest.mark.newest
def test_half_precision(lab, node_id):
    from lodestar.tests import tiny
    with torch.inference_mode():
        half = tiny.unet(dtype=torch.bfloat16)
    assert torch.isfinite(lab.sample(lab.solver(node_id)[0], model=half, steps=2)).all()


@pytest.mark.method("LodestarSteeredDiffusion")
def test_steered_by_a_loss_beside_a_measurement(lab):
    if not lab.modern:
        pytest.skip("this host gives no gradients through the network")
    image = torch.rand(1, 8, 8, 3, generator=torch.Generator().manual_seed(5))
    loss = lab.node("LodestarWaveletTargetLoss", model=lab.models["unet"], image=image, space="small")[0]
    alone = lab.sample(lab.node("LodestarSteeredDiffusion", loss=loss, strength=50.0)[0])
    both = lab.sample(lab.solver("LodestarSteeredDiffusion", loss=loss, strength=50.0)[0])
    assert torch.isfinite(alone).all() and (alone - lab.sample(lab.samplers.ksampler("euler"))).abs().max() > 1e-3
    assert (both - lab.sample(lab.solver("LodestarSteeredDiffusion")[0])).abs().max() > 1e-3
    with pytest.raises(ValueError, match="Connect a measurement, a loss"):
        lab.node("LodestarSteeredDiffusion")


@pytest.mark.method("LodestarFreeDoM")
def test_freedom_moves_by_a_share_of_cfg(lab):
    """Both predictions are seen, and the first move has the size that the formula says."""
    if not lab.modern:
        pytest.skip("this host gives no gradients through the network")
    from lodestar.guidance.loss.solvers.freedom import FreeDoM
    seen, last, model = [], {}, lab.models["unet"].clone()

    def keep(args):
        last.update(conditional=args["cond_denoised"].detach(), unconditional=args["uncond_denoised"].detach())
        return args["denoised"]
    model.set_model_sampler_post_cfg_function(keep)

    class Watched(FreeDoM):
        def measure(self, point, denoised):
            found = super().measure(point, denoised)
            conditional, unconditional = last["conditional"], last["unconditional"]
            rms = lambda t: t.square().mean((1, 2, 3)).sqrt()
            torch.testing.assert_close(denoised, unconditional + 3.0 * (conditional - unconditional), atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(point.problem.gap, 3.0 * (conditional - unconditional))
            torch.testing.assert_close(found.flatten(), 3.0 * rms(conditional - unconditional) / point.s, atol=1e-4, rtol=1e-3)
            seen.append(point.index)
            return found
    from lodestar.guidance.host.sampler_inverse import sampler
    image = torch.rand(1, 8, 8, 3, generator=torch.Generator().manual_seed(5))
    loss = lab.node("LodestarWaveletTargetLoss", model=lab.models["unet"], image=image, space="small")[0]
    lab.sample(sampler(Watched(loss=loss, start=0.0, end=1.0, repeats=2, stage_start=0.3, stage_end=0.6)), batch=2, model=model)
    assert seen == [0, 1, 1, 2]


@pytest.mark.method("LodestarBlindPosteriorSampling")
def test_an_estimated_degradation_is_an_operator(lab):
    if not lab.modern:
        pytest.skip("this host gives no gradients through the network")
    made = lab.solver("LodestarBlindPosteriorSampling")
    with pytest.raises(ValueError, match="Nothing has been estimated"):
        lab.node("LodestarEstimatedDegradation", estimate=made[1], latent={"samples": torch.zeros(1, 4, 8, 8)})
    lab.sample(made[0])
    operator, picture, text = lab.node("LodestarEstimatedDegradation", estimate=made[1], latent={"samples": torch.zeros(1, 4, 8, 8)})
    assert operator.title == "Kernel Blur Operator" and picture.shape[-1] == 3 and "3 x 3" in text
    assert operator.measure(torch.ones(1, 4, 8, 8)).allclose(torch.ones(1))


@pytest.mark.method("LodestarTractableSteering")
def test_a_gaussian_is_fitted_and_used(lab):
    latents = {"samples": torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(0))}
    prior, = lab.node("LodestarFitGaussianPrior", model=lab.models["unet"], latent=latents, components=3)
    assert prior.shape == (4, 8, 8) and prior.directions.shape == (3, 256) and prior.rest > 0
    with pytest.raises(ValueError, match="several pictures"):
        lab.node("LodestarFitGaussianPrior", model=lab.models["unet"], latent={"samples": latents["samples"][:1]})
    if lab.modern:
        sampler = lab.solver("LodestarTractableSteering", posterior=prior, share=1.0, rate=0.0)[0]
        assert (lab.sample(sampler) - lab.sample(lab.samplers.ksampler("euler"))).abs().max() > 1e-3


@pytest.mark.newest
@pytest.mark.method("LodestarTrainingFreeGuidance")
def test_the_search_finds_better_strengths(lab):
    model, image = lab.models["unet"], torch.rand(1, 8, 8, 3, generator=torch.Generator().manual_seed(5))
    loss = lab.node("LodestarWaveletTargetLoss", model=model, image=image, space="small")[0]
    sampler, table = lab.node("LodestarTrainingFreeGuidanceSearch", model=model, positive=lab.positive, negative=lab.negative, latent={"samples": torch.zeros(1, 4, 8, 8)}, loss=loss, cfg=3.0, steps=2, seeds=1, beam=1,
                              rounds=2, rho=0.0, mu=1.0, smoothing=0.0, iterations=1)
    lines = table.splitlines()
    assert lines[0].startswith("score") and len(lines) == 4 and "0, 4, 0" in lines[1]      # doubled twice: 1, 2, 4
    assert torch.isfinite(lab.sample(sampler)).all()
