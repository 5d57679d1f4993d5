"""Guidance by a small network that looks at the noisy state itself: no pass backward through the big one, no decoding."""
from __future__ import annotations

from typing import Any

import torch

from ..frozen import frozen
from ..gradients import LOSS_SCALE, enter
from ..method import BadInput, Steer, norm, param, socket
from ..training.predictor import angle

RATIOS = ("none", "score ratio", "score ratio, each value")


def over_ratio(g, score, how):
    """A direction g [batch, ...] with the length of the model's own score, per sample ("score ratio") or per value; none leaves it. 0 stays 0."""
    if how == "none":
        return g
    size = norm(g) if how == "score ratio" else g.float().abs()
    own = norm(score) if how == "score ratio" else score.float().abs()
    return torch.where(size > 1e-20, g.float() * own / size.clamp(min=1e-20), torch.zeros_like(g.float())).to(g.dtype)


@frozen(eq=False)
class NoisySteer(Steer):
    """Base of these methods: D' = D + scale w (s^2 / a) R g,  g = grad_x of `worth(logits, step, state)` [batch].

    R: `normalise`, the ratio |score| / |g|, score = (a D - x) / s^2 the model's own; w = decay^t, t = atan2(s, a) / (pi / 2) from 0 (clean) to 1 (noise).
    """

    family = "loss"
    planar = True
    classifier: Any = socket("LODESTAR_PREDICTOR", "The classifier of noisy latents, from Train or Load Noise-Aware Classifier.")
    scale: float = param(1.0, "Strength; 0 switches the node off.", 0.0, 1e6, 0.05)
    start_percent: float = param(0.0, "Start of the window in which it guides, as a fraction of the sampling schedule (0 = first step).", 0.0, 1.0, 0.001)
    end_percent: float = param(1.0, "End of that window (1 = last step).", 0.0, 1.0, 0.001)
    normalise: str = param("none", "score ratio: the gradient gets the length of the model's own score (each value: in each number), which makes the scale independent of how sure the classifier is.",
                           choices=RATIOS, advanced=True)
    decay: float = param(1.0, "Factor of the strength at pure noise, against none at the end; between them it is raised evenly. 1: the same everywhere, 0.1: DiffusionNAG.", 0.0, 1.0, 0.01, advanced=True)

    @property
    def network(self):
        """What looks at the noisy state: `logits`, `channels`."""
        return self.classifier

    def neutral(self):
        return self.scale == 0

    def worth(self, logits, step, state):
        """[batch]: what is to become larger, of the classifier's logits [batch, classes]."""
        raise NotImplementedError

    def strength(self, step, state):
        """A factor [batch] of the gradient, or None."""
        return None

    def towards(self, step, state):
        """g = grad_x worth, like step.x, without a graph."""
        with torch.inference_mode(False), torch.enable_grad():
            x = step.x.detach().clone()
            x = (x if x.dtype == torch.float64 else x.float()).requires_grad_(True)
            logits = self.network.logits(x, step.sigma.detach().clone().to(x), step.flow)
            value = self.worth(logits, step, state)
            g, = torch.autograd.grad(value.sum() * LOSS_SCALE, x)
        return (g / LOSS_SCALE).detach()

    def steer(self, step, evaluate, state):
        wanted = getattr(self.network, "channels", step.x.shape[1])
        if step.x.shape[1] != wanted:
            raise BadInput(self.title, "classifier" if self.network is self.classifier else "encoder", f"{wanted} channels", f"The sampled latent has {step.x.shape[1]}: train it on latents of this model.")
        g = self.towards(step, state)
        denoised = evaluate(step.x)
        if not bool(torch.isfinite(g).all()):
            raise ValueError(f"{self.title}: the small network's gradient is not finite at sigma {float(step.sigma[0]):.4g}.")
        factor = self.strength(step, state)
        if factor is not None:
            g = g * factor.to(g).view(-1, *[1] * (g.ndim - 1))
        if self.normalise != "none":
            g = over_ratio(g, (step.a * denoised - step.x).to(g) / (step.s * step.s).to(g), self.normalise)
        if self.decay != 1.0:
            g = g * self.decay ** float(angle(step.sigma.flatten()[:1].float(), step.flow))
        return enter(step, denoised, g.to(denoised.dtype), self.scale, "score")
