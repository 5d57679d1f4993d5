"""Features of a given picture: its identity, its structure, or what it looks like to a network."""
from __future__ import annotations

from typing import Any

import torch.nn.functional as F

from ..frozen import frozen
from ..method import BadInput, param, socket
from .encoder import EncoderLoss, embedding_of, numbers, unit
from .picture import mean

MODES = ("cosine", "absolute", "squared", "perceptual")


@frozen(eq=False)
class FeatureLoss(EncoderLoss):
    """How far what an encoder sees in the picture is from what it sees in a given one: identity, structure, perceptual distance.

        e = E(u), e* = E(y) embeddings;   F_l, F_l* maps at layer l
        cosine:      1 - e e* / (|e| |e*|)                       identity, meaning
        absolute:    mean |e - e*|                                the face loss of Universal Guidance
        squared:     mean over layers of  mean (F_l - F_l*)^2     structure: what is where (Semantic Diffusion Guidance)
        perceptual:  mean over layers of  mean (F_l / |F_l| - F_l* / |F_l*|)^2,  |F| over the channels of each place     (LPIPS without its learned weights)

    With layers named, cosine and absolute take those maps in place of the embedding. mask: the box around it is what the encoder sees of the picture (a face), and only what is marked moves; image_mask does the same for the
    given picture. squared and perceptual compare place by place: picture and given one must show the same part.
    Any CLIP_VISION of the host (CLIP, SigLIP, DINO), or a VGG or ResNet file: a VGG16 gives relu1_2, relu2_2, relu3_3, relu4_3, the usual perceptual layers.
    Papers: Bansal et al., "Universal Guidance", arXiv 2302.07121 (identity: L1 between FaceNet embeddings of crops). A face detector is not part of it: mark the face. Face networks can be used where they are
    ResNets of torchvision's layout.
    Cost: decoding and encoding with their backward passes.
    """

    node_id = "LodestarFeatureLoss"
    title = "Feature Loss"
    paper = "Universal Guidance"
    aliases = ("identity", "face loss", "perceptual loss", "LPIPS", "structure")

    clip_vision: Any = socket("CLIP_VISION", "The image encoder, where no network is connected.", optional=True)
    network: Any = socket("LODESTAR_NETWORK", "A VGG or ResNet from Load Vision Network, in place of the image encoder.", optional=True)
    image: Any = socket("IMAGE", "The picture to be like: one, or one for each picture of the batch.")
    mode: str = param("cosine", "cosine, absolute: by the embedding; squared, perceptual: by maps, place by place.", choices=MODES)
    image_mask: Any = socket("MASK", "The part of the given picture that counts: the box around it is what the encoder sees.", optional=True)
    layers: str = param("", "Layers of the encoder by number, \"2, 5\"; empty: the embedding, or for maps the usual ones.", advanced=True)

    def check(self):
        super().check()
        if (self.clip_vision is None) == (self.network is None):
            raise BadInput(self.title, "clip_vision", "none" if self.network is None else "and a network", "Connect either an image encoder or a network.")
        if self.network is not None and self.network.takes != "pictures":
            raise BadInput(self.title, "network", self.network.name, "A head has no maps; connect a VGG or ResNet.")
        return self

    def measure(self, u, m, context):
        encoder = self.network if self.clip_vision is None else self.clip_vision
        usual = () if self.mode in ("cosine", "absolute") else encoder.feature_layers
        layers = numbers(self.layers, encoder, self.title, usual)
        own, given = self.seen(encoder, u, m, context, layers), self.reference("image", encoder, self.target, u, layers, self.image_mask)
        if not layers:
            return self.vectors(embedding_of(own, self.title), self._each(embedding_of(given, self.title), u, "image"))
        return sum(self.maps(own.maps[n], self._each(given.maps[n], u, "image")) for n in layers) / len(layers)

    def vectors(self, e, y):
        return 1 - (unit(e) * unit(y)).sum(-1) if self.mode == "cosine" else (e - y).abs().mean(-1)

    def maps(self, f, y):
        if self.mode in ("cosine", "absolute"):
            return self.vectors(f.flatten(1), y.flatten(1))
        if f.shape[-2:] != y.shape[-2:]:
            y = F.interpolate(y, f.shape[-2:], mode="area")
        if self.mode == "perceptual":
            f, y = F.normalize(f, dim=1, eps=1e-6), F.normalize(y, dim=1, eps=1e-6)
        return mean((f - y).square(), f.new_ones(f.shape[0], 1, *f.shape[-2:]))
