"""EasyControl: a condition picture as tokens of its own that the picture looks at and that look at nothing else."""
from __future__ import annotations

from typing import Any

import torch

from ..frozen import frozen
from ..method import BadInput, Edit, param, socket, window
from . import sharing
from .edits import AttentionEdit
from .sources import Held

MODES = ("spatial", "subject")
_start, _end = window("the condition is seen")


@frozen
class Stream:
    """A condition's own way through the network: what its keys and values are made of (guidance.host.streams makes them).

    latent: the graph's LATENT, held; lora: a ConditionLora or None; amount: the factor on it; mode, offset: where the tokens stand; keep: whether keys and values are kept for the run.
    """

    latent: Held
    lora: Any = None
    amount: float = 1.0
    mode: str = "spatial"
    offset: int = 64
    keep: bool = True
    node: str = "EasyControl"

    def __deepcopy__(self, memo):
        return self


@frozen
class ConditionKeys(AttentionEdit):
    """The edit: every token of the rows, text and picture, attends to the condition's keys and values as well."""

    stream: Any = None
    reach: str = "all"
    weight: float = 1.0

    kinds = ("joint",)
    any_text = True

    def default_layers(self, geometry):
        return "all"

    def apply(self, site, q, k, v, attend):
        found = site.streams(self.stream, q.shape[0])
        if found is None:
            raise RuntimeError(f"the condition of {self.stream.node} was not computed before {site.layer}")
        keys, values = (t.to(q) for t in found)
        bias = sharing.column_bias(k.shape[2], keys.shape[2], self.weight, q)
        return attend(q, torch.cat((k, keys), 2), torch.cat((v, values), 2), *(() if bias is None else (bias,)))


@frozen
class EasyControl(Edit):
    """A condition picture (edges, depth, pose, a subject) steers the picture through tokens of its own with a LoRA of their own.

        z = the condition's tokens, at t = 0, without noise:  z_Q,K,V = (W + lora B A) norm(z),  z <- z + attn(z_Q, z_K, z_V) ...    they see themselves alone
        out = softmax([Q K^T, Q K_z^T] / sqrt d + [0, ln strength]) [V, V_z]                                                          text and picture see them

    The network's own weights act on text and picture as ever; the LoRA (q, k, v in all blocks, the output projection in double blocks) acts on the condition alone. Because the condition
    sees neither text nor noise, its keys and values are the same at every step: they are computed once and kept. Several nodes in a row give several conditions, which do not see each other.

    Mode spatial: the condition covers the picture, whatever its own size (positions are scaled; 512 pixels are usual). Mode subject: the condition stands beside the picture, `offset` tokens
    below its top; bring a subject to a square of black borders first, as it was in training.
    Weights: Load Condition LoRA. Without a LoRA the bare network looks at the condition, as with a reference picture. Networks: those of the Flux type (Flux, Flux 2, Chroma), whose
    blocks the LoRA names and whose positions can be moved; others are refused by name.
    Defaults: strength and LoRA 1 (paper). The authors sample without a negative prompt; here its rows see the condition too, so that CFG strengthens the text alone.
    Limits: one file per kind of condition and model. Paper: Zhang et al., arXiv 2503.07027. Cost: one evaluation of the condition per run and prompt, then its tokens as keys.
    """

    node_id = "LodestarEasyControl"
    title = "EasyControl"
    family = "attention"
    paper = "EasyControl"
    aliases = ("condition LoRA", "control", "in-context condition", "subject")
    evaluations = "0 (1 for each prompt of a run)"

    condition: Any = socket("LATENT", "The condition as an encoded picture, of any size.")
    strength: float = param(1.0, "Weight of the condition's tokens in the attention; 1 is the paper's, 0 switches the node off.", 0.0, 10.0, 0.05)
    mode: str = param("spatial", "spatial: the condition lies over the picture (edges, depth, pose); subject: it stands beside it.", choices=MODES)
    lora_strength: float = param(1.0, "Factor on the LoRA.", -2.0, 4.0, 0.05)
    layers: str = param("", "Layers whose attention sees the condition; empty: all (paper).")
    start_percent: float = _start
    end_percent: float = _end
    lora: Any = socket("LODESTAR_CONDITION_LORA", "The condition's LoRA, from Load Condition LoRA. Without it the network's own weights are used.", optional=True)
    negative_rows: str = param("same", "The negative prompt's rows: same: they see the condition too; off: they do not, so that CFG strengthens it.",
                               choices=("same", "off"), advanced=True)
    offset: int = param(64, "Mode subject: how many tokens the condition stands below the picture's top.", 0, 1024, 1, advanced=True)
    cache: bool = param(True, "Keep the condition's keys and values for the run. Off computes them at every step: the same picture, more time, memory free between steps.", advanced=True)

    def neutral(self):
        return self.strength == 0

    def validate(self):
        super().validate()
        if not self.neutral():
            samples = self.condition.get("samples") if isinstance(self.condition, dict) else None
            if not isinstance(samples, torch.Tensor) or getattr(samples, "is_nested", False) or samples.ndim != 4:
                raise BadInput(self.title, "condition", "no latent of pictures" if samples is None else f"a latent with {getattr(samples, 'ndim', '?')} axes", "Connect an encoded picture.")
        return self

    def fitted(self, facts):
        geometry = facts.geometry
        if geometry.family != "flux":
            raise BadInput(self.title, "model", facts.network, "Condition tokens need a network of the Flux type (Flux, Flux 2, Chroma): the LoRA names its blocks, and the tokens' positions are "
                           "moved in it.")
        if self.lora is not None:
            blocks = {stage: sum(layer.stage == stage for layer in geometry.layers) for stage in geometry.stages()}
            self.lora.check(self.title, "lora", blocks, facts.hidden_size, facts.network)
        return self

    def edits(self, step):
        stream = Stream(Held(self.condition), self.lora, self.lora_strength if self.lora is not None else 1.0, self.mode, self.offset, self.cache, self.title)
        return (ConditionKeys(self.layers, stream, "all" if self.negative_rows == "same" else "positive", self.strength),)
