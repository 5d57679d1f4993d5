"""Guidance by classifiers of noisy latents, their examples and their training, on a real ComfyUI with small random networks."""
import pytest
import torch

from lodestar.guidance.loss.classifier_guidance import ClassifierGuidance
from lodestar.guidance.loss.discriminator_guidance import DiscriminatorGuidance
from lodestar.guidance.loss.minority import MinorityGuidance
from lodestar.guidance.loss.return_guidance import ReturnGuidance

METHODS = {cls.node_id: cls for cls in (ClassifierGuidance, DiscriminatorGuidance, MinorityGuidance, ReturnGuidance)}
EVERY = pytest.mark.parametrize("node_id", [pytest.param(n, marks=pytest.mark.method(n)) for n in METHODS])
TRAIN = pytest.mark.method("LodestarTrainNoiseAwareClassifier", "LodestarMinorityGuidance", "LodestarReturnGuidance")


@pytest.fixture(scope="module")
def lab(host):
    from lodestar.guidance.host.attach import attach
    from lodestar.guidance.training.predictor import NoisyClassifier, Predictor, settled
    from lodestar.tests.sampler_lab import SamplerLab
    lab = SamplerLab()
    lab.attach, lab.euler = attach, lab.samplers.ksampler("euler")
    torch.manual_seed(0)
    lab.classifier = Predictor((settled(NoisyClassifier(4, 2, 8)),), torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0]))
    return lab


@EVERY
@pytest.mark.parametrize("kind", ("unet", "flux"))
def test_acts_by_entry_repeats_itself_and_off_is_the_model(lab, node_id, kind):
    if kind not in lab.models:
        pytest.skip("this host has no Flux")
    with torch.inference_mode():
        off, on = (lab.attach(lab.models[kind], METHODS[node_id](classifier=lab.classifier, scale=s)) for s in (0.0, 20.0))
    plain = lab.sample(lab.euler, kind, batch=2)
    assert torch.equal(lab.sample(lab.euler, model=off, batch=2), plain)
    out = lab.sample(lab.euler, model=on, batch=2)
    assert torch.isfinite(out).all() and (out - plain).abs().max() > 1e-3
    assert torch.equal(out, lab.sample(lab.euler, model=on, batch=2))
    assert (lab.sample(lab.euler, model=on) - out[:1]).abs().max() < 1e-3 * out.abs().max()


@pytest.mark.newest
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
@pytest.mark.method(*METHODS)
def test_half_precision(lab, dtype):
    from lodestar.tests import tiny
    with torch.inference_mode():
        model = tiny.unet(dtype=dtype)
    for cls in METHODS.values():
        assert torch.isfinite(lab.sample(lab.euler, model=lab.attach(model, cls(classifier=lab.classifier)), steps=1)).all()


@TRAIN
def test_examples_training_and_file(lab, monkeypatch, tmp_path):
    """From latents with numbers, scores and returns to a classifier that guides; its file is read again."""
    import comfy.model_management

    from lodestar.guidance.host import weight_files
    from lodestar.guidance.training.predictor import parse
    model = lab.models["unet"]
    latent = {"samples": torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(4))}
    with torch.inference_mode():
        first, = lab.node("LodestarLabelledLatents", latent=latent, labels="0")
        both, = lab.node("LodestarLabelledLatents", latent={"samples": latent["samples"] + 2}, labels="1, 1, 1", examples=first)
        assert both.labels.tolist() == [0, 0, 0, 1, 1, 1]
        rare, _ = lab.node("LodestarMinorityScores", model=model, positive=lab.positive, latent=latent, samples=1)
        loss, = lab.node("LodestarTargetImageLoss", model=model, latent={"samples": latent["samples"][:1]})
        returns, text = lab.node("LodestarScoreLatentsByLoss", model=model, latent=latent, loss=loss)
        assert len(set(rare.labels.tolist())) == 3 and float(returns.labels[0]) == 0 > float(returns.labels[1]) and text.count(",") == 2
        found, report = lab.node("LodestarTrainNoiseAwareClassifier", model=model, examples=both, steps=3, batch=4, width=8)
        assert found.classes == 2 and "6 examples" in report
        levels, _ = lab.node("LodestarTrainNoiseAwareClassifier", model=model, examples=rare, steps=2, batch=4, width=8, bins=3, experts=2)
        assert levels.classes == 3 and len(levels.experts) == 2
        for method in (ClassifierGuidance(classifier=found), MinorityGuidance(classifier=levels)):
            assert torch.isfinite(lab.sample(lab.euler, model=lab.attach(model, method), steps=1)).all()
    monkeypatch.setattr(weight_files._folders(), "get_output_directory", lambda: str(tmp_path))
    with torch.inference_mode():
        path, = lab.node("LodestarSaveNoiseAwareClassifier", classifier=found, prefix="a/b")
        with pytest.raises(ValueError, match="Name a file"):
            lab.node("LodestarSaveNoiseAwareClassifier", classifier=found, prefix="../b")
    from safetensors.torch import load_file
    assert path == str(tmp_path / "a" / "b_00001.safetensors") and parse(load_file(path)).classes == 2
    bundled, = lab.node("LodestarLoadNoiseAwareClassifier")
    assert bundled.classes == 3 and bundled.channels == 16

    class Stop(Exception):
        pass

    def stop():
        raise Stop
    monkeypatch.setattr(comfy.model_management, "throw_exception_if_processing_interrupted", stop)
    with pytest.raises(Stop):
        lab.node("LodestarTrainNoiseAwareClassifier", model=model, examples=both, steps=3, batch=4, width=8)
