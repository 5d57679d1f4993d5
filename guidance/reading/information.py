"""Prompt Information Maps (DiffusionPID)."""
from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..frozen import frozen
from ..method import Method, param
from .noising import noise_of, noised, signal, spread

REDUNDANCIES = ("minimum", "specificity")
FORMS = ("orthogonal", "standard")
PARTS = ("first", "second", "redundancy", "unique_first", "unique_second", "synergy")


def snr_samples(count, low, high, location, scale):
    """(alpha, 1 / density) of `count` log signal-to-noise ratios in [low, high], at even quantiles of a logistic distribution cut to that range."""
    def cdf(a):
        return 1 / (1 + math.exp(-(a - location) / scale))
    bottom, top = cdf(low), cdf(high)
    found = []
    for i in range(count):
        u = bottom + (top - bottom) * (i + 0.5) / count
        alpha = location + scale * math.log(u / (1 - u))
        density = u * (1 - u) / scale / (top - bottom)
        found.append((min(high, max(low, alpha)), 1 / density))
    return found


def sigma_of(alpha, flow):
    """The noise level with log signal-to-noise ratio alpha = 2 ln(a / s)."""
    s = math.exp(-alpha / 2)
    return s / (1 + s) if flow else s


def alpha_of(sigma, flow):
    """2 ln(a / s)."""
    return 2 * math.log(((1 - sigma) if flow else 1.0) / sigma)


@dataclass
class Decomposition:
    """Maps [batch, height, width] in nats per latent cell: information of the first, second and both prompts, their redundancy, uniquenesses, synergy."""

    first: torch.Tensor
    second: torch.Tensor
    both: torch.Tensor
    redundancy: torch.Tensor
    unique_first: torch.Tensor
    unique_second: torch.Tensor
    synergy: torch.Tensor

    def totals(self):
        """{name: nats [batch]} over the whole picture."""
        return {name: value.flatten(1).sum(1) for name, value in vars(self).items()}


def decompose(first, second, both, redundancy=REDUNDANCIES[0], surprisal_first=0.0, surprisal_second=0.0):
    """Decomposition of three information maps, pointwise. both = redundancy + unique_first + unique_second + synergy always.

    "minimum": R = min(i1, i2). "specificity": R = min(h1, h2) - min(h1 - i1, h2 - i2), h the surprisal of each prompt (specificity less ambiguity).
    """
    if redundancy == "minimum":
        r = torch.minimum(first, second)
    else:
        r = min(surprisal_first, surprisal_second) - torch.minimum(surprisal_first - first, surprisal_second - second)
    u1, u2 = first - r, second - r
    return Decomposition(first, second, both, r, u1, u2, both - r - u1 - u2)


@frozen
class PromptInformation(Method):
    """Where a picture shows what a prompt says, and what two prompts say together: information in nats per cell of the latent, as heat maps.

        i(y)[cell] = 1/2 integral over alpha of E |n(x, c) - n(x, y)|^2,   alpha = 2 ln(a / s),  n the predicted noise at x = a x0 + s n,  c the base prompt
        R = min(i1, i2),  U_k = i_k - R,  S = i12 - U_1 - U_2 - R          redundancy, uniqueness of each prompt, synergy of both (in every cell)

    `form` orthogonal is the formula above: what a prompt changes, never negative. It counts what a prompt denies as well: where a model has learned that
    captions name everything, a caption that leaves a thing out informs about that thing. standard takes E (|n - n(x, c)|^2 - |n - n(x, y)|^2) in place of it:
    unbiased for the sum, noisier, negative where a prompt misleads; choose it to ask which prompt explains which part. `redundancy` specificity is the
    pointwise form with the prompts' surprisals h_k (nats): R = min(h1, h2) - min(h1 - i1, h2 - i2).

    The base prompt is what both are compared with: empty for the information of a prompt alone, a context for conditional information. Levels are even
    quantiles of a logistic distribution over alpha, cut to the model's range. Guidance is off; the nodes of this pack on the model do not take part. The same
    formula holds for eps, v and flow models. The pictures' scale holds 99% of the values.

    Identities: a prompt equal to the base has no information; equal prompts have R = i and no U and S; i12 = R + U1 + U2 + S in every cell.
    Defaults: 50 levels; location 1, scale 2 as the authors of the information integral. Cost: 4 evaluations per level.
    Limits: few levels give spots where the integral's ends weigh much. No public code of DiffusionPID exists; "minimum" is the usual redundancy of information
    decompositions, "specificity" the formula of the paper.
    """

    node_id = "LodestarPromptInformation"
    title = "Prompt Information"
    family = "reading"
    paper = "DiffusionPID"
    aliases = ("PID", "redundancy", "synergy", "uniqueness", "information map")
    evaluations = "4 per level"

    samples: int = param(50, "Noise levels at which the predictions are compared, each with a noise of its own.", 1, 10000, 1)
    seed: int = param(0, "Seed of the noises.", 0, 2 ** 63 - 1, 1)
    form: str = param(FORMS[0], "orthogonal: from the difference of the predictions, never negative. standard: from their errors.", choices=FORMS)
    redundancy: str = param(REDUNDANCIES[0], "minimum: what both prompts say at least. specificity: with the prompts' surprisals.", choices=REDUNDANCIES)
    surprisal_1: float = param(10.0, "Surprisal of the first prompt in nats; only for specificity.", 0.0, 1000.0, 0.1, advanced=True)
    surprisal_2: float = param(10.0, "Surprisal of the second prompt in nats; only for specificity.", 0.0, 1000.0, 0.1, advanced=True)
    location: float = param(1.0, "Centre of the log signal-to-noise ratios that are sampled.", -10.0, 10.0, 0.1, advanced=True)
    scale: float = param(2.0, "Width of that distribution.", 0.1, 10.0, 0.1, advanced=True)
    batch: int = param(4, "Levels in one call of the network (each for four prompts).", 1, 256, 1, advanced=True)

    def span(self, sigma, flow):
        """(low, high): the model's range of alpha; sigma(level) is its noise level from 0 (clean) to 1."""
        return alpha_of(min(sigma(1.0), 0.999) if flow else sigma(1.0), flow), alpha_of(sigma(0.0), flow)

    def maps(self, x0, predict, low, high, flow, prompts=("base", "first", "second", "both")):
        """(i1, i2, i12) [batch, height, width] of pictures x0 [batch, ...]; predict(x, sigma, prompts) -> [denoised of each]; low, high: the model's range of alpha."""
        grid = snr_samples(self.samples, low, high, self.location, self.scale)
        totals = [0.0] * (len(prompts) - 1)
        for i in range(0, len(grid), self.batch):
            part = grid[i:i + self.batch]
            n = x0.shape[0]
            sigma = torch.tensor([sigma_of(a, flow) for a, _ in part], dtype=torch.float32, device=x0.device).repeat_interleave(n)
            share = torch.tensor([w for _, w in part], dtype=torch.float32, device=x0.device).repeat_interleave(n)
            noise = torch.cat([noise_of(x0.shape[1:], self.seed, j) for j in range(i, i + len(part))]).to(x0).repeat_interleave(n, 0)
            clean = x0.repeat(len(part), *[1] * (x0.ndim - 1))
            base, *others = predict(noised(clean, noise, sigma, flow), sigma, prompts)
            factor = spread(share * 0.5 * (signal(sigma, flow) / sigma) ** 2, clean)
            for k, other in enumerate(others):
                if self.form == "orthogonal":
                    found = (base - other).square()
                else:
                    found = (clean - base).square() - (clean - other).square()
                totals[k] = totals[k] + (factor * found).sum(1).unflatten(0, (len(part), n)).sum(0)
        totals = [t / self.samples for t in totals]
        return tuple(t if t.ndim == 3 else t.sum(1) for t in totals)     # of a video the sum over the frames

    def decomposition(self, x0, predict, low, high, flow):
        """The Decomposition of pictures x0."""
        return decompose(*self.maps(x0, predict, low, high, flow), self.redundancy, self.surprisal_1, self.surprisal_2)
