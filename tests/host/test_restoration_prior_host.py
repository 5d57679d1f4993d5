"""Train Restoration Prior on small random networks of a real ComfyUI: the LoRA that is trained is the one that the host puts on."""
import pytest
import torch

pytest.importorskip("torch")
pytestmark = pytest.mark.method("LodestarTrainRestorationPrior")


@pytest.fixture(scope="module")
def lab(host):
    import lodestar.tests.tiny as tiny
    from lodestar.guidance.host.features import wrappers
    from lodestar.guidance.training.restoration_prior import RestorationExamples

    class Lab:
        pass

    lab = Lab()
    lab.tiny, lab.modern = tiny, wrappers()
    g = torch.Generator().manual_seed(3)
    good, bad = torch.randn(4, 4, 8, 8, generator=g) * 0.3 + 1.0, torch.randn(2, 4, 8, 8, generator=g) * 0.3 - 1.0
    lab.good, lab.bad = tiny.prompt(1), tiny.prompt(2)
    lab.examples = RestorationExamples(((good, bad, lab.good, lab.bad),))
    lab.noise = torch.randn(2, 4, 8, 8, generator=g)
    return lab


def run(lab, model, positive):
    with torch.inference_mode():
        return lab.tiny.sample(model, positive, lab.bad, cfg=1.0, steps=2, noise=lab.noise, latent=torch.zeros(2, 4, 8, 8))


@pytest.mark.newest
@pytest.mark.parametrize("kind", ["unet", "flux"])
def test_the_trained_model_tells_the_words_apart(lab, kind):
    from lodestar.guidance.host.prior_training import applied, train
    from lodestar.guidance.training.restoration_prior import TrainRestorationPrior
    with torch.inference_mode():
        model = getattr(lab.tiny, kind)()
    plain, other = run(lab, model, lab.good), run(lab, model, lab.bad)
    method = TrainRestorationPrior(examples=lab.examples, empty=lab.tiny.prompt(9), steps=10, rate=4e-2, good_share=0.5, batch=2, layers="all")
    lora, *losses = train(method, model)
    assert all(v == v for v in losses) and all(float(v.abs().max()) > 0 for v in lora.values())
    with torch.inference_mode():
        made = applied(model, lora)
    outs = [run(lab, made, prompt) for prompt in (lab.good, lab.bad)]
    assert (outs[0] - outs[1]).mean() > (plain - other).mean() + 0.004      # good pictures are 1 on the average, degraded ones -1
    assert not any("forward" in m.__dict__ for m in model.model.diffusion_model.modules())
    assert torch.equal(run(lab, model, lab.good), plain)      # the model that was given stays as it was


@pytest.mark.newest
def test_the_hosts_lora_is_what_was_trained(lab):
    """The network with the LoRA in its layers and the model that the host has patched give the same prediction."""
    from lodestar.guidance.host.prior_training import _with_lora, applied, layers
    from lodestar.guidance.training.restoration_prior import file_of, fresh
    with torch.inference_mode():
        model = lab.tiny.unet()
    network = model.model.diffusion_model
    found = layers(network, "attention")
    assert found and all("attn" in n for n in found) and len(layers(network, "all")) > len(found)
    g = torch.Generator().manual_seed(0)
    pairs = {n: (down.half().float(), (torch.randn(up.shape, generator=g) * 0.2).half().float()) for n, (down, up) in fresh({n: (m.out_features, m.in_features) for n, m in found.items()}, 3, g).items()}
    with torch.inference_mode():
        patched = run(lab, applied(model, file_of(pairs)), lab.good)
    plain = run(lab, model, lab.good)
    try:
        for name, module in found.items():
            module.forward = _with_lora(module.forward, pairs[name])
        own = run(lab, model, lab.good)
    finally:
        for module in found.values():
            module.__dict__.pop("forward")
    assert (own - patched).abs().max() < 1e-3 * own.abs().max() and (own - plain).abs().max() > 1e-2


def test_old_hosts_say_so_and_no_steps_are_no_training(lab):
    from lodestar.guidance.host.prior_training import train
    from lodestar.guidance.method import BadInput
    from lodestar.guidance.training.restoration_prior import TrainRestorationPrior
    from lodestar.nodes import definitions
    with torch.inference_mode():
        model = lab.tiny.unet()
    definition = definitions()["LodestarTrainRestorationPrior"]
    same, lora, _ = definition.call({"model": model, "examples": lab.examples, **{i.name: i.default for i in definition.inputs if i.widget}, "steps": 0})[0]
    assert same is model and lora == {}
    if not lab.modern:
        with pytest.raises(BadInput, match="December 2024"):
            train(TrainRestorationPrior(examples=lab.examples, steps=2), model)
