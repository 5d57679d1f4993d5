"""Several guidances together: ControlNet and plain (MVControl), pictures and video (Dream-in-4D), personalised and plain model (DiPIR)."""
from __future__ import annotations

from typing import Any

from ..frozen import frozen
from ..method import BadInput, Method, param, socket


@frozen(eq=False)
class HybridDistillation(Method):
    """Two distillation guidances together, each with its own model, prompts and levels; the gradient is their weighted sum.

        gradient of z:  weight_a g_a(z)  +  weight_b g_b(z)

    MVControl: a guidance with a ControlNet (there of several views) and one of the plain model, with a weight each. Its rescaled estimate is what a node for CFG rescale on the MODEL does.
    Text- and image-guided 4D: an image model and a video model. What is optimised is a video then (Score Distillation of a video latent, where both models share the latents; Distil Pictures
    where they do not: each guidance has its own VAE); the image model sees every frame for itself, all frames under one prompt. Its total variation of a deformation field is not here.
    DiPIR: a personalised model with weight 1 and the plain one with weight -1 and the same noise is the difference of their predictions, in which the added noise cancels.
    same_noise gives b the noise and the random level of a, where the latents have the same shape. Chain it for more than two. weight_b 0 is a alone.
    Papers: arXiv 2403.09981, arXiv 2311.16854, arXiv 2408.09702. Defaults: equal weights. Cost: that of both; both models are loaded at once where memory allows, else in turn.
    """

    node_id = "LodestarHybridDistillation"
    title = "Hybrid Distillation"
    family = "distillation"
    paper = ("Controllable Text-to-3D (MVControl)", "A Unified Approach for Text- and Image-guided 4D", "Photorealistic Object Insertion (DiPIR)")
    aliases = ("MVControl", "Dream-in-4D", "two models", "combine guidances", "multi-view")
    evaluations = "0 (those of both guidances)"

    a: Any = socket("LODESTAR_DISTILLATION", "The first guidance. Losses and previews see its latents.")
    b: Any = socket("LODESTAR_DISTILLATION", "The second guidance.")
    weight_a: float = param(1.0, "Factor of the first gradient.", -100.0, 100.0, 0.05)
    weight_b: float = param(1.0, "Factor of the second gradient; 0: the first alone.", -100.0, 100.0, 0.05)
    same_noise: bool = param(False, "Both see the same noise and the same random level at each iteration.")

    def validate(self):
        super().validate()
        for name in ("a", "b"):
            if not hasattr(getattr(self, name), "parts"):
                raise BadInput(self.title, name, getattr(self, name), "Connect a distillation guidance.")
        return self

    def parts(self):
        first = [(g, self.weight_a * w, n) for g, w, n in self.a.parts()]
        after = 0 if self.same_noise else 1 + max(n for _, _, n in first)
        second = [(g, self.weight_b * w, n + after) for g, w, n in self.b.parts()]
        return [p for p in first + second if p[1] != 0] or first[:1]
