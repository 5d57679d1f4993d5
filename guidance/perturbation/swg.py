"""Sliding Window Guidance."""
from __future__ import annotations

from ..frozen import frozen
from ..method import POSITIVE, Branch, Term, Windows, param, window

_start, _end = window()


@frozen
class SlidingWindowGuidance(Term):
    """Pushes away from a prediction that sees the picture through small windows: what needs the whole picture, its layout, is strengthened.

    neg = mean over the crops that hold a place of D(crop of x, s, positive);  windows x windows crops, each `crop` of a side long, from border to border
    result = base + scale mask (cond - neg);  mask = 1 where two or more crops overlap, 0 else (M-SWG), or 1 everywhere (masked off)

    Every crop is a picture of its own to the network: positions start anew, masks, concatenated latents and ControlNet hints are cropped with it, size conditions
    stay those of the whole. The formula is the same for eps, v and flow models.
    Defaults: crop 40 of 64 cells, 2 x 2 windows, masked, scale 0.5 (paper's code: 0.2 to 1.1 on EDM2, 0.5 on DiT-XL). With CFG the push adds to it.
    Limits: a network that was trained at one size only may do badly on crops; GLIGEN boxes cannot be cropped.
    Cost: windows^2 evaluations of crop^2 of the picture each, 1.6 by default, in one batch of their own.
    """

    node_id = "LodestarSlidingWindowGuidance"
    title = "Sliding Window Guidance"
    family = "perturbation"
    paper = "Guiding a diffusion model with itself using sliding windows (SWG, M-SWG), BMVC 2025, arXiv 2411.10257"
    aliases = ("SWG", "M-SWG")
    evaluations = "windows^2 crops (by default as much as 1.6)"
    planar = True

    scale: float = param(0.5, "Strength of the push away from the prediction through windows; 0 switches the node off.", 0.0, 100.0, 0.05)
    crop: float = param(0.625, "Side of a window, as a share of the picture's; 1 switches the node off.", 0.1, 1.0, 0.005)
    windows: int = param(2, "Windows along each side.", 1, 8, 1)
    masked: bool = param(True, "Push only where windows overlap (M-SWG).")
    start_percent: float = _start
    end_percent: float = _end

    @property
    def branch(self):
        return Branch(windows=Windows(self.crop, self.windows))

    def neutral(self):
        return self.scale == 0 or self.crop == 1

    def branches(self, step):
        return (POSITIVE, self.branch)

    def delta(self, step, base, predictions, state):
        push = self.scale * (predictions[POSITIVE] - predictions[self.branch])
        if not self.masked:
            return push
        return push * (self.branch.windows.overlaps(base.shape) > 1).to(push)
