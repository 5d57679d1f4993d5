"""CorrFill: inpainting that follows a reference picture, with the correspondences that attention itself finds."""
from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch

from ..frozen import frozen
from ..gradients import enter, gradient, next_ratio
from ..layers import select
from ..method import BadInput, Edit, Steer, param, socket, window
from . import sharing
from .edits import AttentionEdit
from .sources import NOISES
from .votes import Votes, attention_to

RATE = 0.03      # of the optimisation (released code)
_start, _end = window("the correspondences steer")


@frozen
class CorrespondingKeys(AttentionEdit):
    """The edit: attention to the own tokens and the reference's together; in `voters` the positive rows vote, and what they have voted biases their logits."""

    reference: Any = None
    reach: str = "positive"
    weight: float = 1.0
    boost: float = 0.0
    hide: bool = False
    near: int = 2
    voters: frozenset = frozenset()

    kinds = ("self", "joint")
    any_text = True

    @property
    def references(self):
        return (self.reference,)

    def default_layers(self, geometry):
        return "all"

    def apply(self, site, q, k, v, attend):
        found = sharing.seen(site, self.reference, q, k, v)
        bias = sharing.column_bias(k.shape[2], found.k.shape[2], self.weight, q)
        book = None if site.step is None else site.step.maps.get(("corrfill", self.reference))
        if book is not None and site.height and self.voters:
            bias = self._steered(site, q, k, found, book, bias)
        keys, values = torch.cat((k, found.k), 2), torch.cat((v, found.v), 2)
        return sharing.attend_image(site, attend, q, k, v, (q, keys, values), bias)

    def _steered(self, site, q, k, found, book, bias):
        sharing.same_grid("CorrFill", site, found, q)
        if site.frames > 1:
            raise BadInput("CorrFill", "model", "a video", "Correspondences are found between single pictures.")
        grid, count = (site.height, site.width), site.height * site.width
        if str(site.layer) in self.voters:
            a = attention_to(q, k, found.k, site.image, math.log(self.weight))[:, :count, :count]
            book.add(a.unflatten(0, (-1, site.batch)).mean(0), grid, site.latent or grid)
        if book.found is None or not (self.boost or self.hide):
            return bias
        own, rows, queries = k.shape[2], q.shape[0], q.shape[2]
        begin = 0 if site.kind != "joint" else site.image.start or 0
        if site.kind == "joint" and site.partial:
            begin, queries = 0, q[:, :, site.image].shape[2]
        out = torch.zeros(rows, 1, queries, own + found.k.shape[2], dtype=q.dtype, device=q.device)
        if bias is not None:
            out = out + bias
        new = book.bias(grid, self.boost, self.hide, self.near)
        out[:, 0, begin:begin + count, own:own + count] += new.repeat(rows // new.shape[0], 1, 1).to(out)
        return out


@frozen
class CorrFill(Edit, Steer):
    """Fills a hole after a reference that shows the same scene from elsewhere: attention says which places correspond, and is then held to it.

        out = softmax([Q K^T, Q K_r^T] / sqrt d + [0, ln strength + B]) [V, V_r]    in self-attention of the picture's rows, r the reference
        votes += relu(A - median A),  A = mean over heads of the weights of the reference's tokens      over `layers` and all steps so far
        m(i) = argmax votes(i), without points of the reference that more than `dominant` places chose, smoothed over discs of `smooth`, without outliers
        B_ij = boost f within `near` tokens of m(i);  -inf elsewhere and around rejected matches where `hide`;  0 for places without a match
        x_next <- x_next - 0.03 f optimise sigma_up g / std(g),  g the gradient of the cross entropy between A and discs of 0.05 around the matches

    f is the share of places with a match, sigma_up what an ancestral step of this size adds in noise. The reference, a latent of the size that is sampled, is noised to each step's
    level and passes the network beside the picture; the authors paint both on one canvas instead, which joins them in the convolutions too. Sample with the inpainting of your
    choice (a latent with a noise mask, or an inpainting model): places outside the hole vote as well.
    Entry i of a batch has reference i, a single one serves all. The negative prompt's rows see the reference without B.
    Defaults: boost 1, near 2, smoothing 0.2, outliers beyond 0.15, dominant 4, optimise 2, all steps, votes in the decoder (released code: execution layers 7-15 of SD1.5 and SD2,
    50 steps, CFG 3). DiTs: votes of the second half of each stage (no value in the paper). Deviations: matches that the smoothing moves too far are dropped (paper; the released
    code replaces them), the gradient comes from the steered evaluation and from the layers that vote.
    Limits: pictures only; the attention matrix is written out in the layers that vote, and biased attention leaves the fastest kernels. With boost 0, hide off and optimise 0
    this is Reference Attention at fidelity 0. Paper: Liu et al., arXiv 2501.02355. Cost: one more row per prompt, and a backward pass where optimise is above 0.
    """

    node_id = "LodestarCorrFill"
    title = "CorrFill"
    family = "attention"
    paper = "CorrFill"
    aliases = ("reference inpainting", "correspondence guidance", "inpaint from another view")
    evaluations = "2 (1 with negative_rows same or off), and a backward pass with optimise (about 2 more of all rows)"

    strength: float = param(1.0, "Weight of the reference's tokens in attention against the own; 0 switches the node off.", 0.0, 10.0, 0.05)
    boost: float = param(1.0, "What corresponding tokens gain in the logits, times the share of places with a match.", 0.0, 20.0, 0.1)
    hide: bool = param(True, "Hides from a place with a match all of the reference but its surroundings.")
    optimise: float = param(2.0, "Strength of the steps on the latent towards attention that agrees with the matches; 0 spares the backward pass.", 0.0, 20.0, 0.1)
    start_percent: float = _start
    end_percent: float = _end
    reference: Any = socket("LATENT", "The reference as an encoded picture of the size that is sampled.", optional=True)
    trajectory: Any = socket("LODESTAR_TRAJECTORY", "The reference as the trajectory of an inversion, in place of a latent.", optional=True)
    reference_prompt: Any = socket("CONDITIONING", "Describes the reference; without it the positive prompt is used for it.", optional=True)
    layers: str = param("", "Layers whose attention votes; empty: the decoder (U-Nets), the second half of each stage (DiTs).", advanced=True)
    near: int = param(2, "How many tokens around the match count as corresponding.", 0, 16, 1, advanced=True)
    dominant: int = param(4, "Points of the reference that more places than this choose are no match; 0 keeps all.", 0, 1024, 1, advanced=True)
    smooth: float = param(0.2, "Radius of the discs that smooth the matches, in fractions of the picture; 0: not.", 0.0, 1.0, 0.01, advanced=True)
    outlier: float = param(0.15, "Matches that the smoothing moves further are dropped.", 0.0, 2.0, 0.01, advanced=True)
    resolution: int = param(64, "Longest side of the grid of votes, in cells.", 4, 128, 4, advanced=True)
    noise: str = param("own", "Noise of the latent: own, independent of the picture's, or shared with it.", choices=NOISES, advanced=True)
    negative_rows: str = param("own", "The negative prompt's rows: own: see the reference under the negative prompt; same: see the same one; off: are left alone.",
                               choices=sharing.NEGATIVE_ROWS, advanced=True)

    voters = frozenset()      # what `fitted` found

    def neutral(self):
        return self.strength == 0

    def validate(self):
        super().validate()
        if sharing.source(self) is None and not self.neutral():
            raise BadInput(self.title, "reference", None, "Connect a latent or a trajectory.")
        return self

    def fitted(self, facts):
        """Finds the layers that vote on the model."""
        geometry = facts.geometry
        if not geometry.layers:
            raise BadInput(self.title, "model", facts.network, "Its layers are not known.")
        found = [x for x in select(geometry, self.layers or default_voters(geometry), self.title) if {"self", "joint"} & set(x.attentions)]
        if not found:
            raise BadInput(self.title, "layers", self.layers, f"Name layers with self-attention. {facts.network} has:\n{geometry.describe()}")
        made = dataclasses.replace(self)
        object.__setattr__(made, "voters", frozenset(map(str, found)))
        return made

    def edits(self, step):
        def make(branch, reach):
            asked = reach != "negative"
            return CorrespondingKeys("all", branch, "positive" if asked else reach, self.strength, *((self.boost, self.hide, self.near, self.voters) if asked else ()))
        source = sharing.source(self)
        positive, *rest = sharing.edits_of(self, make, source)
        if self.negative_rows == "same":
            rest = [CorrespondingKeys("all", positive.reference, "negative", self.strength)]
        return (positive, *rest)

    def steer(self, step, evaluate, state):
        if "book" not in state:
            state["book"] = Votes(self.resolution, self.dominant, self.smooth, self.outlier)
        book, key = state["book"], ("corrfill", self.edits(step)[0].reference)
        step.maps[key] = book
        try:
            ratio, following = next_ratio(step)
            if not self.optimise or following <= 0:
                return evaluate(step.x)
            book.maps, book.wanted = [], True
            found = gradient(step, evaluate, book.loss, "network", step.host)
            share = book.share if book.found is not None else torch.zeros_like(step.sigma)
        finally:
            step.maps.pop(key, None)
            book.maps, book.wanted = [], False
        axes = tuple(range(1, found.direction.ndim))
        spread = found.direction.float().std(axes, keepdim=True)
        unit = torch.where(spread > 0, found.direction / spread.clamp(min=1e-20), 0.0) * share.view(-1, *[1] * len(axes)).to(spread)
        return enter(step, found.denoised, unit.to(found.denoised.dtype), RATE * self.optimise * added_noise(step, ratio, following), "state")


def added_noise(step, ratio, following):
    """Deviation of the noise that an ancestral step from here to the next level adds (DDIM with eta 1)."""
    if step.flow:
        s = float(step.sigma.flatten()[0])
        ratio = ratio * (1 - s) / max(1e-12, 1 - following)
    return following * math.sqrt(max(0.0, 1 - ratio * ratio))


def default_voters(geometry):
    """The layers that vote where none are named."""
    stages = geometry.stages()
    return "output" if "output" in stages else " ".join(f"{s}.50%-100%" for s in stages)
