"""Block-Wise Semantics on a small random U-Net of a real ComfyUI."""
import pytest
import torch

pytest.importorskip("torch")
pytestmark = pytest.mark.method("LodestarBlockWiseSemantics")


@pytest.fixture(scope="module")
def lab(host):
    """A U-Net, prompts, a latent, a picture, and weights for it."""
    import lodestar.tests.tiny as tiny
    from lodestar.guidance.host.geometry import of_model
    from lodestar.guidance.inverse.block_semantics import parse
    from lodestar.tests.pairs import semantics_file

    class Lab:
        pass

    lab = Lab()
    lab.tiny = tiny
    with torch.inference_mode():
        lab.unet = tiny.unet()
    lab.network = lab.unet.model.diffusion_model
    lab.file = semantics_file(lab.network, of_model(lab.unet))
    lab.weights = parse(lab.file, "test", "file")
    g = torch.Generator().manual_seed(9)
    lab.positive, lab.negative = tiny.prompt(1), tiny.prompt(2)
    lab.noise, lab.latent, lab.image = torch.randn(3, 4, 8, 8, generator=g), torch.randn(3, 4, 8, 8, generator=g), torch.rand(3, 64, 64, 3, generator=g)

    def run(patcher, rows=(0, 1, 2), **k):
        with torch.inference_mode():
            return tiny.sample(patcher, lab.positive, lab.negative, latent=lab.latent[list(rows)], noise=lab.noise[list(rows)], **{"steps": 3, **k})
    lab.run = run
    return lab


def seen(lab, model=None, **values):
    from lodestar.guidance.host.attach import attach
    from lodestar.guidance.inverse.block_semantics import BlockWiseSemantics
    return attach(model or lab.unet, BlockWiseSemantics(**{"weights": lab.weights, "image": lab.image, **values}))


def close(a, b, part=1e-4):
    assert (a - b).abs().max() <= part * b.abs().max()


def test_blocks_see_the_picture(lab):
    plain, out = lab.run(lab.unet), lab.run(seen(lab))
    assert (out - plain).abs().max() > 1e-2
    assert torch.equal(lab.run(seen(lab, semantics=0.0, guidance=0.0)), plain)
    apart = [lab.run(seen(lab, **v)) for v in ({"semantics": 0.0}, {"guidance": 0.0}, {"negative_rows": "off"}, {"start_percent": 0.5})]
    assert all((a - b).abs().max() > 1e-4 for i, a in enumerate([out, plain, *apart]) for b in apart[:max(0, i - 2)])
    for i in range(3):      # a batch is its pictures
        close(lab.run(seen(lab, image=lab.image[i:i + 1]), rows=(i,)), out[i:i + 1])
    assert not any("forward" in m.__dict__ for m in lab.network.modules())


def test_a_file_before_its_training_leaves_every_bit(lab):
    from lodestar.guidance.inverse.block_semantics import parse
    zero = {k: torch.zeros_like(v) if k.endswith("gate") or k.startswith(("structure.leave", "edges.leave")) else v for k, v in lab.file.items()}
    assert torch.equal(lab.run(seen(lab, weights=parse(zero, "test", "file"))), lab.run(lab.unet))


def test_it_is_the_networks_own_attention(lab):
    """The same as with the picture's branch computed from the network's own projections beside each attention to the text, as the training does."""
    from lodestar.demo.module_training import placed
    from lodestar.demo.train_block_semantics import Seen, blocks
    tokens = [p.cond[0][0] for p in seen(lab, image=lab.image[:1]).model_options["lodestar"].methods[-1].weights.texts]
    with torch.inference_mode():
        out = lab.run(seen(lab, guidance=0.0, image=lab.image[:1]), rows=(0,), cfg=1.0)
        with placed(lab.network, Seen("", lab.weights, tuple(tokens), blocks(lab.network))):
            close(out, lab.run(lab.unet, rows=(0,), cfg=1.0))
    assert (out - lab.run(lab.unet, rows=(0,), cfg=1.0)).abs().max() > 1e-3


@pytest.mark.newest
def test_beside_others_and_in_half_precision(lab):
    from lodestar.guidance.host.attach import attach
    from lodestar.guidance.loss.target import TargetImage
    from lodestar.guidance.loss.universal import UniversalGuidance
    from lodestar.guidance.method import BadInput
    from lodestar.guidance.perturbation.pag import PerturbedAttentionGuidance
    both = lab.run(attach(seen(lab), PerturbedAttentionGuidance()))
    assert torch.isfinite(both).all() and (both - lab.run(seen(lab))).abs().max() > 1e-3
    loss = TargetImage(target=lab.latent[:1], reduction="mean")
    steered = [lab.run(attach(seen(lab, image=lab.image[:1]), UniversalGuidance(loss=loss, route=r, start_percent=0.0, end_percent=1.0)), rows=(0,), steps=2) for r in ("network", "checkpoint")]
    close(steered[1], steered[0])
    with torch.inference_mode():
        half, wide, flux = lab.tiny.unet(dtype=torch.bfloat16), lab.tiny.unet(channels=64), lab.tiny.flux()
    assert torch.isfinite(lab.run(seen(lab, half))).all()
    with pytest.raises(BadInput, match="another model"):
        seen(lab, wide)
    with pytest.raises(BadInput, match="Use a U-Net"):
        seen(lab, flux)
