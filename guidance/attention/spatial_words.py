"""Spatially-aware attention (ComboVerse): words that say where things are get a larger part of the attention."""
from __future__ import annotations

from typing import Any

from ..frozen import frozen
from ..method import Edit, param, socket, window
from .dense import picture_part
from .matrix import MatrixEdit
from .regions import columns

_start, _end = window("the words are amplified")


@frozen
class AmplifiedWords(MatrixEdit):
    """The edit of attention to the text."""

    words: Any = None
    factor: float = 25.0

    kinds = ("cross", "joint")
    title = "Spatial Word Attention"

    @property
    def mark(self):
        return self.words.mark

    def default_layers(self, geometry):
        return "all"

    def weights(self, site, a, part):
        at = columns([t for phrase in self.words.tokens for t in phrase], self.words.length, site.prompt)
        joint = site.kind == "joint"
        rows = picture_part(site, part, part.stop)[0] if joint else slice(0, a.shape[2])
        if rows.stop == rows.start:
            return a
        out = a.clone()
        local = out[:, :, rows]
        local[..., at] = a[:, :, rows][..., at] * self.factor
        if joint:      # one softmax over words and picture: its sum stays
            local = local / local.sum(-1, keepdim=True).clamp(min=1e-12)
        out[:, :, rows] = local
        return out


@frozen
class SpatialWordAttention(Edit):
    """Makes a model heed the words that say where things are, such as "left of", "on", "riding": their attention maps are multiplied.

    A_ij <- factor A_ij after the softmax, for the tokens j of the words; the rows' sums are not brought back to 1

    With SDS Guidance at t from 0.8 to 0.9 it is the spatially-aware score distillation of ComboVerse (SSDS); it acts in sampling as well. Factor 1 changes nothing. Only the
    positive prompt's rows are edited. Joint attention: the words' columns of the picture's rows, brought back to a sum of 1 (own form, no published one).
    Defaults: factor 25, as others report the paper's; there is no released code (unverified).
    Limits: large factors move the whole prompt off the words that name the things; on the bundled models a factor of 3 changed
    nothing that was measured and 25 made pictures worse. Try small factors first.
    Paper: Chen et al., arXiv 2403.12409. Cost: attention to the text is written out.
    """

    node_id = "LodestarSpatialWordAttention"
    title = "Spatial Word Attention"
    family = "attention"
    paper = "ComboVerse (SSDS)"
    aliases = ("SSDS", "ComboVerse", "attention reweighting", "spatially-aware score distillation")
    evaluations = "0 (attention to the text written out)"

    words: Any = socket("LODESTAR_WORDS", "The words that say where things are, found in the positive prompt by Prompt Words.")
    factor: float = param(25.0, "How much larger their attention becomes; 1 switches the node off.", 0.0, 1000.0, 0.5)
    start_percent: float = _start
    end_percent: float = _end
    layers: str = param("all", "Layers whose attention to words is edited, e.g. all, output, double.*.", advanced=True)

    def validate(self):
        super().validate()
        if self.words is not None and hasattr(self.words, "need"):
            self.words.need(self.title)
        return self

    def neutral(self):
        return self.factor == 1

    def edits(self, step):
        return (AmplifiedWords(self.layers, self.words, self.factor),)
