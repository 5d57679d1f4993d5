"""The particle samplers on a real ComfyUI with small random networks: calls, prompts and masks by entry, starts, reports."""
import pytest
import torch

CANDIDATES = {"LodestarParticleSteering": {"particles": 3, "every": 1, "strength": 50.0}, "LodestarSVDDSampler": {"candidates": 3}, "LodestarFree2Guide": {"candidates": 3, "steps": 2}}
ONE = {"LodestarParticleSteering": {"particles": 1}, "LodestarSVDDSampler": {"candidates": 1}, "LodestarFree2Guide": {"candidates": 1}}
KALMAN, CORRECTOR = "LodestarEnsembleKalmanGuidance", "LodestarFeynmanKacCorrector"
EVERY = pytest.mark.parametrize("node_id", [pytest.param(n, marks=pytest.mark.method(n)) for n in CANDIDATES])


@pytest.fixture(scope="module")
def lab(host):
    from lodestar.tests.sampler_lab import SamplerLab
    lab = SamplerLab()
    with torch.inference_mode():
        lab.losses = {kind: lab.node("LodestarJPEGSizeLoss", model=model, space="small", quality=50)[0] for kind, model in lab.models.items()}
        lab.left = lab.node("LodestarColouredShapeLoss", model=lab.models["unet"], space="small", shape=0.0, place=1.0, x=0.0)[0]
    return lab


def near(a, b):
    return (a - b).abs().max() < 1e-3 * b.abs().max()


@EVERY
@pytest.mark.parametrize("kind", ("unet", "flux"))
def test_one_is_euler_and_entries_calls_and_reports_hold(lab, node_id, kind):
    if kind not in lab.models:
        pytest.skip("this host has no Flux")
    loss = lab.losses[kind]
    plain = lab.sample(lab.samplers.ksampler("euler"), kind, batch=2)
    assert torch.equal(lab.sample(lab.node(node_id, loss=loss, eta=0.0, **ONE[node_id])[0], kind, batch=2), plain)
    sampler, record = lab.node(node_id, loss=loss, **CANDIDATES[node_id])
    out = lab.sample(sampler, kind, batch=2)
    assert torch.isfinite(out).all() and out.shape == plain.shape and (out - plain).abs().max() > 1e-3
    assert torch.equal(out, lab.sample(sampler, kind, batch=2)) and record.rows and "3 particles" in record.words()
    assert near(lab.sample(sampler, kind), out[:1])
    assert near(lab.sample(lab.node(node_id, loss=loss, chunk=1, **CANDIDATES[node_id])[0], kind, batch=2), out)      # how rows are split into calls is all the same
    sheet, text = lab.node("LodestarParticlePlot", record=record, latent={"samples": out})
    assert sheet.shape[2:] == (860, 3) and sheet.shape[1] in (240, 480) and "3 particles" in text


@EVERY
def test_prompts_of_each_entry_stay_with_it_and_masks_hold(lab, node_id):
    """A conditioning with a row for each entry, and one with more rows than entries; an inpainting mask."""
    loss, both = lab.left, lab.positive
    try:
        from lodestar.tests import tiny
        with torch.inference_mode():
            other = tiny.prompt(7)
            rows = [[torch.cat([both[0][0], other[0][0]]), {k: torch.cat([v, other[0][1][k]]) if isinstance(v, torch.Tensor) else v for k, v in both[0][1].items()}]]
        sampler = lab.node(node_id, loss=loss, **CANDIDATES[node_id])[0]
        lab.positive = rows
        out = lab.sample(sampler, batch=2)
        lab.positive = other
        assert near(lab.sample(sampler, batch=2)[1:], out[1:])
        lab.positive = both
        assert near(lab.sample(sampler, batch=1), out[:1])
        lab.positive = rows
        assert near(lab.sample(sampler, batch=1), out[:1])      # the host leaves the second row out
    finally:
        lab.positive = both
    inside = torch.zeros(2, 1, 8, 8)
    inside[:1, ..., :4], inside[1:, ..., 4:] = 1, 1
    latent = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(9))
    masked = lab.sample(sampler, mask=inside, latent=latent, batch=2)
    kept = 1 - inside.expand_as(masked)
    assert torch.isfinite(masked).all() and ((masked - latent) * kept).abs().max() < 1e-4 and ((masked - latent) * (1 - kept)).abs().max() > 1e-2


@pytest.mark.method("LodestarParticleSteering")
def test_all_particles_come_in_order_and_starts_are_the_hosts(lab):
    loss = lab.losses["unet"]
    best = lab.sample(lab.node("LodestarParticleSteering", loss=loss, particles=3, strength=0.0, eta=0.0)[0], batch=2)
    every = lab.sample(lab.node("LodestarParticleSteering", loss=loss, particles=3, strength=0.0, eta=0.0, give="all")[0], batch=2)
    assert every.shape[0] == 6
    plain = lab.sample(lab.samplers.ksampler("euler"), batch=2)
    assert near(every[0], plain[0]) and near(every[3], plain[1])      # particle 0 has the noise of the graph
    assert all(any(torch.equal(b, e) for e in every[3 * i:3 * i + 3]) for i, b in enumerate(best))
    spread = every.view(2, 3, -1).std(2)
    assert (spread / spread.mean() - 1).abs().max() < 0.3


@pytest.mark.method("LodestarParticleSteering")
def test_methods_on_the_model_take_part(lab):
    from lodestar.guidance.host.attach import attach
    from lodestar.guidance.rules.apg import AdaptiveProjectedGuidance
    with torch.inference_mode():
        model = attach(lab.models["unet"], AdaptiveProjectedGuidance())      # which remembers earlier steps
    sampler, _ = lab.node("LodestarParticleSteering", loss=lab.losses["unet"], **CANDIDATES["LodestarParticleSteering"])
    out = lab.sample(sampler, model=model, batch=2)
    assert torch.isfinite(out).all() and (out - lab.sample(sampler, batch=2)).abs().max() > 1e-4


@pytest.mark.method(KALMAN)
@pytest.mark.parametrize("kind", ("unet", "flux"))
def test_kalman_guidance(lab, kind):
    if kind not in lab.models:
        pytest.skip("this host has no Flux")
    from lodestar.guidance.inverse.operators import Inpainting
    from lodestar.guidance.inverse.problem import Measurement
    hole = torch.zeros(1, 8, 8)
    hole[:, 2:5, 2:5] = 1
    with torch.inference_mode():
        measurement = Measurement(Inpainting(hole), torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3)))
    plain = lab.sample(lab.samplers.ksampler("euler"), kind, batch=2)
    assert torch.equal(lab.sample(lab.node(KALMAN, measurement=measurement, scale=0.0)[0], kind, batch=2), plain)
    sampler, record = lab.node(KALMAN, measurement=measurement, particles=4, skip_first=0.0)
    out = lab.sample(sampler, kind, batch=2)
    assert torch.isfinite(out).all() and (out - plain).abs().max() > 1e-3 and len(record.rows[-1]["losses"][0]) == 4
    assert near(lab.sample(sampler, kind), out[:1])


@pytest.mark.method(CORRECTOR)
@pytest.mark.parametrize("kind", ("unet", "flux"))
def test_corrector(lab, kind):
    if kind not in lab.models:
        pytest.skip("this host has no Flux")
    model, plain = lab.models[kind], lab.samplers.ksampler("euler")
    with torch.inference_mode():
        guided, one, _ = lab.node(CORRECTOR, model=model, particles=1, guidance=3.0, eta=0.0)
        assert near(lab.sample(one, model=guided, batch=2), lab.sample(plain, kind, batch=2))      # the lab's cfg is 3
        off, sampler, _ = lab.node(CORRECTOR, model=model, particles=1, guidance=1.0, eta=0.0)
        assert off is model and torch.equal(lab.sample(sampler, kind), lab.sample(plain, kind))
        guided, sampler, record = lab.node(CORRECTOR, model=model, particles=3, guidance=3.0)
        out = lab.sample(sampler, model=guided, batch=2)
        assert torch.isfinite(out).all() and len(record.rows[-1]["ess"]) == 2 and near(lab.sample(sampler, model=guided), out[:1])
        with pytest.raises(ValueError, match="Connect the MODEL"):
            lab.sample(sampler, kind)
        # a product with the same prompt, and with the same model, is a power of 2
        prompt = {"second": lab.positive} | ({"second_model": model} if lab.modern else {})
        found = []
        for given in ({"power": 2.0}, *({name: value} for name, value in prompt.items())):
            guided, sampler, _ = lab.node(CORRECTOR, model=model, particles=2, guidance=1.0, **given)
            found.append(lab.sample(sampler, model=guided))
        for other in found[1:]:
            assert near(other, found[0])
        inside = torch.zeros(1, 1, 8, 8)
        inside[..., :4] = 1
        masked = lab.sample(sampler, model=guided, mask=inside)
        assert torch.isfinite(masked).all() and masked[..., 5:].abs().max() < 1e-5


@pytest.mark.method("LodestarLearnedValueSampler", "LodestarTrainValueFunction")
def test_a_value_function_is_trained_asked_and_kept(lab, tmp_path, monkeypatch):
    """Trained in the graph on the model's latents, asked by the sampler, written and read again; one candidate is Euler; prompts with a row for each entry."""
    latents = {"samples": torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(2))}
    with torch.inference_mode():
        scored = lab.node("LodestarScoreLatentsByLoss", model=lab.models["unet"], latent=latents, loss=lab.left)[0]
        value, report = lab.node("LodestarTrainValueFunction", model=lab.models["unet"], examples=scored, steps=8, batch=4, width=8)
    assert "6 examples" in report
    plain = lab.sample(lab.samplers.ksampler("euler"), batch=2)
    assert torch.equal(lab.sample(lab.node("LodestarLearnedValueSampler", value=value, candidates=1, eta=0.0)[0], batch=2), plain)
    sampler, record = lab.node("LodestarLearnedValueSampler", value=value, candidates=3)
    out = lab.sample(sampler, batch=2)
    assert torch.isfinite(out).all() and torch.equal(out, lab.sample(sampler, batch=2)) and "3 particles" in record.words()
    assert near(lab.sample(sampler), out[:1])
    from lodestar.guidance.host import weight_files
    monkeypatch.setattr(weight_files._folders(), "get_output_directory", lambda: str(tmp_path))
    path, = lab.node("LodestarSaveValueFunction", value=value)
    from lodestar.guidance.training.value import parse
    from safetensors.torch import load_file
    again = lab.sample(lab.node("LodestarLearnedValueSampler", value=parse(load_file(path)), candidates=3)[0], batch=2)
    assert torch.isfinite(again).all() and again.shape == out.shape
