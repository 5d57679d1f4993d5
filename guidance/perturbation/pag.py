"""Perturbed-Attention Guidance."""
from __future__ import annotations

import torch

from ..attention.edits import AttentionEdit
from ..frozen import frozen
from ..method import POSITIVE, Branch, Term, param, window
from .common import rescaled

_start, _end = window()


@frozen
class IdentitySelfAttention(AttentionEdit):
    """Self-attention whose matrix is the identity: the head output is V.

    In joint attention only the image-to-image block becomes the identity: text rows are untouched, an image row attends the text and itself.
    """

    kinds = ("self", "joint")

    def default_layers(self, geometry):
        return "middle"

    def apply(self, site, q, k, v, attend):
        if site.kind == "self":
            return v
        out = attend(q, k, v).clone()
        text, image = site.text, site.image
        qi, ki, vi = q[:, :, image], k[:, :, image], v[:, :, image]
        scale = q.shape[-1] ** -0.5
        # softmax over [text logits, own logit] is the joint softmax with the image block masked to its diagonal
        to_text = (qi.float() @ k[:, :, text].float().transpose(-1, -2)) * scale
        own = (qi.float() * ki.float()).sum(-1, keepdim=True) * scale
        weights = torch.cat((to_text, own), -1).softmax(-1)
        mixed = weights[..., :-1] @ v[:, :, text].float() + weights[..., -1:] * vi.float()
        out[:, :, image] = mixed.to(out.dtype)
        return out


@frozen
class PerturbedAttentionGuidance(Term):
    """Pushes away from a prediction whose self-attention is switched off, which loses structure and keeps appearance.

    ptb = D(x, s, positive) with self-attention := identity in `layers` (the head output is V; output projection, residual, cross-attention stay)
    result = base + scale_t (cond - ptb),  scale_t = max(0, scale - adaptive (1 - t)),  t = 1 at the first step of the schedule and 0 at its end
    `rescale` rho brings the standard deviation back to cond's: result (rho std(cond) / std(result) + 1 - rho), per sample.

    On joint attention (Flux, SD3, Qwen ...) only the image-to-image block becomes the identity. The formula is the same for eps, v and flow models.
    Defaults: scale 3 with CFG, the middle block for U-Nets (paper: SD), the middle third of the first stage for DiTs (no value in the paper).
    Limits: lowers diversity above scale 5. Cost: one more evaluation, batched with the prompts.
    """

    node_id = "LodestarPerturbedAttentionGuidance"
    title = "Perturbed-Attention Guidance"
    family = "perturbation"
    paper = "Self-Rectifying Diffusion Sampling with Perturbed-Attention Guidance (PAG)"
    aliases = ("PAG",)
    evaluations = "1"

    scale: float = param(3.0, "Strength of the push away from the perturbed prediction; 0 switches the node off.", 0.0, 100.0, 0.1)
    layers: str = param("middle", "Layers whose self-attention is switched off in the extra branch, e.g. middle, output.3-5, double.1.")
    start_percent: float = _start
    end_percent: float = _end
    adaptive: float = param(0.0, "Lowers the scale linearly over the schedule: 0 keeps it, 1 takes 1 off the scale by the last step per unit.", 0.0, 100.0, 0.01, advanced=True)
    rescale: float = param(0.0, "Share of the standard deviation brought back to the conditional prediction's, against oversaturation.", 0.0, 1.0, 0.01)

    @property
    def branch(self):
        return Branch(edits=(IdentitySelfAttention(self.layers),))

    def neutral(self):
        return self.scale == 0

    def branches(self, step):
        return (POSITIVE, self.branch) if self._scale(step) > 0 else ()

    def _scale(self, step):
        if not self.adaptive or step.sigmas is None or len(step.sigmas) < 2:
            return self.scale
        return max(0.0, self.scale - self.adaptive * step.index / (len(step.sigmas) - 1))

    def delta(self, step, base, predictions, state):
        scale = self._scale(step)
        if scale == 0:
            return torch.zeros_like(base)
        cond = predictions[POSITIVE]
        delta = scale * (cond - predictions[self.branch])
        return rescaled(base, delta, cond, self.rescale)
