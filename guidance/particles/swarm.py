"""Particles of a batch: where they lie, their noise, weights, resampling, and what a run reports.

Particle k of entry b is row k * batch + b: each particle is a whole batch, as the host repeats prompts, masks and hints over longer batches. The entries never mix.
"""
from __future__ import annotations

import torch

from ..inverse import levels
from ..inverse.solver import at
from ..loss.base import LossContext
from ..method import Step

SALT, START, CHOICE = 0x5EED, 0x57A7, 0xC401CE      # of the generators: noise of the steps, of the starts, choices
WORST = 1e30


class Noise:
    """draw(count): [count * batch, ...] standard normal noise; each particle of each entry has a generator of its own, whatever the count and however rows are split into calls."""

    def __init__(self, like, seed, salt=SALT):
        self.like, self.seed, self.salt, self.sources = like, seed, salt, []

    def __call__(self, count=1):
        while len(self.sources) < count:
            self.sources.append(levels.noise_source(self.like, self.seed, self.salt + 1_299_709 * len(self.sources)))
        return torch.cat([self.sources[k]() for k in range(count)])


class Choices:
    """uniform(): [batch] numbers in [0, 1), from a generator of each entry."""

    def __init__(self, batch, seed):
        seed = 0 if seed is None else int(seed)
        self.generators = [torch.Generator("cpu").manual_seed((seed * 1_000_003 + CHOICE + 7919 * b) % (1 << 63)) for b in range(batch)]

    def uniform(self):
        return torch.cat([torch.rand(1, generator=g, dtype=torch.float64) for g in self.generators])


def systematic(weights, u):
    """[count, batch] indices of particles with weights [count, batch] (any sum): each comes floor or ceil of count times its share; u [batch] in [0, 1). Equal weights keep everybody in place."""
    count = len(weights)
    edges = (weights.double().cumsum(0) / weights.double().sum(0)).T.contiguous()
    return torch.searchsorted(edges, ((torch.arange(count, dtype=torch.float64) + u[:, None]) / count).contiguous(), right=True).clamp(max=count - 1).T


def effective(logs):
    """Effective sample size [batch] of log weights [count, batch]: 1 / sum of squared shares."""
    return 1.0 / logs.double().softmax(0).square().sum(0)


def drawn(logs, u):
    """One index [batch] for each entry, by log weights [count, batch] and uniform numbers [batch]."""
    edges = logs.double().softmax(0).cumsum(0)
    return torch.searchsorted(edges.T.contiguous(), (u * edges[-1])[:, None], right=True)[:, 0].clamp(max=len(logs) - 1)


class Record:
    """What the last run of a particle sampler did: `rows`, one dict per step that was weighed; see `note`."""

    def __init__(self):
        self.rows, self.count = [], 0

    def begin(self, count):
        self.rows, self.count = [], count

    def note(self, step, sigma, values=None, ess=None, ancestors=None, chosen=None):
        """values [count, batch]: losses; ess [batch]; ancestors [count, batch]: whom each place was filled with, None without resampling; chosen [batch]: of candidates."""
        listed = lambda t: None if t is None else t.T.tolist()
        self.rows.append({"step": step, "sigma": sigma, "losses": listed(values), "ess": None if ess is None else ess.tolist(), "ancestors": listed(ancestors),
                          "chosen": None if chosen is None else chosen.tolist()})

    def words(self):
        """A few lines of text: particles, resampling, losses."""
        if not self.rows:
            return f"{self.count} particles; nothing was weighed"
        sizes, kept = [e for row in self.rows for e in row["ess"] or ()], self.survivors()[-1]
        drawn_ = [row["step"] for row in self.rows if row["ancestors"] is not None]
        text = f"{self.count} particles, weighed at {len(self.rows)} steps"
        if sizes:
            text += f", effective number {min(sizes):.2f} to {max(sizes):.2f}; drawn anew at " + (f"steps {', '.join(map(str, drawn_))}" if drawn_ else "no step")
        if kept:
            text += f"; descendants of {', '.join(map(str, kept))} of them are left"
        for b, losses in enumerate(self.rows[-1]["losses"] or ()):
            text += f"\npicture {b + 1}: loss {min(losses):.4g} (best) to {max(losses):.4g}, mean {sum(losses) / len(losses):.4g}"
        return text

    def survivors(self):
        """How many of the first particles have descendants, a list per row with one number for each entry."""
        found, lines = [], None
        for row in self.rows:
            if row["ancestors"] is not None:
                lines = [list(range(len(a))) for a in row["ancestors"]] if lines is None else lines
                lines = [[line[k] for k in a] for line, a in zip(lines, row["ancestors"])]
            found.append(None if lines is None else [len(set(line)) for line in lines])
        return found


class Swarm:
    """What a particle sampler works with. predict(x [n batch, ...], sigma) -> whatever the model gives of so many rows; start(k) -> the first state of particle k.

    x [batch, ...]: the first state as the host gives it, that of particle 0. noise(count) -> [count batch, ...] stands in for Noise where thousands of particles are studied.
    """

    def __init__(self, predict, x, sigmas, flow=False, seed=0, start=None, record=None, scale=1.0, fresh=None, noise=None):
        self.predict, self.x, self.sigmas, self.flow, self.seed = predict, x, sigmas, flow, seed
        self.begin = start or (lambda noise, factor=1.0: float(sigmas[0]) * factor * noise)
        self.record, self.batch, self.scale = record or Record(), x.shape[0], scale
        self.noise, self.begun, self.fresh = noise or Noise(x, seed), noise or Noise(x, seed, START), fresh
        self.choices = Choices(x.shape[0], seed)

    @property
    def steps(self):
        return len(self.sigmas) - 1

    def start(self, count, factor=1.0):
        """[count * batch, ...]: the given state, and others with noise of their own; factor: of the noise's deviation."""
        own = self.begun(count)[self.batch:] if count > 1 else None
        first = self.x if factor == 1.0 else self.begin(None, factor)
        return first if own is None else torch.cat([first, *(self.begin(n, factor) for n in own.split(self.batch))])

    def draw(self, count):
        noise = self.noise(count) if self.fresh is None or count > 1 else self.fresh()
        return noise * self.scale if self.scale != 1.0 else noise

    def point(self, x, i, s=None):
        """The Point of step i, of every particle in x."""
        count = x.shape[0] // self.batch
        return at(self.predict, x, self.sigmas, i, None, self.flow, lambda: self.draw(count), None)

    def values(self, problem, x, i, denoised, loss=None):
        """[count, batch] values of the loss at level i, particle by particle, without gradients; what is no number is the worst."""
        loss = loss or problem.loss
        found = []
        with torch.no_grad():
            for part, state in zip(denoised.split(self.batch), x.split(self.batch)):
                step = self.step(problem, state, i)
                found.append(loss.value(part, LossContext(step)).double().cpu())
        values = torch.nan_to_num(torch.stack(found), nan=WORST, posinf=WORST, neginf=-WORST)
        if bool((values >= WORST).all(0).any()):
            raise ValueError(f"{problem.title}: {loss.title} gives no number for any particle at sigma {float(self.sigmas[i]):.4g}.")
        return values

    def step(self, problem, x, i):
        return Step(x, torch.full((x.shape[0],), float(self.sigmas[i])), self.flow, self.sigmas, i, percent_to_sigma=problem.percent_to_sigma)

    def active(self, problem, i):
        """Whether the loss counts at level i."""
        return problem.percent_to_sigma is None or problem.loss.active(self.step(problem, self.x, i))

    def rows(self, index):
        """Rows of the particles [n, batch] or [batch] of each entry."""
        index = index.view(-1, self.batch)
        return (index * self.batch + torch.arange(self.batch)).flatten()

    def resampled(self, logs):
        """(ancestors [count, batch]) by systematic resampling of each entry's log weights [count, batch]."""
        return systematic(logs.double().softmax(0), self.choices.uniform())

    def entries(self, x):
        """Rows of all particles, those of the first entry first."""
        return x.view(-1, self.batch, *x.shape[1:]).transpose(0, 1).flatten(0, 1)

    def parts(self, x, sigma):
        """{name: prediction} of x; a run without a host has `predict` give that."""
        return self.predict(x, sigma)

    def inside(self, t):
        """t [rows, ...] where the sampler is free; all of it without a mask."""
        return t
