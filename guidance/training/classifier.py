"""Training a noise-aware classifier on latents, and several experts for ranges of noise (PPAP)."""
from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F

from ..frozen import frozen
from ..method import BadInput, Method, param, socket
from .predictor import NoisyClassifier, Predictor, angle, settled
from .steps import AdamW

TABLE = 512      # levels of the schedule that are drawn from


@frozen(eq=False)
class Examples:
    """Clean latents [n, channels, (frames,) height, width] as the host keeps them, and a number for each [n]; parts of other sizes stand side by side."""

    parts: tuple = ()      # ((latents, labels), ...)

    def __deepcopy__(self, memo):
        return self

    def __add__(self, other):
        return Examples(self.parts + other.parts)

    def __len__(self):
        return sum(len(labels) for _, labels in self.parts)

    @property
    def labels(self):
        return torch.cat([labels for _, labels in self.parts])


def numbers(text, count, node, field="labels"):
    """[count] numbers of a text: one for all, or as many as there are, separated by commas or spaces."""
    try:
        found = [float(p) for p in text.replace(",", " ").split()]
    except ValueError:
        found = []
    if len(found) not in (1, count) or not all(math.isfinite(v) for v in found):
        raise BadInput(node, field, text, f"Give one number for all, or {count}, separated by commas.")
    return torch.tensor(found * count if len(found) == 1 else found)


def binned(labels, bins):
    """(class of each label, value of each class): bins 0 takes whole numbers as they are, else labels are cut at their quantiles, which leaves fewer bins where many are equal."""
    if bins == 0:
        classes = labels.round().long()
        return classes, torch.arange(int(classes.max()) + 1, dtype=torch.float32)
    inner = torch.quantile(labels.double(), torch.arange(1, bins, dtype=torch.float64) / bins).unique()
    classes = torch.bucketize(labels.double(), inner)      # a bin holds what is above the last edge and up to its own
    kept = classes.unique()
    classes = torch.bucketize(classes, kept)
    return classes, torch.stack([labels[classes == k].mean() for k in range(len(kept))]).float()


@frozen(eq=False)
class TrainNoiseAwareClassifier(Method):
    """Trains a small classifier of noisy latents inside the graph: it knows the noise level, so that it can guide from the first step on, without a pass backward through the big network.

        x = a x0 + s n,  loss = -log p(class(x0) | x / sqrt(a^2 + s^2), t),   t = atan2(s, a) / (pi / 2),  s drawn evenly over the schedule of the MODEL

    The examples are clean latents with a number each: the class (bins 0), or a score that is cut at its quantiles into `bins` levels (minority levels, returns). One file serves eps, v and flow
    models of the same latents, since it is told the share of noise alone.
    experts N > 1 (PPAP, arXiv 2212.05973): the network trained for all levels is copied N times, and each copy goes on with the levels of its own Nth of the schedule, for steps / N more steps; in
    sampling the expert of the level is asked.  N = 1 is the plain classifier, bit by bit.

    Defaults: AdamW 2e-3 with a cosine to 0, weight decay 0.05 (PPAP), batch 32, 400 steps, width 48 (ours: 0.1 million numbers, a minute on one CPU core at 128 px).
    Deviations from PPAP: experts are whole small networks in place of LoRA of a large one, on latents in place of pictures, with the labels of the examples in place of a frozen classifier's answers
    (label samples of the model with one, and it is theirs: no data needed). An eighth of the examples is kept for the report where there are 16 or more.
    """

    node_id = "LodestarTrainNoiseAwareClassifier"
    title = "Train Noise-Aware Classifier"
    family = "training"
    paper = "Towards Practical Plug-and-Play Diffusion Models (PPAP)"
    aliases = ("PPAP", "multi-expert", "noisy classifier", "train discriminator")
    evaluations = "0 (no pass through the big network)"

    examples: Any = socket("LODESTAR_EXAMPLES", "Clean latents with a number each: Labelled Latents, Minority Scores, Score Latents by Loss.")
    steps: int = param(400, "Steps of the training.", 1, 1000000, 1)
    bins: int = param(0, "0: the numbers are classes. More: they are scores, cut into so many levels of equally many examples.", 0, 1000, 1)
    experts: int = param(1, "Networks for equal parts of the noise schedule.", 1, 32, 1)
    batch: int = param(32, "Examples of a step.", 1, 4096, 1)
    rate: float = param(2e-3, "Learning rate at first; it falls to 0.", 0.0, 1.0, 1e-5, advanced=True)
    width: int = param(48, "Channels of the network, a multiple of 8.", 8, 1024, 8, advanced=True)
    seed: int = param(0, "Weights at first, order and noise.", 0, 2**63 - 1, 1)

    def validate(self):
        super().validate()
        if self.width % 8:
            raise BadInput(self.title, "width", self.width, "It must be a multiple of 8.")
        labels = self.examples.labels
        if self.bins == 0 and (bool((labels != labels.round()).any()) or float(labels.min()) < 0 or float(labels.max()) > 9999):
            raise BadInput(self.title, "bins", 0, "The examples' numbers are no classes (whole numbers from 0 on); choose the number of levels that they are cut into.")
        if len(binned(labels, self.bins)[1]) < 2:
            raise BadInput(self.title, "examples", "all alike", "There must be at least two classes.")
        return self

    def run(self, latents, sigma_of, flow=False, device="cpu", tick=None):
        """(Predictor, {share of the schedule: accuracy on what was kept}); latents: the examples' latents [m, ...] in the model's space, one tensor for each part of them (a batch is drawn from one,
        by their sizes); sigma_of(percent) the schedule; tick(step, total, loss) after each step."""
        classes, values = binned(self.examples.labels, self.bins)
        learn, kept = split(len(classes))
        with torch.inference_mode(False), torch.enable_grad():
            generator = torch.Generator().manual_seed(self.seed)
            draws = Draws(latents, learn, self.batch, flow, generator)
            places, sigmas = table(sigma_of)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                network = NoisyClassifier(latents[0].shape[1], len(values), self.width).to(device)
            total, done = self.steps + (self.experts > 1) * self.experts * max(1, self.steps // self.experts), [0]

            def fit(network, low, high, steps):
                optimiser = AdamW(network.parameters(), 0.05)
                levels = sigmas[(places >= low) & (places < high)]
                for i in range(steps):
                    x, sigma, rows = draws(levels, device)
                    loss = F.cross_entropy(Predictor((network,), torch.tensor([0.0, 1.0]), values).logits(x, sigma, flow), classes[rows].to(device))
                    optimiser.step(loss, self.rate * 0.5 * (1 + math.cos(math.pi * i / steps)))
                    done[0] += 1
                    if tick is not None:
                        tick(done[0], total, float(loss.detach()))
                return network

            fit(network, 0.0, 1.0, self.steps)
            experts, edges = [network], [0.0, 1.0]
            if self.experts > 1:
                cuts = [i / self.experts for i in range(self.experts + 1)]      # of the schedule, which begins with noise
                experts = [fit(copy.deepcopy(network), *cuts[i:i + 2], max(1, self.steps // self.experts)) for i in range(self.experts)][::-1]
                inner = [float(angle(torch.tensor(float(sigma_of(p))), flow)) for p in cuts[1:-1]][::-1]
                edges = [0.0, *inner, 1.0]
            predictor = Predictor(tuple(settled(e.cpu()) for e in experts), torch.tensor(edges), values)
            chosen = kept if len(kept) else learn
            report = {p: _accuracy(predictor, latents, draws.start, chosen, classes, float(sigma_of(p)), flow) for p in (0.1, 0.5, 0.9)}
        return predictor, report


def split(count):
    """(numbers of the examples to learn from, of those kept for the report), every eighth of a fixed random order."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return (order, order[:0]) if len(order) < 16 else (order[torch.arange(len(order)) % 8 != 0], order[::8])


def table(sigma_of):
    """(places [TABLE] of the schedule, noise levels there)."""
    places = (torch.arange(TABLE) + 0.5) / TABLE
    return places, torch.tensor([float(sigma_of(float(p))) for p in places])


class Draws:
    """Noisy examples in random order: draws(levels, device) -> (x, sigma, numbers of the examples). A batch is drawn from one part of the latents, by their sizes."""

    def __init__(self, latents, learn, batch, flow, generator):
        self.batch, self.flow, self.generator = batch, flow, generator
        self.start = start = torch.tensor([0] + [len(p) for p in latents]).cumsum(0)
        pools = [(p, i, learn[(learn >= start[i]) & (learn < start[i + 1])]) for i, p in enumerate(latents)]
        self.pools = [pool for pool in pools if len(pool[2])]

    def __call__(self, levels, device="cpu"):
        pool, number, own = self.pools[int(torch.multinomial(torch.tensor([float(len(p[2])) for p in self.pools]), 1, generator=self.generator))]
        rows = own[torch.randint(len(own), (self.batch,), generator=self.generator)]
        sigma = levels[torch.randint(len(levels), (self.batch,), generator=self.generator)].to(device)
        return *noised(pool[rows - self.start[number]].to(device), sigma, self.flow, self.generator), rows


def noised(x0, sigma, flow, generator):
    """(a x0 + s n, s) of clean latents at levels sigma [batch]."""
    s = sigma.to(x0).view(-1, *[1] * (x0.ndim - 1))
    n = torch.randn(x0.shape, generator=generator).to(x0)
    return ((1 - s) if flow else 1.0) * x0 + s * n, sigma


@torch.no_grad()
def _accuracy(predictor, latents, start, rows, classes, sigma, flow):
    generator, right = torch.Generator().manual_seed(1), 0
    for number, part in enumerate(latents):
        own = rows[(rows >= start[number]) & (rows < start[number + 1])]
        for some in own.split(64):
            x, s = noised(part[some - start[number]].cpu(), torch.full((len(some),), sigma), flow, generator)
            right += int((predictor.logits(x, s, flow).argmax(1) == classes[some]).sum())
    return right / max(1, len(rows))
