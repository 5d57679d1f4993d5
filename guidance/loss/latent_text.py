"""The noise and the words' tokens that a picture is sampled from, optimised through the whole sampling run."""
from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from ..frozen import frozen
from ..inversion.chains import Plain
from ..inversion.ddim import SCHEDULERS
from ..method import BadInput, param, socket
from .initial_noise import Best, SearchMethod, judge, rescaled

PROMPTS = ("positive", "negative")


class Deltas:
    """What is added to the tokens of each prompt: {prompt: [of each part of the prompt: [of each step, or of all: [batch, tokens, width]]]}, as leaves.

    sizes: {prompt: [(tokens, width) of each part]}.
    """

    def __init__(self, sizes, like, steps, each_step):
        self.each_step = each_step
        make = lambda size: [torch.zeros(like.shape[0], *size, device=like.device, dtype=torch.float32, requires_grad=True) for _ in range(steps if each_step else 1)]
        self.parts = {name: [make(size) for size in found] for name, found in sizes.items()}

    def at(self, i):
        """{prompt: [of each part]} of step i."""
        return {name: [d[i if self.each_step else 0] for d in parts] for name, parts in self.parts.items()}

    def leaves(self, name=None):
        return [t for n, parts in self.parts.items() if name in (None, n) for d in parts for t in d]

    def size(self):
        """Mean square [batch] of all of them, with grad."""
        found = self.leaves()
        return sum(t.square().flatten(1).mean(1) for t in found) / len(found) if found else 0.0

    def copy(self):
        """Detached, in the same nesting."""
        return {name: [[t.detach().clone() for t in d] for d in parts] for name, parts in self.parts.items()}


def estimate_weights(count):
    """Weights of the last `count` clean estimates, rising evenly to the last and 1 in sum."""
    return [2 * (j + 1) / (count * (count + 1)) for j in range(count)]


@frozen(eq=False)
class OptimiseLatentAndText(SearchMethod):
    """Optimises the first noise and what the tokens of the prompts are, step by step, so that the finished picture has a small loss; with a mask the rest of the picture stays.

        z = sampler(c u, tokens_p + delta_p[i] at step i),  p positive, negative
        L = sum_j w_j loss(D_j) + keep mean over the rest of (z - z_0)^2 + text_keep mean delta^2        D_j the last clean estimates, w_j rising evenly, 1 in sum; z_0 the picture of the start
        Adam at rate x (latent, positive, negative);  u <- u |u_0| / |u|
        with a mask m, in the first `blend` of the steps:  x_i <- m x_i + (1 - m) x_i^0                   the states of the start

    DiG-IN uses it to show what classifiers look at: pictures that one classifier is most sure of, that two disagree about, that excite one neuron (the losses say which), and counterfactuals: the
    smallest change of a picture, its background kept, that turns the classifier's answer. For those give the mask, `keep`, and the noise and sigmas of an inversion of the picture.
    Token changes reach pictures that the noise alone cannot; one for each step reaches most. Zero changes and no iterations are the plain Euler sampler. The prompts that this node gives out hold the changes
    (one entry for each step, with its window), so that sampling again with them, the noise and the schedule gives the picture.
    Paper: Augustin, Neuhaus, Hein, "DiG-IN: Diffusion Guidance for Investigating Networks", arXiv 2311.17833. Defaults as released: Adam at 0.01 (latent a tenth of it), 20 iterations, the loss on the last 3
    estimates, a change for each step, blend 0.3, cfg 3; of our own: keep is the mean squared distance of latents (the released one sums it, weight 25; a distance of pictures is a loss of its own: Target
    Image Loss), the best picture is kept, 20 steps. Left out: averages over augmented pictures, and attention maps of the start put into the first steps.
    Cost: iterations x steps x about 5 evaluations; CFG doubles it. Memory: the graph of one evaluation, whatever the number of steps; `recompute_blocks` that of one block.
    Limits: the tokens are those that cross attention or the joint stream is given; pooled vectors stay. Models that make their tokens anew from the prompt (audio-video ones) can have the latent alone
    optimised. Methods of this pack on the MODEL take part if they neither steer by gradients nor remember earlier steps. Windows and schedules of losses do not count.
    """

    node_id = "LodestarOptimiseLatentAndText"
    title = "Optimise Latent and Text"
    paper = "DiG-IN"
    aliases = ("DiG-IN", "counterfactual", "prompt embedding optimisation", "textual optimisation")
    evaluations = "iterations x steps (with a backward pass each)"
    memory = "checkpoint"

    loss: Any = socket("LODESTAR_LOSS", "What the finished picture should make small.")
    mask: Any = socket("MASK", "Where the picture may change; everywhere without it.", optional=True)
    iterations: int = param(20, "Adam's steps; 0 samples plainly.", 0, 100000, 1)
    steps: int = param(20, "Sampler steps. Not used when sigmas are connected.", 1, 10000, 1)
    cfg: float = param(3.0, "Guidance scale; 1 needs no negative prompt.", 0.0, 100.0, 0.1)
    seed: int = param(0, "Seed of the first noise, where none is connected.", 0, 2 ** 64 - 1, 1)
    rate: float = param(0.01, "Size of Adam's steps.", 0.0, 10.0, 0.001)
    latent: float = param(0.1, "Factor of the rate for the noise; 0 leaves it.", 0.0, 100.0, 0.01)
    positive_text: float = param(1.0, "Factor of the rate for the tokens of the positive prompt; 0 leaves them.", 0.0, 100.0, 0.01)
    negative_text: float = param(1.0, "Factor of the rate for the tokens of the negative prompt; 0 leaves them. Not used at cfg 1.", 0.0, 100.0, 0.01)
    keep: float = param(0.0, "Weight of the mean squared distance of the latent to that of the start, outside the mask (without a mask: everywhere).", 0.0, 1e6, 0.1)
    blend: float = param(0.3, "Share of the steps in which what lies outside the mask is taken from the start's own states.", 0.0, 1.0, 0.01)
    each_step: bool = param(True, "A change of the tokens for each step; else one for all steps.", advanced=True)
    last_estimates: int = param(3, "How many of the last clean estimates the loss is taken of.", 1, 1000, 1, advanced=True)
    text_keep: float = param(0.0, "Weight of the mean square of the changes of the tokens.", 0.0, 1e6, 0.1, advanced=True)
    anneal: bool = param(False, "Let the rate fall to a tenth by a cosine.", advanced=True)
    scheduler: str = param("normal", "The noise levels. Not used when sigmas are connected.", choices=SCHEDULERS, advanced=True)
    strength: float = param(1.0, "How far up the schedule to begin: below 1 from the connected latent with part of the noise.", 0.01, 1.0, 0.01, advanced=True)
    pick: str = param("best", "Which picture to give: that of the smallest whole loss, or the last.", choices=("best", "last"), advanced=True)
    stop_at: float = param(-1e6, "An entry of the batch rests when its loss is not above this.", -1e6, 1e6, 0.001, advanced=True)
    recompute_blocks: bool = param(False, "Also recompute the blocks of the network on the way back: less memory, a third more time.", advanced=True)

    def neutral(self):
        return self.iterations == 0 or self.rate == 0 or not (self.latent or self.positive_text or self.negative_text)

    def wanted(self):
        """The prompts whose tokens are optimised."""
        return tuple(n for n, f in zip(PROMPTS, (self.positive_text, self.negative_text)) if f and not (n == "negative" and self.cfg == 1))

    def chain(self, predict, sigmas, flow=False, context=None):
        """The sampling run as a chain."""
        return Plain(predict, sigmas, flow, context, self.recompute_blocks)

    def region(self, z):
        """The mask on the size of z, [1 or batch, 1, (1,) height, width], or None."""
        if self.mask is None:
            return None
        m = self.mask.to(z)
        m = F.interpolate((m if m.ndim == 3 else m[None])[:, None], z.shape[-2:], mode="area")
        if m.shape[0] not in (1, z.shape[0]):
            raise BadInput(self.title, "mask", f"{m.shape[0]} masks", f"Give one, or one for each of the {z.shape[0]} pictures.")
        if not bool((m > 0).any()):
            raise BadInput(self.title, "mask", "empty", "Nothing is marked in the mask; paint white what may change.")
        return m if z.ndim == 4 else m.unsqueeze(2)

    def run(self, chain, x, unit, text=None, free=None, progress=None, tick=None):
        """(picture, first state, token changes as Deltas.copy, values [iterations + 1, batch] of the loss at the picture).

        text: sizes {prompt: [(tokens, width)]} and put(deltas), which makes the predictions that follow use them; None where no tokens are optimised. The rest as in Optimise Initial Noise.
        """
        steps, u0 = len(chain.sigmas) - 1, x / unit
        length = (u0 if free is None else u0 * free).flatten(1).norm(dim=1)
        deltas = Deltas({n: text.sizes[n] for n in self.wanted()} if text is not None else {}, x, steps, self.each_step)
        m, blended = self.region(x), math.ceil(self.blend * steps) if self.mask is not None else 0
        outside = torch.ones_like(x) if m is None else (1 - m).expand_as(x)
        share = estimate_weights(min(self.last_estimates, steps))
        u, count, best, history, started = u0.clone(), 0 if self.neutral() else self.iterations, Best(self.pick == "last"), [], None
        with torch.enable_grad():
            groups = [{"params": [u], "lr": self.rate * self.latent}] + [{"params": deltas.leaves(n), "lr": self.rate * f} for n, f in zip(PROMPTS, (self.positive_text, self.negative_text)) if deltas.leaves(n)]
            rule = torch.optim.Adam(groups)
        rates = [g["lr"] for g in groups]
        bare = chain.predict

        def predict(z, i):
            if text is not None:
                text.put(deltas.at(i))
            return bare(z, i)
        chain.predict = predict
        try:
            for k in range(count + 1):
                first = x if k == 0 else u * unit
                found = {}

                def seen(i, state, denoised):
                    if i >= steps - len(share):
                        found[i] = judge(self.loss, denoised, self.title)
                    if tick is not None:
                        tick()
                enter = None if started is None or not blended else lambda i, z: m * z + (1 - m) * started[0][i] if i < blended else z
                end = chain.forward(first, seen, enter)
                picture = end / chain.last
                if started is None:
                    started = list(chain.states), picture
                values = found[steps - 1][0]
                history.append(values)
                away = (picture - started[1]) * outside
                kept = self.keep * away.square().flatten(1).sum(1) / outside.flatten(1).sum(1).clamp(min=1e-6)
                whole = sum(w * found[steps - len(share) + j][0] for j, w in enumerate(share)) + kept.float()
                with torch.enable_grad():
                    words = self.text_keep * deltas.size() if self.text_keep and deltas.leaves() else None
                best.offer(whole if words is None else whole + words.detach(), picture, first, *deltas.leaves())
                if progress is not None:
                    progress(k, picture, values)
                moving = values > self.stop_at
                if k == count or not bool(moving.any()):
                    break
                for t in deltas.leaves():
                    t.grad = torch.zeros_like(t)
                if words is not None:
                    for t, s in zip(deltas.leaves(), torch.autograd.grad(words.sum(), deltas.leaves())):
                        t.grad += s
                slope = 2 * self.keep * away * outside / outside.flatten(1).sum(1).clamp(min=1e-6).view(-1, *[1] * (x.ndim - 1)) / chain.last

                def estimates(i, denoised):
                    return share[i - steps + len(share)] * found[i][1] if i in found else None

                def leave(i, g):
                    return m * g if i < blended else g

                def more(i):
                    here = [t for parts in deltas.at(i).values() for t in parts]

                    def take(slopes):
                        for t, s in zip(here, slopes):
                            t.grad += s
                    return tuple(here), take
                g = chain.backward(slope, tick and (lambda _: tick()), estimates, leave if blended else None, more)
                u.grad = unit * g.to(u)
                self._step(rule, rates, k, count, u, deltas, moving, free, length)
        finally:
            chain.predict = bare
            if text is not None:
                text.put({})
        for t, kept in zip(deltas.leaves(), best.kept[2:]):
            t.data = kept
        return best.kept[0], best.kept[1], deltas.copy(), torch.stack(history)

    def _step(self, rule, rates, k, count, u, deltas, moving, free, length):
        """Adam's step; what rests or is masked stays."""
        tensors = [u, *deltas.leaves()]
        if not all(bool(torch.isfinite(t.grad).all()) for t in tensors):
            raise ValueError(f"{self.title}: the gradient through the sampler is not finite at iteration {k}; use a wider dtype.")
        for group, rate in zip(rule.param_groups, rates):
            group["lr"] = rate * (0.55 + 0.45 * math.cos(math.pi * k / max(1, count - 1)) if self.anneal else 1.0)
        before = [t.detach().clone() for t in tensors]
        rule.step()
        with torch.no_grad():
            for t, old in zip(tensors, before):
                t.copy_(torch.where(moving.view(-1, *[1] * (t.ndim - 1)), t, old))
            if self.latent:
                moves = moving.view(-1, *[1] * (u.ndim - 1)).to(u) * (1 if free is None else free)
                u.copy_(torch.where(moves > 0, rescaled(torch.where(moves > 0, u, before[0]), length, free), before[0]))
