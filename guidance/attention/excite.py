"""Attend-and-Excite."""
from __future__ import annotations

from functools import cached_property
from typing import Any

import torch

from ..frozen import frozen
from ..method import BadInput, param, progress, socket
from .capture import MapGraph
from .energy import MapSteer, mean_map, of_words, sharpened


def parse_points(text, node, field="thresholds"):
    """((place, value), ...) of "0:0.05, 0.2:0.5": places as fractions of the schedule."""
    found = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        try:
            place, value = map(float, part.split(":"))
        except ValueError:
            raise BadInput(node, field, text, "Write pairs place:value, such as \"0:0.05, 0.2:0.5\", the place as a fraction of the schedule.") from None
        if not 0 <= place <= 1:
            raise BadInput(node, field, text, "Places are fractions of the schedule, from 0 to 1.")
        found.append((place, value))
    return tuple(sorted(found))


def due(points, step):
    """The value of the point whose place this step is the first to reach, or None."""
    steps = max(1, len(step.sigmas) - 1) if step.sigmas is not None else 1
    return next((value for place, value in points if step.index == min(steps - 1, round(place * steps))), None)


def variance_preserving(step, size):
    """The factor of a move of `size` on a latent of unit variance: (a^2 + s^2) size."""
    return (step.a.float() ** 2 + step.s.float() ** 2) * size


@frozen(eq=False)
class AttendAndExcite(MapSteer):
    """Makes sure that every named thing gets a place of its own in the picture, by raising the attention to the one that is most neglected.

    A_k = the map of phrase k: mean over heads and layers, softmax over the prompt's words of 100 times it, 3 x 3 Gaussian;  E = max_k (1 - max_cells A_k)
    x <- x - step_size sqrt(1 - t/2) (a^2 + s^2) grad_x E,  t from 0 to 1 over the schedule, in its first half (end_percent)
    At the places of `thresholds` this is repeated until every max A_k is at least the threshold, at most `iterations` times.

    (a^2 + s^2) brings the paper's step on a latent of unit variance to k-units and flow models. Joint attention: the picture's cells on the text, normalised over it.
    Layers: the smallest grid outside the middle block (SD1.5: 16 x 16, as in the paper); the middle third of DiTs (no published value).
    Defaults: step 20, thresholds 0.05, 0.5, 0.8 at steps 0, 10, 20 of 50, 20 iterations (paper). Identities: step 0; a phrase whose map reaches 1.
    Cost: about 3 evaluations of the positive prompt per move (one forward, one backward). Exact with Euler and DDIM, see the help of Layout Guidance.
    """

    node_id = "LodestarAttendAndExcite"
    title = "Attend-and-Excite"
    family = "attention"
    paper = "Attend-and-Excite: Attention-Based Semantic Guidance for Text-to-Image Diffusion Models (arXiv 2301.13826)"
    aliases = ("missing objects", "semantic guidance", "A&E")
    evaluations = "0 (about 3 per move, backward pass included)"

    words: Any = socket("LODESTAR_WORDS", "The things that must be there, found in the positive prompt by Prompt Words.")
    step_size: float = param(20.0, "Size of a move; 0 switches the node off.", 0.0, 10000.0, 0.5)
    thresholds: str = param("0:0.05, 0.2:0.5, 0.4:0.8", "Where the moves are repeated until each map reaches a value: pairs place:value, the place as a fraction of the schedule.")
    iterations: int = param(20, "Most repetitions at such a place.", 0, 100, 1)
    start_percent: float = param(0.0, "Start of the window in which the sample is moved, as a fraction of the sampling schedule.", 0.0, 1.0, 0.001)
    end_percent: float = param(0.5, "End of that window.", 0.0, 1.0, 0.001)
    layers: str = param("", "Layers whose attention is read. Empty: the smallest grid outside the middle block, the middle third of DiTs.", advanced=True)

    def neutral(self):
        return self.step_size == 0

    def validate(self):
        super().validate()
        parse_points(self.thresholds, self.title)
        if self.words is not None:
            self.words.need(self.title)
        return self

    @cached_property
    def readers(self):
        w = self.words
        return (MapGraph(self.layers, tokens=w.content, length=w.length, mark=w.mark, where="deepest"),)

    def energy(self, readings, step, state):
        maps, _ = mean_map(readings[0], step.x.shape[0])
        maps = sharpened(maps)
        peaks = torch.stack([of_words(maps, self.words.content, t).flatten(1).amax(1) for t in self.words.tokens], 1)
        worst = (1 - peaks).clamp(min=0).amax(1)
        return worst, worst

    def rounds(self, step):
        threshold = due(parse_points(self.thresholds, self.title), step)
        factor = variance_preserving(step, self.step_size * (1 - progress(step) / 2) ** 0.5)
        return ([(self.iterations, factor, 1 - threshold)] if threshold is not None else []) + [(1, factor, 0.0)]
