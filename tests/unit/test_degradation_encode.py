"""The second LoRA of S3Diff, for the VAE's encoder: its keys, its blocks, its middle matrices, and the host's names of its layers."""
import math

import pytest
import torch
import torch.nn.functional as F
from lodestar.guidance.inverse.degradation_lora import NETWORKS, VAE_NETWORKS, encoder_name, parse
from lodestar.guidance.method import BadInput

pytestmark = pytest.mark.method("LodestarDegradationGuidedLora")
RANK, VAE_RANK, BANDS = 3, 2, 4
LAYERS = {"conv_in": (4, 3, 3, 3), "down_blocks.0.resnets.1.conv2": (4, 4, 3, 3), "down_blocks.1.downsamplers.0.conv": (4, 4, 3, 3), "mid_block.attentions.0.to_out.0": (4, 4), "conv_out": (8, 4, 3, 3)}


def file(seed=0):
    """A file with one layer of the U-Net and five of the encoder, whose VAE has two resolutions."""
    g, w = torch.Generator().manual_seed(seed), {}
    r = lambda *shape: torch.randn(*shape, generator=g)

    def layer(name, end, shape, rank):
        out, given, *kernel = shape
        w[f"{name}.lora_A.{end}.weight"], w[f"{name}.lora_B.{end}.weight"] = r(rank, given, *kernel), r(out, rank, *[1] * len(kernel))
    layer("state_dict_unet.conv_out", "default", (4, 4, 3, 3), RANK)
    for name, shape in LAYERS.items():
        layer(f"state_dict_vae.encoder.{name}", "vae_skip", shape, VAE_RANK)
    w["w"] = r(BANDS)
    for part, blocks, rank in (("unet", 6, RANK), ("vae", 4, VAE_RANK)):
        w[f"state_embeddings.state_dict_{part}_block.weight"] = r(blocks, 5)
        for name, given, out in (("de_mlp.0", 4 * BANDS, 7), ("block_mlp.0", 5, 5), ("fuse_mlp", 12, rank * rank)):
            w[f"state_dict_{part}_{name}.weight"], w[f"state_dict_{part}_{name}.bias"] = r(out, given), r(out)
    return w


def test_files_are_read_with_and_without_it():
    w = file()
    assert set(VAE_NETWORKS) < set(w) and set(NETWORKS) < set(w)
    lora = parse(w, "test", "file")
    assert set(lora.encoder) == set(LAYERS) and (lora.rank, lora.encoder_rank) == (RANK, VAE_RANK)
    alone = parse({k: v for k, v in w.items() if "vae" not in k}, "test", "file")
    assert alone.encoder == {} and torch.equal(alone.cores(torch.tensor([[0.2, 0.7]])), lora.cores(torch.tensor([[0.2, 0.7]])))
    for gone in (VAE_NETWORKS[0], "state_dict_vae.encoder.conv_in.lora_B.vae_skip.weight"):
        with pytest.raises(BadInput, match="missing"):
            parse({k: v for k, v in w.items() if k != gone}, "test", "file")
    with pytest.raises(BadInput, match="does not fit"):
        parse({**w, "state_dict_vae.encoder.conv_in.lora_A.vae_skip.weight": torch.zeros(5, 3, 3, 3)}, "test", "file")


def test_the_middle_matrices_are_those_of_the_formula():
    """Blocks: each resolution, the middle, the rest; the same frequencies as the U-Net's."""
    w, lora, scores = file(), parse(file(), "test", "file"), torch.tensor([[0.3, 0.8], [1.0, 0.0]])
    cores = lora.cores(scores, "vae")
    assert cores.shape == (2, 4, VAE_RANK, VAE_RANK)
    assert [lora.encoder_block(n) for n in LAYERS] == [3, 0, 1, 2, 3]
    angle = [2 * math.pi * w["w"] * s for s in (0.3, 0.8)]
    seen = F.relu(w["state_dict_vae_de_mlp.0.weight"] @ torch.cat([t for a in angle for t in (a.sin(), a.cos())]) + w["state_dict_vae_de_mlp.0.bias"])
    block = F.relu(w["state_dict_vae_block_mlp.0.weight"] @ w["state_embeddings.state_dict_vae_block.weight"][2] + w["state_dict_vae_block_mlp.0.bias"])
    wanted = w["state_dict_vae_fuse_mlp.weight"] @ torch.cat((seen, block)) + w["state_dict_vae_fuse_mlp.bias"]
    assert torch.allclose(cores[0, 2].flatten(), wanted, atol=1e-5)


@pytest.mark.parametrize("name,own", [
    ("conv_in", "conv_in"), ("conv_out", "conv_out"), ("down_blocks.2.resnets.1.conv1", "down.2.block.1.conv1"), ("down_blocks.1.resnets.0.conv_shortcut", "down.1.block.0.nin_shortcut"),
    ("down_blocks.0.downsamplers.0.conv", "down.0.downsample.conv"), ("mid_block.resnets.1.conv2", "mid.block_2.conv2"), ("mid_block.attentions.0.to_q", "mid.attn_1.q"),
    ("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"), ("up_blocks.0.resnets.0.conv1", None), ("mid_block.resnets.2.conv1", None)])
def test_names_of_the_hosts_layers(name, own):
    assert encoder_name(name) == own
