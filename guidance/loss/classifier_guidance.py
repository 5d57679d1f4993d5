"""Classifier guidance (Dhariwal and Nichol)."""
from __future__ import annotations

import torch

from ..frozen import frozen
from ..method import BadInput, param
from ..training.classifier import numbers
from .noisy import NoisySteer


@frozen(eq=False)
class ClassifierGuidance(NoisySteer):
    """Leads samples to a class by a classifier that was trained on noisy latents.

        D' = D + scale w (s^2 / a) R grad_x log p(label | x, s)

    the DDIM form eps - scale sqrt(1 - abar) grad log p of the paper for every parametrisation and sampler. Scale 1 with an exact classifier is Bayes' rule: the samples are those of the class; above 1
    p(label | x)^scale is sharpened.
    R and w are DiffusionNAG's (arXiv 2305.16943): normalise "score ratio" is its R = |score|_2 / |g|_2, and decay 0.1 its w_t = 0.1^t, with the share of noise in place of its time. As there, the added
    score then has exactly `scale w` times the length of the model's own.

    Limits: the gradient is the classifier's, which may lead out of one class without leading into the wanted one (the bundled one leads from gray to white on its way to black at a large scale).
    Defaults: scale 1, in the paper 1 to 10 (10 where the model knows no classes). It acts beside CFG, on the combined prediction. Cost: a forward and a backward pass of the small network.
    Papers: Diffusion Models Beat GANs on Image Synthesis (arXiv 2105.05233), DiffusionNAG. Identities: scale 0; an exact classifier at scale 1; one class alone has no gradient.
    """

    node_id = "LodestarClassifierGuidance"
    title = "Classifier Guidance"
    paper = ("Classifier guidance: Diffusion Models Beat GANs on Image Synthesis (arXiv 2105.05233)", "DiffusionNAG")
    aliases = ("ADM-G", "class guidance", "predictor guidance")
    evaluations = "0 (a pass forward and back through the small network)"

    label: str = param("1", "The class that is wanted, from 0 on: one for all pictures, or one for each of the batch, separated by commas.")

    def validate(self):
        super().validate()
        parts = len(self.label.replace(",", " ").split())
        wanted = numbers(self.label, max(1, parts), self.title, "label")
        if self.classifier is not None and (bool((wanted != wanted.round()).any()) or float(wanted.min()) < 0 or float(wanted.max()) >= self.classifier.classes):
            raise BadInput(self.title, "label", self.label, f"The classifier knows the classes 0 to {self.classifier.classes - 1}.")
        return self

    def worth(self, logits, step, state):
        wanted = numbers(self.label, logits.shape[0], self.title, "label").long().to(logits.device)
        return torch.log_softmax(logits, 1).gather(1, wanted[:, None])[:, 0]
