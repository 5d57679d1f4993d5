"""Feynman-Kac correctors: what CFG, a power and products of predictions really stand for, by weighted particles."""
from __future__ import annotations

import math
from typing import Any

import torch

from ..frozen import frozen
from ..inverse import levels
from ..method import NEGATIVE, POSITIVE, BadInput, Branch, ModelRef, Prompt, Term, param, socket
from .base import GIVES, ParticleSolver
from .swarm import effective


@frozen(eq=False)
class Ingredients(Term):
    """Takes the predictions that a corrector combines out of the engine; adds nothing to the model's own."""

    title = "Feynman-Kac Corrector"
    uses_negative = True

    second: Any = socket("CONDITIONING", "The second prompt.", optional=True)
    second_model: Any = socket("MODEL", "The second model.", optional=True)
    negative: bool = False
    store: Any = None      # dict that the predictions are left in

    @property
    def other(self):
        """The second distribution's prediction, None without one."""
        if self.second is None and self.second_model is None:
            return None
        model = self.second_model if self.second_model is None or isinstance(self.second_model, ModelRef) else ModelRef(self.second_model)
        prompt = "positive" if self.second is None else self.second if isinstance(self.second, Prompt) else Prompt(self.second, "second")
        return Branch(prompt=prompt, model=model)

    def branches(self, step):
        return tuple(b for b in (POSITIVE, NEGATIVE if self.negative else None, self.other) if b is not None)

    def delta(self, step, base, predictions, state):
        self.store["seen"] = {name: predictions[b].detach() for name, b in (("positive", POSITIVE), ("negative", NEGATIVE), ("second", self.other)) if b is not None and b in predictions}
        return torch.zeros_like(base)


def corrected(x, parts, exponents, s, a):
    """(N, rate): N = sum_i b_i n_i, the noise of the product of powers; rate [rows, ...] = (N^2 - sum_i b_i n_i^2) / 2, per value, of which log w grows per log of s^2 / a^2."""
    noises = {name: (x - a * parts[name]) / s for name in exponents}
    n = sum(b * noises[name] for name, b in exponents.items())
    return n, (n.square() - sum(b * noises[name].square() for name, b in exponents.items())) / 2


@frozen(eq=False)
class FeynmanKacCorrector(ParticleSolver):
    """Samples what guidance only imitates: the prompt's distribution over the negative's to a power, a sharper or flatter distribution, or the product of two prompts or two models.

    Paper: Skreta et al., "Feynman-Kac Correctors in Diffusion: Annealing, Guidance, and Product of Experts", arXiv 2503.02819.

        p = ( p_negative^(1 - guidance) p_positive^guidance p_second^second_power )^power              exponents b_i; composed: p_negative^(1 - guidance - second_power)
        n_i = (x - a D_i) / s      N = sum_i b_i n_i      D = (x - s N) / a      x' = DDIM_eta(x, D)
        log w += 1/2 (|N|^2 - sum_i b_i |n_i|^2) over log(s^2 / a^2), by the trapezoid rule
        guidance alone: 1/2 guidance (guidance - 1) |n_positive - n_negative|^2;  power: 1/2 power (power - 1) |n|^2;  a product: n_1 . n_2
        particles are drawn anew by their weights (systematic) where their effective number falls below resample_below

    a = 1 in k-units, 1 - s on flow models: written in x / a and s / a, the paper's variance-exploding form, where the drift terms vanish; the rate does not depend on eta. Particles start with noise divided
    by sqrt(sum b_i); flow models whose exponents do not sum to 1 start at s = 0.95. With one particle it is the usual imitation: CFG at `guidance`, predictions added.

    Needs the MODEL that this node gives, which hands it the single predictions: what other nodes add to the guided prediction, and rules in CFG's place, do not take part; attention edits do.
    `guidance` stands in for the cfg of the node that samples. `limit`: each step's change of a log weight, less the particles' mean, is cut to this: the released code has 1. Exact is 0, but pictures have so
    many values that their weights differ by hundreds and one particle takes all. The release takes the left end of each step, and resamples at every step.
    Defaults: guidance 2 (theirs 1.2 to 2.9), 4 particles, eta 1, limit 1. The exact statement holds for many particles and small steps. Powers other than 1 have large weights from the first noise on:
    they suit small problems, and so do products, whose exponents sum to 2; `composed` ones sum to 1. Which picture of the survivors is handed on (`give`) is drawn by weight; "best" is the one with the largest weight.
    Cost: particles times the predictions of positive, negative and second.
    """

    node_id = "LodestarFeynmanKacCorrector"
    title = "Feynman-Kac Corrector"
    paper = "Feynman-Kac Correctors in Diffusion"
    aliases = ("FKC", "annealing", "product of experts", "corrected CFG")
    evaluations = "particles times (positive, negative, second), less those of the plain sampler"

    second: Any = socket("CONDITIONING", "A second prompt, for a product of two; of the second model, where one is connected.", optional=True)
    second_model: Any = socket("MODEL", "A second model with the same latents, for a product of two; its prompt is the positive one if no second is connected.", optional=True)
    guidance: float = param(2.0, "Exponent of the positive prompt; the negative prompt has 1 - guidance. Used instead of cfg; 1: no negative prompt.", 0.0, 100.0, 0.05)
    power: float = param(1.0, "Exponent of the whole: above 1 sharper, below 1 flatter.", 0.01, 100.0, 0.05)
    second_power: float = param(1.0, "Exponent of the second prompt or model, where one is connected.", -10.0, 10.0, 0.05)
    composed: bool = param(False, "The negative prompt is divided out for the second prompt too, so that the exponents sum to `power`: both prompts in one picture, rather than pictures that suit both.")
    particles: int = param(4, "Particles of each picture; 1 is the usual guidance, without weights.", 1, 4096, 1)
    resample_below: float = param(0.5, "Particles are drawn anew when their effective number is not above this share of them; 1: at every step.", 0.0, 1.0, 0.01)
    limit: float = param(1.0, "Largest change of a log weight in a step, less the particles' mean; 0: no limit.", 0.0, 1e6, 0.1)
    give: str = param("drawn", "What is handed on: the particle with the largest weight, one drawn by its weight, or all of them.", choices=GIVES)
    eta: float = param(1.0, "Fresh noise per step. 0: deterministic, 1: the paper's.", 0.0, 1.0, 0.01)
    chunk: int = param(0, "Particles per network call; 0: as many as fit into the memory.", 0, 4096, 1, advanced=True)
    store: Any = None      # where Ingredients leaves the predictions

    @property
    def exponents(self):
        """{prediction: exponent}, those that are not 0."""
        second = self.second_power if self.second is not None or self.second_model is not None else 0.0
        found = {"positive": self.guidance, "negative": 1 - self.guidance - (second if self.composed else 0.0), "second": second}
        return {name: self.power * b for name, b in found.items() if b}

    def validate(self):
        super().validate()
        if sum(self.exponents.values()) <= 0:
            raise BadInput(self.title, "second_power", self.second_power, f"The exponents sum to {sum(self.exponents.values()):g}; their sum has to be above 0 to be a distribution.")
        return self

    @property
    def ingredients(self):
        """The Term that goes on the MODEL."""
        return Ingredients(self.second, self.second_model, "negative" in self.exponents, self.store)

    def problem(self, sigmas, flow, percent_to_sigma=None):
        return None

    def neutral(self):
        return self.particles == 1 and set(self.exponents.items()) == {("positive", 1.0)}

    def swim(self, swarm, problem, callback):
        exponents, total = self.exponents, sum(self.exponents.values())
        sigmas = swarm.sigmas
        if swarm.flow and abs(total - 1) > 1e-6:
            sigmas = sigmas.clamp(max=1 - levels.LEAST_SIGNAL)
            swarm.sigmas = sigmas
        x = swarm.start(self.particles, 1 / math.sqrt(total) if abs(total - 1) > 1e-6 else 1.0)
        logs, before = torch.zeros(self.particles, swarm.batch, dtype=torch.float64), None
        last = swarm.steps - 1
        for i in range(swarm.steps):
            point = swarm.point(x, i)
            parts = swarm.parts(x, sigmas[i] * x.new_ones(x.shape[0]))
            noise, rate = corrected(x, parts, exponents, point.s, point.a)
            rate = swarm.inside(rate).double().flatten(1).sum(1).view(-1, swarm.batch).cpu()
            if before is not None and self.particles > 1:
                change = 0.5 * (rate + before) * self.way(point, sigmas[i - 1], swarm.flow)
                change = change - change.mean(0)
                logs = logs + (change.clamp(-self.limit, self.limit) if self.limit else change)
                logs, (x, noise, rate, *kept) = self.weighed(swarm, i, logs, [x, noise, rate, *parts.values()], None, self.resample_below)
                parts, point = dict(zip(parts, kept)), swarm.point(x, i)
            before = rate
            if point.a > 0 and abs(total - 1) > 1e-6:
                denoised = (x - point.s * noise) / point.a
            else:
                denoised = sum(b * parts[name] for name, b in exponents.items())
            moved = point.go(denoised, noise, self.eta)
            if i < last:
                callback(i, x[:swarm.batch], sigmas[i], denoised[:swarm.batch])
            x = moved
        swarm.final = logs
        if self.particles > 1:
            swarm.record.note(last, float(sigmas[last]), None, effective(logs))
        both = self.given(swarm, torch.stack([x, denoised], 1), -logs, logs, self.give).unbind(1)
        callback(last, both[0], sigmas[last], both[1])
        return both[0]

    @staticmethod
    def way(point, s_before, flow):
        """How far log(s^2 / a^2) fell from the level before to this one."""
        s_before = float(s_before)
        a_before = max(levels.signal(s_before, flow), levels.LEAST_SIGNAL)
        return 2 * (math.log(s_before / a_before) - math.log(point.s / max(point.a, levels.LEAST_SIGNAL)))
