"""Multi-conditional CFG: a strength for each of several conditions."""
from __future__ import annotations

from typing import Any

import torch.nn.functional as F

from ..attention.regions import checked_mask
from ..frozen import frozen
from ..method import NEGATIVE, BadInput, Branch, Prompt, Term, param, socket, window

_start, _end = window("the condition guides")


@frozen(eq=False)
class MultiConditionalCFG(Term):
    """A further condition with a guidance scale of its own, optionally only in a part of the picture; one node for each further condition.

        n_hat = n_u + w (n_c - n_u) + sum_i scale_i m_i (n_i - n_u)           w the sampler's cfg, n_c its positive prompt, n_u its negative one

    n_i: the prediction under condition i, a CONDITIONING with whatever it carries (a text, a ControlNet, areas); m_i its mask, 1 without one. Written in clean estimates, which is the same at a given
    noise level. What one condition adds does not depend on the others: a text can be weak and a ControlNet strong, or a phrase can act on its own place. A condition equal to
    the positive prompt adds its scale to cfg; one equal to the negative prompt changes nothing.

    The paper's fast form, one prediction under all conditions together and one scale, is ordinary CFG with a joint prompt: two evaluations, for regions by Regional Prompts, for a ControlNet by
    the prompt that carries it; it mixes better, this one weighs freely.
    Defaults: scale 3 (the paper has no default; the sum of all scales does what cfg does, so lower cfg by about as much). A mask is brought to the latent's size by areas.
    Limits: conditions that name different contents of the same place are averaged, not arranged. Rules that replace CFG (APG and others) act on the positive prompt's part alone.
    Cost: one evaluation for each further condition, in the same batch; the negative prompt is evaluated also at cfg 1.
    """

    node_id = "LodestarMultiConditionalCFG"
    title = "Multi-Conditional CFG"
    family = "rules"
    paper = ("SpaText: Spatio-Textual Representation", "Composable Diffusion (Liu et al. 2022)")
    aliases = ("composable diffusion", "several conditions", "ControlNet guidance scale", "SpaText")
    uses_negative = True
    evaluations = "1"

    condition: Any = socket("CONDITIONING", "The further condition: a prompt, with a ControlNet where it has one.")
    scale: float = param(3.0, "Strength of this condition; 0 is off. Negative steers away from it.", -100.0, 100.0, 0.1)
    start_percent: float = _start
    end_percent: float = _end
    mask: Any = socket("MASK", "Where it counts (white); without a mask everywhere.", optional=True)

    def neutral(self):
        return self.scale == 0.0

    def active(self, step):
        return not self.neutral() and super().active(step)

    def validate(self):
        super().validate()
        if self.mask is not None:
            checked_mask(self.mask, self.title, "mask")
        return self

    @property
    def branch(self):
        return Branch(self.condition if isinstance(self.condition, Prompt) else Prompt(self.condition, f"condition of {self.title}"))

    def branches(self, step):
        return NEGATIVE, self.branch

    def delta(self, step, base, predictions, state):
        out = self.scale * (predictions[self.branch] - predictions[NEGATIVE])
        return out if self.mask is None else out * self.where(out)

    def where(self, like):
        """The mask [1 or batch, 1, (1 or frames), height, width] for `like` [batch, channel, (frame,) height, width]."""
        m = checked_mask(self.mask, self.title, "mask")
        m = F.interpolate(m[:, None].to(like.device), like.shape[-2:], mode="area").to(like.dtype)
        if m.shape[0] in (1, like.shape[0]):
            return m if like.ndim == 4 else m[:, :, None]
        if like.ndim == 5 and m.shape[0] == like.shape[2]:
            return m.movedim(0, 1)[None]
        raise BadInput(self.title, "mask", f"{m.shape[0]} masks", f"Give one mask, or one for each of the {like.shape[0]} pictures of the batch" + (f" or of the {like.shape[2]} latent frames." if like.ndim == 5 else "."))
