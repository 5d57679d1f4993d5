"""The optimisation that distillation guidances lead, of a latent or of pictures."""
from __future__ import annotations

import contextlib
import math
from typing import Any

import torch

from ..frozen import frozen
from ..gradients import LOSS_SCALE, plain_context
from ..loss.base import LossContext
from ..method import BadInput, Method, param, socket
from .base import Moment

OPTIMISERS = ("Adam", "SGD")


def frames_as_rows(z, dimensions):
    """A latent as a model of `dimensions` axes sees it: the frames of a video [n, c, frames, h, w] are rows of an image model, entry by entry."""
    return z.movedim(2, 1).flatten(0, 1) if z.ndim == 5 and dimensions == 2 else z


class LatentCanvas:
    """A latent in the model's space. mask like it or None: 1 where it may move. entries: numbers of its entries, which their noise belongs to."""

    def __init__(self, z, mask=None, entries=None):
        self.z, self.mask = z.detach().clone().float().requires_grad_(True), mask
        self._entries = tuple(range(z.shape[0])) if entries is None else tuple(entries)

    groups = property(lambda self: [([self.z], 1.0)])      # [(parameters, factor of the rate)]
    through = False      # whether `latent` runs a network

    def latent(self, prior):
        return frames_as_rows(self.z, prior.dimensions)

    def picture(self, prior):
        return prior.decode(self.latent(prior))

    def entries(self, rows):
        return self._entries

    def settle(self, before):
        """After a step: what the mask keeps is put back."""
        if self.mask is not None:
            self.z.copy_(before[0] + (self.z - before[0]) * self.mask)


class PictureCanvas:
    """Pictures [n, 3, height, width], kept within [0, 1]; for a video model they are the frames of one video."""

    through = True

    def __init__(self, u, mask=None):
        self.u, self.mask = u.detach().clone().float().requires_grad_(True), mask

    groups = property(lambda self: [([self.u], 1.0)])

    def latent(self, prior):
        return prior.encode(self.picture(prior))

    def picture(self, prior=None):
        return self.u

    def entries(self, rows):
        return tuple(range(len(self.u))) if rows % len(self.u) == 0 else (0,)

    def settle(self, before):
        self.u.clamp_(0, 1)
        if self.mask is not None:
            self.u.copy_(before[0] + (self.u - before[0]) * self.mask)


def clipped(g, largest):
    """Every cell of g [n, channels, ...] as a whole scaled down so that none of its channels is above `largest`."""
    return g * (largest / g.abs().amax(1, keepdim=True).clamp(min=1e-12)).clamp(max=1.0) if largest else g


@frozen(eq=False)
class Distiller(Method):
    """Base of the optimisations."""

    family = "distillation"
    evaluations = "those of the guidance, per iteration"

    guidance: Any = socket("LODESTAR_DISTILLATION", "What leads: one of the distillation guidances, with its model and prompts.")
    steps: int = param(200, "Iterations.", 0, 100000, 1, label="iterations")
    rate: float = param(0.1, "Learning rate: with Adam about how far a number moves per iteration.", 0.0, 1e4, 0.001)
    seed: int = param(0, "Of the noise; an entry of a batch has its own, whatever is beside it.", 0, 2 ** 64 - 1, 1)
    last_rate: float = param(0.1, "What is left of the rate at the end; it falls as a cosine. The noise of the last iterations stays in the picture otherwise.", 0.0, 1.0, 0.05)
    optimiser: str = param("Adam", "Adam makes steps of one size; SGD moves by the rate times the gradient of each number.", choices=OPTIMISERS, advanced=True)
    loss: Any = socket("LODESTAR_LOSS", "A loss that is made small beside it.", optional=True)
    loss_weight: float = param(1.0, "Weight of the loss against the guidance, whose own is a mean square over the numbers of the latent.", -1e6, 1e6, 0.01)
    clip: float = param(0.0, "Every cell's gradient is scaled down so that no channel is above this; 0: not. Dreamer XL: 0.05, on a gradient that is scaled by 0.1.", 0.0, 1e6, 0.01, advanced=True)

    def neutral(self):
        return self.steps == 0 or self.rate == 0

    def validate(self):
        super().validate()
        if not hasattr(self.guidance, "parts"):
            raise BadInput(self.title, "guidance", self.guidance, "Connect a distillation guidance.")
        if self.loss is not None and not self.loss.differentiable:
            raise BadInput(self.title, "loss", self.loss.title, "This loss gives values only; a gradient is needed.")
        return self

    def run(self, canvas, priors, progress=None):
        """Optimises the canvas; priors: one for each part of the guidance. progress(i, latent, estimate) after each iteration. Returns [iterations]: the size of the gradient."""
        parts = self.guidance.parts()
        memories, sizes = [{} for _ in parts], []
        with torch.inference_mode(False), torch.enable_grad():
            params = [p for group, _ in canvas.groups for p in group]
            rule = self._optimiser(canvas)
            for i in range(self.steps):
                pulls = []
                with torch.no_grad():
                    for (guidance, weight, number), prior, memory in zip(parts, priors, memories):
                        z = canvas.latent(prior).detach()
                        moment = Moment(prior, z, i, self.steps, self.seed, canvas.entries(z.shape[0]), number, memory, lambda prior=prior: canvas.picture(prior).detach())
                        pulls.append((prior, weight, guidance.pull(moment), z))
                gradients = self._gradients(canvas, params, pulls)
                share = self.last_rate + (1 - self.last_rate) * (1 + math.cos(math.pi * i / max(1, self.steps - 1))) / 2
                for group, (_, factor) in zip(rule.param_groups, canvas.groups):
                    group["lr"] = self.rate * factor * share
                before = [p.detach().clone() for p in params]
                for p, g in zip(params, gradients):
                    p.grad = g
                rule.step()
                with torch.no_grad():
                    canvas.settle(before)
                sizes.append(float(sum(g.square().sum() for g in gradients).sqrt()))
                if progress is not None:
                    progress(i, pulls[0][3], pulls[0][2].seen)
        return sizes

    def _optimiser(self, canvas):
        groups = [{"params": p, "lr": self.rate * f} for p, f in canvas.groups]
        return torch.optim.Adam(groups, betas=(0.9, 0.99), eps=1e-8) if self.optimiser == "Adam" else torch.optim.SGD(groups, lr=self.rate)

    def _gradients(self, canvas, params, pulls):
        """What the pulls and the loss say, brought back to the parameters: through the VAE where pictures are optimised, never through the model."""
        heavy = canvas.through or self.loss is not None or any(pull.picture is not None for _, _, pull, _ in pulls)
        with plain_context() if heavy else contextlib.nullcontext():
            total, latents = 0.0, {}
            for prior, weight, pull, _ in pulls:
                z = latents[id(prior)] = latents[id(prior)] if id(prior) in latents else canvas.latent(prior)
                total = total + weight * (z * pull.latent).sum()
                if pull.picture is not None:
                    total = total + weight * (canvas.picture(prior) * pull.picture).sum()
            if self.loss is not None:
                z = latents[id(pulls[0][0])]
                total = total + self.loss_weight * z[0].numel() * self.loss.value(z, LossContext()).float().sum()
            found = torch.autograd.grad(total * LOSS_SCALE, params)
        found = [g.detach() / LOSS_SCALE for g in found]
        if not all(bool(torch.isfinite(g).all()) for g in found):
            raise ValueError(f"{self.title}: the gradient is not finite; lower the rate, the guidance scale or the weight of the loss.")
        return [clipped(g, self.clip) if g.ndim > 2 else g for g in found]


@frozen(eq=False)
class ScoreDistillation(Distiller):
    """Optimises a latent under a distillation guidance: iterations of gradient descent in place of a sampling run, from any start, with any loss of this pack beside.

        z <- z - rate share_i Adam( g(z) + loss_weight N grad_z loss(z) ),   share_i = last + (1 - last) (1 + cos(pi i / (steps - 1))) / 2

    g: the guidance's gradient (SDS, HiFA, ISM and others); N: the numbers of one entry's latent, so that the loss is weighed against a mean square. Each number's own gradient enters: with SGD at
    rate 1 and last_rate 1, HiFA with W = s / a and rgb 0 puts the denoised latent in the place of z. The network is never differentiated.
    What is on the guidance's MODEL takes part, as in sampling: rules, perturbations, attention edits, steering losses; methods that remember earlier steps (momentum, caches) see the iterations in
    a row, and step numbers are those of the nearest level of a schedule of 100 steps. Predictions without guidance (of an inversion, of a bad prompt) are the network's own.
    Defaults: 200 iterations at 0.1, last_rate 0.1, tried on the bundled models, whose latents are there after 60 to 100; 1 is a constant rate, as in the papers' code.
    Start: the latent as it comes; an empty one is zeros. A noise mask is kept: only what it marks moves. Videos work with video models, and frame by frame with image models.
    Limits: slower than sampling, and for one picture worse than it: its use is what cannot be sampled, and several models or losses at once. Cost: see the guidance.
    """

    node_id = "LodestarScoreDistillation"
    title = "Score Distillation"
    paper = "DreamFusion: Text-to-3D using 2D Diffusion (SDS)"
    aliases = ("SDS", "distil", "optimise latent", "DreamFusion")


@frozen(eq=False)
class DistilPictures(Distiller):
    """Optimises pictures themselves, pixel by pixel, under a distillation guidance: as Score Distillation, with the gradient brought back through the VAE's encoder.

        u <- u - rate share_i Adam( J^T g(encode(u)) ),   u kept within [0, 1]

    J: the Jacobian of the encoder. Guidances of models with different latents can lead one picture together (Hybrid Distillation), each through its own VAE, which must be connected
    to the guidance. For a video model the pictures are the frames of one video. A mask chooses the pixels that move.
    Limits: pixels follow every gap of the encoder, which leaves a grain that Total Variation Loss takes off; latents are the easier thing to optimise.
    Cost: see the guidance, and three times an encoding per iteration.
    """

    node_id = "LodestarDistilPictures"
    title = "Distil Pictures"
    paper = "A Unified Approach for Text- and Image-guided 4D"
    aliases = ("score distillation of pixels", "SDS", "optimise image")

    steps: int = param(300, "Iterations.", 0, 100000, 1, label="iterations")
    rate: float = param(0.02, "Learning rate: with Adam about how far a value moves per iteration.", 0.0, 1e4, 0.001)
