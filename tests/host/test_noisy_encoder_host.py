"""Semantic Diffusion Guidance, the training of its encoder and its file, on a real ComfyUI with small random networks."""
import pytest
import torch

from lodestar.guidance.loss.semantic_diffusion import SemanticDiffusionGuidance

pytestmark = pytest.mark.method("LodestarSemanticDiffusionGuidance", "LodestarTrainNoiseAwareEncoder")


@pytest.fixture(scope="module")
def lab(host):
    from lodestar.guidance.host.attach import attach
    from lodestar.guidance.training.noisy_encoder import whole
    from lodestar.guidance.training.predictor import NoisyClassifier, settled
    from lodestar.tests.sampler_lab import SamplerLab
    lab = SamplerLab()
    lab.attach, lab.euler = attach, lab.samplers.ksampler("euler")
    torch.manual_seed(0)
    lab.encoder = whole(settled(NoisyClassifier(4, 6, 8)))
    g = torch.Generator().manual_seed(5)
    lab.given = dict(encoder=lab.encoder, texts=torch.randn(1, 6, generator=g), reference=torch.randn(1, 4, 8, 8, generator=g))
    return lab


@pytest.mark.parametrize("kind", ("unet", "flux"))
def test_acts_by_entry_repeats_itself_and_off_is_the_model(lab, kind):
    if kind not in lab.models:
        pytest.skip("this host has no Flux")
    with torch.inference_mode():
        off, on = (lab.attach(lab.models[kind], SemanticDiffusionGuidance(**lab.given, scale=s)) for s in (0.0, 1.0))
    plain = lab.sample(lab.euler, kind, batch=2)
    assert torch.equal(lab.sample(lab.euler, model=off, batch=2), plain)
    out = lab.sample(lab.euler, model=on, batch=2)
    assert torch.isfinite(out).all() and (out - plain).abs().max() > 1e-3
    assert torch.equal(out, lab.sample(lab.euler, model=on, batch=2))
    assert (lab.sample(lab.euler, model=on) - out[:1]).abs().max() < 1e-3 * out.abs().max()


@pytest.mark.newest
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_half_precision(lab, dtype):
    from lodestar.tests import tiny
    with torch.inference_mode():
        model = tiny.unet(dtype=dtype)
    assert torch.isfinite(lab.sample(lab.euler, model=lab.attach(model, SemanticDiffusionGuidance(**lab.given)), steps=1)).all()


def test_training_node_file_and_errors(lab, monkeypatch, tmp_path):
    """From latents by the host's wires to an encoder that guides by a text and by a picture; its file is read again."""
    import comfy.model_management

    from lodestar.demo.vision import SceneVision
    from lodestar.guidance.host import weight_files
    from lodestar.guidance.method import BadInput
    from lodestar.guidance.training.noisy_encoder import parse_encoder
    from lodestar.tests.zoo.nodes import Vae
    model, vision = lab.models["unet"], SceneVision()
    latent = {"samples": torch.rand(5, 4, 8, 8, generator=torch.Generator().manual_seed(4))}
    with torch.inference_mode():
        found, report = lab.node("LodestarTrainNoiseAwareEncoder", model=model, vae=Vae(), clip_vision=vision, latent=latent, steps=3, batch=4, width=8)
        assert (found.width, found.channels) == (96, 4) and "5 examples" in report
        guided, = lab.node("LodestarSemanticDiffusionGuidance", model=model, encoder=found, reference={"samples": latent["samples"][:1]})
        assert torch.isfinite(lab.sample(lab.euler, model=guided, steps=1)).all()
        for wrong, field in ((dict(text="a red circle"), "clip"), ({}, "text"), (dict(reference={"samples": torch.full((1, 4, 8, 8), float("nan"))}), "reference")):
            with pytest.raises(BadInput, match=field):
                lab.node("LodestarSemanticDiffusionGuidance", model=model, encoder=found, **wrong)
    monkeypatch.setattr(weight_files._folders(), "get_output_directory", lambda: str(tmp_path))
    with torch.inference_mode():
        path, = lab.node("LodestarSaveNoiseAwareEncoder", encoder=found, prefix="a/b")
    from safetensors.torch import load_file
    assert path == str(tmp_path / "a" / "b_00001.safetensors") and parse_encoder(load_file(path)).width == 96
    bundled, = lab.node("LodestarLoadNoiseAwareEncoder")
    assert (bundled.width, bundled.channels) == (96, 16)

    class Stop(Exception):
        pass

    def stop():
        raise Stop
    monkeypatch.setattr(comfy.model_management, "throw_exception_if_processing_interrupted", stop)
    with pytest.raises(Stop):
        lab.node("LodestarTrainNoiseAwareEncoder", model=model, vae=Vae(), clip_vision=vision, latent=latent, steps=3, batch=4, width=8)
