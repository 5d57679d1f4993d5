"""What a thing's attention and features say of it: where it is, how large, its shape, its looks; and the terms that compare these with what is wanted."""
from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from ..frozen import frozen
from ..method import BadInput, param, socket
from .edits import AttentionEdit
from .features import ResidualEdit
from .scribble import stretched
from .words import chosen

KINDS = ("position", "size", "shape", "appearance")
SOURCES = ("value", "reference")


def places(height, width, like):
    """(x [width], y [height]) of the cells' centres in fractions of the picture."""
    return (torch.arange(width, device=like.device, dtype=like.dtype) + 0.5) / width, (torch.arange(height, device=like.device, dtype=like.dtype) + 0.5) / height


def centroid(mass):
    """[..., 2] (x, y in fractions of the picture) of masses [..., height, width]."""
    x, y = places(*mass.shape[-2:], mass)
    total = mass.sum((-2, -1)).clamp(min=1e-8)
    return torch.stack(((mass * x).sum((-2, -1)) / total, (mass * y[:, None]).sum((-2, -1)) / total), -1)


def soft_mask(maps, sharpness=10.0):
    """norm(sigmoid(sharpness (norm(A) - 1/2))) of maps [..., height, width], norm from the least value (0) to the largest (1)."""
    return stretched(torch.sigmoid(sharpness * (stretched(maps) - 0.5)))


def looks(mask, features):
    """sum S Psi / sum S [..., channels] of masks [..., height, width] and features [..., channels, height, width]; the mask is taken as it is, without its gradient."""
    s = mask.detach()[..., None, :, :]
    return (s * features).sum((-2, -1)) / s.sum((-2, -1)).clamp(min=1e-8)


@frozen(eq=False)
class PropertyTerm:
    """weight |property(words) - target|_1, the mean over the words' phrases and over frames.

    property  position    centroid of the attention A, in fractions of the picture
              size        mean of its soft mask S
              shape       S itself (mean over cells)
              appearance  sum S Psi / sum S, Psi the features (mean over channels)
    source    value: x, y, size, or a mask for the shape;  reference: the reference's, moved by (x, y), its size times `size`
    """

    title: ClassVar[str] = "Self-Guidance Term"

    words: Any = socket("LODESTAR_WORDS", "The things that are meant, found in the positive prompt by Prompt Words.")
    phrases: str = param("", "Which of the words' phrases, separated by commas; empty: all of them, each for itself.")
    kind: str = param("position", "What of them: where they are, how large, their shape, or their looks (colours, texture).", choices=KINDS, label="property")
    source: str = param("value", "What it is to become: a value given here, or what the reference has.", choices=SOURCES)
    weight: float = param(1.0, "Weight of this term beside others.", 0.0, 10000.0, 0.05)
    x: float = param(0.5, "Position from left (0) to right (1); with a reference how far to the right of its place.", -1.0, 1.0, 0.01)
    y: float = param(0.5, "Position from top (0) to bottom (1); with a reference how far below its place.", -1.0, 1.0, 0.01)
    size: float = param(0.2, "Share of the picture; with a reference the factor of its size.", 0.0, 10.0, 0.01)
    mask: Any = socket("MASK", "The wanted shape, where it is given as a value.", optional=True)
    reference_words: Any = socket("LODESTAR_WORDS", "The same things in the reference's prompt, where that is another one; as many phrases, in the same order.", optional=True)

    def check(self):
        """BadInput for what is not possible; returns the term."""
        for name, value in (("property", self.kind), ("source", self.source)):
            known = KINDS if name == "property" else SOURCES
            if value not in known:
                raise BadInput(self.title, name, value, f"Choose one of: {', '.join(known)}.")
        self.words.need(self.title)
        chosen(self.words, self.phrases, self.title)
        if self.source == "value":
            if self.kind == "appearance":
                raise BadInput(self.title, "source", "value", "Looks have no value of their own; take them from a reference.")
            if self.kind == "shape" and self.mask is None:
                raise BadInput(self.title, "mask", None, "A shape is given as a mask, or taken from a reference.")
            if self.kind == "position" and not (0 <= self.x <= 1 and 0 <= self.y <= 1):
                raise BadInput(self.title, "x, y", (self.x, self.y), "A place in the picture lies between 0 and 1.")
            if self.kind == "size" and not 0 < self.size < 1:
                raise BadInput(self.title, "size", self.size, "A share of the picture lies between 0 and 1.")
        if self.reference_words is not None and len(self.reference_words.tokens) != len(self.here.tokens):
            raise BadInput(self.title, "reference_words", ", ".join(self.reference_words.phrases), f"Name as many phrases as in the picture's prompt: {', '.join(self.here.phrases)}.")
        return self

    @property
    def here(self):
        """The phrases in the picture's prompt, as PromptWords."""
        return chosen(self.words, self.phrases, self.title)

    @property
    def there(self):
        """Those in the reference's prompt."""
        return self.here if self.reference_words is None else self.reference_words

    def of(self, maps, features, sharpness):
        """The property [batch, frames, ...] of one phrase: maps [batch, frames, height, width], features [batch, frames, channels, height, width] or None."""
        if self.kind == "position":
            return centroid(maps)
        if self.kind == "appearance":
            at = features.shape[-2:]
            fitting = maps if maps.shape[-2:] == at else F.interpolate(maps, at, mode="bilinear", align_corners=False)
            return looks(soft_mask(fitting, sharpness), features)
        mask = soft_mask(maps, sharpness)
        return mask if self.kind == "shape" else mask.mean((-2, -1))

    def wanted(self, found, reference):
        """The target for a property `found`, given the reference's (None with a value)."""
        if self.source == "reference":
            if self.kind == "position":
                return reference + reference.new_tensor((self.x, self.y))
            return reference * self.size if self.kind == "size" else reference
        if self.kind == "position":
            return found.new_tensor((self.x, self.y)).expand_as(found)
        if self.kind == "size":
            return torch.full_like(found, self.size)
        m = self.mask.to(found)
        m = F.interpolate((m if m.ndim == 3 else m[None])[:, None], found.shape[-2:], mode="area")[:, 0]
        if m.shape[0] == found.shape[0] * found.shape[1]:
            return m.view_as(found)
        if m.shape[0] not in (1, found.shape[0]):
            raise BadInput(self.title, "mask", f"{m.shape[0]} masks", f"Give one, or one for each of the {found.shape[0]} pictures.")
        return m[:, None].expand_as(found)

    def distance(self, found, reference):
        """[batch]: |found - wanted|_1, summed over the coordinates of a place, else the mean."""
        away = (found - self.wanted(found, reference)).abs()
        away = away.sum(-1) if self.kind == "position" else away
        return away.flatten(1).mean(1)


# Features in the graph

@frozen
class ResidualGraph(ResidualEdit):
    """Keeps what the residual blocks in front of a U-Net's chosen layers return, in the graph: step.maps[self] is {layer: [rows, channels, height, width]}."""

    def residual(self, site, h):
        _keep(self, site, h)
        return h


@frozen
class ValueGraph(AttentionEdit):
    """Keeps the values of self-attention as features, for networks without residual blocks: step.maps[self] is {layer: [rows, channels, (frames,) height, width]}."""

    kinds = ("self", "joint")

    def apply(self, site, q, k, v, attend):
        own = v[:, :, site.image] if site.kind == "joint" else v
        if site.height and site.frames * site.height * site.width <= own.shape[2]:
            grid = own[:, :, :site.frames * site.height * site.width].transpose(2, 3).flatten(1, 2)
            shape = (site.frames, site.height, site.width) if site.frames > 1 else (site.height, site.width)
            _keep(self, site, grid.unflatten(-1, shape))
        return attend(q, k, v)


def _keep(edit, site, features):
    if site.step is not None:
        site.step.maps.setdefault(edit, {}).setdefault(str(site.layer), []).append(features)


def gathered(found, batch):
    """{layer: features [batch, frames, channels, height, width]} of what a graph reader kept, the mean over the conditionings of a picture."""
    out = {}
    for layer, parts in found.items():
        h = torch.cat([p for p in parts if p.shape[1:] == parts[0].shape[1:]])
        h = h.unflatten(0, (-1, batch)).mean(0)
        out[layer] = h.movedim(2, 1) if h.ndim == 5 else h[:, None]
    return out


def feature_reader(facts, layers, title, stage=None):
    """(reader class, layers as a selector) for a model: the residual blocks of a U-Net, the values of other networks. Empty `layers`: the last decoder block with attention of a U-Net, the last
    third of the first stage of DiTs; stage "decoder": all decoder blocks, all layers."""
    from ..layers import select
    geometry = facts.geometry
    if not geometry.layers:
        raise BadInput(title, "model", facts.network, "Its layers are not known.")
    unet = geometry.family == "unet"
    if layers:
        found = select(geometry, layers, title)
    elif unet:
        found = [x for x in geometry.layers if x.stage == "output"] or list(geometry.layers)
        found = found if stage == "decoder" else found[-1:]
    else:
        found = list(geometry.layers)
        found = found if stage == "decoder" else [found[len([x for x in found if x.stage == found[0].stage]) * 2 // 3]]
    if not unet:
        found = [x for x in found if {"self", "joint"} & set(x.attentions)]
    if not found:
        raise BadInput(title, "layers", layers, f"Name layers whose features can be read. {facts.network} has:\n{geometry.describe()}")
    return (ResidualGraph if unet else ValueGraph), " ".join(map(str, found))
