"""Guided Decode with the bundled VAE of a real ComfyUI."""
import pytest
import torch

pytest.importorskip("torch")
pytestmark = pytest.mark.method("LodestarGuidedDecode")


@pytest.fixture(scope="module")
def lab(host):
    """The VAE, latents of pictures, the degraded pictures, and a branch that changes much."""
    from lodestar.demo.guidance_branch import fresh
    from lodestar.demo.loader_vae import make_vae
    from lodestar.guidance.host.guided_decode import decoded
    from lodestar.guidance.inverse.guidance_branch import GuidedDecode, parse

    class Lab:
        pass

    lab, g = Lab(), torch.Generator().manual_seed(3)
    lab.vae = make_vae()
    lab.latent = torch.randn(3, 16, 4, 6, generator=g)
    lab.image = torch.rand(3, 32, 48, 3, generator=g)
    lab.branch = parse({k: v + 0.1 * torch.randn(v.shape, generator=g) for k, v in fresh(width=6).items()}, "test", "file")

    def run(rows=(0, 1, 2), **values):
        with torch.inference_mode():
            return decoded(GuidedDecode(**{"latent": {"samples": lab.latent[list(rows)]}, "vae": lab.vae, "image": lab.image[list(rows)], "branch": lab.branch, **values}).validate())
    lab.run, lab.plain = run, make_plain(lab)
    return lab


def make_plain(lab):
    with torch.inference_mode():
        return lab.vae.decode(lab.latent)


def test_no_strength_is_the_vae(lab):
    assert torch.equal(lab.run(strength=0.0), lab.plain)
    out = lab.run()
    assert out.shape == lab.plain.shape and out.dtype == lab.plain.dtype and out.min() >= 0 and out.max() <= 1 and (out - lab.plain).abs().max() > 0.05


def test_the_pictures_are_the_branchs(lab):
    from lodestar.guidance.inverse.guidance_branch import guided
    first = lambda t: t.movedim(-1, 1)
    wanted = guided(lab.branch, first(lab.image), first(lab.plain).float(), 0.7)
    torch.testing.assert_close(first(lab.run(strength=0.7)).float(), wanted, atol=2e-3, rtol=0)


def test_a_batch_is_its_pictures_and_one_image_serves_all(lab):
    out = lab.run()
    for i in range(3):
        torch.testing.assert_close(lab.run([i]), out[i:i + 1], atol=1e-5, rtol=0)
    torch.testing.assert_close(lab.run(image=lab.image[:1])[0], out[0], atol=1e-5, rtol=0)
    small = lab.run(image=lab.image[:, ::2, ::2])      # the low-resolution picture itself
    assert small.shape == out.shape and torch.isfinite(small).all()


class Frames:
    """Stands for a VAE of videos whose pictures have an alpha channel."""

    def __init__(self, pictures):
        self.pictures = pictures

    def decode(self, samples):
        return self.pictures


def test_frames_and_further_channels(lab):
    from lodestar.guidance.method import BadInput
    alpha = torch.full((*lab.plain.shape[:3], 1), 0.5)
    video = Frames(torch.cat((lab.plain, alpha), -1)[None])
    out = lab.run(vae=video)
    torch.testing.assert_close(out[..., :3], lab.run(), atol=1e-5, rtol=0)
    assert torch.equal(out[..., 3:], alpha)
    assert lab.run(vae=Frames(lab.plain.half())).dtype == torch.float16
    with pytest.raises(BadInput, match="VAE of pictures"):
        lab.run(vae=Frames(torch.zeros(1, 2, 100)))


def test_what_cannot_be_is_named(lab):
    from lodestar.guidance.method import BadInput

    class Nested(torch.Tensor):
        is_nested = True
    for values, message in (({"branch": None}, "Connect Load Guidance Branch"), ({"image": None}, "three colours"), ({"image": lab.image[..., :1]}, "three colours"), ({"latent": None}, "One latent"),
                            ({"latent": {"samples": lab.latent.as_subclass(Nested)}}, "One latent")):
        with pytest.raises(BadInput, match=message):
            lab.run(**values)


@pytest.mark.newest
def test_the_bundled_branch_brings_one_step_nearer(host):
    """Fresh scenes, degraded, one step with the bundled LoRA, the bundled VAE: 16 pictures."""
    import random

    from lodestar.demo.guidance_branch import NAME
    from lodestar.demo.train_guidance_branch import Restorer, Stock
    from lodestar.demo.weights_file import FOLDER, read
    from lodestar.guidance.inverse.guidance_branch import guided, parse
    stock = Stock(Restorer(FOLDER), torch.Generator().manual_seed(123))
    true, bad, drawn = stock.fresh(random.Random(123), 16)
    error = lambda t: (t - true).square().mean((1, 2, 3))
    with torch.no_grad():
        out = guided(parse(read(NAME), "test", "file"), bad, drawn, 1.0)
    assert (error(out) < error(drawn)).float().mean() > 0.8 and error(out).mean() < 0.6 * error(drawn).mean()
