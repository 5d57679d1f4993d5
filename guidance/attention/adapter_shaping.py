"""Attention of image adapters, shaped (FastFace): what an adapter's tokens get of each place is raised where it is high and lowered where it is low."""
from __future__ import annotations

import torch
from torch.overrides import TorchFunctionMode

from ..frozen import frozen
from ..method import BadInput, Edit, Finish, param, window
from ..rules.decoupled import numbers
from .edits import AttentionEdit

MODES = ("power", "soft mask")
_start, _end = window("the adapter's attention is shaped")


def minmax(t, axes):
    """t brought to [0, 1] over `axes`; what is constant becomes 0."""
    low, high = t.amin(axes, keepdim=True), t.amax(axes, keepdim=True)
    return (t - low) / (high - low).clamp(min=1e-12)


def power(a, p, scale, limit=10.0):
    """min(scale a^p, limit)."""
    return (a.clamp(min=0) ** p * scale).clamp(max=limit)


def soft_mask(a, quantile, steep, scale, inverted=0, limit=10.0):
    """A soft threshold at a quantile, per sample and token: a [rows, heads, places, tokens].

    b = minmax(sigmoid(steep (minmax(a) - q))), q the quantile of a over places (at least 1e-6), times `scale`. The first `inverted` tokens are shaped as 1 - a, and what comes out is
    turned round again: its largest value over places less itself.
    """
    a = torch.cat((1 - a[..., :inverted], a[..., inverted:]), -1)
    # in parts: quantile takes at most 16 million values
    q = torch.stack([torch.quantile(row, quantile, dim=-2, keepdim=True) for row in a.flatten(0, 1)]).view(*a.shape[:2], 1, a.shape[-1]).clamp(min=1e-6)
    out = (minmax(torch.sigmoid(steep * (minmax(a, (1, 2)) - q)), (1, 2)) * scale).clamp(max=limit)
    turned = out[..., :inverted]
    return torch.cat((turned.amax(-2, keepdim=True) - turned, out[..., inverted:]), -1)


def renormalised(t, plain, share):
    """share t + (1 - share) t with the mean and deviation of `plain` over the last axis."""
    if share == 1 or t.shape[-1] < 2:
        return t
    mean, std = t.mean(-1, keepdim=True), t.std(-1, keepdim=True)
    return share * t + (1 - share) * ((t - mean) * plain.std(-1, keepdim=True) / (std + 1e-6) + plain.mean(-1, keepdim=True))


class Watch(TorchFunctionMode):
    """Within it, attention of q's places to other keys than the prompt's k goes through `shape(a)`; seen: how many such calls there were.

    Adapters keep the prompt's attention and add one of their own: its fused call, or the softmax of a written out one, is what is changed here. Of softmaxes with as many columns as the
    prompt has tokens the first is taken for the prompt's. It holds for this thread alone.
    """

    def __init__(self, edit, q, k, shape):
        super().__init__()
        self.edit, self.keys, self.shape, self.seen, self._inside, self._prompt_seen = edit, k, shape, 0, False, False
        self.rows, self.heads, self.queries, self.tokens = *q.shape[:3], k.shape[2]

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not self._inside:
            if function is torch.nn.functional.scaled_dot_product_attention:
                return self._fused(function, args, kwargs)
            if function in (torch.Tensor.softmax, torch.softmax, torch.nn.functional.softmax):
                out = function(*args, **kwargs)
                return self._written(out) if (args[1] if len(args) > 1 else kwargs.get("dim")) in (-1, out.ndim - 1) else out
        return function(*args, **kwargs)

    def _fused(self, function, args, kwargs):
        q, k, v = (*args, *(kwargs[n] for n in ("query", "key", "value")[len(args):]))[:3]
        if q.ndim != 4 or q.shape[2] != self.queries or (k.shape == self.keys.shape and torch.equal(k, self.keys)):
            return function(*args, **kwargs)
        self.seen += 1
        self._inside = True
        try:
            a = ((q.float() * q.shape[-1] ** -0.5) @ k.float().transpose(-1, -2)).softmax(-1)
            plain = a @ v.float()
            out = renormalised(renormalised(self.shape(a), a, self.edit.shaped) @ v.float(), plain, self.edit.shaped)
            return (plain + self.edit.strength * (out - plain)).to(q.dtype)
        finally:
            self._inside = False

    def _written(self, a):
        if a.ndim not in (3, 4) or a.shape[:-2].numel() != self.rows * self.heads:
            return a
        if a.shape[-1] == self.tokens and not self._prompt_seen:
            self._prompt_seen = a.shape[-2] == self.queries
            return a
        if a.shape[-2] != self.queries or self.edit.shaped < 1:
            raise ValueError("Adapter Attention Shaping: this host computes the adapter's attention in parts that cannot be shaped. Start ComfyUI with --use-pytorch-cross-attention"
                             + (", or set shaped to 1." if a.shape[-2] == self.queries else "."))
        self.seen += 1
        self._inside = True
        try:
            plain = a.float().view(self.rows, self.heads, *a.shape[-2:])
            return (plain + self.edit.strength * (self.shape(plain) - plain)).view(a.shape).to(a.dtype)
        finally:
            self._inside = False


@frozen
class ShapedAdapter(AttentionEdit):
    """The edit: the adapter's part of cross-attention, with the numbers of this step."""

    strength: float = 1.0
    mode: str = "power"
    exponent: float = 1.3
    decoder: float = 1.45
    encoder: float = 1.55
    quantile: float = 0.6
    steep: float = 5.0
    shaped: float = 1.0
    inverted: int = 1

    kinds = ("cross",)

    def default_layers(self, geometry):
        return "input output"

    def wanted(self, role):
        """All rows but the negative prompt's: the text-free prompt of Decoupled Guidance carries the adapter too."""
        return role is not None and role.prompt != "negative"

    def shape(self, site, a):
        scale = self.encoder if site.layer is not None and site.layer.stage == "input" else self.decoder
        if self.mode == "power":
            return power(a, self.exponent, scale)
        return soft_mask(a, self.quantile, self.steep, scale, min(self.inverted, a.shape[-1]))

    def apply(self, site, q, k, v, attend):
        with Watch(self, q, k, lambda a: self.shape(site, a)) as watch:
            out = attend(q, k, v)
        if site.step is not None:
            site.step.maps["adapter attention"] = site.step.maps.get("adapter attention", 0) + watch.seen
        return out


@frozen
class AdapterAttentionShaping(Edit, Finish):
    """Sharpens where an image adapter (an identity, IP-Adapter) acts, for few-step models whose adapters work everywhere alike.

        power:      A <- min(c A^p, 10)
        soft mask:  A <- c minmax(sigmoid(steep (minmax(A) - q))),  q the quantile of A over places; the first `inverted` tokens are shaped as 1 - A and turned round again
        out <- out + strength (out' - out)

    A: the softmax of the adapter's own attention from places to its tokens, in the layers of encoder and decoder, for all prompts but the negative one; the prompt's attention is not touched.
    minmax is taken per sample and token. `shaped` below 1 mixes in A' and out' with the mean and deviation that they had before (AdaIN).
    Works with adapters of other packs that add an attention of their own to the prompt's (decoupled cross-attention), put in front of this node or behind it; Decoupled Prompt goes behind it.
    Lists are for steps, the last number holds for the rest.

    Defaults: power, p 1.3, c 1.45 in the decoder and 1.55 in the encoder (the authors' first setting, FaceID adapters at 0.8 on Hyper-SDXL with 4 steps). Their second: soft
    mask, c 1, 1.55, 1.55, 1.55 in both, quantile 0.65, steep 7.5, 5, 5, 5, shaped 0.7. Best together with Decoupled Guidance.
    Limits: U-Nets. The adapter's attention has to be PyTorch's (the host's default on most cards) or written out whole; where it is in another kernel
    an error says so. Paper: Karpukhin et al., arXiv 2505.21144. Cost: the adapter's attention is written out (as many numbers as places times its tokens).
    """

    node_id = "LodestarAdapterAttentionShaping"
    title = "Adapter Attention Shaping"
    family = "attention"
    paper = "FastFace"
    aliases = ("FastFace", "IP-Adapter attention", "identity attention")
    evaluations = "0 (the adapter's attention written out)"

    strength: float = param(1.0, "How far the adapter's part is shaped; 0 switches the node off.", 0.0, 2.0, 0.05)
    mode: str = param("power", "power: sharpens the maps; soft mask: a soft threshold.", choices=MODES)
    power: float = param(1.3, "Exponent of the maps (power).", 0.1, 5.0, 0.05)
    decoder: str = param("1.45", "Factor in the decoder (up blocks), for every step.", label="decoder factor")
    encoder: str = param("1.55", "Factor in the encoder (down blocks), for every step.", label="encoder factor")
    quantile: float = param(0.6, "Which share of the places lies below the threshold (soft mask).", 0.0, 1.0, 0.01)
    steep: str = param("7.5, 5, 5, 5", "Steepness of the threshold, for every step (soft mask).")
    shaped: float = param(1.0, "Share of the shaped values; the rest is brought back to the plain ones' mean and deviation.", 0.0, 1.0, 0.05)
    start_percent: float = _start
    end_percent: float = _end
    layers: str = param("", "Layers whose adapter attention is shaped; empty: encoder and decoder, not the middle.", advanced=True)
    inverted: int = param(1, "How many of the adapter's first tokens are shaped turned round (soft mask).", 0, 16, 1, advanced=True)

    def neutral(self):
        return self.strength == 0

    def validate(self):
        super().validate()
        for field in ("decoder", "encoder", "steep"):
            if min(numbers(self.title, field, getattr(self, field))) < 0:
                raise BadInput(self.title, field, getattr(self, field), "Numbers from 0 on.")
        return self

    def fitted(self, facts):
        if facts.geometry.family != "unet":
            raise BadInput(self.title, "model", facts.network, "Adapters with an attention of their own that can be shaped are those of U-Nets (SD1.5, SDXL).")
        return self

    def edits(self, step):
        at = lambda field: (lambda found: found[min(step.index, len(found) - 1)])(numbers(self.title, field, getattr(self, field)))
        return (ShapedAdapter(self.layers, self.strength, self.mode, self.power, at("decoder"), at("encoder"), self.quantile, at("steep"), self.shaped, self.inverted),)

    def finish(self, step, denoised, predictions, state):
        state["seen"] = state.get("seen", 0) + step.maps.get("adapter attention", 0)
        if not state["seen"]:
            raise BadInput(self.title, "model", "no adapter", "No attention of an image adapter was seen in these layers. Apply an adapter with an attention of its own (IP-Adapter, FaceID) to "
                           "the model, or put Decoupled Prompt behind this node, and start ComfyUI with --use-pytorch-cross-attention where another attention kernel is chosen.")
        return denoised
