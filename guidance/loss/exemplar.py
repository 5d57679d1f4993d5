"""A set of pictures to be like, and a set to be unlike."""
from __future__ import annotations

from typing import Any

import torch

from ..frozen import frozen
from ..method import param, socket
from .encoder import EncoderLoss, embedding_of, numbers


def spread(sets):
    """The median distance between different vectors of [k, d]; 1 where there is but one."""
    if len(sets) < 2:
        return 1.0
    found = torch.pdist(sets.double())
    return max(float(found.median()), 1e-8)


def apart(a, b):
    """Distances [n, k] between rows of a [n, d] and b [k, d]; 0 has a gradient of 0."""
    return (a[:, None] - b[None]).square().sum(-1).clamp(min=1e-12).sqrt()


@frozen(eq=False)
class ExemplarSet(EncoderLoss):
    """Near one of several good examples, and far from bad ones, in the space of an image encoder.

        f = features of u, f_k of the examples
        loss = - log sum_{k good} exp(-|f - f_k| / alpha)  +  log sum_{k bad} exp(-|f - f_k| / alpha)

    The soft minimum lets every picture choose the example that it is nearest to; with one good example it is |f - f_1| / alpha. Equal sets give nothing. alpha is a length: small ones look at the nearest
    example alone; 0 takes the median distance between the examples.
    Features: the encoder's embedding, or hidden layers by number, as they are (DynaGuide: patches of a DINO encoder of what its dynamics model predicts, alpha 30 to 40).
    Paper: Du and Song, "DynaGuide" (their released core/dynaguide.py), where the features are predicted from a robot's actions and the gradient is taken at the noisy action; here they are those of the clean estimate.
    Their repeated steps at one level are the repeats of Universal Guidance Sampler, which also noises again.
    Cost: decoding and encoding with their backward passes.
    """

    node_id = "LodestarExemplarLoss"
    title = "Exemplar Loss"
    paper = "DynaGuide"
    aliases = ("positive and negative examples", "exemplar set", "dynamic guidance")

    clip_vision: Any = socket("CLIP_VISION", "The image encoder.")
    image: Any = socket("IMAGE", "The good examples, one or several.")
    bad: Any = socket("IMAGE", "The bad examples.", optional=True)
    alpha: float = param(0.0, "Length scale of distances; 0: the median distance between the examples.", 0.0, 1e6, 0.01)
    layers: str = param("", "Hidden layers whose features are compared, by number (-1 the last); empty: the embedding.", advanced=True)

    def features(self, seen, layers):
        """[n, d]."""
        if not layers:
            return embedding_of(seen, self.title).float()
        return torch.cat([seen.maps[n].float().flatten(1) for n in layers], 1)

    def measure(self, u, m, context):
        encoder = self.clip_vision
        layers = numbers(self.layers, encoder, self.title, ())
        f = self.features(self.seen(encoder, u, m, context, layers), layers)
        sets = [self.features(self.reference(name, encoder, y, u, layers), layers) for name, y in (("good", self.target), ("bad", self.bad)) if y is not None]
        if "alpha" not in self.known:
            self.known["alpha"] = self.alpha or spread(torch.cat(sets))
        near = [torch.logsumexp(-apart(f, s) / self.known["alpha"], 1) for s in sets]
        return -near[0] + (near[1] if len(near) > 1 else 0)
