"""Skip Layer Guidance."""
from __future__ import annotations

import torch

from ..attention.blocks import SkipBlock
from ..frozen import frozen
from ..layers import published
from ..method import NEGATIVE, POSITIVE, Branch, Edit, param
from .common import Push, rescaling

BRANCH, NEGATIVE_ONLY = "extra branch", "negative only"
PUBLISHED = {"sd3": "double.7-9", "wan": "block.9", "flux": "double.7-9", "qwen": "double.7-9"}


@frozen
class SkipPublished(SkipBlock):
    """Leaves out the blocks that are usual for a family."""

    def default_layers(self, geometry):
        return published(geometry, PUBLISHED)


@frozen
class SkipLayerGuidance(Push, Edit):
    """Pushes away from a prediction of the same network with some of its blocks left out.

    ptb = D(x, s, positive) with the blocks `layers` left out: each gives back its input, the picture's tokens and the text's
    result = base + scale (cond - ptb)
    `rescale` rho brings the standard deviation back to cond's: result (rho std(cond) / std(result) + 1 - rho), per sample.
    mode "negative only": the negative prompt's prediction loses the blocks, uncond <- D_skip(x, s, negative), and CFG follows; no evaluation is added, `scale`
    and `rescale` do nothing (a scale of 0 still switches the node off), and nothing happens where CFG is off.

    The formula is the same for eps, v and flow models. On U-Nets a block is one transformer block (attention and feed-forward), its convolutions stay.
    Defaults: scale 3, window 0.01 to 0.15, blocks 7 to 9 (SD3.5 medium, its authors); Wan: block 9, usually with "negative only" over most of the schedule.
    Empty `layers`: those, or the middle third of the first stage on other DiTs, the middle block on U-Nets (no published values).
    Limits: a network without its first block, or without many, predicts nothing of use. On the host's own node the rescale looks at the whole batch, here at each
    sample. Cost: one more evaluation, batched with the prompts; "negative only": none.
    """

    node_id = "LodestarSkipLayerGuidance"
    title = "Skip Layer Guidance"
    family = "perturbation"
    paper = "Skip Layer Guidance (SLG), Stable Diffusion 3.5, Stability AI 2024"
    aliases = ("SLG", "skip layer")
    evaluations = "1 (negative only: 0)"

    scale: float = param(3.0, "Strength of the push away from the prediction without the blocks; 0 switches the node off.", 0.0, 100.0, 0.1)
    layers: str = param("", "Blocks that are left out, e.g. double.7-9, block.9, middle. Empty: those usual for the model.")
    start_percent: float = param(0.01, "Start of the window in which the method acts, as a fraction of the sampling schedule (0 = first step).", 0.0, 1.0, 0.001)
    end_percent: float = param(0.15, "End of that window (1 = last step).", 0.0, 1.0, 0.001)
    rescale: float = rescaling()
    mode: str = param(BRANCH, "extra branch: one more evaluation. negative only: the negative prompt's prediction loses the blocks, at no cost.",
                      choices=(BRANCH, NEGATIVE_ONLY))

    @property
    def skip(self):
        return SkipBlock(self.layers) if self.layers.strip() else SkipPublished()

    @property
    def branch(self):
        return Branch(blocks=(self.skip,))

    def branches(self, step):
        return (POSITIVE, self.branch) if self.mode == BRANCH else ()

    def delta(self, step, base, predictions, state):
        return super().delta(step, base, predictions, state) if self.mode == BRANCH else torch.zeros_like(base)

    def blocks(self, step):
        return {NEGATIVE.prompt: (self.skip,)} if self.mode == NEGATIVE_ONLY else {}
