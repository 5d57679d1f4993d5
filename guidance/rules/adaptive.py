"""Adaptive Guidance."""
from __future__ import annotations

import torch

from ..frozen import frozen
from ..method import NEGATIVE, POSITIVE, Gate, dot, noise_of, norm, param, window

_, _end = window("convergence is looked for")


def similarity(step, c, u):
    """Cosine of the noise predictions of c and u per sample [batch], in float32; 1 where both vanish."""
    a, b = noise_of(step, c.float()), noise_of(step, u.float())
    size = norm(a) * norm(b)
    return torch.where(size > 0, dot(a, b) / size.clamp_min(1e-30), torch.ones_like(size)).flatten()


@frozen
class AdaptiveGuidance(Gate):
    """Stops guiding once the conditional and the unconditional prediction agree, and spares the unconditional evaluation from there on.

    Paper: Castillo, Kohler, Perez et al., "Adaptive Guidance: Training-free Acceleration of Conditional Diffusion Models", arXiv 2312.12487 (AG).

        n_c = (x - a c) / s,  n_u = (x - a u) / s                    the predicted noises; a = 1, or 1 - s on flow models
        gamma = <n_c, n_u> / (|n_c| |n_u|)                            per sample, in float32
        once gamma >= threshold: the conditional prediction alone, at all remaining steps (never back)

    In a batch the negative prompt is dropped when all samples have converged; until then a converged sample takes its conditional prediction.

    Defaults: threshold 0.991 (the paper's, whose saving is a quarter of the evaluations at 20 steps); lower saves more and moves the picture more. It depends
    on model and prompts. Convergence is not looked for before start_percent 0.4 (ours): at high noise both predicted noises are little more than the noisy
    picture itself, so that their cosine is near 1 before anything has converged. Cost: less than CFG; one read-back of [batch] numbers at the end of a step.
    Flow models: the noise, not the velocity, is compared (the paper's eps); both agree earlier in the schedule than on eps-models.
    Limits: looks at the plain conditional and unconditional predictions, so other methods' terms do not delay it; idle while the noise level rises (inversion),
    where there is nothing to converge to. A threshold above 1 is CFG: the node is then switched off.
    """

    node_id = "LodestarAdaptiveGuidance"
    title = "Adaptive Guidance"
    family = "rules"
    paper = "Adaptive Guidance (AG, LinearAG)"
    aliases = ("AG",)
    evaluations = "-1 after convergence"

    threshold: float = param(
        0.991, "Cosine of the two noise predictions at which guidance stops. Lower: earlier, cheaper, further from CFG. Above 1: never.", -1.0, 1.01, 0.0005)
    start_percent: float = param(
        0.4, "Convergence is looked for from here on, as a fraction of the sampling schedule (0 = first step); at the first steps the two always look alike.", 0.0, 1.0, 0.001)
    end_percent: float = _end

    def neutral(self):
        return self.threshold > 1.0

    def active(self, step):
        """At every step: what has settled stays settled outside the window too."""
        return True

    def scale(self, step, w, state):
        return 1.0 if state.get("all") else w

    def settled(self, step, state):
        return state.get("mask")

    def observe(self, step, predictions, state):
        if state.get("all") or POSITIVE not in predictions or NEGATIVE not in predictions or not step.inside(self.start_percent, self.end_percent):
            return
        if "rising" not in state:
            state["rising"] = step.sigmas is not None and len(step.sigmas) > 1 and bool(step.sigmas[0] < step.sigmas[-1])
        if state["rising"]:
            return
        gamma = similarity(step, predictions[POSITIVE].detach(), predictions[NEGATIVE].detach())
        mask = (gamma >= self.threshold).to("cpu")      # the one read-back of the step
        before = state.get("mask")
        if before is not None and before.shape == mask.shape:
            mask = mask | before
        state["mask"], state["gamma"] = mask, gamma
        state["all"] = bool(mask.all())

