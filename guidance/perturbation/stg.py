"""Spatiotemporal Skip Guidance."""
from __future__ import annotations

import torch
import torch.nn.functional as F

from ..attention.blocks import SkipBlock, SkipSpaceBlock, SkipTimeBlock
from ..attention.edits import AttentionEdit
from ..frozen import frozen
from ..layers import published
from ..method import Branch, param, window
from .common import Push, rescaling
from .pag import IdentitySelfAttention

_start, _end = window()
RESIDUAL, ATTENTION = "residual", "attention"
JOINT, TEMPORAL, SPATIAL = "joint", "temporal", "spatial"
PUBLISHED = {"wan": "block.8", "ltx": "block.19", "hunyuan": "double.2"}


class _Published:
    """The blocks of the paper, where it has a network of the family."""

    def default_layers(self, geometry):
        return published(geometry, PUBLISHED)


@frozen
class IdentityPublished(_Published, IdentitySelfAttention):
    """Self-attention := V in the paper's blocks."""


@frozen
class SkipPublished(_Published, SkipBlock):
    """Leaves out the paper's blocks."""


@frozen
class OneAxisAttention(_Published, AttentionEdit):
    """Self-attention over space and time that loses one of them.

    axis "temporal": a token sees its own frame alone; "spatial": it sees its own place in every frame alone (and the text, in joint attention). On networks with
    blocks of their own for the frames (SVD) the attention of that axis becomes the identity: its head output is V.
    """

    axis: str = TEMPORAL

    kinds = ("self", "joint", "temporal")

    def check(self, geometry, layers):
        """Raises ValueError on networks of pictures."""
        if geometry.family == "unet" and not geometry.temporal:
            raise ValueError(f"Spatiotemporal Skip Guidance: axis = {self.axis!r} needs a video model; this is a U-Net of pictures. Choose joint.")

    def apply(self, site, q, k, v, attend):
        if site.kind == "temporal" or "temporal" in site.layer.attentions:      # the frames have attention of their own
            own = site.kind == "temporal" if self.axis == TEMPORAL else site.kind == "self"
            return v if own else attend(q, k, v)
        if site.frames == 1:
            raise ValueError(f"Spatiotemporal Skip Guidance: axis = {self.axis!r} has no meaning on a picture (one frame). Choose joint.")
        text, image = site.text, site.image
        parts = [self._grouped(t[:, :, image], site) for t in (q, k, v)]
        if text is not None:
            times = parts[0].shape[0] // q.shape[0]
            parts[1:] = [_with_text(t[:, :, text], part, times) for t, part in zip((k, v), parts[1:])]
        seen = self._ungrouped(F.scaled_dot_product_attention(*parts), site, q.shape[0])
        if seen.shape[2] == q.shape[2]:
            return seen
        out = attend(q, k, v).clone()
        out[:, :, image] = seen
        return out

    def _grouped(self, t, site):
        """[rows * groups, heads, tokens of a group, dim]: a group is a frame (temporal) or a place (spatial)."""
        grid = t.unflatten(2, (site.frames, -1))
        return (grid.movedim(2, 1) if self.axis == TEMPORAL else grid.movedim(3, 1)).flatten(0, 1)

    def _ungrouped(self, t, site, rows):
        grid = t.unflatten(0, (rows, -1))
        return (grid.movedim(1, 2) if self.axis == TEMPORAL else grid.movedim(1, 3)).flatten(2, 3)


def _with_text(text, part, times):
    """The text's keys or values in front of each group's."""
    return torch.cat((text.repeat_interleave(times, 0), part), 2)


@frozen
class SpatiotemporalSkipGuidance(Push):
    """Pushes away from a prediction that has lost part of its spatiotemporal layers; made for videos, works on pictures too.

    ptb = D(x, s, positive) with, in `layers`,
        mode residual:  the whole block left out (it gives back its input, picture and text),
        mode attention: self-attention := identity (the head output is V); cross-attention and feed-forward stay
    result = base + scale (cond - ptb)
    `rescale` rho brings the standard deviation back to cond's: result (rho std(cond) / std(result) + 1 - rho), per sample.
    axis: joint, the whole of it. temporal or spatial, half of it: on networks with blocks of their own for the frames (SVD) those blocks or the spatial ones
    alone; on networks with one attention over space and time (Wan, LTX, Hunyuan Video ...) mode attention keeps a token's own frame (temporal) or its own place
    (spatial), and residual is not possible.

    The formula is the same for eps, v and flow models. With the same layers, mode residual has the branch of Skip Layer Guidance, mode attention that of
    Perturbed-Attention Guidance. Guidance-distilled models: cfg 1, base is cond.
    Defaults: scale 1, residual; empty `layers`: block 8 on Wan, 19 on LTX, double 2 on Hunyuan Video (paper and its code; LTX's own nodes use 14 and 19 with
    attention), the middle of others. A rescale of 0.7 is usual where it is used.
    Limits: frames given as conditions are degraded too. Cost: one more evaluation, batched with the prompts.
    """

    node_id = "LodestarSpatiotemporalSkipGuidance"
    title = "Spatiotemporal Skip Guidance"
    family = "perturbation"
    paper = "Spatiotemporal Skip Guidance (STG)"
    aliases = ("STG",)
    evaluations = "1"

    scale: float = param(1.0, "Strength of the push away from the prediction with skipped layers; 0 switches the node off.", 0.0, 100.0, 0.1)
    mode: str = param(RESIDUAL, "residual: the whole block is left out. attention: its self-attention is switched off.", choices=(RESIDUAL, ATTENTION))
    axis: str = param(JOINT, "joint: all of it. temporal or spatial: on videos, what connects the frames or what connects the places of a frame.",
                      choices=(JOINT, TEMPORAL, SPATIAL))
    layers: str = param("", "Blocks that are skipped, e.g. block.8, double.2, middle. Empty: those of the paper for the model.")
    start_percent: float = _start
    end_percent: float = _end
    rescale: float = rescaling()

    @property
    def branch(self):
        named = self.layers.strip()
        if self.mode == RESIDUAL:
            if self.axis == JOINT:
                return Branch(blocks=(SkipBlock(self.layers) if named else SkipPublished(),))
            return Branch(blocks=((SkipTimeBlock if self.axis == TEMPORAL else SkipSpaceBlock)(self.layers),))
        if self.axis == JOINT:
            return Branch(edits=(IdentitySelfAttention(self.layers) if named else IdentityPublished(),))
        return Branch(edits=(OneAxisAttention(self.layers, self.axis),))
