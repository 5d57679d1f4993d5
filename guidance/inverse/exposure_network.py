"""The network of Exposure Diffusion: a U-Net whose last layer gives the picture, what to add to the input, and a mask that mixes the two. Read from safetensors.

Keys, as the authors name them (UNetSeeInDark with --with_photon and --adaptive_res_and_x0), each with weight and bias:
    conv1_1, conv1_2 ... conv5_2     five levels of width, 2 width, ... 16 width channels, the largest of 2 x 2 in between
    upv6, conv6_1, conv6_2 ... conv9_2     the way back, beside what was there on the way down
    conv10_1 [2 channels + 1, width, 1, 1]     the mask's logit, the picture, what is added
conv1_1 takes the picture and its photons / unit, in some files the first picture too (--concat_origin). Metadata `unit`: 15583 where there is none, as in the authors' code.
"""
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..frozen import frozen

UNIT, DEEPEST = 15583.0, 16


class SeeInDark(nn.Module):
    """forward([n, times channels, height, width]) -> (estimate, {out, by_residual, mask}), the estimate in [0, 1]; any height and width."""

    def __init__(self, channels=3, times=2, width=32):
        super().__init__()
        self.channels, self.times = channels, times
        before = channels * times
        for i, n in enumerate((1, 2, 4, 8, 16), 1):
            self._pair(i, before, n * width)
            before = n * width
        for i, n in enumerate((8, 4, 2, 1), 6):
            setattr(self, f"upv{i}", nn.ConvTranspose2d(2 * n * width, n * width, 2, stride=2))
            self._pair(i, 2 * n * width, n * width)
        self.conv10_1 = nn.Conv2d(width, 2 * channels + 1, 1)

    def _pair(self, i, before, after):
        setattr(self, f"conv{i}_1", nn.Conv2d(before, after, 3, padding=1))
        setattr(self, f"conv{i}_2", nn.Conv2d(after, after, 3, padding=1))

    def _level(self, i, h):
        for part in (1, 2):
            h = F.leaky_relu(getattr(self, f"conv{i}_{part}")(h), 0.2)
        return h

    def forward(self, x):
        height, width = x.shape[-2:]
        h = F.pad(x, (0, -width % DEEPEST, 0, -height % DEEPEST), mode="replicate")
        kept = []
        for i in range(1, 5):
            h = self._level(i, h)
            kept.append(h)
            h = F.max_pool2d(h, 2)
        h = self._level(5, h)
        for i in range(6, 10):
            h = self._level(i, torch.cat((getattr(self, f"upv{i}")(h), kept.pop()), 1))
        h = self.conv10_1(h)[..., :height, :width]
        mask, out, rest = torch.sigmoid(h[:, :1]), h[:, 1:1 + self.channels], h[:, 1 + self.channels:]
        by_residual = rest + x[:, :self.channels]
        return out.clamp(0, 1) * mask + by_residual.clamp(0, 1) * (1 - mask), {"out": out, "by_residual": by_residual, "mask": mask}


@frozen(eq=False)
class ExposureNetwork:
    """estimate(x, photons, first): the well-exposed picture [n, 3, h, w] from a brightened one, its photons (electrons per pixel) and the brightened first one."""

    network: Any
    unit: float = UNIT

    def __deepcopy__(self, memo):
        return self

    def inputs(self, x, photons, first):
        parts = (x, photons / self.unit, first)[:self.network.times]
        return torch.cat(parts, 1)

    def __call__(self, x, photons, first):
        with torch.no_grad():
            return self.network.to(x.device)(self.inputs(x, photons, first).float())[0].to(x)


def parse(tensors, notes=None):
    """The ExposureNetwork of a file's tensors and metadata; ValueError that says what is wrong."""
    for prefix in ("netG.", "module."):
        if tensors and all(k.startswith(prefix) for k in tensors):
            tensors = {k[len(prefix):]: v for k, v in tensors.items()}
    enter, leave = tensors.get("conv1_1.weight"), tensors.get("conv10_1.weight")
    if enter is None or leave is None or enter.ndim != 4 or leave.ndim != 4:
        raise ValueError("It holds no network of Exposure Diffusion: conv1_1.weight and conv10_1.weight are wanted, as the authors' U-Net has them (networks with NAFNet are another layout).")
    out, channels = leave.shape[0], (leave.shape[0] - 1) // 2
    if out % 2 == 0 or channels != 3:
        raise ValueError(f"conv10_1 gives {out} channels; 7 are wanted: a mask, three colours, and three to add. Files with 9 are for raw mosaics of four colours, files with 3 or 4 are without the adaptive residual.")
    if enter.shape[1] not in (6, 9):
        raise ValueError(f"conv1_1 takes {enter.shape[1]} channels; 6 (picture, photons) or 9 (the first picture too) are wanted.")
    with torch.inference_mode(False):      # nodes run in it
        network = SeeInDark(channels, enter.shape[1] // channels, enter.shape[0])
        try:
            network.load_state_dict({k: v.clone().float() for k, v in tensors.items()})
        except RuntimeError as error:
            raise ValueError(f"It is not complete: {error}") from error
    try:
        unit = float((notes or {}).get("unit", UNIT))
    except ValueError:
        unit = 0.0
    if not unit > 0:
        raise ValueError("Its metadata `unit` must be a number above 0.")
    return ExposureNetwork(network.eval().requires_grad_(False), unit)
