"""SVDD: each step is chosen among several."""
from __future__ import annotations

from typing import Any

from ..frozen import frozen
from ..method import param, socket, window
from .candidates import CandidateSolver, least
from .swarm import drawn

_start, _end = window("steps are chosen")


@frozen(eq=False)
class SVDD(CandidateSolver):
    """At each step several next states are drawn, a loss looks at the picture that each leads to, and one goes on: steering by values alone, one particle at a time.

    Paper: Li et al., "Derivative-Free Guidance in Continuous and Discrete Diffusion Models with Soft Value-Based Decoding" (SVDD), arXiv 2408.08252.

        x'_m = DDIM_eta(x, D) with noise of its own, m = 1 .. candidates
        v_m  = -loss(D(x'_m))                                 the soft value by the clean estimate at the next level (SVDD-PM)
        x'   = x'_m with probability proportional to exp(v_m / temperature); the largest v_m for temperature 0
        and D(x'_m) is the next step's D

    x: state at one level, primes: the next. For many candidates the pictures follow p(x) exp(-loss(x) / temperature) as far as the estimate's value is the soft value. Entries and particles
    never compete, so every prompt keeps its picture. With temperature 0, from a quarter of the way on, it is the selection of SCG.
    Defaults: 10 candidates, temperature 0, eta 1 (the released code takes the best, the text draws; about 20 candidates for pictures). Noisy early estimates say little: start at 0.2 to 0.3 to save them.
    Cost: `candidates` network evaluations for each chosen step, and as many values of the loss. This is the posterior-mean form; the one with a trained value network (SVDD-MC) is SVDD Sampler with Learned Value.
    """

    node_id = "LodestarSVDDSampler"
    title = "SVDD Sampler"
    paper = "Derivative-Free Guidance: SVDD"
    aliases = ("soft value-based decoding", "SCG", "derivative-free guidance", "best of n steps")
    evaluations = "candidates - 1"

    loss: Any = socket("LODESTAR_LOSS", "What to make small; values are enough.")
    candidates: int = param(10, "Next states that are tried at each step; 1 is the plain sampler.", 1, 4096, 1)
    temperature: float = param(0.0, "0 takes the best; above it one is drawn, the better the likelier: differences of the loss count in units of this.", 0.0, 1e6, 0.001)
    eta: float = param(1.0, "Fresh noise per step, which is what candidates differ by. 1: ancestral.", 0.0, 1.0, 0.01)
    start_percent: float = _start
    end_percent: float = _end
    chunk: int = param(0, "Candidates per network call; 0: as many as fit into the memory.", 0, 4096, 1, advanced=True)

    def guided(self, swarm, problem, i):
        step = swarm.step(problem, swarm.x, i)
        inside = problem.percent_to_sigma is None or step.inside(self.start_percent, self.end_percent)
        return inside and self.eta > 0 and swarm.active(problem, i + 1)

    def chosen(self, swarm, problem, x, i, denoised):
        values = swarm.values(problem, x, i, denoised)
        return (least(values) if self.temperature == 0 else drawn(-values / self.temperature, swarm.choices.uniform())), values
