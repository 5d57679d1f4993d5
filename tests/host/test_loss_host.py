"""Universal Guidance on the bundled models: towards a latent and towards a picture, through the network and without it."""
import pytest
import torch

pytestmark = pytest.mark.method("LodestarUniversalGuidance")


@pytest.fixture(scope="module")
def lab(host):
    from lodestar.demo.loader import load_demo_model
    from lodestar.guidance.host import features

    class Lab:
        modern = features.wrappers()

        def __init__(self):
            self.loaded = {}

        def load(self, kind):
            if kind not in self.loaded:
                with torch.inference_mode():
                    self.loaded[kind] = load_demo_model(kind)
            return self.loaded[kind]
    return Lab()


def prompt(clip, text):
    cond, pooled = clip.encode_from_tokens(clip.tokenize(text), return_pooled=True)
    return [[cond, {"pooled_output": pooled}]]


@pytest.mark.parametrize("kind", ("unet", "dit"))
@pytest.mark.parametrize("space", ("latent", "rgb"))
@pytest.mark.parametrize("route", ("network", "none"))
@pytest.mark.method("LodestarTargetImageLoss")
def test_the_picture_comes_nearer_to_the_target(lab, kind, space, route):
    if not lab.modern and (kind == "dit" or route == "network"):
        pytest.skip("this host has neither Flux nor gradients through the network; test_engine checks that it says so")
    import comfy.sample

    from lodestar.demo import scenes
    from lodestar.guidance.host.attach import attach
    from lodestar.guidance.host.decode import Decoder
    from lodestar.guidance.loss.target import TargetImage
    from lodestar.guidance.loss.universal import UniversalGuidance
    model, clip, vae = lab.load(kind)
    scene = scenes.two_object_prompts(1, seed=3)[0]
    with torch.inference_mode():
        image = torch.nn.functional.interpolate(scenes.render(scene)[None], scale_factor=2, mode="nearest")
        pixels = image.movedim(1, -1)
        latent_format = model.get_model_object("latent_format")
        if space == "rgb":
            loss = TargetImage(target=image, space="rgb", decoder=Decoder(vae, latent_format))
        else:
            loss = TargetImage(target=latent_format.process_in(vae.encode(pixels)))
        positive, negative = prompt(clip, "a red circle"), prompt(clip, "")
        noise = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(0))

        def picture(patcher):
            latent = comfy.sample.sample(patcher, noise, 6, 2.0, "euler", "simple", positive, negative, torch.zeros_like(noise), disable_pbar=True, seed=0)
            return vae.decode(latent)
        plain = (picture(model) - pixels).square().mean()
        steered = (picture(attach(model, UniversalGuidance(loss=loss, scale=1.0, route=route))) - pixels).square().mean()
    assert steered < 0.8 * plain
