"""Semantic Diffusion Guidance: a text and a picture lead together."""
from __future__ import annotations

from typing import Any

from ..frozen import frozen
from ..method import BadInput, param, socket
from .clip import distance, fitting
from .encoder import SeveralLoss, embedding_of, numbers, unit
from .style import gram

KINDS = ("semantic", "style", "structure")


@frozen(eq=False)
class SemanticGuidance(SeveralLoss):
    """A text and a picture lead together: what the text says, with the meaning, the style or the structure of the picture.

        loss = text_weight (1 - e t) + image_weight d(u, y)                e, t unit embeddings of picture and text, y the given picture
        semantic:   d = 1 - e e_y
        style:      d = mean over layers of  mean (G_l - G_l*)^2 / mean G_l*^2        Gram matrices
        structure:  d = mean over layers of  mean (F_l - F_l*)^2 / mean F_l*^2        maps, place by place

    Connect a CLIP and a text, a picture, or both. Several texts are averaged, or are one for each picture.
    Paper: Liu et al., "More Control for Free! Image Synthesis with Semantic Diffusion Guidance", arXiv 2112.05744 (released sdg/guidance.py). Weights as there: text 160, picture 100; only their ratio matters under a
    normalised gradient. Deviations: a clean encoder looks at the clean estimate, as there is no encoder for noisy latents, and the picture is not noised; style and structure are taken relative to the picture's own size, where
    the code multiplies by 1e10, so that the weights mean the same for every encoder.
    Cost: decoding and encoding with their backward passes.
    """

    node_id = "LodestarSemanticGuidanceLoss"
    title = "Semantic Guidance Loss"
    paper = "More Control for Free: Semantic Diffusion Guidance (SDG)"
    aliases = ("SDG", "multimodal guidance")

    clip_vision: Any = socket("CLIP_VISION", "The image encoder.")
    image: Any = socket("IMAGE", "The picture to be like: one, or one for each picture of the batch.", optional=True)
    image_loss: str = param("semantic", "What of the picture: its meaning, its style, or its structure.", choices=KINDS)
    text_weight: float = param(160.0, "Weight of the text.", 0.0, 1e6, 1.0)
    image_weight: float = param(100.0, "Weight of the picture.", 0.0, 1e6, 1.0)
    layers: str = param("", "Layers of the encoder for style and structure, by number; empty: the usual ones.", advanced=True)
    texts: Any = None      # [p, d]

    def check(self):
        super().check()
        if self.texts is None and self.target is None:
            raise BadInput(self.title, "text", "", "Connect a CLIP and write a text, or connect a picture, or both.")
        return self

    def measure(self, u, m, context):
        found = u.flatten(1).sum(1) * 0
        if self.texts is not None and self.text_weight:
            e = self.embeddings(self.clip_vision, u, m, context)
            t = unit(fitting(self.texts, e.shape[-1], self.title)).to(e)
            found = found + self.text_weight * distance(e[:, :, None], self.among(t, u, "text")).mean((0, 2))
        if self.target is not None and self.image_weight:
            found = found + self.image_weight * self.picture(u, m, context)
        return found

    def picture(self, u, m, context):
        """[n]: the distance to the given picture."""
        encoder = self.clip_vision
        if self.image_loss == "semantic":
            e, y = self.embeddings(encoder, u, m, context), unit(embedding_of(self.reference("image", encoder, self.target, u), self.title))
            return distance(e, self._each(y, u, "image")[None]).mean(0)
        layers = numbers(self.layers, encoder, self.title, encoder.style_layers if self.image_loss == "style" else encoder.feature_layers)
        own, given = self.seen(encoder, u, m, context, layers), self.reference("image", encoder, self.target, u, layers)
        prepared = gram if self.image_loss == "style" else (lambda f: f.float())
        parts = []
        for n in layers:
            a, b = prepared(own.maps[n]), self._each(prepared(given.maps[n]), u, "image")
            parts.append((a - b).square().flatten(1).mean(1) / b.square().flatten(1).mean(1).clamp(min=1e-12))
        return sum(parts) / len(parts)
