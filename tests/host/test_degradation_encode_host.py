"""Degradation-Guided Encode on a small autoencoder of the host's own class."""
import pytest
import torch

pytestmark = pytest.mark.method("LodestarDegradationGuidedLora")
RANK = 2


@pytest.fixture(scope="module")
def lab(host):
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from lodestar.demo.degradation_lora import fresh
    from lodestar.guidance.inverse.degradation_lora import parse
    from lodestar.nodes import definitions
    import lodestar.tests.tiny as tiny

    class Vae:
        """What the node needs of the host's VAE."""

        def __init__(self):
            shape = dict(double_z=True, z_channels=4, resolution=32, in_channels=3, out_ch=3, ch=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=[], dropout=0.0)
            self.first_stage_model = AutoencoderKL(ddconfig=shape, embed_dim=4)
            tiny._fill(self.first_stage_model, 3)

        def encode(self, pixels):
            moments = self.first_stage_model.quant_conv(self.first_stage_model.encoder(2 * pixels.movedim(-1, 1) - 1))
            return moments.chunk(2, 1)[0]

    class Lab:
        pass
    lab, g = Lab(), torch.Generator().manual_seed(5)
    with torch.inference_mode():
        lab.vae, lab.other = Vae(), Vae()
        w = fresh(tiny.unet().model.diffusion_model, RANK)
    r = lambda *shape: torch.randn(*shape, generator=g) * 0.3
    names = {"conv_in": (32, 3, 3, 3), "down_blocks.0.resnets.0.conv1": (32, 32, 3, 3), "down_blocks.0.downsamplers.0.conv": (32, 32, 3, 3), "down_blocks.1.resnets.0.conv_shortcut": (64, 32, 1, 1),
             "mid_block.resnets.1.conv2": (64, 64, 3, 3), "mid_block.attentions.0.to_v": (64, 64), "mid_block.attentions.0.to_out.0": (64, 64), "conv_out": (8, 64, 3, 3)}
    for name, (out, given, *kernel) in names.items():
        w[f"state_dict_vae.encoder.{name}.lora_A.vae_skip.weight"], w[f"state_dict_vae.encoder.{name}.lora_B.vae_skip.weight"] = r(RANK, given, *kernel), r(out, RANK, *[1] * len(kernel))
    for name, value in list(w.items()):
        if "unet_" in name:
            w[name.replace("unet", "vae")] = value.clone()
    w["state_embeddings.state_dict_vae_block.weight"] = r(4, w["state_embeddings.state_dict_unet_block.weight"].shape[1])
    lab.lora, lab.bare = parse(w, "test", "file"), parse({k: v for k, v in w.items() if "vae" not in k}, "test", "file")
    lab.pixels, lab.node = torch.rand(2, 32, 32, 3, generator=g), definitions()["LodestarDegradationGuidedEncode"]
    return lab


def encode(lab, rows=(0, 1), **values):
    given = {i.name: i.default for i in lab.node.inputs if i.widget or i.optional}
    with torch.inference_mode():
        return lab.node.call({**given, "pixels": lab.pixels[list(rows)], "vae": lab.vae, "lora": lab.lora, **values})[0][0]["samples"]


def test_no_strength_and_no_keys_are_vae_encode(lab):
    with torch.inference_mode():
        plain = lab.vae.encode(lab.pixels)
    assert torch.equal(encode(lab, strength=0.0), plain) and torch.equal(encode(lab, lora=lab.bare), plain)
    assert (encode(lab) - plain).abs().max() > 1e-2
    assert not any("forward" in m.__dict__ for m in lab.vae.first_stage_model.modules())


def test_the_lora_is_in_the_encoders_layers(lab):
    """The same latents as by an autoencoder whose kernels hold the products."""
    from lodestar.guidance.inverse.degradation_lora import ALPHA, as_convolution, encoder_name
    core = lab.lora.cores(torch.tensor([[0.3, 0.8]]), "vae")[0]
    with torch.inference_mode():
        for name, pair in lab.lora.encoder.items():
            down, up = as_convolution(pair)
            module = lab.other.first_stage_model.encoder.get_submodule(encoder_name(name))
            module.weight.add_(ALPHA / RANK * torch.einsum("or,kr,kihw->oihw", up.flatten(1), core[lab.lora.encoder_block(name)], down))
        wanted = lab.other.encode(lab.pixels)
    out = encode(lab, blur=0.3, noise=0.8)
    assert (out - wanted).abs().max() < 1e-3 * wanted.abs().max()


def test_each_picture_has_its_own_scores(lab):
    from lodestar.guidance.inverse.degradation import Degradation
    both = encode(lab, degradation=Degradation(((0.1, 0.2), (0.9, 0.4))))
    for i, (blur, noise) in enumerate(((0.1, 0.2), (0.9, 0.4))):
        alone = encode(lab, (i,), blur=blur, noise=noise)
        assert (alone - both[i:i + 1]).abs().max() < 1e-4 * alone.abs().max()
    assert (encode(lab, (0,), blur=0.9, noise=0.4) - both[:1]).abs().max() > 1e-2


def test_another_vae_is_refused(lab):
    from lodestar.demo.loader_vae import make_vae
    from lodestar.guidance.method import BadInput
    with torch.inference_mode():
        bundled = make_vae()
    with pytest.raises(BadInput, match="another VAE"):
        encode(lab, vae=bundled)
    with torch.inference_mode():
        assert torch.equal(encode(lab, vae=bundled, lora=lab.bare), bundled.encode(lab.pixels))
