"""Reference attention: a picture's appearance by attention to its keys and values."""
from __future__ import annotations

from typing import Any

import torch

from ..frozen import frozen
from ..method import BadInput, Edit, param, socket, window
from . import sharing
from .edits import AttentionEdit
from .sources import NOISES

_start, _end = window("the reference is seen")


@frozen
class ReferenceKeys(AttentionEdit):
    """The edit: attention to the own tokens and the reference's together; `share` mixes it with the network's own attention."""

    reference: Any = None
    reach: str = "positive"
    weight: float = 1.0
    share: float = 1.0

    kinds = ("self", "joint")
    any_text = True

    @property
    def references(self):
        return (self.reference,)

    def default_layers(self, geometry):
        return "all"

    def apply(self, site, q, k, v, attend):
        found = sharing.seen(site, self.reference, q, k, v)
        bias = sharing.column_bias(k.shape[2], found.k.shape[2], self.weight, q)
        both = sharing.attend_image(site, attend, q, k, v, (q, torch.cat((k, found.k), 2), torch.cat((v, found.v), 2)), bias)
        return both if self.share == 1 else torch.lerp(attend(q, k, v), both, self.share)


@frozen
class ReferenceAttention(Edit):
    """The sampled picture sees the tokens of a reference picture in every self-attention, and takes its appearance over.

        out = softmax([Q K^T, Q K_r^T] / sqrt d + [0, ln strength]) [V, V_r]    in self-attention of the picture's rows, r the reference
        out <- fidelity out_own + (1 - fidelity) out                            in the negative prompt's rows

    The reference, noised to each step's level, passes the network beside the picture. At fidelity 1 they do not see the reference, so that CFG strengthens it (DiffPortrait3D, whose
    network is trained for it, at CFG 3).

    Reference i of a batch serves entry i, a single one all; two nodes show two references to one picture. Joint attention (Flux, SD3 ...): the queries of the picture's
    tokens see the reference's picture tokens.
    Defaults: strength 1; fidelity 0.5, as programs with a "reference only" mode have it, since untrained attention oversaturates at 1 with a high CFG.
    On the bundled DiT all layers copy the reference nearly whole; its last one alone (layers "single.75%-100%") takes the background and leaves the prompt its things.
    Limits: the appearance network of the paper is trained; this is its attention with the model's own weights. Paper: Gu et al., arXiv 2312.13016.
    Cost: one more row per reference, keys doubled.
    """

    node_id = "LodestarReferenceAttention"
    title = "Reference Attention"
    family = "attention"
    paper = "DiffPortrait3D"
    aliases = ("reference only", "appearance reference", "image prompt")
    evaluations = "1"

    strength: float = param(1.0, "Weight of the reference's tokens in attention against the own; 0 switches the node off.", 0.0, 10.0, 0.05)
    fidelity: float = param(0.5, "How far the negative prompt's rows are kept from the reference: 1 lets CFG strengthen the reference, 0 shows it to both.", 0.0, 1.0, 0.05)
    layers: str = param("all", "Layers that see the reference, e.g. all, output, single.*.")
    start_percent: float = _start
    end_percent: float = _end
    reference: Any = socket("LATENT", "The reference as an encoded picture of the size that is sampled.", optional=True)
    trajectory: Any = socket("LODESTAR_TRAJECTORY", "The reference as the trajectory of an inversion, in place of a latent.", optional=True)
    reference_prompt: Any = socket("CONDITIONING", "Describes the reference; without it the positive prompt is used for it.", optional=True)
    noise: str = param("own", "Noise of the latent: own, independent of the picture's, or shared with it.", choices=NOISES, advanced=True)

    negative_rows = "off"

    def neutral(self):
        return self.strength == 0

    def validate(self):
        super().validate()
        if sharing.source(self) is None and not self.neutral():
            raise BadInput(self.title, "reference", None, "Connect a latent or a trajectory.")
        return self

    def edits(self, step):
        positive, = sharing.edits_of(self, lambda branch, reach: ReferenceKeys(self.layers, branch, reach, self.strength), sharing.source(self))
        if self.fidelity == 1:
            return (positive,)
        return positive, ReferenceKeys(self.layers, positive.reference, "negative", self.strength, 1 - self.fidelity)
