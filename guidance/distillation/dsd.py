"""Denoised Score Distillation (PaintHuman)."""
from __future__ import annotations

from typing import Any

from ..frozen import frozen
from ..method import param, socket
from .base import Pull, ScoreGuidance

PAIRS = ("previous picture", "this picture")


@frozen(eq=False)
class DenoisedScoreDistillation(ScoreGuidance):
    """Denoised Score Distillation: from SDS's gradient that of a bad picture with a bad prompt is taken off, so that what both have in common, noise and smoothing, cancels.

        x = a z + s n,   x' = a z' + s n,   gradient of z:  W(s) ( (n^(x, y) - n)  -  amount (n^(x', y') - n) )

    y: the prompt, guided at the scale cfg; z': the picture of the iteration before (or this one's); y': the bad prompt, not guided; the same n and s for both.
    amount 0 is SDS. At amount 1 n cancels, which is the form of the paper; a bad picture that the model thinks perfect (n^ = n) gives SDS again.
    Defaults: amount 1, cfg 7.5, the previous picture. The formula is the paper's as others report it: there is no released code, and the default values are unverified.
    At amount 1 and a high cfg nothing holds small models back from saturated colours; 0.5 does. The paper's depth guidance is a depth ControlNet on both prompts. Not to be confused with other papers' piecewise rule of the same name.
    Paper: Yu et al., arXiv 2310.09458. Cost: a guided prediction and one of the bad prompt per iteration.
    """

    node_id = "LodestarDenoisedScoreDistillation"
    title = "Denoised Score Distillation"
    paper = "PaintHuman (DSD)"
    aliases = ("DSD", "PaintHuman", "negative gradient")
    evaluations = "0 (a guided prediction and one more per iteration)"

    amount: float = param(1.0, "How much of the bad picture's gradient is taken off; 0 is SDS.", 0.0, 2.0, 0.05)
    pair: str = param(PAIRS[0], "The bad picture: that of the iteration before, or this one.", choices=PAIRS)
    bad: Any = socket("CONDITIONING", "The bad prompt, e.g. \"disfigured, blurry, overly smooth\"; without it the negative prompt.", optional=True)

    def once(self, moment, turn):
        s, z, noise = self.level(moment), moment.z, moment.noise(turn)
        x = moment.noised(z, s, noise)
        denoised = moment.prior.guided(x, s, self.cfg)
        gradient = self.error(moment, s, denoised)
        if self.amount:
            before = moment.memory.get("previous", z) if self.pair == PAIRS[0] else z
            x_bad = moment.noised(before, s, noise)
            bad = moment.prior.plain(x_bad, s, "negative" if self.bad is None else "inverse")
            # n^' - n = a (z' - D') / s
            gradient = gradient - self.amount * self.factor(moment, s) * (before - bad)
        if turn == self.draws - 1:
            moment.memory["previous"] = z.clone()
        return Pull(gradient, denoised)
