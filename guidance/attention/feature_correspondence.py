"""Feature-Correspondence Guidance (DreamDrone): the features of a new view agree with the old view's, warped."""
from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F

from ..frozen import frozen
from ..gradients import enter, gradient, normalised
from ..layers import select
from ..method import BadInput, Branch, Edit, Prompt, Steer, param, socket
from . import sharing
from .edits import AttentionEdit
from .features import ResidualEdit
from .sources import NOISES
from .warps import Warp

NORMALISERS = ("none", "unit rms")


def distance(view, old, warp, node="Feature-Correspondence Guidance"):
    """[batch]: L = (1 - mean cos(warp(old), view)) / 2 of features [batch, channels, height, width], over the cells that the old view shows."""
    warp = warp.entries(view.shape[0], node)
    points, seen = warp.at(*view.shape[-2:])
    cos = F.cosine_similarity(warp.apply(F.normalize(old.float(), dim=1)), view.float(), dim=1, eps=1e-6)
    seen = seen.to(cos)
    return 0.5 * (seen * (1 - cos)).flatten(1).sum(1) / seen.flatten(1).sum(1).clamp(min=1)


class _Watch:
    """What the two edits have in common: they change nothing, and leave the distance of their features in the step's maps while a gradient is taken."""

    @property
    def references(self):
        return (self.reference,)

    def notes(self, site):
        """The list that the step's distances go into, None while no gradient is taken."""
        return None if site.step is None else site.step.maps.get(("feature correspondence", self.reference))

    def note(self, site, view, old):
        found = self.notes(site)
        if found is None:
            return
        if view.shape[1:] != old.shape[1:]:
            raise BadInput("Feature-Correspondence Guidance", "reference", f"features {list(old.shape[1:])}", f"The picture has {list(view.shape[1:])} there (a prompt with an area of its own?).")
        view = view.unflatten(0, (-1, site.batch)).mean(0)      # of several positive prompts
        found.append(distance(view, old.detach(), self.warp))


@frozen
class WatchedFeatures(_Watch, ResidualEdit):
    """The features behind a residual block."""

    reference: Any = None
    warp: Warp | None = None

    def residual(self, site, h):
        self.note(site, h, site.shared[self.reference])
        return h


@frozen
class WatchedValues(_Watch, AttentionEdit):
    """The values of self-attention, as a map of features: for networks without residual blocks."""

    reference: Any = None
    warp: Warp | None = None

    kinds = ("self", "joint")
    any_text = True

    def apply(self, site, q, k, v, attend):
        if self.notes(site) is None:
            return attend(q, k, v)
        if site.frames > 1 or not site.height:
            raise BadInput("Feature-Correspondence Guidance", "model", "a video", "Views are single pictures.")
        found, count = sharing.seen(site, self.reference, q, k, v), site.height * site.width
        grid = lambda t: t[:, :, :count].transpose(2, 3).flatten(1, 2).unflatten(-1, (site.height, site.width))
        own = v[:, :, site.image] if site.kind == "joint" else v
        self.note(site, grid(own), grid(found.v)[:site.batch])
        return attend(q, k, v)


@frozen
class FeatureCorrespondenceGuidance(Edit, Steer):
    """Draws a new view of a picture: each step is steered so that the features inside the network are the old view's, seen through a warp.

        L = (1 - mean cos(warp(F_old), F)) / 2           F: features of `layers`, one unit vector for each place; mean over what the old view shows
        D <- D - scale s^2 / a grad_x L

    which is the authors' eps + sigma lr lambda grad L, written for every parametrisation (their released code has the other sign, which moves away). The old view, a latent that is noised to
    each step's level or the trajectory of an inversion, passes the network beside the new one, and both features come from this one pass; the authors run the network once more on the
    two clean estimates. normalise unit rms: D <- D - scale rho^2 g / rms(g), rho^2 = s^2 / (a^2 + s^2): one scale for every size.
    The authors begin from the old view's latent, inverted, warped (Apply Warp) and noised, and replace keys and values of the decoder by the old view's for the first half of the
    steps: Mutual Self-Attention with the same reference (its rows are then shared). The warp comes from the node View Warp.

    Defaults: scale 30 (lr 300, lambda 0.1), until step 48 of 50, the features of the second finest level (SD2.1, 50 DDIM steps). DiTs: the values of the block in the middle
    of the first stage (no value in the paper).
    Limits: pictures only. Small pictures need a smaller scale, since L is a mean over places; or unit rms. Paper: Kong et al., arXiv 2312.08746.
    Cost: one more row, and a backward pass.
    """

    node_id = "LodestarFeatureCorrespondenceGuidance"
    title = "Feature-Correspondence Guidance"
    family = "attention"
    paper = "DreamDrone"
    aliases = ("FCG", "view warp", "fly through", "novel view")
    evaluations = "1, and a backward pass (about 2 more of all rows)"

    warp: Any = socket("LODESTAR_WARP", "Where the new view's places lie in the old one, from View Warp.")
    scale: float = param(30.0, "Strength of the gradient; 0 switches the node off.", 0.0, 1e6, 0.01)
    normalise: str = param("none", "unit rms makes the scale independent of the picture's size (0.2 is a start); none uses the gradient as it is (paper).", choices=NORMALISERS)
    start_percent: float = param(0.0, "Start of the window in which the features steer, as a fraction of the sampling schedule (0 = first step).", 0.0, 1.0, 0.001)
    end_percent: float = param(0.96, "End of that window (1 = last step).", 0.0, 1.0, 0.001)
    reference: Any = socket("LATENT", "The old view as an encoded picture of the size that is sampled.", optional=True)
    trajectory: Any = socket("LODESTAR_TRAJECTORY", "The old view as the trajectory of an inversion, in place of a latent.", optional=True)
    reference_prompt: Any = socket("CONDITIONING", "Describes the old view; without it the positive prompt is used for it.", optional=True)
    layers: str = param("", "Whose features agree; empty: the second finest level of the decoder (U-Nets), the middle of the first stage (DiTs).", advanced=True)
    noise: str = param("shared", "Noise of the latent: shared with the picture's, or own, independent of it.", choices=NOISES, advanced=True)

    parts = ("", True)      # what `fitted` found: (layers, whether they have residual blocks)

    def neutral(self):
        return self.scale == 0

    def validate(self):
        super().validate()
        if sharing.source(self) is None and not self.neutral():
            raise BadInput(self.title, "reference", None, "Connect a latent or a trajectory.")
        return self

    def fitted(self, facts):
        """Resolves the layers on the model."""
        geometry, unet = facts.geometry, facts.geometry.family == "unet"
        if not geometry.layers:
            raise BadInput(self.title, "model", facts.network, "Its layers are not known.")
        found = select(geometry, self.layers or default_layers(facts.levels, geometry), self.title)
        if not unet:
            found = [x for x in found if {"self", "joint"} & set(x.attentions)]
        if not found:
            raise BadInput(self.title, "layers", self.layers, f"Name layers whose features can be read. {facts.network} has:\n{geometry.describe()}")
        made = dataclasses.replace(self)
        object.__setattr__(made, "parts", (" ".join(map(str, found)), unet))
        return made

    def edits(self, step):
        prompt = self.reference_prompt
        prompt = "positive" if prompt is None else prompt if isinstance(prompt, Prompt) else Prompt(prompt, f"reference_prompt of {self.title}")
        layers, residual = self.parts
        return ((WatchedFeatures if residual else WatchedValues)(layers, reference=Branch(prompt, source=sharing.source(self)), warp=self.warp),)

    def steer(self, step, evaluate, state):
        key, found = ("feature correspondence", self.edits(step)[0].reference), []

        def loss(denoised):
            if not found:
                raise RuntimeError(f"{self.title}: no features were seen; another node takes the blocks {self.parts[0]} away")
            return torch.stack([v.to(denoised) for v in found]).mean(0)
        step.maps[key] = found
        try:
            result = gradient(step, evaluate, loss, "network", step.host)
        finally:
            step.maps.pop(key, None)
        direction = result.direction
        if self.normalise == "unit rms":
            direction = normalised(direction.float(), self.normalise).to(result.denoised.dtype)
            direction = direction * step.a / (step.a * step.a + step.s * step.s)
        return enter(step, result.denoised, direction, self.scale, "score")


def default_layers(levels, geometry):
    """The last block of the decoder's second finest level; the block in the middle of the first stage on networks without levels."""
    if not levels:
        stage = [x for x in geometry.layers if x.stage == geometry.stages()[0]]
        return str(stage[len(stage) // 2])
    blocks = sorted({x.index for x in geometry.layers if x.stage == "output"})
    order = sorted({levels[i] for i in blocks})
    return f"output.{max(i for i in blocks if levels[i] == order[-2 if len(order) > 1 else -1])}"
