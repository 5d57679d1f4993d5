"""Universal Guidance, forward form, on any sampler."""
from __future__ import annotations

from typing import Any

import torch

from ..frozen import frozen
from ..gradients import MODES, ROUTES, enter, gradient, normalised
from ..method import BadInput, Steer, param, socket, window
from .base import VALUES_ONLY, LossContext

_start, _end = window("the loss steers")
NORMALISERS = ("none", "unit rms")


@frozen(eq=False)
class UniversalGuidance(Steer):
    """Steers any sampler by the gradient of a loss of the clean estimate (the forward part of Universal Guidance).

    g = -grad_x loss(D(x)),  D' = D + scale (s^2 / a) g     (a = 1 in k-units, 1 - s on flow models)
    which is the paper's eps' = eps + scale sqrt(1 - abar) grad_{x_t} loss written for every parametrisation.
    `normalise` unit rms: D' = D + scale rho^2 g / rms(g), rho^2 = s^2 / (a^2 + s^2), per sample: one scale serves any loss, and D moves by at most `scale` rms.

    route "network" differentiates through the network and CFG, "checkpoint" gives the same numbers with the activations of one block, "none" leaves the network's
    Jacobian out (no backward pass). Masked sampling: the gradient is 0 where the host does not denoise. Per-sample losses: batch entries never mix.
    Cost: route network about 3x a step, checkpoint about 4x, none +0. Backward universal guidance and self-recurrence need a sampler of their own.

    Cheaper guidance ("Conditional Image Generation with Pretrained Generative Model", arXiv 2312.13253; known to us by its abstract alone, so the options are our reading of it): guide_every takes
    the gradient at every n-th step only; with `reuse` the last g is entered at the steps between (at their own s and a), without it they are plain; from cheap_from on the route is none. The defaults
    change nothing.
    """

    node_id = "LodestarUniversalGuidance"
    title = "Universal Guidance"
    family = "loss"
    paper = ("Universal Guidance", "Conditional Image Generation with Pretrained Generative Model")
    aliases = ("UGD", "loss guidance", "classifier guidance")
    evaluations = "0 (backward pass through the active branches: about 2 more; route none: 0)"

    loss: Any = socket("LODESTAR_LOSS", "What to minimise.")
    scale: float = param(1.0, "Strength of the gradient; 0 switches the node off.", 0.0, 1e6, 0.01)
    route: str = param("network", "Where the gradient comes from: through the network, with recomputed blocks (less memory), or without the network's Jacobian.", choices=ROUTES)
    normalise: str = param("unit rms", "unit rms makes the scale independent of the loss; none uses the gradient as it is.", choices=NORMALISERS)
    start_percent: float = _start
    end_percent: float = _end
    mode: str = param("score", "How the gradient enters the step.", choices=MODES, advanced=True)
    guide_every: int = param(1, "The gradient is taken at every n-th step; 1: at each.", 1, 1000, 1, advanced=True)
    reuse: bool = param(False, "Between those steps the last gradient is used again; off: they are plain.", advanced=True)
    cheap_from: float = param(1.0, "Place in the schedule from which the network's Jacobian is left out, which spares its backward pass (0: always, 1: never).", 0.0, 1.0, 0.001, advanced=True)

    def neutral(self):
        return self.scale == 0

    def steer(self, step, evaluate, state):
        if not self.loss.differentiable:
            raise BadInput(self.title, "loss", self.loss.title, VALUES_ONLY)
        if not self.loss.active(step):
            return evaluate(step.x)
        if step.index % self.guide_every:
            last = state.get("direction") if self.reuse else None
            return evaluate(step.x) if last is None else self.entered(step, evaluate(step.x), last)
        context = LossContext(step)
        cheap = self.cheap_from < 1 and step.inside(self.cheap_from, 1.0)
        found = gradient(step, evaluate, lambda d: self.loss.value(d, context), "none" if cheap else self.route, step.host)
        if self.reuse:
            state["direction"] = found.direction
        return self.entered(step, found.denoised, found.direction)

    def entered(self, step, denoised, direction):
        """The prediction with a gradient g entered at this step."""
        direction = direction if step.free is None else direction * step.free.to(direction)
        if self.normalise == "unit rms":
            direction = normalised(direction.float(), self.normalise).to(denoised.dtype)
            s, a = step.s, step.a
            direction = direction * (a if self.mode == "score" else s * s) / (a * a + s * s)
        if not bool(torch.isfinite(direction).all()):
            raise ValueError(f"{self.title}: the gradient of {self.loss.title} is not finite at sigma {float(step.sigma[0]):.4g}; lower the scale or the loss's weight, or use a wider dtype.")
        return enter(step, denoised, direction, self.scale, self.mode)
