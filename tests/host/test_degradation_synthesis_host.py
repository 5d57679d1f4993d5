"""Degradation Synthesis (GenDeg) on the bundled model in a real ComfyUI."""
import random

import pytest
import torch

pytestmark = pytest.mark.method("LodestarDegradationSynthesis")


@pytest.fixture(scope="module")
def lab(host):
    from lodestar.demo.loader import load_demo_model
    from lodestar.demo.scenes import random_scene, render
    from lodestar.guidance.host import features
    from lodestar.nodes import definitions

    class Lab:
        nodes = definitions()
    lab = Lab()
    features.complete()
    with torch.inference_mode():
        lab.model, lab.clip, lab.vae = load_demo_model("degrading")
        lab.generator = lab.nodes["LodestarLoadDegradationGenerator"].call({"file": lab.nodes["LodestarLoadDegradationGenerator"].inputs[0].default})[0][0]
        lab.scenes = [random_scene(random.Random(i)) for i in range(2)]
        lab.clean = torch.stack([render(s, 128) for s in lab.scenes]).movedim(1, -1)
    return lab


def node(lab, rows=(0, 1), **values):
    d = lab.nodes["LodestarDegradationSynthesis"]
    given = {i.name: i.default for i in d.inputs if i.widget or i.optional}
    with torch.inference_mode():
        return d.call({**given, "model": lab.model, "clip": lab.clip, "vae": lab.vae, "generator": lab.generator, "image": lab.clean[list(rows)], **values})[0]


def sample(made, cfg=2.0, steps=3, seeds=(0, 1), model=None):
    import comfy.sample
    patcher, positive, negative, latent = made
    noise = torch.cat([torch.randn(1, *latent["samples"].shape[1:], generator=torch.Generator().manual_seed(s)) for s in seeds])
    with torch.inference_mode():
        return comfy.sample.sample(model or patcher, noise, steps, cfg, "euler", "normal", positive, negative, latent["samples"], disable_pbar=True, seed=0)


def close(a, b, part=2e-4):
    assert (a - b).abs().max() <= part * b.abs().max()


def test_a_batch_is_its_pictures_with_their_levels(lab):
    from lodestar.guidance.inverse.degradation_synthesis import DegradationLevel
    levels = ((0.1, 0.05), (0.35, 0.1))
    both = sample(node(lab, level=DegradationLevel(levels)))
    for i, (mean, deviation) in enumerate(levels):
        close(sample(node(lab, (i,), mean=mean, deviation=deviation), seeds=(i,)), both[i:i + 1], 2e-3)


def test_an_image_scale_of_one_is_the_host_alone(lab):
    made = node(lab, image_scale=1.0)
    assert torch.equal(sample(made), sample(made, model=lab.model))
    assert (sample(node(lab, image_scale=2.0)) - sample(made)).abs().max() > 1e-2


def test_the_scales_are_those_of_the_hosts_dual_guider(lab):
    """u + s_text (c - i) + s_image (i - u), evaluated by the network itself at each step of Euler."""
    import comfy.samplers
    from lodestar.guidance.host import features
    if not features.wrappers():
        pytest.skip("this host's guider cannot take three prompts; the formula is a unit test")

    class Dual(comfy.samplers.CFGGuider):
        def predict_noise(self, x, timestep, model_options={}, seed=None):
            u, i, c = comfy.samplers.calc_cond_batch(self.inner_model, [self.conds[k] for k in ("unseen", "negative", "positive")], x, timestep, model_options)
            return u + 2.5 * (c - i) + 1.7 * (i - u)
    made = node(lab, image_scale=1.7)
    _, positive, negative, latent = made
    noise = torch.cat([torch.randn(1, *latent["samples"].shape[1:], generator=torch.Generator().manual_seed(s)) for s in (0, 1)])
    with torch.inference_mode():
        guider = Dual(lab.model)
        guider.inner_set_conds({"positive": positive, "negative": negative, "unseen": [[negative[0][0], {k: v for k, v in negative[0][1].items() if k != "concat_latent_image"}]]})
        sigmas = comfy.samplers.calculate_sigmas(lab.model.get_model_object("model_sampling"), "normal", 3)
        wanted = guider.sample(noise, latent["samples"], comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True, seed=0)
    close(sample(made, 2.5), wanted, 1e-3)


def test_level_kind_and_picture_reach_the_network(lab):
    base = sample(node(lab))
    for change in ({"mean": 0.5}, {"deviation": 0.3}, {"degradation": "low light"}, {"any_level": True}):
        assert (sample(node(lab, **change)) - base).abs().max() > 1e-2, change
    assert (sample(node(lab, (1, 0)), seeds=(0, 1)) - base).abs().max() > 0.1


def test_a_scene_is_kept(lab):
    """Eight steps at cfg 1: each picture is its clean one's, its ground too, and not the other scene's."""
    made = node(lab, mean=0.05, deviation=0.03, image_scale=1.0)
    with torch.inference_mode():
        out = lab.vae.decode(sample(made, 1.0, steps=8)).clamp(0, 1)
    far = [[float((out[[i]] - lab.clean[[j]]).abs().mean()) for j in (0, 1)] for i in (0, 1)]
    assert far[0][0] < 0.15 > far[1][1] and far[0][1] > 2 * far[0][0] and far[1][0] > 2 * far[1][1], far


@pytest.mark.newest
def test_other_models_are_refused_by_name(lab):
    from lodestar.demo.loader import load_demo_model
    from lodestar.guidance.method import BadInput
    with torch.inference_mode():
        unet, dit = load_demo_model("unet"), load_demo_model("dit")
    with pytest.raises(BadInput, match="takes 16 channels"):
        node(lab, model=unet[0])
    with pytest.raises(BadInput, match="Flux"):
        node(lab, model=dit[0])
