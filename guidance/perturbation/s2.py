"""Stochastic Self-Guidance."""
from __future__ import annotations

from ..attention.blocks import SkipBlock, generator_of
from ..frozen import frozen
from ..method import POSITIVE, Branch, param
from .common import Push, rescaled, rescaling


@frozen
class DropBlocks(SkipBlock):
    """Leaves out a random share of the blocks, at least one, drawn anew at every step."""

    share: float = 0.1
    seed: int = 0
    number: int = 0

    def default_layers(self, geometry):
        return f"all -{geometry.layers[0]}" if len(geometry.layers) > 1 else "all"

    def pick(self, layers, step):
        count = min(len(layers), max(1, round(self.share * len(layers))))
        return generator_of("blocks", self.seed, 0 if step is None else step.index, self.number).sample(list(layers), count)


@frozen
class StochasticSelfGuidance(Push):
    """Pushes away from what random parts of the network predict alone: at every step some blocks, drawn anew, are left out.

    ptb_i = D(x, s, positive) without the blocks of mask m_i, a random `drop` share of `layers`;  ptb = mean of ptb_i over `masks` masks
    result = base + scale (cond - ptb)
    `rescale` rho brings the standard deviation back to cond's: result (rho std(cond) / std(result) + 1 - rho), per sample.

    The masks come from `seed` and the step alone: the same for all pictures of a batch. The formula is the same for eps, v and flow models. This is the paper's
    last version; an earlier one subtracts scale ptb without adding scale cond, which shrinks the prediction by the factor 1 - scale.
    Defaults: scale 0.25, about a tenth of the blocks, one mask, the middle 80 % of the schedule; the first block is never dropped (paper, SD3 and Wan).
    On U-Nets (not in the paper) a block is one transformer block; few of them make a tenth at least one.
    Limits: too large a share predicts nothing of use. Cost: one more evaluation per mask, batched with the prompts.
    """

    node_id = "LodestarStochasticSelfGuidance"
    title = "Stochastic Self-Guidance"
    family = "perturbation"
    paper = "S^2-Guidance: Stochastic Self Guidance"
    aliases = ("S2-Guidance", "S2")
    evaluations = "1 per mask"

    scale: float = param(0.25, "Strength of the push away from the sub-network's prediction; 0 switches the node off.", 0.0, 100.0, 0.05)
    drop: float = param(0.1, "Share of the blocks that are left out at each step, at least one; 0 switches the node off.", 0.0, 1.0, 0.01)
    layers: str = param("", "Blocks that may be left out, e.g. all -double.0, block.1-28. Empty: all but the first.")
    start_percent: float = param(0.1, "Start of the window in which the method acts, as a fraction of the sampling schedule (0 = first step).", 0.0, 1.0, 0.001)
    end_percent: float = param(0.9, "End of that window (1 = last step).", 0.0, 1.0, 0.001)
    seed: int = param(0, "Seed of the masks.", 0, 2 ** 53, 1)
    rescale: float = rescaling()
    masks: int = param(1, "Masks per step; their predictions are averaged, each costs an evaluation.", 1, 16, 1, advanced=True)

    @property
    def subnetworks(self):
        return tuple(Branch(blocks=(DropBlocks(self.layers, self.drop, self.seed, i),)) for i in range(self.masks))

    @property
    def branch(self):
        return self.subnetworks[0]

    def neutral(self):
        return self.scale == 0 or self.drop == 0

    def branches(self, step):
        return (POSITIVE, *self.subnetworks)

    def delta(self, step, base, predictions, state):
        cond = predictions[POSITIVE]
        worse = sum(predictions[b] for b in self.subnetworks) / self.masks
        return rescaled(base, self.scale * (cond - worse), cond, self.rescale)
