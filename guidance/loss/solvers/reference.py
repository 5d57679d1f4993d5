"""Scene-grounding guidance: a video follows a rendered sequence, frame by frame."""
from __future__ import annotations

from typing import Any

import torch

from ...frozen import frozen
from ...gradients import normalised, plain_context, rms
from ...inverse import levels
from ...method import param, socket
from ..base import LossContext
from .base import LossSolver


def frame_by_frame(part, denoised, count):
    """A loss [batch] whose gradient at `denoised` [batch, channel, frames, height, width] is that of sum_i part(frame i, i), of which one frame's graph is kept at a time.

    part(frame [batch, channel, 1, height, width], i) -> [batch]. h = sum of the frames' gradients; the value is <denoised, h>: its gradient is h, passed on through the network.
    """
    slopes = []
    with plain_context():
        for i in range(count):
            leaf = denoised[:, :, i:i + 1].detach().clone().requires_grad_(True)
            slopes.append(torch.autograd.grad(part(leaf, i).sum(), leaf)[0])
    return (denoised * torch.cat(slopes, 2)).flatten(1).sum(1)


@frozen(eq=False)
class ReferenceSequenceGuidance(LossSolver):
    """Leads a video by a rendered sequence with holes, as a reconstruction of a scene gives it; the step follows how strongly the prompt guides.

    Paper: Zhong et al., "Taming Video Diffusion Prior with Scene-Grounding Guidance for 3D Gaussian Splatting from Sparse Inputs", arXiv 2503.05082.

        h_i = grad_{D_i} loss_i(D_i)  for each frame i alone,   G = D.backward(h)                 the full gradient, with the memory of one frame's decoder
        x' = step(x) - rho c' w rms(n_c - n_u) G / rms(G),   n = (x - a D) / s                  FreeDoM's step, per video; w the guidance scale
        noised again to s and repeated, `repeats` times in all

    x, s: state and level, primes: the next level; c = sqrt(a^2 + s^2), a = 1 in k-units, 1 - s on flow models; n_c, n_u: noise by prompt and without. c' brings the released step into these
    coordinates. Where rms(G) is 0 nothing moves. Frames are decoded alone where the latent has one for each picture (the loss's pictures are as many as the frames); else, and for any other loss, the whole is
    differentiated at once: the same numbers.
    Defaults: rho 0.2, 1 repeat, eta 1 (released; 50 DDIM steps, all guided; at fewer steps it is weaker in sum). At cfg 1 there is no difference of prompts, and it does nothing. Cost: a backward pass through the active
    branches, and the decoder's.
    """

    node_id = "LodestarReferenceSequenceGuidance"
    title = "Reference Sequence Guidance"
    paper = "Taming Video Diffusion Prior with Scene-Grounding Guidance"
    aliases = ("scene grounding", "FreeDoM", "rendered sequence")
    evaluations = "0 (backward pass through the active branches: about 2 more; times the repeats)"
    compares = True

    loss: Any = socket("LODESTAR_LOSS", "What to minimise: Reference Sequence Loss, or any.")
    rho: float = param(0.2, "Size of a move, as a share of the prompt's; 0 switches it off.", 0.0, 100.0, 0.01)
    repeats: int = param(1, "How often each step is made, noised again in between.", 1, 20, 1)
    eta: float = param(1.0, "Fresh noise per step. 0: deterministic, 1: ancestral.", 0.0, 1.0, 0.01)

    def neutral(self):
        return self.rho == 0

    def advance(self, point):
        loss = point.problem.at(point)
        if loss is None:
            return self.plain(point)
        own, context = self.loss, LossContext(point.problem.step(point))
        target = getattr(own, "target", None)

        def whole(denoised):
            frames = denoised.shape[2] if denoised.ndim == 5 else 1
            if frames == 1 or not hasattr(own, "part") or target is None or target.shape[0] not in (1, frames, frames * denoised.shape[0]):
                return loss(denoised)
            return frame_by_frame(lambda leaf, i: own.part(leaf, i, frames, context), denoised, frames)
        return self.led(point, whole)

    def led(self, point, loss):
        denoised, g = point.descend(loss)
        strength = self.rho * levels.amplitude(point.s_next, point.flow) * point.a / point.s * self._guided(point)
        return point.go(denoised, point.noise_of(denoised), self.eta, strength * normalised(g, "unit rms"))

    def _guided(self, point):
        """w rms(D_c - D_u) of the last evaluation, per sample."""
        gap = point.problem.gap
        return torch.zeros_like(point.x[(slice(None), *[slice(0, 1)] * (point.x.ndim - 1))]) if gap is None else rms(gap).to(point.x)
