"""Mutual self-attention (MasaCtrl): what is in a source picture, laid out as the new prompt wants."""
from __future__ import annotations

from typing import Any

import torch

from ..frozen import frozen
from ..method import Edit, param, socket, window
from . import sharing
from .edits import AttentionEdit
from .sources import NOISES, Held

_, _end = window("the source is seen")


@frozen
class MutualKeys(AttentionEdit):
    """The edit: keys and values are the source's (alpha 1), the own (0) or their mixture; with masks, object and background look at their like.

    alpha: one number, or one for each entry of the batch.
    """

    reference: Any = None
    reach: str = "all"
    alpha: Any = 1.0
    source_mask: Held | None = None
    target_mask: Held | None = None

    kinds = ("self", "joint")
    any_text = True

    @property
    def references(self):
        return () if self.reference is None else (self.reference,)

    def default_layers(self, geometry):
        """The second half of the way up: the last of two stages, or the second half of the only one (SD1.5: output.6-11, SDXL: output.3-5)."""
        stages = geometry.stages()
        return "output.50%-100%" if "output" in stages else f"{stages[-1]}.*" if len(stages) > 1 else f"{stages[0]}.50%-100%"

    def _alpha(self, site, q):
        """alpha as a number or [rows, 1, 1, 1]."""
        if not isinstance(self.alpha, tuple):
            return self.alpha
        values = torch.tensor(self.alpha, device=q.device, dtype=q.dtype)
        return values.expand(site.batch).repeat(q.shape[0] // site.batch).view(-1, 1, 1, 1)

    def apply(self, site, q, k, v, attend):
        if self.reference is None and site.batch == 1:
            return attend(q, k, v)
        found, image, alpha = sharing.seen(site, self.reference, q, k, v), site.image, self._alpha(site, q)
        if isinstance(alpha, torch.Tensor) or alpha != 1:
            sharing.same_grid("Mutual Self-Attention", site, found, q)
            keys, values = (own + alpha * (other - own) for own, other in ((k[:, :, image], found.k), (v[:, :, image], found.v)))
        else:
            keys, values = found.k, found.v
        keys, values = self._joined(site, k, keys), self._joined(site, v, values)
        if self.source_mask is None:
            out = sharing.attend_image(site, attend, q, k, v, (q, keys, values))
        else:
            out = self._by_mask(site, q, k, v, keys, values, attend)
        return out if self.reference is not None else sharing.keep_first(site, attend, q, k, v, out)

    @staticmethod
    def _joined(site, own, picture):
        """The keys or values of the text and of other pictures, which stay, with the picture's new ones."""
        if site.kind != "joint":
            return picture
        begin, end = site.image.start or 0, own.shape[2] if site.image.stop is None else site.image.stop
        return torch.cat((own[:, :, :begin], picture, own[:, :, end:]), 2)

    def _by_mask(self, site, q, k, v, keys, values, attend):
        """Queries of the object see the source's object, those of the background its background."""
        rows, image = q.shape[0], site.image
        like = q[:, :, image]
        source = sharing.mask_at(self.source_mask.value, site, rows, like) >= 0.5
        target = sharing.mask_at((self.target_mask or self.source_mask).value, site, rows, like)
        begin = (image.start or 0) if site.kind == "joint" else 0
        outs = []
        for open_ in (source, ~source):
            open_ = open_ | ~open_.any(1, keepdim=True)          # an empty part hides nothing
            bias = torch.zeros(rows, 1, 1, keys.shape[2], dtype=q.dtype, device=q.device)
            bias[..., begin:begin + open_.shape[1]].masked_fill_(~open_[:, None, None], float("-inf"))
            outs.append(sharing.attend_image(site, attend, q, k, v, (q, keys, values), bias))
        share = target[:, None, :, None].to(q.dtype)
        mixed = outs[1][:, :, image] + share * (outs[0][:, :, image] - outs[1][:, :, image])
        return sharing.put(outs[0], image, mixed)


@frozen
class MutualSelfAttention(Edit):
    """Keys and values of self-attention come from a source picture: the new picture keeps its objects and changes their pose or layout.

        K <- alpha K_s + (1 - alpha) K,  V <- alpha V_s + (1 - alpha) V            queries kept; alpha 1: MasaCtrl
        out = m_t attn(Q, K_s where m_s) + (1 - m_t) attn(Q, K_s where not m_s)    with source_mask m_s and target_mask m_t (without it m_s)

    With masks, queries of the object see the source's object, those of the background its background. The source is the trajectory of an inversion (the paper's way for real pictures: sample from the inversion's noise with the new prompt), a latent that is noised to each step's
    level, or, with neither, the first picture of the batch. Its text is reference_prompt, else the positive prompt. The negative rows look at the source under the negative prompt.
    Joint attention (Flux, SD3 ...): the picture's part of keys and values; text keeps its own.
    Defaults: alpha 1, from 8 % (step 4 of 50) on, the second half of the decoder (SD1.5 output.6-11, the paper; SDXL output.3-5; DiTs: the last stage, or the second half
    of the only one: no value in the paper).
    On the bundled DiT these layers copy the source nearly whole; its last layer alone (layers "single.75%-100%") takes background and colours and leaves the prompt most of its say.
    Limits: what the source does not show cannot be drawn; a change of many objects needs a later start. Paper: Cao et al., "MasaCtrl: Tuning-Free Mutual Self-Attention Control for
    Consistent Image Synthesis and Editing", arXiv 2304.08465; mixing: TextCtrl. Cost: one more row per prompt; with masks two attentions a layer.
    """

    node_id = "LodestarMutualSelfAttention"
    title = "Mutual Self-Attention"
    family = "attention"
    paper = "MasaCtrl: Tuning-Free Mutual Self-Attention Control (Cao et al. 2023)"
    aliases = ("MasaCtrl", "non-rigid editing", "consistent subject")
    evaluations = "2 with a source (1 with negative_rows same or off), 0 within a batch"

    alpha: float = param(1.0, "Share of the source's keys and values; 0 switches the node off.", 0.0, 1.0, 0.05)
    layers: str = param("", "Layers whose keys and values are replaced; empty: the second half of the decoder.")
    start_percent: float = param(0.08, "Start of the window in which the source is seen: before it the layout forms.", 0.0, 1.0, 0.001)
    end_percent: float = _end
    reference: Any = socket("LATENT", "The source as an encoded picture of the size that is sampled. Without it and a trajectory: the first picture of the batch.", optional=True)
    trajectory: Any = socket("LODESTAR_TRAJECTORY", "The source as the trajectory of an inversion, in place of a latent.", optional=True)
    reference_prompt: Any = socket("CONDITIONING", "Describes the source; without it the positive prompt is used for it.", optional=True)
    source_mask: Any = socket("MASK", "Where the object is in the source.", optional=True)
    target_mask: Any = socket("MASK", "Where the object is to be in the new picture; without it the same place.", optional=True)
    noise: str = param("shared", "Noise of the latent: shared with the picture's, or own.", choices=NOISES, advanced=True)
    negative_rows: str = param("own", "The negative prompt's rows: own: look at the source under the negative prompt (paper); same: at the same one; off: left alone.",
                               choices=sharing.NEGATIVE_ROWS, advanced=True)

    def neutral(self):
        return self.alpha == 0

    def validate(self):
        super().validate()
        sharing.source(self)
        return self

    def edits(self, step):
        held = lambda mask: None if mask is None else Held(mask)
        make = lambda branch, reach: MutualKeys(self.layers, branch, reach, self.alpha, held(self.source_mask), held(self.target_mask))
        return sharing.edits_of(self, make, sharing.source(self))
