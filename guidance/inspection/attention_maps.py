"""Capture Attention: the maps of a run, for the nodes that show and use them."""
from __future__ import annotations

from typing import Any

from ..attention.capture import ROLES, MapCapture, MapRecord
from ..frozen import frozen
from ..method import Finish, param, window

_start, _end = window("maps are read")


@frozen(eq=False)
class CaptureAttention(Finish):
    """Reads which part of the picture attends to which word, in every step of a run; changes nothing, bit for bit.

        A[cell, token] = softmax over the prompt's tokens of q k / sqrt(d), averaged over heads
        map[token] = mean over layers and steps of A, each layer's grid brought to the largest

    Cross-attention: the network's own weights. Joint attention (Flux, SD3, Qwen ...): the weights of the picture's cells on the text, normalised over the text
    alone. A prompt with weights such as (word:1.2) has the same tokens; several areas are put together where they lie.

    The network's attention runs in the host's kernels as always; the weights are computed beside it in chunks. Cost: one more product of queries and text
    keys per layer and its softmax, 7 to 8% of a step on the bundled models. Memory: chunks of 64 MiB, and per grid size tokens x side^2 x 4 bytes (side 32,
    77 tokens: 0.3 MiB; 512 tokens: 2 MiB) per picture of the batch, however many layers and steps are read.

    Limits: maps are relative, they say which word a cell attends to most, not whether the word is there. Attention that an edit replaces (masks of other packs,
    the sparse part of Draft Attention) is read as it would be without it. Networks whose attention is out of reach
    (PixArt, Mochi and others, see `docs/layers.md`) are an error that names them.
    """

    node_id = "LodestarCaptureAttention"
    title = "Capture Attention"
    family = "inspection"
    paper = "What the DAAM: Interpreting Stable Diffusion Using Cross Attention (arXiv 2210.04885)"
    aliases = ("DAAM", "attention maps", "heat maps")
    evaluations = "0"

    role: str = param(ROLES[0], "Whose attention is read: the positive or negative prompt's, or that of the extra predictions of guidance methods.", choices=ROLES)
    start_percent: float = _start
    end_percent: float = _end
    layers: str = param("all", "Layers whose attention to the text is read, e.g. all, output, double.*.")
    side: int = param(32, "Longest side of the stored maps in cells; larger grids are averaged down.", 4, 256, 1, advanced=True)
    record: Any = None

    @property
    def reader(self):
        return MapCapture(self.layers, self.role, side=self.side)

    def edits(self, step):
        return (self.reader,)

    def finish(self, step, denoised, predictions, state):
        if "record" not in state:
            state["record"] = self.record if self.record is not None else MapRecord()
            state["record"].begin()
        found = step.maps.pop(self.reader, None)
        if found:
            state["record"].add(found)
        return denoised
