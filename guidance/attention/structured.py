"""Structured Diffusion Guidance: noun phrases encoded on their own, in the keys or values of attention."""
from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ..frozen import frozen
from ..method import BadInput, Edit, Prompt, param, window
from .edits import AttentionEdit
from .phrases import conjunctions, noun_phrases
from .tokens import aligned

_start, _end = window()
MODES = ("values", "keys", "automatic")


def structured(words, full, phrases, encode, mode):
    """The embeddings that a mode needs, from the prompt's embedding `full` [1, length, width].

    W_0 = full, W_i = full with phrase i's rows from the phrase alone. values: (mean of W_0 ... W_k,); keys: (W_1, ..., W_k, full with all phrases' rows).
    """
    each = [aligned(full, words, p, encode) for p in phrases]
    if mode == "values":
        return (torch.stack([full, *each]).mean(0),)
    every = full
    for p in phrases:
        every = aligned(every, words, p, encode)
    return (*each, every)


@frozen
class StructuredAttention(AttentionEdit):
    """The edit. texts: what `structured` gives, as Prompts."""

    texts: tuple = ()
    mode: str = "values"
    mark: Any = None

    kinds = ("cross",)

    def default_layers(self, geometry):
        return "all"

    def apply(self, site, q, k, v, attend):
        pairs = site.extra["texts"].get(self) if site.extra else None
        if pairs is None:
            return attend(q, k, v)
        own = pairs[-1][1]
        turns = k.shape[2] // own.shape[2]
        if turns * own.shape[2] != k.shape[2]:
            raise ValueError(f"The positive prompt has {k.shape[2]} tokens, the structured one {own.shape[2]}: connect the conditioning of the same node Structured Diffusion Guidance "
                             "to the sampler.")
        values = own.repeat(1, 1, turns, 1)      # the host repeats prompts to a common length
        out = attend(q, k, values)
        if self.mode == "values":
            return out
        total = out.float()
        for key, _ in pairs[:-1]:
            total = total + attend(q, key.repeat(1, 1, turns, 1), values).float()
        return (total / len(pairs)).to(out.dtype)


@frozen
class StructuredDiffusionGuidance(Edit):
    """Binds attributes to their things: every noun phrase of the prompt is encoded on its own, and attention reads these encodings beside the whole prompt's.

    W_0 = the prompt's embedding, W_i = the same with phrase i's tokens from the phrase encoded alone
    values: O = 1/(k+1) sum_i softmax(Q K_0^T) V(W_i), which is attention with the values of the mean of all W_i (values are linear)
    keys: O = 1/(k+1) sum_i softmax(Q K(W_i)^T) V(W_*), W_* with all phrases' tokens at once; the paper's form for "A and B"

    Phrases are one per line, each as it stands in the prompt; without any they are found by a small grammar: runs of words between articles, prepositions, conjunctions and commas.
    `automatic` takes keys where the prompt has an "and", else values. The pooled text stays the whole prompt's; prompt weights scale both encodings alike.
    Joint attention (Flux, SD3, Qwen ...): its text takes part in every block, so only the mean of all W_i as the prompt is possible (values); the model stays as it is there.
    Defaults: values, all steps (paper).
    Limits: the gain is small on models that bind well by themselves. Connect the node's own `positive` to the sampler.
    Cost: values: none; keys: one more cross-attention per phrase and layer.
    """

    node_id = "LodestarStructuredDiffusionGuidance"
    title = "Structured Diffusion Guidance"
    family = "attention"
    paper = "Training-Free Structured Diffusion Guidance"
    aliases = ("structure diffusion", "noun phrases", "attribute binding")
    evaluations = "0 (keys: one more cross-attention a phrase and layer)"

    text: str = param("", "The whole prompt.")
    phrases: str = param("", "Noun phrases of the prompt, one per line; empty: found by themselves.")
    mode: str = param("values", "What the phrases' encodings stand in for: the values, the keys (for \"A and B\"), or by whether the prompt has an \"and\".", choices=MODES)
    start_percent: float = _start
    end_percent: float = _end
    layers: str = param("all", "Layers whose attention to the text is edited, e.g. all, output.", advanced=True)
    texts: tuple = ()
    mark: Any = None

    @property
    def chosen(self):
        """"values" or "keys"."""
        return ("keys" if conjunctions(self.text) else "values") if self.mode == "automatic" else self.mode

    def found(self):
        """The noun phrases, as they are written or found. A phrase that is the whole prompt adds nothing."""
        given = [" ".join(line.split()) for line in self.phrases.splitlines() if line.strip()]
        return list(dict.fromkeys(p for p in given or noun_phrases(self.text)))

    def neutral(self):
        return not self.texts

    @property
    def prompts(self):
        return self.texts

    def with_texts(self, words, conditioning, encode, mark):
        """The method with its embeddings made: words are the tokens of `conditioning`'s first entry, encode(text) gives an embedding."""
        phrases = self.found()
        if not phrases:
            raise BadInput(self.title, "text", self.text, "There is no noun phrase in it; write the phrases by hand, one per line.")
        full, details = conditioning[0]
        made = structured(words, full, phrases, encode, self.chosen)
        details = {k: v for k, v in details.items() if k != "attention_mask"}      # all tokens are kept, the network's own mask closes the padding
        return replace(self, texts=tuple(Prompt([[w, dict(details)]], f"structured prompt {i + 1}") for i, w in enumerate(made)), mark=mark)

    def edits(self, step):
        return (StructuredAttention(self.layers, self.texts, self.chosen, self.mark),)
