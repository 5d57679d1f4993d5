"""Spatial guidance sampling (Cocktail, after paint-with-words): words weigh more in the attention of the places that they are meant for."""
from __future__ import annotations

import math
from typing import Any

import torch

from ..frozen import frozen
from ..method import Edit, param, socket, window
from .edits import AttentionEdit
from .explicit import logits, query_chunks
from .regions import Regions, columns

LAWS = ("log(1 + sigma^2)", "log(1 + sigma)")
MOST = 1e4      # of sigma in k-units, where flow models begin at infinity
_start, _end = window("words are weighted by place")


def level(step, law):
    """The factor of the noise level; flow models: of sigma / (1 - sigma)."""
    sigma = float(step.sigma.flatten()[0])
    sigma = min(MOST, sigma / max(1e-12, 1 - sigma)) if step.flow else sigma
    return math.log1p(sigma * sigma) if law == LAWS[0] else math.log1p(sigma)


def spread(q, k):
    """Standard deviation of the logits q k^T / sqrt d over queries and keys, [rows, heads, 1, 1], in bounded memory."""
    total = squares = 0.0
    for part in query_chunks(*q.shape[:3], k.shape[2]):
        z = logits(q, k, None, part)
        total, squares = total + z.sum((2, 3), keepdim=True), squares + z.square().sum((2, 3), keepdim=True)
    count = q.shape[2] * k.shape[2]
    return (squares / count - (total / count).square()).clamp(min=0).sqrt()


@frozen
class WeightedWords(AttentionEdit):
    """The edit: amount * weight * coverage * std of the logits, on the logits of each region's words."""

    regions: Any = None
    amount: float = 1.0

    kinds = ("cross", "joint")
    title = "Spatial Prompt Weighting"

    @property
    def mark(self):
        return self.regions.mark

    def default_layers(self, geometry):
        return "all"

    def _bias(self, site, prompt, keys, count, device):
        """[tokens of the picture, keys]: the regions' weights and coverages, without the spread of the logits."""
        def make():
            out = torch.zeros(count, keys, device=device)
            for region, cover in zip(self.regions, self.regions.at(site, device, tokens=count)):
                out[:, columns(region.tokens, self.regions.length, prompt)] += region.weight * cover.float()[:, None]
            return out
        return self.regions.cached(("weighting", site.height, site.width, site.frames, site.window, prompt.start, prompt.stop, keys, count, str(device)), make)

    def apply(self, site, q, k, v, attend):
        joint = site.kind == "joint"
        count = site.frames * site.height * site.width if joint else q.shape[2]
        if site.prompt is None:
            columns((), self.regions.length, None)      # says that the prompt cannot be told
        image, text = (site.image, site.text) if joint else (slice(0, count), slice(0, k.shape[2]))
        bias = self._bias(site, site.prompt, k.shape[2], count, q.device)
        scaled = self.amount * spread(q[:, :, image], k[:, :, text]) * bias
        if count == q.shape[2]:
            return attend(q, k, v, scaled.to(q.dtype))
        whole = torch.zeros(*scaled.shape[:2], q.shape[2], k.shape[2], dtype=q.dtype, device=q.device)
        begin = image.start or 0
        whole[:, :, begin:begin + count] = scaled.to(q.dtype)
        return attend(q, k, v, whole)


@frozen
class SpatialPromptWeighting(Edit):
    """Puts the things that words name where they are wanted: the words gain in attention inside their region, the more the noisier the picture is.

        z_ij <- z_ij + strength w_r m_r(i) log(1 + sigma^2) std(z)          for the tokens j of region r's words, m_r its coverage of place i

    std over the logits of the layer, per sample and head (the released code: over the whole batch, and with the model's signal level where sigma is meant). sigma in k-units; on flow
    models sigma / (1 - sigma). Only the positive prompt's rows are edited. Joint attention: the picture's queries and the words of the text.
    Defaults: strength 1.5 with log(1 + sigma^2), all steps (released code; 50 steps, CFG 9). A region's weight is its w.
    Limits: a region's words must be in the prompt; a high strength early on wipes out what else the prompt says. With regions that cover everything and name every token
    it changes nothing. Paper: Hu et al., arXiv 2306.00964. Cost: attention to the text with a bias, whose spread is measured (one more product of queries and keys).
    """

    node_id = "LodestarSpatialPromptWeighting"
    title = "Spatial Prompt Weighting"
    family = "attention"
    paper = "Cocktail"
    aliases = ("paint with words", "spatial guidance sampling", "Cocktail", "attention mask prompt")
    evaluations = "0 (attention to the text with a bias)"

    regions: Any = socket("LODESTAR_REGIONS", "The regions with their words, from the node Prompt with Regions.")
    strength: float = param(1.5, "How much the words gain; 0 switches the node off.", 0.0, 20.0, 0.05)
    law: str = param(LAWS[0], "How it grows with the noise level.", choices=LAWS)
    start_percent: float = _start
    end_percent: float = _end
    layers: str = param("all", "Layers whose attention to words is weighted, e.g. all, output, double.*.", advanced=True)

    def validate(self):
        super().validate()
        if isinstance(self.regions, Regions):
            self.regions.need(self.title, words=True)
        return self

    def neutral(self):
        return self.strength == 0

    def edits(self, step):
        amount = self.strength * level(step, self.law)
        return (WeightedWords(self.layers, self.regions, amount),) if amount else ()
