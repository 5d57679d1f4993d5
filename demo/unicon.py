"""The bundled pair of streams (UniCon): pictures of scenes and their depth, for the bundled U-Net."""
import torch

from . import networks, text
from .scenes import mask_of

NAME = "unicon_depth"
RANK = 16
FARTHEST, NEAREST = 6.5, 13.0      # half extents of the smallest and the largest things


def nearness(thing):
    """Brightness of a thing in the depth picture: the larger it is, the nearer."""
    return 0.35 + 0.65 * (thing.radius - FARTHEST) / (NEAREST - FARTHEST)


def depth(scene, size=64):
    """The depth picture of a scene [3, size, size] in [0, 1]: the background black, things the brighter the larger they are."""
    image = torch.zeros(size, size)
    for thing in scene.things:
        mask = mask_of(thing, size)
        image = image * (1 - mask) + nearness(thing) * mask
    return image.clamp(0, 1).expand(3, size, size)


def blocks():
    """(diffusers' name, width) of the U-Net's transformer blocks."""
    c, m, per = networks.UNET["model_channels"], networks.UNET["channel_mult"], networks.UNET["num_res_blocks"]
    name = "attentions.{}.transformer_blocks.0".format
    down = [(f"down_blocks.{i}.{name(j)}", c * k) for i, k in enumerate(m) for j in range(per)]
    up = [(f"up_blocks.{i}.{name(j)}", c * k) for i, k in enumerate(reversed(m)) for j in range(per + 1)]
    return [*down, (f"mid_block.{name(0)}", c * m[-1]), *up]


def fresh(seed=0, rank=RANK):
    """Weights before training {key: tensor}: nothing of one stream reaches the other, the condition's stream is the network itself."""
    g, w = torch.Generator().manual_seed(seed), {}
    for block, width in blocks():
        for attention, loras in (("attn1n", ("xy_lora", "yx_lora")), ("attn1", ("y_lora",)), ("attn2", ("y_lora",))):
            for part in ("to_q", "to_k", "to_v", "to_out.0"):
                given = text.WIDTH if attention == "attn2" and part in ("to_k", "to_v") else width
                for lora in loras:
                    w[f"{block}.{attention}.{part}.lora_A.{lora}.weight"] = torch.randn(rank, given, generator=g) / rank
                    w[f"{block}.{attention}.{part}.lora_B.{lora}.weight"] = torch.zeros(width, rank)
        w[f"{block}.conv1n.weight"] = torch.zeros(2 * width, 2 * width)
    return w
