"""Damaged pictures of the scenes, and the bundled Control-LoRA that sees them: a ControlNet of the bundled U-Net, in the layout that the host's own loader reads.

A damaged place is magenta in the picture that the ControlNet is given: no scene has that colour. `fresh` makes the weights, `whole` the ControlNet's own of them.
"""
import os

import torch
import torch.nn.functional as F

from . import latents, networks
from .scenes import SIZE, random_scene, render
from .weights_file import FOLDER

NAME = "damage_control"
RANK = 8
MAGENTA = (1.0, 0.0, 1.0)


def torn(rng, size=2 * SIZE, low=0.2, high=0.5):
    """A mask [1, size, size] of damage, 1 where it is: patches and cracks until a share between `low` and `high` is gone, in cells of 8 pixels as the latent has them."""
    cells = size // 8
    y, x = torch.meshgrid(torch.arange(cells) + 0.5, torch.arange(cells) + 0.5, indexing="ij")
    gone, share = torch.zeros(cells, cells, dtype=torch.bool), rng.uniform(low, high)
    while gone.float().mean() < share:
        at = rng.uniform(0, cells), rng.uniform(0, cells)
        if rng.random() < 0.6:
            gone |= ((y - at[0]) / rng.uniform(0.1, 0.22)) ** 2 + ((x - at[1]) / rng.uniform(0.1, 0.22)) ** 2 < cells ** 2
        else:
            to = rng.uniform(0, cells), rng.uniform(0, cells)
            along = torch.tensor([to[0] - at[0], to[1] - at[1]])
            t = (((y - at[0]) * along[0] + (x - at[1]) * along[1]) / along.square().sum().clamp(min=1)).clamp(0, 1)
            gone |= torch.hypot(y - at[0] - t * along[0], x - at[1] - t * along[1]) < rng.uniform(0.04, 0.08) * cells
    return gone.float().repeat_interleave(8, 0).repeat_interleave(8, 1)[None]


def shown(pictures, masks):
    """What the ControlNet is given: pictures [n, 3, h, w] in [0, 1], magenta where masks [n, 1, h, w] are 1."""
    return pictures * (1 - masks) + torch.tensor(MAGENTA)[:, None, None] * masks


def damaged(rng, n, close=0.5):
    """(scenes, pictures [n, 3, 128, 128], masks [n, 1, 128, 128], whether each is a part): scenes, of which a share `close` is seen from nearer, in a part of half the side."""
    scenes, pictures, parts = [random_scene(rng) for _ in range(n)], [], []
    for s in scenes:
        parts.append(rng.random() < close)
        y, x = (rng.randrange(0, SIZE + 1) * 2 for _ in range(2))
        pictures.append(render(s, 4 * SIZE)[:, y:y + 2 * SIZE, x:x + 2 * SIZE] if parts[-1] else render(s, 2 * SIZE))
    return scenes, torch.stack(pictures), torch.stack([torn(rng) for _ in scenes]), parts


def controlnet():
    """The host's ControlNet in the shape of the bundled U-Net, without weights. The host must be on the path."""
    import comfy.cldm.cldm
    import comfy.ops
    shape = {k: v for k, v in networks.UNET.items() if k != "out_channels"}
    return comfy.cldm.cldm.ControlNet(**shape, hint_channels=3, transformer_depth=list(networks.UNET_DEPTH_IN), operations=comfy.ops.disable_weight_init).requires_grad_(False)


def seeing(weights, first, code):
    """The hint encoder's weights {key: tensor} from random ones so that it begins by making, of a picture, what the U-Net's first convolution `first` [64, 16, 3, 3] makes of its latent, gray where it is magenta.

    A value x goes through SiLU as a pair of channels, silu(x) - silu(-x) = x; a gate that is large where the picture is magenta closes both: silu(x - g) - silu(-x - g) = 0. What is left of the channels stays as it is.
    """
    w = {k: v * (0.1 if k.endswith("weight") else 1.0) for k, v in weights.items()}

    def layer(index, rows, gate=None, bias=None):
        """rows: [count, values in, 3, 3] between values, each of them a pair of channels (value j in channels j and count + j)."""
        weight, count, given = w[f"input_hint_block.{index}.weight"], *rows.shape[:2]
        for sign, at in ((1, 0), (-1, count)):
            if index == 14 and at:
                break
            weight[at:at + count] = 0
            if index:
                weight[at:at + count, :given], weight[at:at + count, given:2 * given] = sign * rows, -sign * rows
            else:
                weight[at:at + count] = sign * rows
            if gate is not None:
                weight[at:at + count, 2 * given, 1, 1] = -gate
            if bias is not None:
                w[f"input_hint_block.{index}.bias"][at:at + count] = sign * bias

    def taps(values, places, share=1.0):
        """From each value one for each place of the kernel, places fastest; of several places in one list their sum."""
        rows = torch.zeros(values * len(places), values, 3, 3)
        for v in range(values):
            for i, places_of in enumerate(places):
                for y, x in places_of:
                    rows[v * len(places) + i, v, y, x] = share
        return rows
    centre, corners = [[(1, 1)]], [[(1 + y, 1 + x)] for y in range(2) for x in range(2)]
    layer(0, 2 * taps(3, centre), bias=-torch.ones(3))
    w["input_hint_block.0.weight"][6] = 0
    w["input_hint_block.0.weight"][6, :, 1, 1], w["input_hint_block.0.bias"][6] = torch.tensor((20.0, -20.0, 20.0)), -30.0      # red + blue - green is 2 in magenta, less than 1.3 in every scene
    layer(2, taps(3, centre), gate=4.0)
    layer(4, taps(3, [[(1, 1), (1, 2), (2, 1), (2, 2)]], 0.25))
    layer(6, taps(3, centre))
    layer(8, taps(3, corners))
    layer(10, taps(12, centre))
    layer(12, taps(12, corners))
    order = [c * 16 + (2 * v + y) * 4 + 2 * h + x for c in range(3) for y in range(2) for x in range(2) for v in range(2) for h in range(2)]
    made = torch.einsum("oikl,ip->opkl", first, code["basis"] * code["scale"])
    layer(14, made[:, order], bias=-torch.einsum("opkl,p->o", made, code["mean"]))
    return w


def fresh(network, control, code, rank=RANK, seed=0):
    """Weights before training {key: tensor}: `network` is the U-Net, `control` the host's ControlNet for it, `code` the autoencoder. What the U-Net has is changed by up @ down, of which up is zero; the rest is the
    ControlNet's own, its encoder of the picture as `seeing` makes it."""
    g, own = torch.Generator().manual_seed(seed), network.state_dict()
    weights = {"lora_controlnet": torch.zeros([])}
    for key, value in control.state_dict().items():
        stem, _, last = key.rpartition(".")
        if key in own:
            if last == "weight" and value.ndim in (2, 4) and not stem.startswith("time_embed"):
                out, given, *kernel = value.shape
                weights[f"{stem}.up"] = torch.zeros(out, rank, *[1] * len(kernel))
                weights[f"{stem}.down"] = torch.randn(rank, given, *kernel, generator=g) / value[0].numel() ** 0.5
        elif key.startswith("input_hint_block") and last == "weight":
            weights[key] = torch.randn(value.shape, generator=g) * (2 / value[0].numel()) ** 0.5
        else:
            weights[key] = torch.zeros(value.shape)
    return weights | seeing({k: v for k, v in weights.items() if k.startswith("input_hint_block")}, own["input_blocks.0.0.weight"], code)


def whole(network, weights):
    """The ControlNet's parameters {key: tensor}: the U-Net's with what is added to them, and its own; differentiable with respect to `weights`."""
    made = {k: v for k, v in weights.items() if not k.endswith((".up", ".down")) and k != "lora_controlnet"}
    for key, value in network.state_dict().items():
        stem = key.removesuffix(".weight")
        if f"{stem}.up" in weights:
            value = value + (weights[f"{stem}.up"].flatten(1) @ weights[f"{stem}.down"].flatten(1)).reshape(value.shape)
        made[key] = value
    return made


def residuals(network, control, weights, z, hints, level, context):
    """What the ControlNet adds {place: [tensors]} for latents [n, 16, h, w] at timesteps [n] and pictures [n, 3, 8h, 8w]."""
    names = set(control.state_dict())
    own = {k: v for k, v in whole(network, weights).items() if k in names}
    return torch.func.functional_call(control, own, (z, hints), {"timesteps": level, "context": context})


def encode(pictures, code):
    """Latents of pictures whose sides are multiples of 8."""
    return latents.encode(F.avg_pool2d(pictures, 2), code)


def load_control(folder=FOLDER):
    """The bundled ControlNet, read by the host's own loader."""
    import comfy.controlnet
    path = os.path.join(folder, f"{NAME}.safetensors")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"The demo ControlNet's weight file is missing: {path}. It belongs to the repository: restore it (git checkout, or a complete download of the pack).")
    return comfy.controlnet.load_controlnet(path)
