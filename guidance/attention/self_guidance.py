"""Diffusion Self-Guidance."""
from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import Any

import torch

from ..frozen import frozen
from ..gradients import NORMALISERS, enter, normalised
from ..method import BadInput, Branch, Prompt, param, progress, socket
from . import sharing
from .capture import MapGraph
from .energy import MapSteer, NothingRead, mean_map, of_words
from .properties import feature_reader, gathered
from .sources import NOISES


@frozen(eq=False)
class SelfGuidance(MapSteer):
    """Moves, resizes and reshapes the things of a prompt, or gives them the looks of another picture's, by what the network's own attention and features say of them.

        D <- D - scale s^2 / a grad_x E,   E = sum over terms of weight |property - target|_1
        A = attention to a phrase's words, mean over heads and layers;   S = norm(sigmoid(sharpness (norm(A) - 1/2)))
        position = sum p A / sum A;   size = mean S;   shape = S;   appearance = sum S Psi / sum S,  Psi the features of a decoder block, S there without its gradient

    which is the paper's eps + v sigma_t grad E with the gradient of the conditional prediction alone. Terms come from Self-Guidance Term and are chained there. Targets are values, or those of a
    reference: a latent noised to each step's level (or the trajectory of an inversion) that passes the network with its own prompt. To edit a picture that you sampled, take its latent as the
    reference, the same seed and prompt, and keep what is to stay by shape and appearance terms of the other things.
    normalise unit rms: D <- D - scale rho^2 g / rms(g), rho^2 = s^2 / (a^2 + s^2), per sample: one scale for every size and set of terms; none is the paper's.

    Defaults: sharpness 10 (paper); scale 0.3 at unit rms (ours; the paper's weights depend on the size); each step until alternate_from = 3/16, then every second one, none in the last 1/32 (sheet:
    a public port; there is no official code to check against). Layers: attention of the middle and the output blocks after it, features of the last decoder block with attention; DiTs: attention of
    the middle third, values of a block at two thirds of the first stage (ours).
    Limits: things whose words the network does not attend to cannot be held. Frames of a video have each their value. Paper: Epstein et al., arXiv 2306.00986.
    Cost: about 3 evaluations of the positive prompt per guided step, one more with a reference. Identities: scale 0; a property that is its target has no gradient.
    """

    node_id = "LodestarSelfGuidance"
    title = "Self-Guidance"
    family = "loss"
    paper = "Diffusion Self-Guidance"
    aliases = ("move objects", "resize objects", "copy appearance", "layout", "SDG")
    evaluations = "about 3 per guided step (backward pass included), 4 with a reference"
    planar = True
    selectors = ("layers", "features")

    terms: Any = socket("LODESTAR_PROPERTIES", "What is wanted, from Self-Guidance Term.")
    scale: float = param(0.3, "Strength; 0 switches the node off.", 0.0, 1e6, 0.01)
    normalise: str = param("unit rms", "unit rms makes the scale independent of terms and size; none uses the gradient as it is (paper).", choices=NORMALISERS)
    start_percent: float = param(0.0, "Start of the window in which it guides, as a fraction of the sampling schedule (0 = first step).", 0.0, 1.0, 0.001)
    end_percent: float = param(0.969, "End of that window (1 = last step).", 0.0, 1.0, 0.001)
    reference: Any = socket("LATENT", "The picture that terms refer to, as a latent of the size that is sampled.", optional=True)
    trajectory: Any = socket("LODESTAR_TRAJECTORY", "That picture as the trajectory of an inversion, in place of a latent.", optional=True)
    reference_prompt: Any = socket("CONDITIONING", "Describes the reference, from the Prompt Words of the terms' reference_words; without it the positive prompt is used.", optional=True)
    alternate_from: float = param(0.1875, "Place in the schedule from which only every second step is guided; 1: never.", 0.0, 1.0, 0.001, advanced=True)
    sharpness: float = param(10.0, "How steep the soft mask is.", 0.1, 1000.0, 0.5, advanced=True)
    layers: str = param("", "Layers whose attention is read. Empty: the middle block and the output blocks after it, the middle third of DiTs.", advanced=True)
    features: str = param("", "Layer whose features are the looks. Empty: the last decoder block with attention of U-Nets, a block at two thirds of the first stage of DiTs.", advanced=True)
    noise: str = param("shared", "Noise of the reference's latent: shared with the picture's, or own, independent of it.", choices=NOISES, advanced=True)

    feature_reader = None      # (class, layers) that `fitted` found

    def neutral(self):
        return self.scale == 0

    def validate(self):
        super().validate()
        if self.neutral():
            return self
        if any(t.source == "reference" for t in self.terms) and sharing.source(self) is None:
            raise BadInput(self.title, "reference", None, "A term refers to a reference: connect a latent or a trajectory.")
        for what, marks in (("words", {t.words.mark for t in self.terms}), ("reference_words", {t.there.mark for t in self.terms if t.source == "reference"})):
            if len(marks) > 1:
                raise BadInput(self.title, "terms", f"{what} of {len(marks)} Prompt Words nodes", "Take the words of one node for all terms, that whose prompt is sampled, and choose among them by `phrases`.")
        return self

    def fitted(self, facts):
        """Resolves the layer of the features on the model, where a term needs them."""
        if not any(t.kind == "appearance" for t in self.terms):
            return self
        made = dataclasses.replace(self)
        object.__setattr__(made, "feature_reader", feature_reader(facts, self.features, self.title))
        return made

    def active(self, step):
        return super().active(step) and (progress(step) < self.alternate_from or step.index % 2 == 0)

    def _maps(self, words):
        return MapGraph(self.layers, tokens=tuple(sorted({t for w in words for phrase in w.tokens for t in phrase})), length=words[0].length, mark=words[0].mark, where="middle and up")

    def _with_features(self, maps):
        cls, layers = self.feature_reader or (None, "")
        return (maps,) if cls is None else (maps, cls(layers))

    @cached_property
    def readers(self):
        return self._with_features(self._maps([t.here for t in self.terms]))

    @cached_property
    def reference_branch(self):
        """The Branch of the reference, its readers being its edits; None where no term refers to it."""
        terms = [t for t in self.terms if t.source == "reference"]
        if not terms:
            return None
        prompt = self.reference_prompt
        prompt = "positive" if prompt is None else prompt if isinstance(prompt, Prompt) else Prompt(prompt, f"reference_prompt of {self.title}")
        return Branch(prompt, source=sharing.source(self), edits=self._with_features(self._maps([t.there for t in terms])))

    def _properties(self, readings, batch, words_of):
        """{term: [property of each phrase]} of what was read; the maps' tokens are those of `words_of(term)` for all terms."""
        found, tokens = {}, readings[0]["tokens"]
        maps, _ = mean_map(readings[0]["maps"], batch)
        features = readings[0]["features"]
        for term in self.terms:
            if words_of(term) is not None:
                found[term] = [term.of(of_words(maps, tokens, phrase), features, self.sharpness) for phrase in words_of(term).tokens]
        return found

    def _read(self, step, readers):
        taken = [step.maps.pop(r, None) for r in readers]
        if not all(taken):
            raise NothingRead
        return taken

    def _bundle(self, readers, taken, batch):
        features = next(iter(gathered(taken[1], batch).values())).float() if len(readers) > 1 else None
        return [{"maps": taken[0], "tokens": readers[0].tokens, "features": features}]

    def energy(self, readings, step, state):
        batch = step.x.shape[0]
        found = self._properties(self._bundle(self.readers, readings, batch), batch, lambda t: t.here)
        total = torch.zeros(batch, device=step.x.device)
        for term in self.terms:
            reference = state.get("reference", {}).get(term, [None] * len(found[term]))
            total = total + term.weight * sum(term.distance(a, b) for a, b in zip(found[term], reference)) / len(found[term])
        return total, total

    def _refer(self, step, state):
        """Looks at the reference at this step's level."""
        branch = self.reference_branch
        if branch is None:
            return
        for r in branch.edits:
            step.maps.pop(r, None)
        with torch.no_grad():
            step.host.alone(step.x, branch.edits, branch)
            bundle = self._bundle(branch.edits, self._read(step, branch.edits), step.x.shape[0])
            state["reference"] = self._properties(bundle, step.x.shape[0], lambda t: t.there if t.source == "reference" else None)

    def steer(self, step, evaluate, state):
        try:
            self._refer(step, state)
            direction = self._gradient(step, step.x, state).direction
        except NothingRead:
            return evaluate(step.x)
        denoised = evaluate(step.x)
        if self.normalise == "none":
            return enter(step, denoised, direction, self.scale, "score")
        s, a = step.s, step.a
        return enter(step, denoised, (normalised(direction.float(), self.normalise) * s * s / (a * a + s * s)).to(denoised.dtype), self.scale, "estimate")
