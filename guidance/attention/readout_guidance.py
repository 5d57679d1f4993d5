"""Readout Guidance: the sample is moved until a head reads what is wanted out of the network's features."""
from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F

from ..frozen import frozen
from ..method import BadInput, Branch, Prompt, param, socket
from ..training.readout import refuse_what_is_no_picture
from . import drags, sharing
from .energy import MapSteer
from .properties import feature_reader
from .sources import NOISES


@frozen(eq=False)
class ReadoutGuidance(MapSteer):
    """Makes the picture fit a map (edges, a mask, depth, a pose), look like another picture, or have its parts at other places (drags), by a small head that reads these from the network's own features.

        spatial      E = sum_m (head(features at x) - map)^2 / sum m,  m the mask (1 without one)
        appearance   E = 1 - cos(head(features at x) inside the mask, head(features of the reference at this level))
        correspondence   E = mean over drags from p to q of (1 - ghost) (1 - sim(q, p)) + ghost sim(p, p),   sim(q, p) = (1 + cos(head at x in q, head of the reference in p)) / 2
        x <- x - step c Adam(grad_x E),  c = sqrt(a^2 + s^2),  `iterations` times a step, in the first steps (end_percent);  then the step goes on from x' as in Layout Guidance

    Adam (0.9, 0.999) begins anew at each step of the sampler, as in the released code, so that the first of its moves is sign(grad E): each number of the latent moves by `step`, of latents with unit variance.
    Since that has no size, the scales of the released code (loss_rescale, the latents' range) would do nothing here. What an inpainting run keeps is not moved.
    The features are those of the positive prompt; the released code adds the loss of the empty one's. Heads come from Train Readout Head or Load Readout Head and belong to one network, U-Net or DiT.
    Several heads: one node after the other. A drag moves the cells around its beginning, as far as `radius`, along with it (the released code takes many drags in place of a radius); the mask says what may move at all.
    For drags the reference's noise is shared with the picture's, which begins as the reference did: sample both with one seed.

    Defaults: step 0.02, one per step, first half of the schedule (paper, 100 DDIM steps with fresh noise; with 20 steps take 0.1: the way that it can go is the number of steps times their size).
    Take a sampler that adds noise (Euler ancestral, DDPM): what a sign moves where the gradient says little is then forgotten. Deterministic samplers keep it, and the picture becomes grainy.
    Limits: pictures, not videos. Paper: Luo et al., arXiv 2312.02150. Cost: about 3 evaluations of the positive prompt per move, one more with a reference. Identities: step 0; what is read already has no gradient.
    """

    node_id = "LodestarReadoutGuidance"
    title = "Readout Guidance"
    family = "loss"
    paper = "Readout Guidance"
    aliases = ("hyperfeatures", "edge control", "pose control", "appearance", "drag")
    evaluations = "about 3 per move (backward pass included), 1 more with a reference"
    planar = True
    selectors = ()

    readout: Any = socket("LODESTAR_READOUT", "The head, from Train or Load Readout Head.")
    step_size: float = param(0.02, "Size of a move in each number of the latent; 0 switches the node off.", 0.0, 10.0, 0.005)
    iterations: int = param(1, "Moves per step.", 1, 100, 1)
    start_percent: float = param(0.0, "Start of the window in which it guides, as a fraction of the sampling schedule (0 = first step).", 0.0, 1.0, 0.001)
    end_percent: float = param(0.5, "End of that window (1 = last step).", 0.0, 1.0, 0.001)
    image: Any = socket("IMAGE", "The map that a spatial head is to read: one for all pictures, or one for each.", optional=True)
    mask: Any = socket("MASK", "Where the map counts, what of the picture is to look like the reference, or, with drags, what may move: one for all pictures, or one for each.", optional=True)
    reference: Any = socket("LATENT", "The picture that an appearance head is to find alike, or that drags begin in, as a latent of the size that is sampled.", optional=True)
    trajectory: Any = socket("LODESTAR_TRAJECTORY", "That picture as the trajectory of an inversion, in place of a latent.", optional=True)
    reference_prompt: Any = socket("CONDITIONING", "Describes the reference; without it the positive prompt is used.", optional=True)
    noise: str = param("own", "Noise of the reference's latent: shared with the picture's, or own, independent of it.", choices=NOISES, advanced=True)
    drags: str = param("", "For a head of correspondence: x, y > x, y in fractions of the picture, from a place of the reference to where what is there is to be. Several are separated by ; and those of different pictures by |.")
    radius: float = param(0.06, "How far around a drag's beginning things move along with it, as a fraction of the picture's longer side.", 0.0, 0.5, 0.01)
    ghost: float = param(0.5, "Share of the loss that keeps the picture from showing the same at the beginning of a drag still (paper: 0.5).", 0.0, 1.0, 0.05, advanced=True)

    reader = None      # what `fitted` found

    def neutral(self):
        return self.step_size == 0

    def validate(self):
        super().validate()
        if self.neutral():
            return self
        kind = getattr(self.readout, "kind", None)      # what is not connected yet has none
        if kind == "spatial" and self.image is None:
            raise BadInput(self.title, "image", None, "This head reads a map: connect the one that is wanted.")
        if kind == "appearance" and sharing.source(self) is None:
            raise BadInput(self.title, "reference", None, "This head compares with a reference: connect a latent or a trajectory.")
        if kind == "correspondence":
            if sharing.source(self) is None:
                raise BadInput(self.title, "reference", None, "Drags begin in a reference: connect a latent or a trajectory.")
            drags.parse(self.drags, self.title)
        return self

    def fitted(self, facts):
        """The reader of the head's layers on this model."""
        made = dataclasses.replace(self)
        cls, layers = feature_reader(facts, " ".join(self.readout.layers), self.title)
        object.__setattr__(made, "reader", cls(layers))
        return made

    @cached_property
    def readers(self):
        return (self.reader,)

    @cached_property
    def reference_branch(self):
        """The Branch of the reference, None for a spatial head."""
        if self.readout.kind == "spatial":
            return None
        prompt = self.reference_prompt
        prompt = "positive" if prompt is None else prompt if isinstance(prompt, Prompt) else Prompt(prompt, f"reference_prompt of {self.title}")
        return Branch(prompt, source=sharing.source(self), edits=self.readers)

    def read(self, found, step, where=None):
        """What the head reads, of x as of this step; `where` is for a vector of the whole picture."""
        refuse_what_is_no_picture(step.x, self.title, "latent_image")
        return self.readout.read(found, step.x.shape[0], step.sigma.detach().clone(), step.flow, tuple(step.x.shape[-2:]), where)

    def where(self, x):
        """The mask [batch or 1, 1, height, width] on the grid of latents x, or None."""
        if self.mask is None:
            return None
        m = self.mask.float().reshape(-1, 1, *self.mask.shape[-2:])
        m = F.interpolate(m, x.shape[-2:], mode="area").to(x.device)
        if m.shape[0] not in (1, x.shape[0]):
            raise BadInput(self.title, "mask", f"{m.shape[0]} masks", f"Give one, or one for each of the {x.shape[0]} pictures that are sampled.")
        if not bool((m.flatten(1).sum(1) > 0).all()):
            raise BadInput(self.title, "mask", "empty", "There is no place where the head is to look.")
        return m

    @cached_property
    def ways(self):
        """The drags' [n, 4] of each picture that they are given for."""
        return drags.parse(self.drags, self.title)

    def dragged(self, batch):
        """[n, 4] of each picture of a batch."""
        found = self.ways
        if len(found) not in (1, batch):
            raise BadInput(self.title, "drags", self.drags, f"They are those of {len(found)} pictures; give them for one, or for each of the {batch} that are sampled, separated by |.")
        return found if len(found) == batch else found * batch

    def target(self, like):
        """The wanted map [batch, out, height, width] from -1 to 1."""
        m = as_map(self.image, like.shape[1], like.shape[-2:], self.title).to(like)
        if m.shape[0] not in (1, like.shape[0]):
            raise BadInput(self.title, "image", f"{m.shape[0]} pictures", f"Give one, or one for each of the {like.shape[0]} that are sampled.")
        return m.expand_as(like)

    def energy(self, readings, step, state):
        where = self.where(step.x)
        h = self.read(readings[0], step, where)
        if self.readout.kind == "correspondence":
            away = torch.stack([drags.misplaced(a, b, d, self.radius, self.ghost) for a, b, d in zip(h, state["reference"], self.dragged(len(h)))])
            return away, away
        if self.readout.kind == "spatial":
            away = (h - self.target(h)).square()
            away = away.flatten(1).mean(1) if where is None else (away.mean(1, keepdim=True) * where).flatten(1).sum(1) / where.flatten(1).sum(1)
        else:
            away = 1 - (h * state["reference"]).sum(1)
        return away, away

    def _gradient(self, step, x, state):
        found = super()._gradient(step, x, state)
        found.direction = state["rule"](found.direction)
        if self.readout.kind == "correspondence" and self.mask is not None:
            where = self.where(x)
            found.direction = found.direction * (where if x.ndim == 4 else where[:, :, None]).to(found.direction)
        if step.free is not None:
            found.direction = found.direction * step.free.to(found.direction)
        return found

    def rounds(self, step):
        return [(self.iterations, self.step_size * (step.a.float() ** 2 + step.s.float() ** 2).sqrt(), -1.0)]

    def moved(self, step, state):
        state["rule"] = Adam()
        branch = self.reference_branch
        if branch is not None:
            step.maps.pop(self.reader, None)
            with torch.no_grad():
                step.host.alone(step.x, branch.edits, branch)
            found = step.maps.pop(self.reader, None)
            if not found:
                return step.x
            with torch.inference_mode(False), torch.no_grad():      # a gradient goes past it
                state["reference"] = self.read(found, step)
        return super().moved(step, state)


class Adam:
    """Steps of Adam (0.9, 0.999) per number, without its epsilon: the first is the sign, and where there never was a gradient there is no step. Called with g, one after the other."""

    def __init__(self):
        self.count = self.mean = self.square = self.size = 0

    def __call__(self, g):
        g = g.float()
        if not self.count:
            self.size = g.flatten(1).abs().amax(1).clamp(min=1e-30).view(-1, *[1] * (g.ndim - 1))      # squares of small gradients would be 0
        g, self.count = g / self.size, self.count + 1
        self.mean, self.square = 0.9 * self.mean + 0.1 * g, 0.999 * self.square + 0.001 * g.square()
        if self.count == 1:
            return g.sign()
        root = (self.square / (1 - 0.999 ** self.count)).sqrt()
        return torch.where(root > 0, self.mean / (1 - 0.9 ** self.count) / root.clamp(min=1e-30), torch.zeros_like(g))


def as_map(image, channels, size, node, field="image"):
    """Pictures [n, height, width, 3] as maps [n, channels, *size] from -1 to 1: gray for one channel, colours for three."""
    if channels not in (1, 3):
        raise BadInput(node, field, f"a map of {channels} channels", "Heads of one or three channels take pictures.")
    m = image[..., :3].movedim(-1, 1).float()
    m = m.mean(1, keepdim=True) if channels == 1 else m
    return F.interpolate(m, size, mode="area") * 2 - 1

