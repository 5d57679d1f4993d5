"""A second prompt with a softmax of its own beside the first one's: decoupled cross-attention, as image adapters have it."""
from __future__ import annotations

from typing import Any

from ..frozen import frozen
from ..method import BadInput, Edit, Prompt, param, socket, window
from .edits import AttentionEdit

_start, _end = window("the second prompt acts")


@frozen
class SecondText(AttentionEdit):
    """The edit: attention is mixed with that to the second prompt's tokens, by the network's own keys and values."""

    texts: tuple = ()
    weight: float = 1.0

    kinds = ("cross",)
    title = "Decoupled Prompt"

    def default_layers(self, geometry):
        return "all"

    def apply(self, site, q, k, v, attend):
        pairs = site.extra["texts"].get(self) if site.extra else None
        out = attend(q, k, v)
        return out if pairs is None else out + self.weight * (site.extra["plain"](q, *pairs[0]) - out)


@frozen
class DecoupledPrompt(Edit):
    """Shows the model a second prompt beside the first, each with a softmax of its own, so that neither takes attention from the other.

        out = (1 - strength) softmax(Q K^T / sqrt d) V + strength softmax(Q K_2^T / sqrt d) V_2          in attention to the text of the positive rows

    This is the decoupled attention by which image adapters enter (IP-Adapter), with the model's own keys and values of any conditioning in place of trained ones. An adapter's part is trained to be
    added; that of a prompt is as large as the first one's, and is mixed with it. At 1 the second prompt replaces the first in attention. Adapter Attention Shaping, put in front of
    this node, shapes its maps.

    Defaults: strength 0.5 (no value in the paper).
    Limits: U-Nets and networks with cross-attention: joint attention has no softmax of the text alone. Paper: Ye et al., "IP-Adapter", arXiv 2308.06721. Cost: one more attention to the text.
    """

    node_id = "LodestarDecoupledPrompt"
    title = "Decoupled Prompt"
    family = "attention"
    paper = "IP-Adapter: decoupled cross-attention (Ye et al. 2023)"
    aliases = ("decoupled cross-attention", "second prompt", "IP-Adapter")
    evaluations = "0 (one more cross-attention a layer)"

    second: Any = socket("CONDITIONING", "The second prompt.")
    strength: float = param(0.5, "Share of the attention to the second prompt; 0 switches the node off.", 0.0, 1.0, 0.05)
    start_percent: float = _start
    end_percent: float = _end
    layers: str = param("all", "Layers that see it, e.g. all, output.", advanced=True)

    def neutral(self):
        return self.strength == 0

    def fitted(self, facts):
        if facts.geometry.layers and not any("cross" in x.attentions for x in facts.geometry.layers):
            raise BadInput(self.title, "model", facts.network, "Its text and picture share one attention, which has no softmax of the text alone. Use it on a U-Net or a network with cross-attention.")
        return self

    def edits(self, step):
        prompt = self.second if isinstance(self.second, Prompt) else Prompt(self.second, f"second of {self.title}")
        return (SecondText(self.layers, (prompt,), self.strength),)
