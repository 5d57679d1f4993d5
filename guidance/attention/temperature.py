"""Temporal Attention Temperature (TCAN)."""
from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F

from ..frozen import frozen
from ..method import BadInput, Edit, param, socket, window
from .edits import AttentionEdit

_start, _end = window()


def distances(mask):
    """Euclidean distance of every cell [height, width] to the nearest cell of a bool mask, in cells; infinite where the mask is empty."""
    height, width = mask.shape
    rows = torch.arange(height, device=mask.device, dtype=torch.float32)
    columns = torch.arange(width, device=mask.device, dtype=torch.float32)
    away = torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, torch.inf)
    # two passes: the nearest of the mask in each column, then over the columns
    down = ((rows[:, None] - rows[None])[:, :, None].square() + away[None]).amin(1)
    return ((columns[:, None] - columns[None])[None].square() + down[:, None]).amin(-1).sqrt()


def temperatures(mask, height, width, gain):
    """1 + gain d [height, width], d the distance to the mask [frames, h, w] in any frame, divided by half the diagonal of the grid."""
    union = mask.float().amax(0)[None, None]
    small = F.adaptive_max_pool2d(union, (height, width)) if union.shape[-2] >= height and union.shape[-1] >= width else F.interpolate(union, (height, width))
    d = distances(small[0, 0] > 0.5) / (0.5 * (height ** 2 + width ** 2) ** 0.5)
    return 1 + gain * d


@frozen(eq=False)
class Temperature(AttentionEdit):
    """The edit: attention over the frames, its logits divided by a temperature per cell."""

    mask: Any = None
    gain: float = 3.0

    kinds = ("temporal",)
    everywhere = True

    def default_layers(self, geometry):
        return "all"

    def apply(self, site, q, k, v, attend):
        return attend((q / self._of_rows(site.height, site.width, q)).to(q.dtype), k, v)

    @cached_property
    def _kept(self):
        return {}

    def _of_rows(self, height, width, q):
        """The temperatures [rows, 1, 1, 1] of queries: one row per cell, the videos of the batch one after the other. Kept, as every layer of a size asks in every step."""
        key = height, width, q.shape[0], q.device
        if key not in self._kept:
            with torch.inference_mode(False):      # a later call may want gradients
                tau = temperatures(self.mask.to(q.device).clone(), height, width, self.gain).flatten()
                self._kept[key] = tau.repeat(q.shape[0] // tau.shape[0])[:, None, None, None]
        return self._kept[key]


@frozen(eq=False)
class TemporalAttentionTemperature(Edit):
    """Keeps what does not move still: attention over the frames is flattened far away from a mask (the person, the pose).

    tau(p) = 1 + gain d(p),  attention over frames at cell p: softmax(q k / (sqrt(d) tau(p))) v
    d(p) is the distance of p to the mask in any frame, divided by half the picture's diagonal: 0 inside the mask, at most 2. A high temperature averages over all
    frames: flicker and drift of the background go.

    Needs attention over the frames of its own: video U-Nets (SVD). In Wan, Hunyuan Video, LTX and Cosmos frames and space share one softmax; not defined there.
    Default: gain 3 (authors' code). Identities: gain 0; cells of the mask. Acts on all prompts. Cost: none.
    """

    node_id = "LodestarTemporalAttentionTemperature"
    title = "Temporal Attention Temperature"
    family = "attention"
    paper = "TCAN"
    aliases = ("flicker", "static background", "SVD")
    evaluations = "0"

    mask: Any = socket("MASK", "What moves: one mask, or one for each frame. Attention stays as it is inside it.")
    gain: float = param(3.0, "How fast attention flattens with the distance to the mask; 0 switches the node off.", 0.0, 10.0, 0.05)
    start_percent: float = _start
    end_percent: float = _end
    layers: str = param("all", "Layers whose attention over the frames is changed.", advanced=True)

    def neutral(self):
        return self.gain == 0

    def validate(self):
        super().validate()
        if self.mask is not None and (self.mask.ndim != 3 or not bool((self.mask > 0.5).any())):
            raise BadInput(self.title, "mask", f"{list(self.mask.shape)}, largest value {float(self.mask.max()):g}", "Give a mask [frames, height, width] with something in it.")
        return self

    def fitted(self, facts):
        if not any("temporal" in layer.attentions for layer in facts.geometry.layers):
            if facts.geometry.temporal:
                raise BadInput(self.title, "ComfyUI", "this version", "It does not let nodes act on the attention over the frames; use one of 2025 or newer.")
            raise BadInput(self.title, "model", facts.network, "It needs attention over the frames alone, as the video U-Nets of the SVD kind have it.")
        return self

    @cached_property
    def _edit(self):
        return Temperature(self.layers, self.mask, self.gain)

    def edits(self, step):
        return (self._edit,)
