"""SVDD-MC: each step is chosen among several by a learned value."""
from __future__ import annotations

from typing import Any

import torch

from ..frozen import frozen
from ..loss.solvers.base import LossProblem
from ..method import BadInput, param, socket, window
from .candidates import CandidateSolver, least
from .swarm import drawn

_start, _end = window("steps are chosen")


@frozen(eq=False)
class LearnedValueDecoding(CandidateSolver):
    """At each step several next states are drawn, a small trained network says what each is worth, and one goes on: the big network sees that one alone.

    Paper: Li et al., "Derivative-Free Guidance in Continuous and Discrete Diffusion Models with Soft Value-Based Decoding" (SVDD-MC), arXiv 2408.08252.

        x'_m = DDIM_eta(x, D) with noise of its own, m = 1 .. candidates
        v_m  = v(x'_m, s')                                                         the value function, of Train Value Function
        x'   = x'_m with probability proportional to exp(v_m / temperature); the largest v_m for temperature 0

    x: state at one level, primes: the next. SVDD Sampler asks a loss about D(x'_m) instead, which costs the big network `candidates` times and judges a blurred mean; here early states are judged by what became of such
    states in the training. Where v is the soft value of the temperature, many candidates give p(x) exp(r(x) / temperature).

    Defaults: 10 candidates, temperature 0, eta 1, as SVDD Sampler. Cost: none of the big network, `candidates` passes of the small one. Limits: as good as the value function; it was trained for certain prompts and
    sizes. It cannot see what its examples did not have: a temperature far below their spread leads out of what it knows.
    """

    node_id = "LodestarLearnedValueSampler"
    title = "SVDD Sampler with Learned Value"
    paper = "Derivative-Free Guidance: SVDD"
    aliases = ("SVDD-MC", "soft value-based decoding", "derivative-free guidance")
    evaluations = "0"

    value: Any = socket("LODESTAR_VALUE", "From Train Value Function or Load Value Function.")
    candidates: int = param(10, "Next states that are tried at each step; 1 is the plain sampler.", 1, 4096, 1)
    temperature: float = param(0.0, "0 takes the best; above it one is drawn, the better the likelier: differences of the value count in units of this.", 0.0, 1e6, 0.001)
    eta: float = param(1.0, "Fresh noise per step, which is what candidates differ by. 1: ancestral.", 0.0, 1.0, 0.01)
    start_percent: float = _start
    end_percent: float = _end
    chunk: int = param(0, "Rows of the big network's calls; 0: as many as fit into the memory.", 0, 4096, 1, advanced=True)

    def problem(self, sigmas, flow, percent_to_sigma=None):
        return LossProblem(None, sigmas, flow, percent_to_sigma, self.title)

    def guided(self, swarm, problem, i):
        inside = problem.percent_to_sigma is None or swarm.step(problem, swarm.x, i).inside(self.start_percent, self.end_percent)
        return inside and self.eta > 0

    def best(self, swarm, problem, states, i):
        if getattr(self.value, "channels", states.shape[1]) != states.shape[1]:
            raise BadInput(self.title, "value", f"of {self.value.channels} channels", f"The latents that are sampled have {states.shape[1]}; train it with latents of this model.")
        sigma = float(swarm.sigmas[i])
        with torch.no_grad():
            values = torch.stack([self.value.value(part.float(), torch.full((part.shape[0],), sigma), swarm.flow).double().cpu() for part in states.split(swarm.batch)])
        if not bool(torch.isfinite(values).all()):
            raise ValueError(f"{self.title}: the value function gives no number at sigma {sigma:.4g}.")
        index = least(-values) if self.temperature == 0 else drawn(values / self.temperature, swarm.choices.uniform())
        swarm.record.note(i, sigma, -values, None, None, index)
        return states[swarm.rows(index).to(states.device)], None
