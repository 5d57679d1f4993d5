"""Token Perturbation Guidance."""
from __future__ import annotations

import torch

from ..attention.blocks import BlockEdit, generator_of
from ..frozen import frozen
from ..method import Branch, param, window
from .common import Push, rescaling

_start, _end = window()


def permutation(count, fraction, *key):
    """A permutation [count] that moves a random `fraction` of the tokens among themselves; the same for the same key on every machine."""
    generator = torch.Generator().manual_seed(generator_of(*key).getrandbits(62))
    order = torch.arange(count)
    moved = round(fraction * count)
    if moved < 2:
        return order
    chosen = torch.randperm(count, generator=generator)[:moved]
    order[chosen] = chosen[torch.randperm(moved, generator=generator)]
    return order


@frozen
class ShuffleTokens(BlockEdit):
    """A block is given the picture's tokens in a random order, new at every step and in every layer, the same for all pictures of a batch; they stay so."""

    fraction: float = 1.0
    seed: int = 0
    frames_apart: bool = False

    parts = ("space",)

    def default_layers(self, geometry):
        names = {str(x) for x in geometry.layers}
        if geometry.family == "unet":
            return "input.7.2-9, input.8" if "input.8.9" in names else "input"
        return "middle"

    def enter(self, site, streams):
        tokens = streams["image"]
        part = tokens[:, site.image]
        count, index = part.shape[1], 0 if site.step is None else site.step.index
        groups = site.frames if self.frames_apart and count % site.frames == 0 else 1
        each = count // groups
        order = torch.cat([i * each + permutation(each, self.fraction, "tokens", self.seed, index, site.layer, i) for i in range(groups)]).to(tokens.device)
        shuffled = part[:, order]
        if count != tokens.shape[1]:
            whole = tokens.clone()
            whole[:, site.image] = shuffled
            shuffled = whole
        return {**streams, "image": shuffled}


@frozen
class TokenPerturbationGuidance(Push):
    """Pushes away from a prediction whose tokens are shuffled on their way through the network: local detail is kept in each token, the structure is lost.

    ptb = D(x, s, positive) with h <- h[:, pi] for the tokens h that enter each block of `layers`, pi a new permutation per layer and step, never undone
    result = base + scale (cond - ptb)
    `rescale` rho brings the standard deviation back to cond's: result (rho std(cond) / std(result) + 1 - rho), per sample.

    The whole residual stream is shuffled, so every token's norm is kept. Permutations come from `seed`, the step and the layer alone: the same for all pictures
    of a batch, independent of other random numbers. DiTs (derived, not in the paper): the picture's tokens alone, which then meet wrong positions; the text's
    stay. Videos: over all frames, or within each. The formula is the same for eps, v and flow models.
    Defaults: scale 3; empty `layers`: the paper's for SDXL (input.7.2-9, input.8), the input blocks of other U-Nets, the middle of DiTs.
    Limits: the blocks of the decoder do little or harm (paper). Cost: one more evaluation, batched with the prompts.
    """

    node_id = "LodestarTokenPerturbationGuidance"
    title = "Token Perturbation Guidance"
    family = "perturbation"
    paper = "Token Perturbation Guidance (TPG)"
    aliases = ("TPG",)
    evaluations = "1"

    scale: float = param(3.0, "Strength of the push away from the prediction with shuffled tokens; 0 switches the node off.", 0.0, 100.0, 0.1)
    layers: str = param("", "Blocks whose tokens are shuffled, e.g. input, input.7.2-9, double.6-12. Empty: those of the paper, or what comes close.")
    fraction: float = param(1.0, "Share of the tokens that are shuffled; 1 as in the paper, 0 switches the node off.", 0.0, 1.0, 0.01)
    seed: int = param(0, "Seed of the permutations.", 0, 2 ** 53, 1)
    start_percent: float = _start
    end_percent: float = _end
    rescale: float = rescaling()
    frames_apart: bool = param(False, "Videos: shuffle within each frame only, instead of over all frames.", advanced=True)

    @property
    def branch(self):
        return Branch(blocks=(ShuffleTokens(self.layers, self.fraction, self.seed, self.frames_apart),))

    def neutral(self):
        return self.scale == 0 or self.fraction == 0
