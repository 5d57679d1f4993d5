"""A small image encoder in the place of CLIP vision: the measuring network's features, for the bundled image adapter."""
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from .measure import fit_size, load

SIDE = 4          # tokens along a side


@dataclass
class Seen:
    """What the host's image encoders give, by attribute or by key: image_embeds [n, 64], penultimate_hidden_states and last_hidden_state [n, 17, 64], the mean first."""

    image_embeds: Any
    penultimate_hidden_states: Any
    last_hidden_state: Any

    def __getitem__(self, key):
        return getattr(self, key)


@torch.no_grad()
def features(network, pictures):
    """[n, 1 + SIDE^2, 64]: the mean over a picture [n, 3, h, w] in [0, 1], and the means over its parts, row by row."""
    coarse = network.trunk(fit_size(pictures))[1]
    return torch.cat((coarse.mean((2, 3))[:, None], F.adaptive_avg_pool2d(coarse, SIDE).flatten(2).transpose(1, 2)), 1)


class DemoVision:
    """Does what CLIP Vision Encode asks of a CLIP_VISION."""

    def __init__(self):
        self.network = load()

    def encode_image(self, image, crop=True):
        """image [n, height, width, 3] in [0, 1]; `crop`: whether the middle square is taken, or all is squeezed into one."""
        pictures = image[..., :3].movedim(-1, 1).float().cpu()
        if crop and crop != "none":
            side = min(pictures.shape[-2:])
            top, left = (pictures.shape[-2] - side) // 2, (pictures.shape[-1] - side) // 2
            pictures = pictures[..., top:top + side, left:left + side]
        found = features(self.network, pictures)
        return Seen(found[:, 0], found, found)
