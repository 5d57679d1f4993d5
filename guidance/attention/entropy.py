"""Attention Entropy Scaling."""
from __future__ import annotations

import math
from dataclasses import replace

from ..frozen import frozen
from ..method import BadInput, Edit, param, window
from .edits import Tempering

_start, _end = window()


def factor(now, trained, strength=1.0):
    """What the logits are multiplied by where a query sees `now` keys and saw `trained` in training; 1 where either is no number of keys."""
    if now <= 1 or trained <= 1:
        return 1.0
    return (math.log(now) / math.log(trained)) ** (strength / 2)


@frozen
class EntropyScale(Tempering):
    """The edit: logits times factor(keys now, keys in training). `cells`: cells of a latent of the training size."""

    cells: float = 4096.0
    strength: float = 1.0

    everywhere = True

    def default_layers(self, geometry):
        return "all"

    def factor(self, site, keys):
        own = len(range(*site.image.indices(keys)))
        return factor(keys, keys - own + own * self.cells / (site.latent[-2] * site.latent[-1]), self.strength)


@frozen
class AttentionEntropyScaling(Edit):
    """Keeps the sharpness of self-attention at sizes the model was not trained at: larger pictures repeat their objects less, smaller ones lose fewer.

    More keys spread attention: its mean entropy grows by ln(N / T) where a query sees N keys and saw T in training. The logits are scaled against it:
    softmax(f q k / sqrt(d)) v,  f = (ln N / ln T)^(strength / 2)
    N counts all keys (in joint attention the text too, on video the frames), T the same with the picture's share at the training size. Nothing else changes
    and no weights are written out: only the scale of the attention changes (where an edit stands further in, or the host's attention has no scale, the queries). Cross-attention is left alone; its number of keys does not depend on the size.

    Defaults: strength 1 (paper); training size: that of the model, where it is known (SD1.5 512, SDXL, SD3, Flux 1024 ...).
    Identities: at the training size, and at strength 0, bit-equal to the model. Acts on all prompts. Cost: none.
    Limits: a model that scales its attention itself (Lumina-Next's proportional attention outside the host) must not get it twice.
    """

    node_id = "LodestarAttentionEntropyScaling"
    title = "Attention Entropy Scaling"
    family = "attention"
    paper = "Training-free Adaptation for Variable-Sized T2I Synthesis"
    aliases = ("proportional attention", "variable size", "high resolution")
    evaluations = "0"
    planar = True

    strength: float = param(1.0, "Share of the correction: 1 as in the paper, 0 switches the node off.", 0.0, 2.0, 0.01)
    train_width: int = param(0, "Width in pixels that the model was trained at; 0 takes the model's own.", 0, 16384, 8)
    train_height: int = param(0, "Height in pixels that the model was trained at; 0 takes the width.", 0, 16384, 8)
    start_percent: float = _start
    end_percent: float = _end
    layers: str = param("all", "Layers whose self-attention is scaled.", advanced=True)
    cell: int = 8      # pixels of a latent cell

    def neutral(self):
        return self.strength == 0

    def fitted(self, facts):
        width = self.train_width or facts.trained_at
        if not width:
            raise BadInput(self.title, "train_width", 0, f"The size that this {facts.network} was trained at is not known; give it in pixels.")
        return replace(self, train_width=width, train_height=self.train_height or width, cell=facts.cell)

    def edits(self, step):
        return (EntropyScale(self.layers, self.train_width * self.train_height / self.cell ** 2, self.strength),)
