"""RePaint: what is known is put back at every level, and the levels are gone through several times."""
from __future__ import annotations

from typing import Any

from ..frozen import frozen
from ..method import param, socket
from . import levels
from .dps import MEASURED
from .problem import latent_mask
from .solver import Solver, at


@frozen(eq=False)
class RePaint(Solver):
    """Inpainting that puts what is known back at every noise level, and goes up and down the levels several times so that the new part fits to it.

    Paper: Lugmayr, Danelljan, Romero, Yu, Timofte, Van Gool, "RePaint: Inpainting using Denoising Diffusion Probabilistic Models", arXiv 2201.09865.

        x' = k (a' y + s' z) + (1 - k) step(x)                      k: 1 where the picture is known, y the known picture, z fresh noise
        guided > 0:  step(x) is made from D' = D + guided k (y - D), so that the new part is drawn beside what is known, not beside what the model made of it
        after every `jump` steps: back up `jump` levels by the forward process, `rounds` - 1 times, before the sampling goes on

    x: state; a', s': signal coefficient (1 in k-units, 1 - s on flow models) and noise level of the next step. The last level is free of noise, so the known
    part is y itself. Works on latents: of a picture those cells count as known all of whose pixels are, y is its encoding (a decoder sees a little across the
    border). Operators that keep places (Inpainting, Missing Traces); noise in the measurement stays in. Volumes and videos [batch, channel, frame, height, width] are gone through as a whole.
    The constraint by what is known and the resampling are also those of Wang et al., "SeisFusion: Constrained diffusion model with input guidance for 3D seismic data interpolation and reconstruction",
    arXiv 2403.11482, whose network besides is given the known data and mixes two outputs by 0.5; `guided` 0.5 is what carries over without its training.

    Defaults: jump 10 and 10 rounds are the authors', for 250 steps; here 5 and 5 for a few tens of steps. eta 1 (DDPM). Cost: up to `rounds` times the steps.
    """

    node_id = "LodestarRePaint"
    title = "RePaint"
    paper = ("Lugmayr et al., RePaint: Inpainting using Denoising Diffusion Probabilistic Models, arXiv 2201.09865",
             "SeisFusion: Constrained diffusion model with input guidance for 3D seismic data interpolation, arXiv 2403.11482")
    aliases = ("resampling inpainting", "constraint correction", "SeisFusion")
    evaluations = "about (rounds - 1) times the steps"
    backward = False

    measurement: Any = socket("LODESTAR_MEASUREMENT", MEASURED)
    jump: int = param(5, "How many levels it goes back up at a time.", 1, 100, 1)
    rounds: int = param(5, "How often each stretch of levels is gone through; 1: once.", 1, 50, 1)
    eta: float = param(1.0, "Fresh noise per step. 0: deterministic, 1: ancestral.", 0.0, 1.0, 0.01)
    guided: float = param(0.0, "How far the clean estimate is corrected by what is known before each step; 0: not at all, as the paper.", 0.0, 1.0, 0.05, advanced=True)

    def prepared(self, problem, like):
        return latent_mask(problem, like)

    def run(self, evaluate, x, sigmas, problem, flow=False, draw=None, callback=None, context=None):
        draw = draw or levels.noise_source(x, 0)
        problem = self.prepared(problem, x)
        listed = [float(s) for s in sigmas]
        known = problem.operator.keep(x)
        y = problem.measured(x.shape[0]).to(x)
        for i, goal in course(len(listed) - 1, self.jump, self.rounds):
            if goal < i:
                x = levels.renoise(x, listed[i], listed[goal], flow, draw())
                continue
            point = at(evaluate, x, sigmas, i, problem, flow, draw, context)
            moved = self.plain(point) if self.guided == 0 else self.corrected(point, known, y)
            if callback is not None:
                callback(i, x, sigmas[i], point.seen)
            kept = point.a_next * y + (point.s_next * draw() if point.s_next else 0.0)
            x = known * kept + (1 - known) * moved
        return x

    def corrected(self, point, known, y):
        """The step from an estimate that is corrected where the picture is known."""
        denoised = point.predict()
        x0 = denoised + self.guided * known * (y - denoised)
        return point.go(x0, point.noise_of(denoised), self.eta)


def course(steps, jump, rounds):
    """[(from, to)] of the whole way through the levels 0 (noise) to `steps` (clean): down by one, up by one."""
    left = {steps - remaining: rounds - 1 for remaining in range(1, steps - jump + 1, jump)}
    way, i = [], 0
    while i < steps:
        if left.get(i, 0) > 0:
            left[i] -= 1
            for _ in range(jump):
                way.append((i, i - 1))
                i -= 1
        else:
            way.append((i, i + 1))
            i += 1
    return way
