"""Style without content: what a picture's features have in common over all places."""
from __future__ import annotations

from typing import Any

import torch

from ..frozen import frozen
from ..method import BadInput, param, socket
from .encoder import EncoderLoss, numbers

MODES = ("gram", "gram norm", "statistics")
REFERENCES = ("pictures", "batch, alike", "batch, apart")


def gram(f):
    """F F^T / (c p) [n, c, c] of a map [n, c, h, w]: which features come together, wherever."""
    v = f.float().flatten(2)
    return v @ v.transpose(1, 2) / (v.shape[1] * v.shape[2])


def statistics(f):
    """(means, standard deviations) [n, 2, c] of the channels of a map [n, c, h, w]."""
    v = f.float().flatten(2)
    return torch.stack((v.mean(2), (v.var(2, unbiased=False) + 1e-8).sqrt()), 1)


def difference(a, b, mode):
    """[n] between two Grams, or two sets of statistics."""
    away = (a - b).flatten(1)
    if mode == "statistics":
        return away.square().mean(1)
    squared = away.square().sum(1)
    return squared if mode == "gram" else squared.clamp(min=1e-12).sqrt()


def parse_weights(text, count, node):
    """[count] shares that add up to 1, from "2, 1"; equal ones where it is empty."""
    words = text.replace(",", " ").split()
    if not words:
        return [1 / count] * count
    try:
        found = [float(w) for w in words]
    except ValueError:
        found = []
    if len(found) != count or not sum(found) > 0 or min(found) < 0:
        raise BadInput(node, "shares", text, f"Write {count} numbers from 0, one for each style picture, separated by commas.")
    return [w / sum(found) for w in found]


@frozen(eq=False)
class StyleLoss(EncoderLoss):
    """How far the picture's style is from that of given pictures, or from that of the others in the batch.

        F_l [c, p]: the encoder's map at layer l, c channels at p places
        gram:        mean over layers of  |G_l - G_l*|_F^2,   G = F F^T / (c p)
        gram norm:   mean over layers of  |G_l - G_l*|_F                              (not squared: FreeDoM, MPGD, TFG, who use one early layer of CLIP)
        statistics:  mean over layers of  mean (mu_l - mu_l*)^2 + (sigma_l - sigma_l*)^2    means and deviations of the channels (AdaIN)

    reference "pictures": G* is the mix of the given pictures' by their shares, several styles in one (Arbitrary Style Guidance interpolates them alike). "batch, alike" and "batch, apart": self style guidance, without
    a picture; G* is that of each other picture of the batch, which is held fast, and the mean over them is taken; alike makes a consistent series, apart (the negative of it) makes styles more various. Frames of videos count as pictures.
    Layers: of CLIP-like encoders by number, 2 by default (as TFG); of a VGG file relu1_1 to relu5_1. A map of patches has no class token.
    Paper: Pan et al., "Arbitrary Style Guidance for Enhanced Diffusion-Based Text-to-Image Generation", arXiv 2211.07751; no code was found, its self style guidance is implemented from its description (unverified), on clean
    pictures rather than with GLIDE's noise-aware CLIP. Deviation: the Gram matrix is divided by c p also under "gram norm", where FreeDoM and MPGD leave it and TFG divides by 100: for one layer a factor.
    Cost: decoding and encoding with their backward passes.
    """

    node_id = "LodestarStyleLoss"
    title = "Style Loss"
    paper = "Arbitrary Style Guidance"
    aliases = ("Gram matrix", "style transfer", "self style guidance", "AdaIN")

    clip_vision: Any = socket("CLIP_VISION", "The image encoder, where no network is connected.", optional=True)
    network: Any = socket("LODESTAR_NETWORK", "A VGG or ResNet from Load Vision Network, in place of the image encoder.", optional=True)
    image: Any = socket("IMAGE", "The style: one picture or several. Not needed where the batch is its own reference.", optional=True)
    mode: str = param("gram norm", "What is compared: Gram matrices, squared or not, or means and deviations.", choices=MODES)
    against: str = param("pictures", "What the style is compared with: the given pictures, or the other pictures of the batch, to be like them or unlike them.", choices=REFERENCES)
    shares: str = param("", "Shares of several style pictures, \"2, 1\"; empty: equal ones.")
    layers: str = param("", "Layers of the encoder by number, \"2, 5\"; empty: the usual ones.", advanced=True)
    each: bool = param(False, "Off: the style pictures are mixed. On: the first is for the first picture of the batch, and so on.", label="one for each picture", advanced=True)

    def check(self):
        super().check()
        if (self.clip_vision is None) == (self.network is None):
            raise BadInput(self.title, "clip_vision", "none" if self.network is None else "and a network", "Connect either an image encoder or a network.")
        if self.network is not None and self.network.takes != "pictures":
            raise BadInput(self.title, "network", self.network.name, "A head has no maps; connect a VGG or ResNet.")
        if self.against == "pictures":
            if self.target is None:
                raise BadInput(self.title, "image", None, "Connect a style picture, or compare with the batch.")
            parse_weights(self.shares, len(self.target), self.title)
        return self

    def summary(self, seen, layers):
        """One tensor [n, ...] for each layer."""
        return [(statistics if self.mode == "statistics" else gram)(seen.maps[n]) for n in layers]

    def measure(self, u, m, context):
        encoder = self.network if self.clip_vision is None else self.clip_vision
        layers = numbers(self.layers, encoder, self.title, encoder.style_layers)
        own = self.summary(self.seen(encoder, u, m, context, layers), layers)
        if self.against != "pictures":
            return self.among(own, u)
        if ("mixed", u.device) not in self.known:
            shares = u.new_tensor(parse_weights(self.shares, len(self.target), self.title)).float()
            found = self.summary(self.reference("image", encoder, self.target, u, layers), layers)
            if self.each:
                return sum(difference(a, self._each(b, u, "image"), self.mode) for a, b in zip(own, found)) / len(layers)
            self.known["mixed", u.device] = [torch.tensordot(shares, g, 1)[None] for g in found]
        return sum(difference(a, b, self.mode) for a, b in zip(own, self.known["mixed", u.device])) / len(layers)

    def among(self, own, u):
        """[n]: the mean difference to every other picture of the batch, whose style is held fast."""
        n = u.shape[0]
        if n == 1:
            return u.flatten(1).sum(1) * 0
        found = 0
        for a in own:
            fast = a.detach()
            pairs = torch.stack([difference(a, fast.roll(k, 0), self.mode) for k in range(1, n)])
            found = found + pairs.mean(0)
        return (1 if self.against == "batch, alike" else -1) * found / len(own)
