"""Diffusion Classifier."""
from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ..frozen import frozen
from ..method import BadInput, Method, param
from .noising import WEIGHTS, levels, noise_of, noised, spread, weight

LOSSES = ("l2", "l1", "huber")


def parse_stages(text, samples, node="Diffusion Classifier"):
    """((samples, keep), ...) of "16:4, 64:1"; the last stage is `samples` with one prompt kept."""
    found = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        n, _, keep = part.partition(":")
        if not (n.strip().isdigit() and keep.strip().isdigit()) or int(n) < 1 or int(keep) < 1:
            raise BadInput(node, "stages", text, "Write pairs samples:keep, such as \"16:5, 48:2\": after so many samples so many prompts stay.")
        found.append((int(n), int(keep)))
    if [n for n, _ in found] != sorted({n for n, _ in found}):
        raise BadInput(node, "stages", text, "The numbers of samples must grow from stage to stage.")
    return tuple((n, k) for n, k in found if n < samples) + ((samples, 1),)


def picked(total, n):
    """The places in an even grid of `total` samples that a stage of n samples uses, spread over the whole of it (the authors' choice)."""
    stride = max(1, total // n)
    return list(range(total))[stride // 2::stride][:n]


@dataclass
class Scores:
    """The outcome for one picture: `errors` {prompt: [error per sample]}, and the prompts in order, best first."""

    errors: dict = field(default_factory=dict)
    order: tuple = ()

    def mean(self, prompt):
        return sum(self.errors[prompt]) / len(self.errors[prompt])


def classify(error, prompts, stages):
    """Scores of prompts 0 ... n-1; error(samples, prompts) -> [samples, prompts] gives the errors of grid places `samples` for those prompts.

    All prompts are compared on the same samples; a prompt that falls out keeps its place behind those that stay.
    """
    scores, remaining, fallen, done = Scores({p: [] for p in range(prompts)}), list(range(prompts)), [], []
    for n, keep in stages:
        fresh = [i for i in picked(stages[-1][0], n) if i not in done]
        done += fresh
        if fresh:
            for row in error(fresh, remaining).tolist():
                for prompt, value in zip(remaining, row):
                    scores.errors[prompt].append(value)
        remaining.sort(key=scores.mean)
        fallen[:0] = remaining[keep:]
        remaining = remaining[:keep]
    scores.order = (*remaining, *fallen)
    return scores


@frozen
class DiffusionClassifier(Method):
    """Which of several prompts describes a picture best: the one whose prediction removes the picture's noise best. No training, any text-to-image model.

    x_i = a x0 + s_i n_i at noise levels s_i evenly over the schedule
    error(c) = mean over i of w(s_i)^p |x0 - D(x_i, s_i, c)|^p, averaged over the latent; p = 2 for l2, 1 for l1

    The prompt with the smallest error wins (equal priors). `weight` noise: w = a / s, the error of the predicted noise, as in the paper; velocity: that of
    the velocity; data: w = 1. On flow models a = 1 - s. All prompts see the same levels and noises, so that what they share cancels.

    Adaptive schedule (paper): "16:4" keeps the best 4 after 16 samples, spread over the whole schedule, and spends the other samples on them. Prompts should
    differ only in what is asked: "a red circle", "a blue circle" ... Guidance is off; the nodes of this pack on the model do not take part.

    Defaults: weight and loss as in the paper; its ImageNet set-up is stages "50:5" with 500 samples. Cost: samples x prompts evaluations without stages, less
    with them. The same seed gives the same scores in any order of the prompts, alone or in a batch of pictures. Limits: slow with many prompts; a picture
    that the autoencoder changes much is judged as it comes out of it.
    """

    node_id = "LodestarDiffusionClassifier"
    title = "Diffusion Classifier"
    family = "reading"
    paper = "Your Diffusion Model is Secretly a Zero-Shot Classifier"
    aliases = ("zero-shot", "classify", "score prompts")
    evaluations = "samples x prompts, less with stages"

    samples: int = param(64, "Noisy versions of the picture that the best prompts are tried on.", 1, 10000, 1)
    stages: str = param("16:4", "Adaptive schedule: pairs samples:keep, e.g. 50:5 keeps the best five prompts after 50 samples. Empty: all prompts get all samples.")
    seed: int = param(0, "Seed of the noises.", 0, 2 ** 63 - 1, 1)
    loss: str = param("l2", "How errors are counted: squared, absolute, or squared only where they are small.", choices=LOSSES)
    weight: str = param("noise", "Which error counts: of the predicted noise (paper), of the velocity, or of the picture.", choices=WEIGHTS)
    batch: int = param(8, "Noisy versions in one call of the network (each for all remaining prompts).", 1, 256, 1, advanced=True)

    def validate(self):
        super().validate()
        parse_stages(self.stages, self.samples, self.title)
        return self

    def losses(self, denoised, x0, sigma, flow):
        """Error [n] of predictions [n, ...] of x0 [1 or n, ...] at levels sigma [n]."""
        away = ((denoised.float() - x0.float()) * spread(weight(sigma, flow, self.weight), denoised).float()).flatten(1)
        if self.loss == "l2":
            return away.square().mean(1)
        return away.abs().mean(1) if self.loss == "l1" else torch.where(away.abs() < 1, 0.5 * away.square(), away.abs() - 0.5).mean(1)

    def scores(self, x0, prompts, predict, sigma_of, flow):
        """Scores of one picture x0 [1, ...]. predict(x [n, ...], sigma [n], prompts) -> [denoised of each prompt]; sigma_of(level in 0 ... 1)."""
        grid = levels(self.samples)

        def error(samples, remaining):
            rows = []
            for i in range(0, len(samples), self.batch):
                part = samples[i:i + self.batch]
                sigma = torch.tensor([sigma_of(grid[j]) for j in part], dtype=torch.float32, device=x0.device)
                noise = torch.cat([noise_of(x0.shape[1:], self.seed, j) for j in part]).to(x0)
                x = noised(x0.expand(len(part), *x0.shape[1:]), noise, sigma, flow)
                rows.append(torch.stack([self.losses(d, x0, sigma, flow) for d in predict(x, sigma, remaining)], 1).cpu())
            return torch.cat(rows)
        return classify(error, prompts, parse_stages(self.stages, self.samples, self.title))


def report(names, scores):
    """Readable lines, best first: place, error, samples, name."""
    return "\n".join(f"{i + 1:>3}. {scores.mean(p):.5f}  ({len(scores.errors[p])} samples)  {names[p]}" for i, p in enumerate(scores.order))
