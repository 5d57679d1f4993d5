"""Decoupled guidance (FastFace): separate strengths for an image adapter and for the text."""
from __future__ import annotations

from typing import Any

import torch

from ..frozen import frozen
from ..method import NEGATIVE, POSITIVE, BadInput, Branch, Prompt, Rule, Term, noise_of, param, socket, window

_start, _end = window("the guidance is decoupled")


def numbers(node, field, text):
    """A list of numbers from "1, 3, 3, 1"; BadInput for anything else."""
    try:
        found = tuple(float(part) for part in text.replace(";", ",").split(",") if part.strip())
    except ValueError:
        found = ()
    if not found or any(v != v for v in found):
        raise BadInput(node, field, text, "Write one number, or one for each step separated by commas; the last one holds for the rest.")
    return found


def std(t):
    """Standard deviation per sample over all other axes, in float32, shaped to broadcast."""
    return t.float().std(tuple(range(1, t.ndim)), keepdim=True)


@frozen
class DecoupledGuidance(Rule, Term):
    """Guides by an image adapter (an identity) and by the text with strengths of their own, for few-step models that bear no high CFG.

        n = n_u + a_k (n_i - n_u) + b_k (n_it - n_i)                                    noise predictions, k the step
        n <- n (rescale (std n_i + std n_it) / (2 std n) + 1 - rescale)                 per sample

    n_it: positive prompt with the adapter; n_i: the text-free prompt with the adapter; n_u: negative prompt, which adapters leave alone or give an empty picture.
    Works with the adapter of any pack that tells conditional and unconditional rows apart: the text-free prompt is shown to it as a conditional one. The sampler's cfg
    does not matter here; give it 1 for few-step models. With a = b = w and rescale 0 this is CFG at w, with a = b = 1 the conditional prediction.

    Defaults: a = 1, 1.5, 1.5, 1 and b = 1, 3, 3, 1 for four steps, rescale 0.75 (the paper: FaceID adapters on Hyper-SDXL). The combination is done in noise, as in the authors' code;
    without rescale it is the same in any parametrisation.
    Limits: replaces CFG and other combine rules. Paper: Karpukhin et al., arXiv 2505.21144. Cost: up to two evaluations beside the positive prompt's; steps with a = b = 1 have none.
    """

    node_id = "LodestarDecoupledGuidance"
    title = "Decoupled Guidance"
    family = "rules"
    paper = "FastFace"
    aliases = ("DCG", "identity guidance", "IP-Adapter guidance")
    uses_negative = True
    evaluations = "2 beside the positive prompt, 0 in steps with a = b = 1"

    text_free: Any = socket("CONDITIONING", "A prompt without text (usually the negative one): under it only the adapter speaks.")
    adapter: str = param("1, 1.5, 1.5, 1", "Strength of the adapter, for every step; the last number holds for the rest.", label="adapter strength")
    text: str = param("1, 3, 3, 1", "Strength of the text, for every step; the last number holds for the rest.", label="text strength")
    rescale: float = param(0.75, "How far the deviation of the noise is brought back to the two predictions'.", 0.0, 1.0, 0.05)
    start_percent: float = _start
    end_percent: float = _end

    def validate(self):
        super().validate()
        numbers(self.title, "adapter", self.adapter)
        numbers(self.title, "text", self.text)
        return self

    @property
    def branch(self):
        prompt = self.text_free if isinstance(self.text_free, Prompt) else Prompt(self.text_free, f"text_free of {self.title}")
        return Branch(prompt)

    def strengths(self, step):
        """(a, b) of a step."""
        pick = lambda found: found[min(step.index, len(found) - 1)]
        return pick(numbers(self.title, "adapter", self.adapter)), pick(numbers(self.title, "text", self.text))

    def branches(self, step):
        a, b = self.strengths(step)
        if a == b == 1:
            return (POSITIVE,)
        return (POSITIVE, NEGATIVE, *((self.branch,) if a != b or self.rescale else ()))

    def combine(self, step, c, u, w, state):
        return c

    def delta(self, step, base, predictions, state):
        a, b = self.strengths(step)
        both = predictions[POSITIVE]
        if a == b == 1:
            return both - base
        empty = predictions[NEGATIVE]
        alone = predictions.get(self.branch, both)
        out = empty + a * (alone - empty) + b * (both - alone)
        if self.rescale:
            n = noise_of(step, out).float()
            target = (std(noise_of(step, alone)) + std(noise_of(step, both))) / 2
            n = n * (self.rescale * target / std(n).clamp(min=1e-12) + 1 - self.rescale)
            out = ((step.x.float() - step.s.float() * n) / step.a.float().clamp(min=0.05)).to(out.dtype)
        return out - base
