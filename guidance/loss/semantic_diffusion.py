"""Guidance by texts and pictures through a noise-aware encoder (SDG)."""
from __future__ import annotations

from typing import Any

import torch

from ..frozen import frozen
from ..method import BadInput, param, socket
from ..training.classifier import noised
from .clip import fitting
from .encoder import unit
from .noisy import NoisySteer


@frozen(eq=False)
class SemanticDiffusionGuidance(NoisySteer):
    """Leads samples to what texts say and given pictures show, by an encoder that sees the noisy state itself: no decoding and no pass backward through the big network.

        D' = D + scale w (s^2 / a) R grad_x F,   F = text_weight f(x, s) t + image_weight f(x, s) f(a y + s n, s)

    f: the noise-aware encoder's unit embedding; t: the text's, of the encoder that it was trained after; y: the reference, brought to the noise level of the step with noise that is fresh at each step, since
    only embeddings of one level can be compared. Several texts or references: one for each picture of the batch, else their mean.

    Defaults: text 160, image 100, as released for pixels at 256 (100 respaced DDPM steps). Larger encoders need less. R and w: see Classifier Guidance.
    Left out: the paper's structure and style terms on feature maps (CLIP Image Loss, Style Loss and Feature Loss with a clean encoder have them). GLIDE's guidance by a noised CLIP is the text term alone.
    Limits: it is as good as its encoder; embeddings of nearly pure noise tell little. Cost: a forward and a backward pass of the small network, and one more of the reference.
    Papers: Semantic Diffusion Guidance (arXiv 2112.05744), GLIDE (arXiv 2112.10741). Identities: scale 0 or both weights 0; a sample that is its own reference has no gradient.
    """

    node_id = "LodestarSemanticDiffusionGuidance"
    title = "Semantic Diffusion Guidance"
    paper = ("More Control for Free: Semantic Diffusion Guidance (SDG)", "GLIDE (CLIP guidance, CFG)")
    aliases = ("SDG", "noise-aware CLIP guidance", "noised CLIP")
    evaluations = "0 (a pass forward and back through the small network)"

    classifier: Any = None      # the encoder is in its place
    encoder: Any = socket("LODESTAR_NOISY_ENCODER", "The encoder of noisy latents, from Train or Load Noise-Aware Encoder.")
    text_weight: float = param(160.0, "Weight of the texts.", 0.0, 1e6, 1.0)
    image_weight: float = param(100.0, "Weight of the reference pictures.", 0.0, 1e6, 1.0)
    texts: Any = None       # [p, d], of the clean encoder's space
    reference: Any = None   # [q, channels, ...] in the model's space

    @property
    def network(self):
        return self.encoder

    def neutral(self):
        return super().neutral() or not ((self.texts is not None and self.text_weight) or (self.reference is not None and self.image_weight))

    def validate(self):
        super().validate()
        if self.reference is not None and self.reference.shape[1] != self.encoder.channels:
            raise BadInput(self.title, "reference", f"{self.reference.shape[1]} channels", f"The encoder was trained on latents of {self.encoder.channels}: encode the picture with the VAE of this model.")
        if self.texts is not None:
            fitting(self.texts, self.encoder.width, self.title)
        return self

    def worth(self, logits, step, state):
        out = logits.new_zeros(logits.shape[0])
        if self.texts is not None and self.text_weight:
            out = out + self.text_weight * self._alike(logits, unit(fitting(self.texts, self.encoder.width, self.title)))
        if self.reference is not None and self.image_weight:
            out = out + self.image_weight * self._alike(logits, self.at_level(step))
        return out

    @staticmethod
    def _alike(own, wanted):
        """[batch]: cosines of unit embeddings [batch, d] with their own [batch, d], or the mean over all of them [p, d]."""
        wanted = wanted.to(own)
        return (own * wanted).sum(1) if len(wanted) == len(own) else (own @ wanted.T).mean(1)

    @torch.no_grad()
    def at_level(self, step):
        """Embeddings [q, d] of the references at the noise level of the step's first picture."""
        y = self.reference.to(step.x.device, torch.float32)
        sigma = step.sigma.flatten()[:1].float().expand(len(y))
        return self.encoder.logits(*noised(y, sigma, step.flow, torch.Generator().manual_seed(7919 + step.index)), step.flow)
