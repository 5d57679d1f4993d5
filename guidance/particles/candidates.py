"""What the samplers share that try several next states and keep one."""
from __future__ import annotations

import torch

from ..frozen import frozen
from .base import ParticleSolver


@frozen(eq=False)
class CandidateSolver(ParticleSolver):
    """At a guided step `candidates` next states are drawn, looked at one level further, and one is kept; its estimate is the next step's."""

    @property
    def count(self):
        return self.candidates

    def neutral(self):
        return self.candidates == 1

    def guided(self, swarm, problem, i):
        """Whether the next state of step i is chosen among candidates."""
        raise NotImplementedError

    def chosen(self, swarm, problem, x, i, denoised):
        """([batch] index, losses [count, batch]) of the candidates x at level i with their estimates."""
        raise NotImplementedError

    def begin(self, swarm, problem):
        """(first state, its estimate or None)."""
        return swarm.x, None

    def swim(self, swarm, problem, callback):
        x, denoised = self.begin(swarm, problem)
        for i in range(swarm.steps):
            point = swarm.point(x, i)
            if denoised is None:
                denoised = point.predict()
            estimate, ahead = denoised, None
            if point.s_next > 0 and self.candidates > 1 and self.guided(swarm, problem, i):
                moved, ahead = self.best(swarm, problem, self.spread(swarm, x, estimate, i), i + 1)
            else:
                moved = point.go(estimate, point.noise_of(estimate), self.eta)
            callback(i, x, swarm.sigmas[i], estimate)
            x, denoised = moved, ahead
        return x

    def spread(self, swarm, x, denoised, i):
        """Candidates of the next state: the same step with noises of their own."""
        many = [self.candidates, *[1] * (x.ndim - 1)]
        point = swarm.point(x.repeat(many), i)
        denoised = denoised.repeat(many)
        return point.go(denoised, point.noise_of(denoised), self.eta)

    def best(self, swarm, problem, states, i):
        """(state, estimate) of the one that is kept of candidates at level i."""
        ahead = swarm.point(states, i).predict() if i < swarm.steps else swarm.predict(states, swarm.sigmas[i] * states.new_ones(states.shape[0]))
        index, values = self.chosen(swarm, problem, states, i, ahead)
        swarm.record.note(i, float(swarm.sigmas[i]), values, None, None, index)
        rows = swarm.rows(index).to(states.device)
        return states[rows], ahead[rows]


def least(values):
    """The first of the least values [count, batch], as [batch]; torch's argmin does not promise which."""
    return (values == values.amin(0)).to(torch.uint8).argmax(0)
