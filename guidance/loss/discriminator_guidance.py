"""Discriminator Guidance."""
from __future__ import annotations

import torch

from ..frozen import frozen
from ..method import BadInput, param
from .noisy import NoisySteer

CLIP = 11.5129      # log d / (1 - d) at d = 1 - 1e-5, where the released code clips d


@frozen(eq=False)
class DiscriminatorGuidance(NoisySteer):
    """Corrects what the model gets wrong: a discriminator of noisy latents that tells real pictures from the model's own gives the missing part of the score.

        D' = D + scale (s^2 / a) grad_x log (d / (1 - d)),   d(x, s) = probability of "real"

    With the exact d the ratio is p_data / p_model at every level, and scale 1 gives the data's own score. Train Noise-Aware Classifier on the model's samples (label 0) and real latents (label 1).
    boost (the released code's "boosting"): at every second step it counts twice for samples that still look made (d below 1/2). Its further noise for these at every fifth step belongs to a sampler of
    its own and is left out.

    Defaults: scale 2 (released code: 2 at the first evaluation of a Heun step, 0 at the second; as used here every evaluation counts, so take 1 with samplers of second order), from the first step to
    near the last. d is clipped at 1e-5 from both ends, as there. A discriminator that has learned its examples by heart is far too sure: few steps, many examples.
    Paper: Kim et al., arXiv 2211.17091. Cost: a pass forward and back through the small network.
    """

    node_id = "LodestarDiscriminatorGuidance"
    title = "Discriminator Guidance"
    paper = "Refining Generative Process with Discriminator Guidance"
    aliases = ("DG", "density ratio", "real or fake")
    evaluations = "0 (a pass forward and back through the small network)"

    scale: float = param(2.0, "Strength; 0 switches the node off. 1 is the density ratio itself.", 0.0, 1e6, 0.05)
    boost: bool = param(False, "Twice as strong at every second step for samples that still look made.", advanced=True)

    def validate(self):
        super().validate()
        if self.classifier is not None and self.classifier.classes != 2:
            raise BadInput(self.title, "classifier", f"{self.classifier.classes} classes", "A discriminator has two: 0 for the model's samples, 1 for real ones.")
        return self

    def worth(self, logits, step, state):
        ratio = logits[:, 1] - logits[:, 0]
        state["ratio"] = ratio.detach()
        return ratio.clamp(-CLIP, CLIP)

    def strength(self, step, state):
        return torch.where(state["ratio"] < 0, 2.0, 1.0) if self.boost and step.index % 2 == 0 else None
