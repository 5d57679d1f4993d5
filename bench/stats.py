"""Figures of sets of pictures, and their 95% intervals. Torch only."""
from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

Z = 1.959964
DRAWS = 400          # bootstrap samples of a mean
DRAWS_HEAVY = 100    # of a Frechet distance
SLACK = 0.02         # how far beyond [0, 1] a value may lie before it counts as clipped: the linear autoencoder rings by as much


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95% interval."""

    value: float
    low: float
    high: float

    def __iter__(self):
        return iter((self.value, self.low, self.high))


def resamples(groups, draws, seed=0):
    """`draws` bootstrap samples of the indices of `groups` (one label per picture); pictures with one label are drawn together."""
    members = {}
    for i, g in enumerate(groups):
        members.setdefault(g, []).append(i)
    members = [torch.tensor(m) for m in members.values()]
    generator = torch.Generator().manual_seed(seed)
    for _ in range(draws):
        yield torch.cat([members[i] for i in torch.randint(len(members), (len(members),), generator=generator).tolist()])


def estimate(statistic, groups, draws=DRAWS, seed=0):
    """statistic(index tensor) on all pictures, with the interval value +- 1.96 bootstrap deviations."""
    value = float(statistic(torch.arange(len(groups))))
    drawn = torch.tensor([float(statistic(i)) for i in resamples(groups, draws, seed)], dtype=torch.float64)
    half = Z * float(drawn.std()) if len(drawn) > 1 else 0.0
    return Estimate(value, value - half, value + half)


def mean(values, groups, seed=0):
    """The mean of one value per picture; shares (all values 0 or 1, one picture per group) have Wilson's interval."""
    values = torch.as_tensor(values, dtype=torch.float64)
    if len(set(groups)) == len(groups) and bool(((values == 0) | (values == 1)).all()):
        return wilson(float(values.sum()), len(values))
    return estimate(lambda i: values[i].mean(), groups, seed=seed)


def wilson(successes, n):
    """A share and Wilson's interval."""
    p, z2 = successes / n, Z * Z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return Estimate(p, max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)))


def difference(a, b, groups, seed=0):
    """The mean of a - b (paired)."""
    d = torch.as_tensor(a, dtype=torch.float64) - torch.as_tensor(b, dtype=torch.float64)
    return estimate(lambda i: d[i].mean(), groups, seed=seed)


class Reference:
    """Features [n, d] to which Frechet distances are taken; what does not change is computed once."""

    def __init__(self, features):
        features = features.double()
        self.mean, cov = features.mean(0), torch.cov(features.T)
        values, vectors = torch.linalg.eigh(cov)
        self.root, self.trace = (vectors * values.clamp(min=0).sqrt()) @ vectors.T, cov.trace()

    def distance(self, features):
        """Frechet distance of features [m, d], in float64."""
        b = features.double()
        cov = torch.cov(b.T)
        cross = torch.linalg.eigvalsh(self.root @ cov @ self.root).clamp(min=0).sqrt().sum()
        return ((self.mean - b.mean(0)).square().sum() + self.trace + cov.trace() - 2 * cross).clamp(min=0).item()


def frechet(reference, features, groups, seed=0):
    """Frechet distance with its interval. It grows as pictures get fewer: compare only sets of one size."""
    return estimate(lambda i: reference.distance(features[i]), groups, DRAWS_HEAVY, seed)


def frechet_difference(reference, a, b, groups, seed=0):
    """Distance of a minus distance of b, the same pictures (prompts and seeds) drawn from both."""
    return estimate(lambda i: reference.distance(a[i]) - reference.distance(b[i]), groups, DRAWS_HEAVY, seed)


def ssim(a, b):
    """Structural similarity [n] of pictures [n, c, h, w] in [0, 1]: Gaussian window of 11 px and deviation 1.5, mean over channels."""
    a, b = a.double().clamp(0, 1), b.double().clamp(0, 1)
    grid = torch.arange(11, dtype=torch.float64) - 5
    line = torch.exp(-grid.square() / (2 * 1.5 ** 2))
    line = line / line.sum()
    c = a.shape[1]
    window = (line[:, None] * line[None, :]).expand(c, 1, 11, 11)

    def blur(t):
        return F.conv2d(t, window, groups=c)
    ma, mb = blur(a), blur(b)
    va, vb, cov = blur(a * a) - ma * ma, blur(b * b) - mb * mb, blur(a * b) - ma * mb
    c1, c2 = 0.01 ** 2, 0.03 ** 2
    return (((2 * ma * mb + c1) * (2 * cov + c2)) / ((ma * ma + mb * mb + c1) * (va + vb + c2))).mean((1, 2, 3))


def clipped(pictures):
    """Share of values beyond [0, 1] of each unclamped picture [n, 3, h, w]."""
    return ((pictures < -SLACK) | (pictures > 1 + SLACK)).double().mean((1, 2, 3))


def contrast(pictures):
    """Standard deviation of each unclamped picture [n, 3, h, w] over its pixels, mean over channels."""
    return pictures.double().flatten(2).std(2).mean(1)


def diversity(features, prompts):
    """Mean pairwise distance of the features [n, d] of one prompt's pictures: (values, prompts), one per prompt with two pictures or more."""
    members = {}
    for i, p in enumerate(prompts):
        members.setdefault(p, []).append(i)
    values, labels = [], []
    for p, index in members.items():
        if len(index) > 1:
            values.append(float(torch.pdist(features[index].double()).mean()))
            labels.append(p)
    return torch.tensor(values, dtype=torch.float64), labels
