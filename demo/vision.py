"""Small image encoders in the place of CLIP vision: the measuring network's features, for the bundled image adapter, and the scene encoder, for losses."""
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from .measure import fit_size, load
from .scene_clip import load_tower
from .scenes import SIZE

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


class _Encoder:
    """What CLIP Vision Encode and the losses that look through an encoder (guidance.loss.encoder) ask of a CLIP_VISION."""

    side, layers, style_layers, feature_layers = SIZE, (1, 2), (1, 2), (2,)

    def __init__(self, make):
        with torch.inference_mode(False):      # nodes run in it; gradients go through these weights
            self.network, self.key = make(), ("demo vision", type(self).__name__)

    def __deepcopy__(self, memo):
        return self

    def encode_image(self, image, crop=True):
        """image [n, height, width, 3] in [0, 1]; `crop`: whether the middle square is taken, or all is squeezed into one."""
        pictures = image[..., :3].movedim(-1, 1).float().cpu()
        if crop and crop != "none":
            side = min(pictures.shape[-2:])
            top, left = (pictures.shape[-2] - side) // 2, (pictures.shape[-1] - side) // 2
            pictures = pictures[..., top:top + side, left:left + side]
        return self.outputs(pictures)

    def see(self, pictures, layers=()):
        """The embedding and the maps of pictures [n, 3, 64, 64] in about [0, 1], with a gradient."""
        from ..guidance.loss.encoder import Seen as Encoded
        with torch.inference_mode(False):
            self.network.to(pictures.device)
        stages, embedding = self.run(pictures)
        return Encoded(embedding, {n: stages[n - 1] for n in layers})


class DemoVision(_Encoder):
    """The measuring network's features."""

    def __init__(self):
        super().__init__(load)

    def outputs(self, pictures):
        found = features(self.network.cpu(), pictures)
        return Seen(found[:, 0], found, found)

    def run(self, pictures):
        stages = self.network.trunk(pictures)
        return stages, stages[-1].mean((2, 3))


class SceneVision(_Encoder):
    """The scene encoder: embeddings of pictures, and of the bundled text encoder's texts."""

    layers, style_layers, feature_layers = (1, 2, 3), (1, 2), (2, 3)

    def __init__(self):
        super().__init__(load_tower)

    @torch.no_grad()
    def outputs(self, pictures):
        stages, embedding = self.network.cpu()(fit_size(pictures))
        tokens = stages[-1].flatten(2).transpose(1, 2)
        tokens = torch.cat((tokens.mean(1, keepdim=True), tokens), 1)
        return Seen(embedding, tokens, tokens)

    def run(self, pictures):
        return self.network(pictures)

    def project_text(self, pooled):
        """[n, d] of the text encoder's pooled states [n, 128]."""
        return self.network.cpu().text(pooled)
