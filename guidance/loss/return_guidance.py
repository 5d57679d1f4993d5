"""SLCD: guidance towards high returns by their distribution."""
from __future__ import annotations

import torch

from ..frozen import frozen
from ..method import param
from .noisy import NoisySteer


@frozen(eq=False)
class ReturnGuidance(NoisySteer):
    """Leads samples to a high return, as far as the KL divergence from the model is worth it: a classifier gives the distribution of the return that a noisy state will lead to.

        D' = D + scale (s^2 / a) grad_x log E[exp(eta r) | x, s],    E[exp(eta r)] = sum_k Q(k | x, s) exp(eta value_k)

    With the exact Q and scale 1 the samples are those of p(x0) exp(eta r(x0)) / Z, the best trade of return against KL / eta. eta 0 changes nothing; a large eta wants the best alone.
    Returns may be anything that a number can be had for, without a gradient: Labelled Latents takes your own, Score Latents by Loss those of a loss; Train Noise-Aware Classifier cuts them into `bins`.

    SLCD trains in rounds: after the first, states that the guided model reached are labelled by what the plain model makes of them. Here one round is trained at once (samples of the plain model, noised);
    for more, add guided samples and train again, which labels them by their own return and is thus an approximation.
    Default: eta 10, for returns from 0 to 1 (ours). Paper: Oertell et al., arXiv 2505.21666; formulas from the paper, its image code is not public in full. Cost: a pass through the small network.
    """

    node_id = "LodestarReturnGuidance"
    title = "Return Guidance"
    paper = "Efficient Controllable Diffusion via Optimal Classifier Guidance (SLCD)"
    aliases = ("SLCD", "reward guidance", "value guidance")
    evaluations = "0 (a pass forward and back through the small network)"

    eta: float = param(10.0, "How much a unit of return is worth. Negative: low returns are wanted.", -1e6, 1e6, 0.1)

    def neutral(self):
        return self.scale == 0 or self.eta == 0

    def worth(self, logits, step, state):
        return torch.logsumexp(logits.log_softmax(1) + self.eta * self.classifier.values.to(logits), 1)
