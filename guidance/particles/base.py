"""What the particle samplers share."""
from __future__ import annotations

from typing import ClassVar

import torch

from ..frozen import frozen
from ..inverse.solver import Solver, euler
from ..loss.solvers.base import LossProblem
from .swarm import drawn, effective

GIVES = ("best", "drawn", "all")


@frozen(eq=False)
class ParticleSolver(Solver):
    """Base of the samplers that work with particles: `swim(swarm, problem, callback)` gives the states at the last level."""

    family = "particles"
    backward: ClassVar[bool] = False
    record: ClassVar = None      # where it writes what it did; `recording` gives one to a sampler

    def recording(self, record):
        """This sampler, writing to a record."""
        object.__setattr__(self, "record", record)
        return self

    @property
    def count(self):
        """The largest number of particles that are alive at once, per picture."""
        return self.particles

    def problem(self, sigmas, flow, percent_to_sigma=None):
        """The LossProblem of a run; losses with and without gradients do."""
        return LossProblem(self.loss, sigmas, flow, percent_to_sigma, self.title)

    def run(self, swarm, problem, callback=None):
        """[rows, ...] states at the last level: one for each entry, or all particles of the first entry, of the second, ... callback(i, x, sigma, denoised) after each step."""
        swarm.record.begin(self.count)
        callback = callback or (lambda *_: None)
        if self.neutral() and getattr(self, "eta", 0.0) == 0:
            return euler(lambda x, sigma: swarm.predict(x, sigma), swarm.x, swarm.sigmas, callback)
        with torch.no_grad():
            return self.swim(swarm, problem, callback)

    def swim(self, swarm, problem, callback):
        raise NotImplementedError

    def weighed(self, swarm, i, logs, states, values=None, ess=1.0):
        """(log weights, states) after resampling those entries whose effective size is at most `ess` of their particles; states: tensors [count * batch, ...] or [count, batch]."""
        count, batch = logs.shape
        size = effective(logs)
        due = size <= ess * count * (1 + 1e-9) if count > 1 else torch.zeros(batch, dtype=torch.bool)
        due = due & (logs.amax(0) - logs.amin(0) > 0)      # equal weights leave everybody in place
        ancestors = None
        if bool(due.any()):
            stay = torch.arange(count)[:, None].expand(count, batch)
            ancestors = torch.where(due, swarm.resampled(logs), stay)
            rows = swarm.rows(ancestors)
            states = [t.gather(0, ancestors) if t.ndim == 2 and t.shape == logs.shape else t[rows.to(t.device)] for t in states]
            logs = torch.where(due, 0.0, logs)
        swarm.record.note(i, float(swarm.sigmas[i]), values, size, ancestors)
        return logs, states

    def given(self, swarm, x, values, logs, how):
        """Rows of x [count * batch, ...] that are handed on: each entry's best by values [count, batch], one drawn by its log weights, or all."""
        if how == "all":
            return swarm.entries(x)
        index = values.argmin(0) if how == "best" else drawn(logs, swarm.choices.uniform())
        return x[swarm.rows(index).to(x.device)]
