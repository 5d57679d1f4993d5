"""DDIM inversion and replay."""
from __future__ import annotations

import torch

from ..frozen import frozen
from ..method import BadInput, Method, norm, param
from ..samplers.cfgpp import signal, step_down

SCHEDULERS = ("normal", "simple", "sgm_uniform", "karras", "exponential", "ddim_uniform")


@frozen
class DDIMInversion(Method):
    """Finds the noise from which the deterministic sampler makes a given picture; sampling again from it gives the picture back, or an edited one.

    Paper: Song, Meng, Ermon, "Denoising Diffusion Implicit Models", arXiv 2010.02502, section 4.3; refinement as in Pan, Gherardi, Xie, Huang, "Effective
    Real Image Editing with Accelerated Iterative Diffusion Inversion", arXiv 2309.04907; the CFG++ form from arXiv 2406.08070.

    Noise levels rising s_0 < s_1 < ..., v(x, s) = (x - D(x, s)) / s (eps in k-units, the velocity on flow models):

        start      x = a(s_0) x0                                 the clean picture counts as the state at the smallest level
        step       x' = x + (s' - s) v(x, s)                     error of order 1 in the step
        midpoint   x' = x + (s' - s) v(x + (m - s) v(x, s), m),  m = (s + s') / 2: order 2, two evaluations a step
        refine     x' <- x' + x - F(x'), repeated; F(x') = x' + (s - s') v(x', s') is the sampler's own step down;
                   a sample that moves away goes back to its best state and on with half the correction

    The refined x' solves F(x') = x, so that the Euler sampler's round trip is exact to the iteration's tolerance; it then also inverts the last step
    to level 0 (solving D(x', s_0) = x0). Midpoint is exact for no sampler, only closer to the flow; with refinement it serves as the first guess.
    Rule "cfg++": x' = a' u + s' n_g, n_g the noise of the guided prediction g = u + cfg (c - u): the inverse of the CFG++ step with its two
    predictions held, as in the authors' code; F is then the CFG++ step down, and the picture is replayed with the CFG++ sampler at the same scale.

    Defaults: 30 steps, cfg 1 (inversion under CFG at a high scale is unstable, as the papers on editing report), 2 refinements.
    Cost: steps x (1 + refine) evaluations (of the prompts that cfg needs), one more a step for midpoint.
    Flow models: the same with x = (1 - s) x0 + s n; schedules that reach s = 1 end in pure noise. Replay with the "euler" sampler over the same
    sigmas, the noise output and an empty latent. Limits: refinement converges where a step changes the prediction by less than the step (it does for
    Gaussian data; a high cfg can break it: use more steps); noise masks of the latent are not used.
    """

    node_id = "LodestarDDIMInversion"
    title = "DDIM Inversion"
    family = "inversion"
    paper = "Denoising Diffusion Implicit Models (Song et al. 2021)"
    aliases = ("inversion", "unsampler", "noise from image")
    evaluations = "steps x (1 + refine)"

    steps: int = param(30, "Number of steps; the replay takes the same. Not used when sigmas are connected.", 1, 10000, 1)
    scheduler: str = param("normal", "The noise levels; the replay takes the same. Not used when sigmas are connected.", choices=SCHEDULERS)
    cfg: float = param(1.0, "Guidance scale of the inversion; 1 needs no negative prompt. With rule cfg++ its scale, 0.6 being strong.", 0.0, 100.0, 0.05)
    refine: int = param(2, "Fixed-point refinements per step: more brings the round trip nearer to exact. 0: plain inversion.", 0, 50, 1)
    midpoint: bool = param(False, "Second-order steps, one more evaluation each: nearer to the exact flow.", advanced=True)
    rule: str = param("cfg", "cfg: replay with Euler. cfg++: replay with the CFG++ sampler at the same scale.", choices=("cfg", "cfg++"))
    strength: float = param(1.0, "How far up the schedule to go: 1 ends in noise, 0.5 stops half way.", 0.01, 1.0, 0.01, advanced=True)

    def validate(self):
        super().validate()
        if self.rule == "cfg++" and self.midpoint:
            raise BadInput(self.title, "midpoint", True, "The cfg++ rule has no midpoint form; switch midpoint off or take the rule cfg.")
        return self


def rising(sigmas):
    """A schedule of the host (falling, with or without the final 0) as rising levels; a rising one stays."""
    sigmas = torch.as_tensor(sigmas)
    return sigmas.flip(0) if len(sigmas) > 1 and sigmas[0] > sigmas[-1] else sigmas


def step_up(x, g, u, s, s_next, flow=False):
    """The step from level s up to s_next with the predictions at (x, s): a' u + s' n_g. With u = g it is DDIM's, x + (s' - s) v."""
    n = (x - signal(s, flow) * g) / s
    return signal(s_next, flow) * u + s_next * n


@torch.no_grad()
def invert(predict, x0, sigmas, flow=False, refine=0, midpoint=False, callback=None):
    """The state at the largest of `sigmas` from which the deterministic sampler reaches x0.

    predict(x, sigma [batch]) gives (g, u), the guided prediction and the one whose noise the sampler keeps, or g alone where both are one.
    sigmas: levels in either order. A level 0 is left by scaling x0, and solved for by the refinement. callback(i, x, sigma, g) once per step.
    """
    levels = rising(sigmas)
    values = [float(s) for s in levels]

    def at(x, s):
        out = predict(x, torch.full((x.shape[0],), s, dtype=torch.float32, device=x.device))
        return out if isinstance(out, tuple) else (out, out)

    if values[0] <= 0:
        x = x0
    else:
        x = signal(values[0], flow) * x0
    for i in range(len(values) - 1):
        s, s_next = values[i], values[i + 1]
        g = None
        if s <= 0:
            up = signal(s_next, flow) * x
        else:
            g, u = at(x, s)
            up = step_up(x, g, u, s, s_next, flow)
            if midpoint:
                middle = 0.5 * (s + s_next)
                half = step_up(x, g, u, s, middle, flow)
                g, _ = at(half, middle)
                up = x + (s_next - s) * (half - g) / middle
        best = None
        for _ in range(refine):
            g, u = at(up, s_next)
            rest = x - step_down(up, g, u, s_next, s, flow)
            size = norm(rest)
            if best is None:
                best, least, left, part = up, size, rest, torch.ones_like(size)
            else:
                # per sample: where the iteration moved away, back to the best state and half as far
                better = size <= least
                best, left = torch.where(better, up, best), torch.where(better, rest, left)
                least, part = torch.where(better, size, least), torch.where(better, part, part / 2)
            up = best + part.to(left) * left
        x = up
        if callback is not None:
            callback(i, x, s_next, x if g is None else g)
    return x


@torch.no_grad()
def replay(predict, x, sigmas, flow=False, midpoint=False, callback=None):
    """Down the same levels: the Euler sampler (DDIM), or its midpoint form. The inverse of `invert` with refinement.

    The result at a last level above 0 is divided by its signal coefficient, as the host's samplers do.
    """
    values = [float(s) for s in rising(sigmas).flip(0)]

    def at(x, s):
        out = predict(x, torch.full((x.shape[0],), s, dtype=torch.float32, device=x.device))
        return out if isinstance(out, tuple) else (out, out)

    for i in range(len(values) - 1):
        s, s_next = values[i], values[i + 1]
        g, u = at(x, s)
        if callback is not None:
            callback(i, x, s, g)
        if midpoint and s_next > 0:
            middle = 0.5 * (s + s_next)
            half = step_down(x, g, u, s, middle, flow)
            g, _ = at(half, middle)
            x = x + (s_next - s) * (half - g) / middle
        else:
            x = step_down(x, g, u, s, s_next, flow)
    return x / signal(values[-1], flow)
