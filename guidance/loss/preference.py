"""What people prefer: aesthetic scores, and scores of a picture with its prompt."""
from __future__ import annotations

from typing import Any

from ..frozen import frozen
from ..method import BadInput, param, socket
from .clip import fitting
from .encoder import CutoutLoss, unit

FACTOR = 100.0      # of the scores of HPS and PickScore


@frozen(eq=False)
class PreferenceLoss(CutoutLoss):
    """How much a picture would be liked, by a model of people's choices: an aesthetic head, or a text-image encoder that was trained on preferences.

        e = E(u) / |E(u)|,   t = T(prompt) / |T(prompt)|
        aesthetic:  R = head(e)               linear layers on the embedding (LAION's predictors)
        preference: R = 100 e t               HPS, PickScore: a CLIP tuned on choices; load its image and text half
        loss = -R,   or |R - aim| where a score is aimed at

    With a head connected R is the head's; else texts are compared. Weights: HPS v1 and PickScore are CLIP encoders (ViT-L, ViT-H), brought to the host's files for CLIP Vision Loader and CLIP Loader; aesthetic heads are
    safetensors with the keys of LAION's (weight, bias; or layers.0, layers.2, layers.4, layers.6, layers.7).
    Paper: Wu et al., "Better Aligning Text-to-Image Models with Human Preference" (HPS), arXiv 2303.14420: the score; its tuning with the words "Weird image." is a matter of training. Aiming at a score: DOODL's
    released code.
    Limits: rewards as gradients are easily fooled; cutouts and small scales help. The score is one of a picture at its best size: latents far from the encoder's size lose detail in it.
    Cost: decoding and encoding with their backward passes.
    """

    node_id = "LodestarPreferenceLoss"
    title = "Preference Loss"
    paper = "Better Aligning T2I with Human Preference (HPS)"
    aliases = ("aesthetic", "HPS", "PickScore", "reward")

    clip_vision: Any = socket("CLIP_VISION", "The image encoder of the preference model.")
    head: Any = socket("LODESTAR_NETWORK", "An aesthetic head, from Load Vision Network. Without it the picture is compared with the prompt.", optional=True)
    score: int = param(0, "Which output of the head is the score.", 0, 10000, 1, advanced=True)
    use_aim: bool = param(False, "On: the score is to be `aim`, no more and no less.", label="aim at a score")
    aim: float = param(7.0, "The score that is aimed at.", -1e4, 1e4, 0.1)
    texts: Any = None      # [1 or n, d]

    def check(self):
        super().check()
        if (self.head is None) == (self.texts is None):
            raise BadInput(self.title, "head", "none" if self.head is None else "and a prompt", "Connect either an aesthetic head, or a CLIP and write the prompt.")
        if self.head is not None and (self.head.takes != "embedding" or self.score >= self.head.count()):
            raise BadInput(self.title, "head", self.head.name, f"It has to be linear layers on an embedding, with more than {self.score} outputs.")
        return self

    def rewards(self, u, m, context):
        """[views, n]."""
        e = self.embeddings(self.clip_vision, u, m, context)
        if self.head is None:
            t = unit(fitting(self.texts, e.shape[-1], self.title)).to(e)
            return FACTOR * (e * self._each(t, u, "text")[None]).sum(-1)
        if e.shape[-1] != self.head.width:
            raise BadInput(self.title, "clip_vision", f"embeddings of width {e.shape[-1]}", f"{self.head.name} takes width {self.head.width}: connect the encoder that it was trained with.")
        return self.head.logits(e.flatten(0, 1))[:, self.score].unflatten(0, e.shape[:2])

    def measure(self, u, m, context):
        r = self.rewards(u, m, context).mean(0)
        return (r - self.aim).abs() if self.use_aim else -r
