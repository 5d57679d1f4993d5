"""Free2Guide: the first steps are chosen by one or two losses, of a video's key frames."""
from __future__ import annotations

from typing import Any

import torch

from ..frozen import frozen
from ..method import param, socket
from .candidates import CandidateSolver, least

ENSEMBLES = ("weighted", "normalised", "consensus")


def together(a, b, how, share):
    """Losses [count, batch] of two judges as one: a share of each; both brought to [0, 1] over the candidates; or their places in the two rankings (Borda's count)."""
    if b is None:
        return a
    if how == "weighted":
        return share * a + (1 - share) * b
    if how == "normalised":
        unit = lambda v: (v - v.amin(0)) / (v.amax(0) - v.amin(0)).clamp(min=1e-30)
        return unit(a) + unit(b)
    place = lambda v: (v[:, None] > v[None]).sum(1) + 0.5 * (v[:, None] == v[None]).sum(1)      # equal values share their places
    return (place(a) + place(b)).double()


def key_frames(z, count):
    """[batch * count, channel, 1, height, width]: evenly spread latent frames of a video [batch, channel, frame, height, width], each for itself."""
    frames = z.shape[2]
    count = min(count, frames)
    index = torch.tensor([int(k * frames / count) for k in range(count)], device=z.device)
    return z.index_select(2, index).movedim(2, 1).flatten(0, 1)[:, :, None]


@frozen(eq=False)
class Free2Guide(CandidateSolver):
    """Chooses the first noise and the first few steps among several, by one or two losses: what a video shows is decided there, at little cost.

    Paper: Kim et al., "Free^2Guide: Gradient-Free Path Integral Control for Enhancing Text-to-Video Generation with Large Vision-Language Models", arXiv 2411.17041.

        first: x_m = start noise of its own, m = 1 .. candidates; kept is the one whose D(x_m) has the least J
        then, `steps` - 1 times:  x'_m = DDIM_eta(x, D) with noise of its own;  kept is the one whose D(x'_m) has the least J
        J weighted: share loss + (1 - share) second        normalised: both brought to [0, 1] over the candidates        consensus: sum of the places in both rankings
        of videos J sees `frames` evenly spread latent frames, each decoded for itself; their losses are averaged

    D: clean estimate. It is path-integral control in the limit of no temperature. normalised does not depend on the losses' scales, consensus on nothing but their order.
    Defaults: 5 candidates, 5 steps, eta 1, 4 frames, share 0.75 (the authors': DDIM of 50 steps, VLM and CLIP as judges; any loss may judge here). Without noise in the latent (a second
    sampler) the first choice has nothing to choose from.
    Limits: latent frames of video VAEs stand for several frames each, and one alone decodes as a still picture; frames 0 hands on the whole video. Cost: candidates - 1 evaluations at `steps` steps.
    """

    node_id = "LodestarFree2Guide"
    title = "Free2Guide"
    paper = "Free^2Guide"
    aliases = ("path integral control", "best of n noise", "gradient-free video guidance")
    evaluations = "candidates - 1, at the first steps"

    loss: Any = socket("LODESTAR_LOSS", "What to make small; values are enough.")
    second: Any = socket("LODESTAR_LOSS", "Another judge.", optional=True)
    candidates: int = param(5, "How many are tried; 1 is the plain sampler.", 1, 4096, 1)
    steps: int = param(5, "Choices in all, the first of them among noises to start from.", 1, 1000, 1)
    how: str = param("weighted", "How two judges decide: by the weighted sum of their losses, by losses brought to one range, or by their rankings.", choices=ENSEMBLES)
    share: float = param(0.75, "weighted: the share of the first loss.", 0.0, 1.0, 0.01)
    frames: int = param(4, "Of videos: how many latent frames are judged; 0: all of them.", 0, 1000, 1)
    eta: float = param(1.0, "Fresh noise per step, which is what candidates differ by. 1: ancestral.", 0.0, 1.0, 0.01)
    chunk: int = param(0, "Candidates per network call; 0: as many as fit into the memory.", 0, 4096, 1, advanced=True)

    def begin(self, swarm, problem):
        if self.candidates == 1:
            return swarm.x, None
        return self.best(swarm, problem, swarm.start(self.candidates), 0)

    def guided(self, swarm, problem, i):
        return i + 1 < self.steps and self.eta > 0

    def chosen(self, swarm, problem, x, i, denoised):
        judged = [self._judged(swarm, problem, loss, x, i, denoised) for loss in (self.loss, self.second) if loss is not None]
        values = together(judged[0], judged[1] if len(judged) > 1 else None, self.how, self.share)
        return least(values), values

    def _judged(self, swarm, problem, loss, x, i, denoised):
        if denoised.ndim == 5 and self.frames:
            inner = loss
            loss = _Frames(inner, self.frames)
        return swarm.values(problem, x, i, denoised, loss)


class _Frames:
    """A loss of some latent frames, averaged."""

    def __init__(self, loss, count):
        self.loss, self.count, self.title = loss, count, loss.title

    def value(self, denoised, context):
        return self.loss.value(key_frames(denoised, self.count), context).view(denoised.shape[0], -1).mean(1)
