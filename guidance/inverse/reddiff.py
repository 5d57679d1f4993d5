"""RED-diff: a picture is fitted to the measurement, with the denoiser as its prior."""
from __future__ import annotations

import math
from typing import Any

import torch

from ..frozen import frozen
from ..method import param, socket
from . import levels
from .dps import MEASURED
from .problem import per_sample
from .solver import Solver, at, slope

WEIGHTS = {"linear": lambda r: r, "sqrt": math.sqrt, "square": lambda r: r * r, "log": lambda r: math.log1p(r), "const": lambda r: 1.0}
STARTS = ("pseudo-inverse", "zero")


@frozen(eq=False)
class REDdiff(Solver):
    """Fits one clean latent to the measurement by gradient steps, with the model's denoising residual at falling noise levels as its prior. No backward pass through the network.

    Paper: Mardani, Song, Kautz, Vahdat, "A Variational Perspective on Solving Inverse Problems with Diffusion Models", arXiv 2305.04391.

        x = a (m + deviation z) + s n                                   m: the latent that is fitted; z, n fresh noise
        gradient of m:  prior w(s / a) (n^ - n) / N  +  data grad_m |y - A m|^2 / (2 M),      n^ = (x - a D(x)) / s
        one step of Adam (rate, 0.9, 0.99)

    w linear: the prior's gradient is prior (m - D(x)) / N exactly. N, M: numbers of the latent's and of the measured values; y, A: measurement and operator, of
    pictures in [-1, 1] or of latents; s: noise level; a = 1 in k-units, 1 - s on flow models. Every level of the schedule is one step of Adam, from the
    noisiest on; `inner` makes that several. The result is m: an estimate, not a sample; all seeds give nearly the same. The state that the sampler is given is
    not used.

    Defaults: prior 0.25, rate 0.1, linear, deviation 0 as the authors', who take 100 to 1000 steps: give the scheduler many, or inner more than 1. The ratio of
    prior and data counts, not their size, since Adam divides by it. The start is A+ y; of noisy measurements A^T (A A^T + noise^2)^-1 y. Cost: one evaluation per Adam step; for pictures the decoder's backward.
    """

    node_id = "LodestarREDdiff"
    title = "RED-diff"
    paper = "A Variational Perspective on Inverse Problems (RED-diff)"
    aliases = ("variational posterior", "regularisation by denoising", "inverse problem")
    evaluations = "0 (times inner)"
    backward = False

    measurement: Any = socket("LODESTAR_MEASUREMENT", MEASURED)
    prior: float = param(0.25, "Weight of the model against the measurement.", 0.0, 100.0, 0.01)
    rate: float = param(0.1, "Learning rate of Adam: about how far a value moves per step.", 0.0, 10.0, 0.01)
    inner: int = param(1, "Steps of Adam at each level.", 1, 100, 1)
    weight: str = param("linear", "How the prior's weight depends on the noise level.", choices=tuple(WEIGHTS), advanced=True)
    data: float = param(1.0, "Weight of the measurement.", 0.0, 100.0, 0.01, advanced=True)
    deviation: float = param(0.0, "Noise added to the fitted latent itself.", 0.0, 1.0, 0.01, advanced=True)
    start: str = param("pseudo-inverse", "What the fit starts from.", choices=STARTS, advanced=True)

    def run(self, evaluate, x, sigmas, problem, flow=False, draw=None, callback=None, context=None):
        draw = draw or levels.noise_source(x, 0)
        problem = self.prepared(problem, x)
        batch, count = x.shape[0], problem.count(x.shape[0])
        m = x.new_zeros(x.shape, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
        m = m if self.start == "zero" else self.begun(problem, m)
        first, second, step = torch.zeros_like(m), torch.zeros_like(m), 0
        for i in range(len(sigmas) - 1):
            for _ in range(self.inner):
                step += 1
                found = self.gradient(evaluate, m, sigmas, i, problem, flow, draw, count, batch)
                first, second = 0.9 * first + 0.1 * found, 0.99 * second + 0.01 * found.square()
                m = m - self.rate * first / (1 - 0.9**step) / ((second / (1 - 0.99**step)).sqrt() + 1e-8)
            if callback is not None:
                callback(i, m, sigmas[i], m)
        return m.to(x)

    def begun(self, problem, zero):
        """A+ y; with noise and a linear operator the estimate of a standard Gaussian, where A+ would swell the noise."""
        if problem.operator.linear and problem.deviation > 0:
            return problem.corrected(zero, damping=(1.0, problem.deviation**2))
        return problem.first(zero)

    def gradient(self, evaluate, m, sigmas, i, problem, flow, draw, count, batch):
        """The gradient of m at level i."""
        s, numbers = float(sigmas[i]), m[0].numel()
        a = levels.signal(s, flow)
        out = torch.zeros_like(m)
        if self.prior:
            centre = m + self.deviation * draw() if self.deviation else m
            state = a * centre + s * draw()
            denoised = at(evaluate, state.to(m), sigmas, i, problem, flow, draw, None).predict()
            # n^ - n = a (centre - D) / s; the linear weight s / a cancels it also where a is 0
            ratio = 1.0 if self.weight == "linear" else WEIGHTS[self.weight](s / max(a, levels.LEAST_SIGNAL)) * a / s
            out = self.prior * ratio * (centre - denoised.to(m)) / numbers
        if self.data:
            fit = lambda at: per_sample(problem.residual(problem.picture(at)), batch).square().sum(1) / (2 * count)
            out = out + self.data * slope(fit, m, problem)
        return out
