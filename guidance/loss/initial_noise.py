"""The noise that a picture is sampled from, optimised through the whole sampling run."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..frozen import frozen
from ..gradients import LOSS_SCALE, plain_context
from ..inversion.chains import Coupled, Plain
from ..inversion.ddim import SCHEDULERS
from ..inversion.edict import MIX
from ..method import BadInput, Method, param, socket
from .base import LossContext


def judge(loss, z, title="Loss"):
    """(values [batch], slopes like z) of a loss at clean latents."""
    with plain_context():
        leaf = z.detach().clone().requires_grad_(True)
        values = loss.value(leaf, LossContext())
        slope, = torch.autograd.grad(values.sum() * LOSS_SCALE, leaf)
    if not bool(torch.isfinite(slope).all()):
        raise ValueError(f"{title}: the gradient of {loss.title} is not finite; lower the loss's weight.")
    return values.detach().float(), slope / LOSS_SCALE


def rescaled(u, length, free=None):
    """u with the Euclidean length `length` [batch] of what is free, sample by sample."""
    axes = (-1, *[1] * (u.ndim - 1))
    part = u if free is None else u * free
    scale = (length / part.flatten(1).norm(dim=1).clamp(min=1e-12)).view(axes).to(u)
    return u * scale if free is None else torch.where(free > 0, u * scale, u)


@frozen(eq=False)
class SearchMethod(Method):
    """What the optimisers of a whole sampling run share: the loss, the run, and the memory it takes."""

    family = "loss"

    def neutral(self):
        return self.iterations == 0

    def check(self):
        if not self.loss.differentiable:
            raise BadInput(self.title, "loss", self.loss.title, "This loss gives values only; optimising needs a gradient.")
        return self.validate()


@dataclass
class Best:
    """The best of what was tried, for each sample: its value, picture and what it was made from (tensors with a batch axis)."""

    last: bool = False
    value: Any = None
    kept: tuple = ()

    def offer(self, value, *tensors):
        if self.value is None or self.last:
            self.value, self.kept = value, tuple(t.detach().clone() for t in tensors)
            return
        better = value < self.value
        self.value = torch.where(better, value, self.value)
        self.kept = tuple(torch.where(better.view(-1, *[1] * (t.ndim - 1)), t.detach(), k) for t, k in zip(tensors, self.kept))


@frozen(eq=False)
class OptimiseInitialNoise(SearchMethod):
    """Optimises the noise that a picture begins with, so that the finished picture has a small loss: the gradient comes back through every step of the sampler.

        z = sampler(c u),  G = -rate grad_u loss(z)           the picture of the noise; u of unit size, c = sqrt(a^2 + s^2) at the first level
        b <- momentum b + clip(G, +-clip)                      number by number
        u <- u + b + perturbation xi,  u <- u |u_0| / |u|      xi fresh Gaussian noise; with `renormalise`

    Every gradient is one of the true picture, not of an estimate on the way, and the prompt's own path to it stays what it was: stronger and cleaner than guidance, for many times the time.
    memory "checkpoint": Euler steps; of each step its latent is kept, its prediction made again on the way back. "invertible": the EDICT Sampler's pair of states, which keeps nothing and
    undoes its steps, as in the paper: 2 evaluations a step, the loss is the mean over both pictures. tie_pair: both begin with one noise. Memory is that of one evaluation's graph either
    way, whatever the number of steps. `recompute_blocks` keeps the activations of one block of the network.
    Paper: Wallace, Gokul, Ermon, Naik, "End-to-End Diffusion Latent Optimization Improves Classifier Guidance", arXiv 2303.13703. Defaults as released: 50 iterations, momentum 0.9, clip 0.001,
    perturbation 0.0001, mix 0.93, cfg 7.5; of our own: 20 steps (50 there), memory checkpoint (invertible there), and the best picture is kept, not the last. The clip makes steps of one size
    out of nearly every gradient; the noise can move by about iterations x clip / (1 - momentum): with fewer iterations take a larger clip. Invertible with 20 steps: mix about 0.8.
    Sample again from the noise with the sampler and the schedule of this node. A noise mask on the latent is kept: only what it marks moves. Every entry of a batch has a noise and a loss of its own.
    Cost: iterations x steps x about 5 evaluations (checkpoint: 1 there, 1 with its backward pass), twice that for invertible; CFG doubles it. Few-step models make it practical.
    Limits: methods of this pack on the MODEL take part if they neither steer by gradients nor remember earlier steps; windows and schedules of losses do not count, there is only the end. Half
    precision is enough for checkpoint; invertible keeps its states in double precision where the device has it.
    """

    node_id = "LodestarOptimiseInitialNoise"
    title = "Optimise Initial Noise"
    paper = "End-to-End Diffusion Latent Optimization (DOODL)"
    aliases = ("DOODL", "latent optimisation", "initial noise optimization")
    evaluations = "iterations x steps (with a backward pass each)"
    memories: ClassVar[tuple] = ("checkpoint", "invertible")

    loss: Any = socket("LODESTAR_LOSS", "What the finished picture should make small.")
    iterations: int = param(50, "How often the noise is changed; 0 samples plainly.", 0, 100000, 1)
    steps: int = param(20, "Sampler steps. Not used when sigmas are connected.", 1, 10000, 1)
    cfg: float = param(7.5, "Guidance scale; 1 needs no negative prompt.", 0.0, 100.0, 0.1)
    seed: int = param(0, "Seed of the first noise (where none is connected) and of the perturbation.", 0, 2 ** 64 - 1, 1)
    rate: float = param(1.0, "Factor of the gradient, before it is clipped.", 0.0, 1e9, 0.01)
    clip: float = param(0.001, "Largest change of each number of the noise by one gradient; 0 does not clip.", 0.0, 10.0, 0.0001)
    memory: str = param("checkpoint", "checkpoint: Euler steps, of each of which its latent is kept. invertible: EDICT's pair of states, which keeps nothing and takes twice the time.", choices=memories)
    scheduler: str = param("normal", "The noise levels. Not used when sigmas are connected.", choices=SCHEDULERS, advanced=True)
    strength: float = param(1.0, "How far up the schedule to begin: below 1 from the connected latent with part of the noise.", 0.01, 1.0, 0.01, advanced=True)
    momentum: float = param(0.9, "Share of the last movement that is kept.", 0.0, 0.999, 0.01, advanced=True)
    perturbation: float = param(1e-4, "Size of the fresh noise that each iteration adds.", 0.0, 1.0, 1e-5, advanced=True)
    renormalise: bool = param(True, "Keep the length of the noise.", advanced=True)
    mix: float = param(0.93, MIX, 0.5, 1.0, 0.01, advanced=True)
    tie_pair: bool = param(True, "invertible: both states begin with the same noise.", advanced=True)
    pick: str = param("best", "Which picture to give: that of the smallest loss, or the last.", choices=("best", "last"), advanced=True)
    stop_at: float = param(-1e6, "An entry of the batch rests when its loss is not above this.", -1e6, 1e6, 0.001, advanced=True)
    recompute_blocks: bool = param(False, "Also recompute the blocks of the network on the way back: less memory, a third more time.", advanced=True)

    def neutral(self):
        return self.iterations == 0 or (self.rate == 0 and self.perturbation == 0)

    def chain(self, predict, sigmas, flow=False, context=None):
        """The sampling run as a chain."""
        if self.memory == "invertible":
            return Coupled(predict, sigmas, flow, context, self.recompute_blocks, mix=self.mix)
        return Plain(predict, sigmas, flow, context, self.recompute_blocks)

    def run(self, chain, x, unit, draw, free=None, progress=None, tick=None):
        """(picture, first states, values [iterations + 1, batch]): first states are one tensor, or EDICT's two.

        x [batch, ...]: the first state, unit: its size c; draw() fresh noise like x; free like x: 1 where it may move; progress(i, picture, values) after each picture, tick() after each step.
        """
        pair = self.memory == "invertible"
        u = [x / unit, (x / unit).clone()] if pair else [x / unit]
        length = [(t if free is None else t * free).flatten(1).norm(dim=1) for t in u]
        speed, best, history = [torch.zeros_like(t) for t in u], Best(self.pick == "last"), []
        count = 0 if self.neutral() else self.iterations
        for i in range(count + 1):
            first = [x] if i == 0 and not pair else [t * unit for t in u]      # the plain run's own numbers, bit by bit
            end = chain.forward(tuple(first) if pair else first[0], None if tick is None else lambda *_: tick())
            ends = [t / chain.last for t in (end if pair else (end,))]
            found = [judge(self.loss, z, self.title) for z in ends]
            values = sum(v for v, _ in found) / len(found)
            history.append(values)
            best.offer(values, ends[0], *first)
            if progress is not None:
                progress(i, ends[0], values)
            moving = values > self.stop_at
            if i == count or not bool(moving.any()):
                break
            slopes = [s / chain.last / len(found) for _, s in found]
            g = chain.backward(end, tuple(slopes), tick and (lambda _: tick()))[1] if pair else (chain.backward(slopes[0], tick and (lambda _: tick())),)
            if pair and self.tie_pair:
                g = [g[0] + g[1]] * 2
            moves = moving.view(-1, *[1] * (x.ndim - 1)).to(x) * (1 if free is None else free)
            fresh = [self.perturbation * draw().to(u[0])] * len(u) if self.perturbation else [0.0] * len(u)
            for k, t in enumerate(u):
                push = -self.rate * unit * g[k].to(t)
                if not bool(torch.isfinite(push).all()):
                    raise ValueError(f"{self.title}: the gradient through the sampler is not finite at iteration {i}; use a wider dtype.")
                speed[k] = self.momentum * speed[k] + (push.clamp(-self.clip, self.clip) if self.clip else push)
                moved = t + moves * (speed[k] + fresh[k])
                u[k] = rescaled(moved, length[k], free) if self.renormalise else moved
                u[k] = torch.where(moves > 0, u[k], t)
        return best.kept[0], best.kept[1:], torch.stack(history)
