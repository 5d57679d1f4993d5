"""Depth- and text-guided attention injection (ConTex-Human): a person seen from behind, in the clothes that the front shows."""
from __future__ import annotations

from typing import Any

import torch

from ..frozen import frozen
from ..method import BadInput, Branch, Edit, Prompt, param, socket, window
from . import sharing
from .mutual import MutualKeys
from .sources import NOISES, Held, source_of

_, _end = window("the reference view is seen")


def nearer(depth, threshold, node, field):
    """The subject in a depth map [n, height, width] of any scale, near is bright: a MASK of what lies above the threshold between its least and greatest value."""
    if not isinstance(depth, torch.Tensor) or depth.ndim not in (2, 3) or not depth.is_floating_point() or not bool(torch.isfinite(depth).all()):
        shape = list(depth.shape) if isinstance(depth, torch.Tensor) else type(depth).__name__
        raise BadInput(node, field, shape, "Connect a depth map as a MASK [pictures, height, width] of finite values, near is bright.")
    depth = depth if depth.ndim == 3 else depth[None]
    low, high = (f(depth, dim=(1, 2), keepdim=True) for f in (torch.amin, torch.amax))
    if bool((high - low < 1e-6).any()):
        raise BadInput(node, field, "one depth everywhere", "A depth map of a subject before a background has at least two depths.")
    return ((depth - low) / (high - low) > threshold).to(torch.float32)


@frozen
class DepthGuidedInjection(Edit):
    """Another view of a subject takes its texture from a reference view: keys and values of self-attention are the reference's, shape and pose come from depth, the rest from the text.

        K, V <- K_r, V_r                                               queries are the new view's, in its rows alone, from start_percent on
        reference rows: the inverted reference picture under reference_prompt, with the ControlNet that reference_prompt carries (its depth D_r)
        new rows: the same noise, "back view of ..." and the ControlNet of the positive prompt (its depth D_b)
        with depth maps: subject queries see the subject's keys alone, background queries the background's; subject = (D - min) / (max - min) > threshold

    Depth acts through the two ControlNets (or a depth model): put Apply ControlNet with the reference's depth map on reference_prompt, and with the new view's on positive and negative. Unlike in the
    other nodes with a reference, its prompt keeps its ControlNet. Sample from the noise of DDIM Inversion of the reference (the paper copies it), with its trajectory connected here.
    The depth maps here are for the masks; the paper has its subjects cut out beforehand.

    What of the paper this is: the attention injection of its back view synthesis. What it is not: the depth renderings (they come from a coarse radiance field), normals, mesh and texture, and the
    visibility-aware patch consistency loss. Defaults: the authors give no code; start and layers are those of Mutual Self-Attention, which they build on.
    Limits: what the reference does not show cannot be drawn. Paper: Gao et al., arXiv 2311.17123. Cost: one more row per prompt.
    """

    node_id = "LodestarDepthGuidedInjection"
    title = "Depth-Guided Attention Injection"
    family = "attention"
    paper = "ConTex-Human"
    aliases = ("back view synthesis", "novel view", "texture transfer", "MasaCtrl with depth")
    evaluations = "1 (2 with reference_negative)"

    reference_prompt: Any = socket("CONDITIONING", "Describes the reference view; its ControlNet (the reference's depth) acts on the reference alone.")
    alpha: float = param(1.0, "Share of the reference's keys and values; 0 switches the node off.", 0.0, 1.0, 0.05)
    layers: str = param("", "Layers whose keys and values are replaced; empty: the second half of the decoder.")
    start_percent: float = param(0.08, "Start of the window in which the reference is seen: before it depth and text lay the picture out.", 0.0, 1.0, 0.001)
    end_percent: float = _end
    trajectory: Any = socket("LODESTAR_TRAJECTORY", "The reference as the trajectory of its inversion (paper).", optional=True)
    reference: Any = socket("LATENT", "The reference as an encoded picture, noised to each step's level, in place of a trajectory.", optional=True)
    reference_negative: Any = socket("CONDITIONING", "The negative prompt of the reference, with its ControlNet; without it the negative rows see the reference under reference_prompt.",
                                     optional=True)
    reference_depth: Any = socket("MASK", "Depth of the reference, near is bright: subject and background are kept apart. Needs depth too.", optional=True)
    depth: Any = socket("MASK", "Depth of the new view.", optional=True)
    threshold: float = param(0.1, "Share of the depth's range above which a pixel belongs to the subject.", 0.0, 1.0, 0.01, advanced=True)
    noise: str = param("shared", "Noise of the latent: shared with the picture's, or own.", choices=NOISES, advanced=True)

    masks = None      # (reference's, new view's), made once

    def neutral(self):
        return self.alpha == 0

    def validate(self):
        super().validate()
        if self.neutral():
            return self
        if source_of(self.title, self.reference, self.trajectory) is None:
            raise BadInput(self.title, "trajectory", None, "Connect a trajectory of DDIM Inversion, or a latent at reference.")
        if (self.depth is None) != (self.reference_depth is None):
            missing = "depth" if self.depth is None else "reference_depth"
            raise BadInput(self.title, missing, None, "Connect both depth maps, or none.")
        if self.depth is not None and self.masks is None:
            found = tuple(Held(nearer(getattr(self, f), self.threshold, self.title, f)) for f in ("reference_depth", "depth"))
            object.__setattr__(self, "masks", found)
        return self

    def edits(self, step):
        from dataclasses import replace
        source = replace(source_of(self.title, self.reference, self.trajectory, self.noise), control=True)
        prompt = lambda cond, name: cond if isinstance(cond, Prompt) else Prompt(cond, f"{name} of {self.title}")
        reference, new = self.masks or (None, None)
        make = lambda branch, reach: MutualKeys(self.layers, branch, reach, self.alpha, reference, new)
        positive = Branch(prompt(self.reference_prompt, "reference_prompt"), source=source)
        if self.reference_negative is None:
            return (make(positive, "all"),)
        return make(positive, "positive"), make(Branch(prompt(self.reference_negative, "reference_negative"), source=source), "negative")
