"""Minority Guidance, and the scores that it learns from."""
from __future__ import annotations

import torch
import torch.nn.functional as F

from ..frozen import frozen
from ..method import param
from .noisy import NoisySteer


@frozen(eq=False)
class MinorityGuidance(NoisySteer):
    """Leads to what is rare under the model: samples get the minority level that is wanted, by a classifier of these levels.

        score(x0) = mean over noises of d(x0, D(a x0 + s n)):  what is rare, the model denoises to something more usual
        D' = D + scale (s^2 / a) grad_x log p(level | x, s),   levels: the scores cut at their quantiles

    Minority Scores gives latents their scores, Train Noise-Aware Classifier with `bins` levels learns them (paper: 100 levels of tens of thousands of pictures; take 3 to 10 for a few hundred).
    Defaults: level 1 (the rarest; the released sampler draws it among the highest ones), scale 1. Paper: Um et al., arXiv 2301.12334. Cost: a pass forward and back through the small network.
    """

    node_id = "LodestarMinorityGuidance"
    title = "Minority Guidance"
    paper = "Don't Play Favorites: Minority Guidance"
    aliases = ("rare samples", "diversity", "low density")
    evaluations = "0 (a pass forward and back through the small network)"

    level: float = param(1.0, "Which level: 0 the most usual, 1 the rarest.", 0.0, 1.0, 0.01)

    def worth(self, logits, step, state):
        return logits.log_softmax(1)[:, round(self.level * (logits.shape[1] - 1))]


def structure_distance(a, b):
    """1 - structural similarity [n] of pictures or latents [n, channels, height, width], 7 x 7 averages: a perceptual distance that needs no network."""
    low, high = torch.minimum(a, b).amin(), torch.maximum(a, b).amax()
    span, side = (high - low).clamp(min=1e-6), min(7, *a.shape[-2:])
    mean = lambda t: F.avg_pool2d(t, side, 1)
    ma, mb = mean(a), mean(b)
    va, vb, cov = mean(a * a) - ma * ma, mean(b * b) - mb * mb, mean(a * b) - ma * mb
    one, two = (0.01 * span) ** 2, (0.03 * span) ** 2
    similar = (2 * ma * mb + one) * (2 * cov + two) / ((ma * ma + mb * mb + one) * (va + vb + two))
    return 1 - similar.flatten(1).mean(1)


def minority_scores(x0, denoise, sigma, flow, samples=5, seed=0, distance=structure_distance, view=lambda t: t):
    """[n]: the mean distance between view(x0) and view(denoise(noisy, sigma [n])), over `samples` noises; all entries get the same ones, so that they are compared fairly."""
    a = 1 - sigma if flow else 1.0
    clean, total = view(x0), 0.0
    for i in range(samples):
        n = torch.randn(x0.shape[1:], generator=torch.Generator().manual_seed(seed + i)).to(x0)
        total = total + distance(clean, view(denoise(a * x0 + sigma * n, torch.full((x0.shape[0],), float(sigma), device=x0.device))))
    return total / samples
