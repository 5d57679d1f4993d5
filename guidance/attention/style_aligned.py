"""StyleAligned: pictures of one style by attention to a reference picture."""
from __future__ import annotations

from typing import Any

import torch

from ..frozen import frozen
from ..method import Edit, param, socket, window
from . import sharing
from .edits import AttentionEdit
from .sources import NOISES

_start, _end = window("the style is shared")


@frozen
class StyleSharing(AttentionEdit):
    """The edit: AdaIN of queries and keys to the reference's, and attention to the own tokens and the reference's together."""

    reference: Any = None
    reach: str = "all"
    weight: float = 1.0
    adain: float = 1.0
    key_scale: float = 1.0

    kinds = ("self", "joint")
    any_text = True

    @property
    def references(self):
        return () if self.reference is None else (self.reference,)

    def default_layers(self, geometry):
        return "all"

    def apply(self, site, q, k, v, attend):
        if self.reference is None and site.batch == 1:
            return attend(q, k, v)
        style, image = sharing.seen(site, self.reference, q, k, v), site.image
        amount = self.adain * min(1.0, self.weight)
        q_new = sharing.put(q, image, sharing.adain(q[:, :, image], style.q, amount))
        k_new = sharing.put(k, image, sharing.adain(k[:, :, image], style.k, amount))
        keys = torch.cat((k_new, style.k * self.key_scale if self.key_scale != 1 else style.k), 2)
        values = torch.cat((v, style.v), 2)
        bias = sharing.column_bias(k.shape[2], style.k.shape[2], self.weight, q)
        out = sharing.attend_image(site, attend, q, k, v, (q_new, keys, values), bias)
        return out if self.reference is not None else sharing.keep_first(site, attend, q, k, v, out)


@frozen
class StyleAligned(Edit):
    """Pictures that share the style of a reference picture: their self-attention sees its tokens too, under its statistics.

        AdaIN(t, r) = (t - mean t) / std t * std r + mean r        over tokens, per head and channel
        Q' = Q + a (AdaIN(Q, Q_r) - Q),  K' likewise               r the reference, a = adain min(1, strength)
        out = softmax([Q' K'^T, key_scale Q' K_r^T] / sqrt d + [0, ln strength]) [V, V_r]

    The reference is a latent that is noised to each step's level, or the trajectory of an inversion (the paper's way for real pictures). With neither connected it is the
    first picture of the batch: each entry is drawn in its style. Reference i serves entry i, a single one all.
    Joint attention (Flux, SD3 ...): queries of the picture's tokens see the reference's picture tokens; text and its queries stay each picture's own. There the statistics are
    taken after the rotary embedding, which queries and keys already carry.

    Defaults: strength 1 (the paper, for pictures made together); 2 in the authors' code for real pictures, which they lower to 1 with key_scale 0.5 for famous ones.
    The code's shared normalisation of group norms is not part of this node (the authors' SDXL demo has it off, as here).
    Limits: a strong reference carries its content over, on DiTs more than on U-Nets; layers then help. Paper: Hertz, Voynov, Fruchter, Cohen-Or, "Style Aligned Image Generation via Shared
    Attention", arXiv 2312.02133. Cost: one more row per reference and prompt, keys doubled; without a reference keys doubled only.
    """

    node_id = "LodestarStyleAligned"
    title = "StyleAligned"
    family = "attention"
    paper = "Style Aligned Image Generation via Shared Attention (StyleAligned, Hertz et al. 2023)"
    aliases = ("style transfer", "shared attention", "consistent style")
    evaluations = "2 with a reference (1 with negative_rows same or off), 0 within a batch"

    strength: float = param(1.0, "Weight of the reference's tokens in attention against the own; 0 switches the node off.", 0.0, 10.0, 0.05)
    adain: float = param(1.0, "How far queries and keys take the reference's mean and standard deviation.", 0.0, 1.0, 0.05)
    layers: str = param("all", "Layers that share, e.g. all, output, double.*.")
    start_percent: float = _start
    end_percent: float = _end
    reference: Any = socket("LATENT", "The style as an encoded picture of the size that is sampled. Without it and a trajectory: the first picture of the batch.", optional=True)
    trajectory: Any = socket("LODESTAR_TRAJECTORY", "The style as the trajectory of an inversion, in place of a latent.", optional=True)
    reference_prompt: Any = socket("CONDITIONING", "Describes the reference; without it the positive prompt is used for it.", optional=True)
    noise: str = param("own", "Noise of the latent: own, independent of the picture's, or shared with it.", choices=NOISES, advanced=True)
    negative_rows: str = param("own", "The negative prompt's rows: own: look at the reference under the negative prompt (paper); same: at the same one; off: left alone.",
                               choices=sharing.NEGATIVE_ROWS, advanced=True)
    key_scale: float = param(1.0, "Factor on the reference's keys; below 1 flattens the attention to it.", 0.0, 2.0, 0.05, advanced=True)

    def neutral(self):
        return self.strength == 0

    def validate(self):
        super().validate()
        sharing.source(self)
        return self

    def edits(self, step):
        make = lambda branch, reach: StyleSharing(self.layers, branch, reach, self.strength, self.adain, self.key_scale)
        return sharing.edits_of(self, make, sharing.source(self))
