"""Guidance by a second, weaker model."""
from __future__ import annotations

from typing import Any

from ..frozen import frozen
from ..method import POSITIVE, Branch, ModelRef, Prompt, Term, param, socket, window

_start, _end = window("the weak model guides")


@frozen
class ModelPairGuidance(Term):
    """Pushes away from what a weaker, smaller or less trained version of the same model would predict: fewer failures, diversity kept.

    Papers: Karras et al., "Guiding a Diffusion Model with a Bad Version of Itself", arXiv 2406.02507 (autoguidance); RLG (Inference-Time Alignment Control)
    is the same formula with the base model as the weak one of an RL-tuned model; SIMS with a model trained on its own samples as the weak one.

        autoguidance        g + (w_ag - 1) (g - b)
        this node           delta = scale (g - b),     scale = w_ag - 1
        with CFG            g + (w_cfg - 1) (g - u) + scale (g - b)      the weights add, as in the paper's appendix

    g, b: x0 predictions of the good and the weak model at the same x, noise level and prompt; u: the unconditional one. scale = 0 (the paper's w = 1) is off
    and the weak model is not evaluated. Negative scales move towards the weak model: scale = -1 is the weak model alone (RLG with a weight below 1).

    Defaults: scale 1 (w = 2), near the paper's best (w = 1.7 to 2.4 on ImageNet); its weak model has a third of the width or a sixteenth of the training.
    For RLG see scale + 1 as the paper's weight. `prompt` gives the weak model another prompt than the positive one.
    Cost: one evaluation of the weak model; both models stay in memory. Flow models: the same on x0 predictions; good and weak model must share latent
    space, and the noise levels mean the same to both only where both are of one kind (a flow and an eps model do not pair).
    Limits: a weak model with other faults than the good one's (another data set, another style) guides towards that difference.
    """

    node_id = "LodestarModelPairGuidance"
    title = "Model Pair Guidance"
    family = "rules"
    paper = (
        "Guiding a Diffusion Model with a Bad Version of Itself (Karras et al. 2024)",
        "Inference-Time Alignment Control (RLG)",
        "Self-Improving Diffusion Models with Synthetic Data (SIMS)",
    )
    aliases = ("Autoguidance", "RLG", "SIMS", "bad version of itself")
    evaluations = "1 (of the weak model)"

    weak_model: Any = socket("MODEL", "The weaker model: smaller, less trained, or the base of a tuned one. Same latents and prompts as the model to guide.")
    prompt: Any = socket("CONDITIONING", "A prompt of its own for the weak model; without it the positive one.", optional=True)
    scale: float = param(
        1.0, "Strength; 0 is off. The paper's w is scale + 1. Negative moves towards the weak model, -1 is the weak model alone.", -10.0, 100.0, 0.05)
    start_percent: float = _start
    end_percent: float = _end

    def neutral(self):
        return self.scale == 0.0 or self.weak_model is None

    def active(self, step):
        return not self.neutral() and super().active(step)

    @property
    def branch(self):
        """The weak model's prediction."""
        model = self.weak_model if isinstance(self.weak_model, ModelRef) else ModelRef(self.weak_model)
        prompt = "positive" if self.prompt is None else self.prompt if isinstance(self.prompt, (str, Prompt)) else Prompt(self.prompt, "weak model")
        return Branch(prompt=prompt, model=model)

    def branches(self, step):
        return POSITIVE, self.branch

    def delta(self, step, base, predictions, state):
        return self.scale * (predictions[POSITIVE] - predictions[self.branch])
