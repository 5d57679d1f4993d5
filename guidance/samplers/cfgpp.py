"""CFG++: guidance that stays on the data manifold, as a sampler."""
from __future__ import annotations

import math

import torch

from ..frozen import frozen
from ..method import Method, param


@frozen
class CFGPlusPlusSampler(Method):
    """Moves the clean estimate towards the prompt but takes the noise of the unconditional prediction: guidance without leaving the model's own path.

    Paper: Chung, Kim, Park, Nam, Ye, "CFG++: Manifold-constrained Classifier Free Guidance for Diffusion Models", arXiv 2406.08070.

        x0 = u + scale (c - u)                        the guided clean estimate
        n  = (x - a u) / s                            the noise, of the unconditional prediction
        next x = a' x0 + s' n                         deterministic, order 1 (DDIM)
        ancestral: s' splits into down and up with down^2 + up^2 = s'^2, up = min(s', eta s' sqrt(1 - (s'a / s a')^2)):  a' x0 + down n + up z
        order 2: the second-order multistep step (DPM-Solver++ 2M) of u, plus a' (x0 - u)

    c, u: conditional and unconditional x0 predictions; x, s, a: latent, noise level, signal coefficient (1 in k-units, 1 - s on flow models), primes: the
    next level; z: fresh noise. At scale 0 it is unconditional DDIM, where c = u plain DDIM; scale 1 is not CFG at w = 1, since the noise is u's.

    The sampler brings its own scale: for its run it stands in for the cfg of the node that samples, whatever is entered there. Rules and gates on the
    model see it as their w; where a gate switches guidance off (so that the unconditional prediction is not evaluated) the step is the plain one of c.
    Other methods' terms t (perturbation, losses) are part of the prediction: `terms` "usual strength" adds them to x0 and to the noise's prediction
    (n = (x - a (u + t)) / s), so that they act as strongly as with other samplers; "like the prompt" adds them to x0 alone, several times stronger.

    Defaults: scale 0.6, as the authors use it where CFG has 7.5 (0 to 1 there stands for cfg 1 to 12.5); above 1 is possible.
    The paper's strength per step grows with the number of steps (50 there). Cost: that of CFG, also at scale 1. eta's noise comes from generators of the run's
    own seed, one per picture, so a picture does not depend on its batch's size. Flow models: the same rule with a = 1 - s (not in the paper).
    Limits: guiders with several scales of their own keep those; a guider without a negative prompt gives the plain step of its prediction; a partial
    schedule that ends above noise level 0 has the strength of the steps it takes.
    """

    node_id = "LodestarCFGPlusPlusSampler"
    title = "CFG++ Sampler"
    family = "samplers"
    paper = "CFG++: Manifold-constrained Classifier Free Guidance"
    aliases = ("CFG++", "cfg_pp")
    evaluations = "0"

    scale: float = param(0.6, "Strength of the prompt, 0 to 1: 0 ignores it, 0.6 is about cfg 7.5, 1 about 12.5. Used instead of cfg.", 0.0, 4.0, 0.01)
    eta: float = param(0.0, "Fresh noise per step. 0: deterministic, 1: ancestral.", 0.0, 1.0, 0.01)
    order: int = param(1, "1: Euler (DDIM), the paper's. 2: second order in the unconditional part (DPM-Solver++ 2M), for few steps.", 1, 2, 1)
    terms: str = param("usual strength", "How other methods' terms enter: as strongly as with other samplers, or into the clean estimate alone, as the prompt.",
                       choices=("usual strength", "like the prompt"), advanced=True)


def signal(sigma, flow):
    """The coefficient a of x0 at noise level sigma."""
    return 1.0 - sigma if flow else 1.0


def guided(c, u, scale):
    """x0 = u + scale (c - u)."""
    return u + scale * (c - u)


def step_down(x, x0, u, s, s_next, flow=False):
    """The deterministic step from level s to s_next: a' x0 + s' n with n the noise of u. With u = x0 it is DDIM, in either parametrisation."""
    if s_next == 0:
        return x0
    n = (x - signal(s, flow) * u) / s
    return signal(s_next, flow) * x0 + s_next * n


def ancestral(s, s_next, eta, flow=False):
    """(down, up): the part of s_next that is kept of the old noise and the part that is drawn anew; down^2 + up^2 = s_next^2."""
    if s_next == 0 or eta == 0:
        return s_next, 0.0
    ratio = s_next * signal(s, flow) / (s * signal(s_next, flow))
    up = min(s_next, eta * s_next * math.sqrt(max(0.0, 1.0 - ratio * ratio)))
    return math.sqrt(max(0.0, s_next * s_next - up * up)), up


def step_ancestral(x, x0, u, s, s_next, eta, draw, flow=False, s_noise=1.0):
    """As step_down, with part of the noise replaced by `draw()`."""
    if s_next == 0:
        return x0
    down, up = ancestral(s, s_next, eta, flow)
    n = (x - signal(s, flow) * u) / s
    out = signal(s_next, flow) * x0 + down * n
    return out + up * s_noise * draw() if up else out


def log_snr(s, a):
    """log(a / s): infinite where there is no noise, minus infinite where there is no signal."""
    return math.inf if s <= 0 else -math.inf if a <= 0 else math.log(a / s)


def step_second(x, x0, u, u_before, s_before, s, s_next, flow=False, down=None):
    """The 2M step of u from s to s_next (noise level `down` there, if part of the noise is drawn anew), plus a' (x0 - u)."""
    if s_next == 0:
        return x0
    a, a_next = signal(s, flow), signal(s_next, flow)
    target = s_next if down is None else down
    out = a_next * x0 + target * (x - a * u) / s
    if u_before is None or target <= 0:
        return out
    now = log_snr(s, a)
    h, h_before = log_snr(target, a_next) - now, now - log_snr(s_before, signal(s_before, flow))
    if not 0 < h_before < math.inf or not 0 < h < math.inf:
        return out
    return out - a_next * math.expm1(-h) * h / (2 * h_before) * (u - u_before)


def noise_source(x, seed, salt=0x5EED):
    """draw(): standard normal noise like x from the run's own generators, one per batch entry, alike on every device and whatever the batch's size."""
    seed = 0 if seed is None else int(seed)
    generators = [torch.Generator("cpu").manual_seed((seed * 1_000_003 + salt + 7919 * i) % (1 << 63)) for i in range(x.shape[0])]
    return lambda: torch.stack([torch.randn(x.shape[1:], generator=g, dtype=torch.float32) for g in generators]).to(x)


@torch.no_grad()
def sample(predict, x, sigmas, flow=False, eta=0.0, order=1, draw=None, s_noise=1.0, callback=None):
    """The loop. predict(x, sigma [batch], i) gives (x0, u): the guided clean estimate and the prediction whose noise is kept.

    sigmas: falling levels; callback(i, x, sigma, x0) after each prediction. Evaluations: one per step.
    """
    levels = [float(s) for s in sigmas]
    draw = draw or noise_source(x, 0)
    before = None
    for i in range(len(levels) - 1):
        s, s_next = levels[i], levels[i + 1]
        x0, u = predict(x, sigmas[i] * x.new_ones(x.shape[0]), i)
        if callback is not None:
            callback(i, x, sigmas[i], x0)
        if order == 1:
            x = step_ancestral(x, x0, u, s, s_next, eta, draw, flow, s_noise)
        else:
            down, up = ancestral(s, s_next, eta, flow)
            x = step_second(x, x0, u, before, levels[i - 1] if i else None, s, s_next, flow, down)
            if up:
                x = x + up * s_noise * draw()
            before = u
    return x
