"""Ctrl-X: the structure of one picture, the appearance of another, without training and without inversion."""
from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F

from ..frozen import frozen
from ..gradients import next_ratio
from ..layers import select
from ..method import BadInput, Branch, Edit, Prompt, Steer, param, socket
from . import sharing
from .edits import AttentionEdit
from .features import InputEdit, ResidualEdit
from .sources import own_noise, source_of

PLAIN = "ctrl-x plain"      # set in Step.maps while a step is repeated without control


def standardised(t, eps=1e-6):
    """t [..., tokens, channels] with mean 0 and standard deviation 1 over tokens; constant tokens become 0."""
    t = t.float()
    away = t - t.mean(-2, keepdim=True)
    if t.shape[-2] < 2:
        return away
    return away / away.square().sum(-2, keepdim=True).div(t.shape[-2] - 1).sqrt().clamp(min=eps)


def restyled(own, q, k, other):
    """S * own^ + M with M = W other, S = sqrt(relu(W other^2 - M^2)), W = softmax(q k^T / sqrt d): each of `own`'s tokens takes mean and spread from its like in `other`.

    own, q [rows, heads, tokens, width]; k, other [rows, heads, tokens of the other, width]. q and k are to be made from standardised tokens.
    """
    other = other.float()
    both = F.scaled_dot_product_attention(q.float(), k.float(), torch.cat((other, other.square()), -1))
    mean, square = both.chunk(2, -1)
    spread = (square - mean.square()).relu().sqrt()
    return (spread * standardised(own) + mean).to(own.dtype)


class _Quiet:
    """What the edits of Ctrl-X have in common: the positive rows, and no control in repeated steps."""

    any_text = True

    def acts(self, step):
        return step is None or not step.maps.get(PLAIN)

    @property
    def references(self):
        return tuple(b for b in (getattr(self, "structure", None), getattr(self, "appearance", None)) if b is not None)


@frozen
class StructureFeatures(_Quiet, ResidualEdit):
    """The features behind a residual block are the structure's."""

    structure: Any = None

    def residual(self, site, h):
        found = site.shared[self.structure]
        if found.shape[1:] != h.shape[1:]:
            raise BadInput("Ctrl-X", "structure", f"features {list(found.shape[1:])}", f"The picture has {list(h.shape[1:])} there (a prompt with an area of its own?).")
        return found.to(h.dtype).repeat(h.shape[0] // found.shape[0], 1, 1, 1)


@frozen
class StructureAttention(_Quiet, AttentionEdit):
    """Queries and keys of self-attention are the structure's, values stay."""

    structure: Any = None

    kinds = ("self", "joint")

    def apply(self, site, q, k, v, attend):
        found = sharing.seen(site, self.structure, q, k, v)
        sharing.same_grid("Ctrl-X", site, found, q)
        return sharing.attend_image(site, attend, q, k, v, (sharing.put(q, site.image, found.q), sharing.put(k, site.image, found.k), v))


@frozen
class AppearanceFeatures(_Quiet, InputEdit):
    """The tokens that enter self-attention take the statistics of their likes in the appearance. With `structure` they are looked up by the structure's queries."""

    appearance: Any = None
    structure: Any = None

    def entering(self, site, h):
        attention, heads = site.extra["attention"], site.extra["heads"]
        tile = lambda t: t.repeat(h.shape[0] // t.shape[0], 1, 1)
        split = lambda t: t.unflatten(-1, (heads, -1)).transpose(1, 2)
        other = tile(site.shared[self.appearance]).to(h.dtype)
        guide = h if self.structure is None else tile(site.shared[self.structure]).to(h.dtype)
        q, k = attention.to_q(standardised(guide).to(h.dtype)), attention.to_k(standardised(other).to(h.dtype))
        return restyled(split(h), split(q), split(k), split(other)).transpose(1, 2).flatten(2)


@frozen
class AppearanceValues(_Quiet, AttentionEdit):
    """The same on the values of attention, with queries and keys as they are there: for networks whose tokens in front of the projections are out of reach."""

    appearance: Any = None
    structure: Any = None

    kinds = ("self", "joint")

    def apply(self, site, q, k, v, attend):
        image = site.image
        other = sharing.seen(site, self.appearance, q, k, v)
        guide = q[:, :, image] if self.structure is None else sharing.seen(site, self.structure, q, k, v).q
        if guide.shape[2] != v[:, :, image].shape[2]:
            raise BadInput("Ctrl-X", "structure", f"{guide.shape[2]} tokens", f"The picture has {v[:, :, image].shape[2]} there (a prompt with an area of its own?).")
        new = restyled(v[:, :, image], standardised(guide), standardised(other.k), other.v)
        return sharing.attend_image(site, attend, q, k, v, (q, k, sharing.put(v, image, new)))


def default_layers(levels, geometry):
    """(residual blocks, structure attention, appearance) of a network; `levels` {output block: number of its resolution, 0 the smallest} on a U-Net, else empty."""
    if not levels:
        stages = geometry.stages()
        late = f"{stages[1]}.50%-100%" if len(stages) > 1 else f"{stages[0]}.70%-100%"
        return "none", late, late
    blocks = sorted({x.index for x in geometry.layers if x.stage == "output"})
    low = min(levels[i] for i in blocks)
    first, second = [i for i in blocks if levels[i] == low], [i for i in blocks if levels[i] == low + 1]
    names = lambda found: " ".join(f"output.{i}" for i in found)
    inputs = sorted({x.index for x in geometry.layers if x.stage == "input"})
    inputs = inputs[-2 * max(1, len(first) - 1):]          # the two smallest sizes of the way down
    appearance = " ".join([*(f"input.{i}" for i in inputs), names(first[1:]), names(second[:-1])])
    return f"output.{first[0]}", names(first), appearance or "none"


@frozen
class CtrlX(Edit, Steer):
    """Draws the prompt with the structure of one picture and the appearance of another.

        f_o <- f_s                                behind the residual block in front of the decoder's first attention (feature_layers; U-Nets)
        Q_o <- Q_s,  K_o <- K_s                   in self-attention of structure_layers
        h_o <- S h_o^ + M                         the tokens that enter self-attention of appearance_layers
        M = W h_a,  S = sqrt(relu(W h_a^2 - M^2)),  W = softmax((h_o^ W_Q)(h_a^ W_K)^T / sqrt d)     h^: mean 0, deviation 1 over tokens

    o is the picture, s the structure, a the appearance; where both act W is made with the structure's queries. Structure and appearance are clean latents that are noised
    to each step's level with noise of their own; each is optional. Only the positive prompt's rows are edited. Their texts are structure_prompt and appearance_prompt,
    else the positive prompt.
    `recurrence` r: in the steps from recurrence_start to recurrence_end, after the controlled step to the next level, the state is noised back and stepped again without control,
    r times. This is exact for first-order samplers (Euler, DDIM), an approximation for others.
    On DiTs (no values in the paper): the second half of the second stage (of a network of one stage the last 30 %) for both, which the bundled model followed best; appearance on the values,
    the authors' other variant.

    Defaults: both until 60 %, recurrence 2 from 10 % to 50 % (the paper, SDXL, 50 DDIM steps with eta 1, CFG 5). Layers: SDXL output.0 (features), output.0-2 (structure), input.4-5,7-8 and
    output.1-4 (appearance); SD1.5 has none in the paper: the decoder's two smallest sizes with attention and the encoder's likewise.
    Limits: structure and appearance whose objects do not correspond mix freely. Cost: one more row for each picture while it acts; recurrence r evaluations more in its steps.
    """

    node_id = "LodestarCtrlX"
    title = "Ctrl-X"
    family = "attention"
    paper = "Ctrl-X"
    aliases = ("structure and appearance", "style transfer", "training-free ControlNet")
    evaluations = "1 for each picture until its end, and recurrence x the prompts' in the steps of the recurrence"

    structure: Any = socket("LATENT", "The picture whose structure is kept, encoded, of the size that is sampled.", optional=True)
    appearance: Any = socket("LATENT", "The picture whose appearance is taken, encoded, of the size that is sampled.", optional=True)
    structure_prompt: Any = socket("CONDITIONING", "Describes the structure picture; without it the positive prompt is used.", optional=True)
    appearance_prompt: Any = socket("CONDITIONING", "Describes the appearance picture; without it the positive prompt is used.", optional=True)
    structure_end: float = param(0.6, "Until which share of the schedule the structure acts; 0 switches it off.", 0.0, 1.0, 0.01)
    appearance_end: float = param(0.6, "Until which share of the schedule the appearance acts; 0 switches it off.", 0.0, 1.0, 0.01)
    recurrence: int = param(2, "How often a step is repeated without control.", 0, 10, 1)
    recurrence_start: float = param(0.1, "Start of the steps that are repeated, as a share of the schedule.", 0.0, 1.0, 0.01, advanced=True)
    recurrence_end: float = param(0.5, "End of the steps that are repeated.", 0.0, 1.0, 0.01, advanced=True)
    structure_layers: str = param("", "Layers whose queries and keys are the structure's; empty: those of the paper.", advanced=True)
    appearance_layers: str = param("", "Layers that take the appearance; empty: those of the paper.", advanced=True)
    feature_layers: str = param("", "Blocks whose residual features are the structure's (U-Nets); empty: those of the paper, none: no features.", advanced=True)

    parts = None      # what `fitted` found: (unet, residual blocks, structure layers, appearance layers with and without structure)

    def _has(self, name):
        return getattr(self, name) is not None and getattr(self, f"{name}_end") > 0

    def neutral(self):
        return not self._has("structure") and not self._has("appearance")

    def fitted(self, facts):
        """Resolves the layers on the model."""
        geometry, unet = facts.geometry, facts.geometry.family == "unet"
        if not geometry.layers:
            raise BadInput(self.title, "model", facts.network, "Its layers are not known.")
        defaults = default_layers(facts.levels, geometry)
        given = [own or usual for own, usual in zip((self.feature_layers, self.structure_layers, self.appearance_layers), defaults)]
        features, structure, appearance = (select(geometry, selector, self.title) for selector in given)
        if features and not unet:
            raise BadInput(self.title, "feature_layers", self.feature_layers, f"{facts.network} has no residual blocks; leave it empty or write none.")
        names = lambda layers: " ".join(map(str, layers)) or "none"
        both = [x for x in appearance if x in structure]
        made = dataclasses.replace(self)
        object.__setattr__(made, "parts", (unet, names(features), names(structure), names(both), names([x for x in appearance if x not in both])))
        return made

    def _branch(self, name, salt):
        prompt = getattr(self, f"{name}_prompt")
        prompt = "positive" if prompt is None else Prompt(prompt, f"{name}_prompt of {self.title}")
        return Branch(prompt, source=source_of(self.title, getattr(self, name), None, "own", salt))

    def edits(self, step):
        unet, features, structured, both, alone = self.parts
        found = []
        structure = self._branch("structure", 1) if self._has("structure") and step.inside(0.0, self.structure_end) else None
        appearance = self._branch("appearance", 2) if self._has("appearance") and step.inside(0.0, self.appearance_end) else None
        if appearance is not None:
            make = AppearanceFeatures if unet else AppearanceValues
            found += [make(layers, appearance=appearance, structure=guide) for layers, guide in ((both, structure), (alone, None)) if layers != "none"]
        if structure is not None:
            if features != "none":
                found.append(StructureFeatures(features, structure=structure))
            found.append(StructureAttention(structured, structure=structure))
        return tuple(found)

    def steer(self, step, evaluate, state):
        """The prediction whose first-order step leads to where the repeated steps lead."""
        denoised = evaluate(step.x)
        ratio, following = next_ratio(step)
        controlled = bool(self.edits(step))
        if not (self.recurrence and controlled and step.call == 0 and following > 0 and step.inside(self.recurrence_start, self.recurrence_end)):
            return denoised
        a, s = (1 - following, float(step.sigma.flatten()[0])) if step.flow else (1.0, float(step.sigma.flatten()[0]))
        decay = (1 - s) / a if step.flow else 1.0               # of the state at the next level, on the way back
        fresh = max(0.0, s * s - (decay * following) ** 2) ** 0.5
        down = lambda x, d: x + (following - s) / s * (x - d)
        state_next = down(step.x, denoised)
        step.maps[PLAIN] = True
        try:
            for i in range(self.recurrence):
                x = decay * state_next + fresh * self._noise(step, i)
                state_next = down(x, evaluate(x))
        finally:
            step.maps.pop(PLAIN)
        return denoised + (state_next - down(step.x, denoised)) / (1.0 - ratio)

    def _noise(self, step, i):
        noise = step.maps.get("noise")
        noise = noise() if noise is not None else torch.randn(step.x.shape, generator=torch.Generator().manual_seed(step.seed or 0))
        return own_noise(noise, step.index, 100 + i).to(step.x)
