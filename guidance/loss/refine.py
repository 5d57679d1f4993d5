"""Refining a finished latent by a loss, without the network."""
from __future__ import annotations

from typing import Any

import torch

from ..frozen import frozen
from ..gradients import LOSS_SCALE, plain_context
from ..method import BadInput, Method, param, socket
from .base import VALUES_ONLY, LossContext

OPTIMISERS = ("SGD", "Adam")


@frozen(eq=False)
class LossRefinement(Method):
    """Moves a finished latent downhill on a loss: no sampling, no network, only what the loss itself needs (mostly the decoder).

        z <- z - rate grad_z ( loss(z) + keep mean (z - z_0)^2 )           SGD;   Adam: its step of about `rate` for each number
        each entry of a batch by its own loss; with stop_at an entry rests as soon as its loss is not above it

    SR-MPGD, the last stage of DiffQRCoder, is this with the scanning-robust loss: what the sampler left unreadable is repaired. It works for every loss with a gradient: colours, edges,
    a measurement.
    Defaults: SGD at 10, 100 steps (the released code: a nominal rate of 0.1 on a hundredfold loss, up to 1000 steps); keep 0; stop at 0. Where SGD hardly moves, the loss has small gradients: raise the rate, or take
    Adam at about 0.02. SGD changes most what matters most and stays smooth; Adam moves everything alike, which leaves a grain. A noise mask on the latent is kept: only what it marks moves.
    Limits: nothing keeps the picture natural but `keep` and the small steps; many steps make patterns that only the loss sees. Paper: arXiv 2409.06355.
    Cost: a decoding and its backward pass a step.
    """

    node_id = "LodestarLossRefinement"
    title = "Refine by Loss"
    family = "loss"
    paper = "DiffQRCoder"
    aliases = ("SR-MPGD", "latent optimisation", "repair")
    evaluations = "0 (a backward pass through the decoder for each step)"

    loss: Any = socket("LODESTAR_LOSS", "What to make small.")
    steps: int = param(100, "Steps at most.", 0, 10000, 1)
    rate: float = param(10.0, "Size of a step: SGD moves the latent by this times the gradient, Adam each number of it by about this much (0.02 is usual).", 0.0, 1e6, 0.001)
    optimiser: str = param("SGD", "SGD follows the gradient as it is; Adam makes steps of one size whatever the loss.", choices=OPTIMISERS)
    keep: float = param(0.0, "Weight of the mean squared distance to the latent as it came.", 0.0, 1e6, 0.01)
    stop_at: float = param(0.0, "An entry of the batch rests when its loss is not above this.", -1e6, 1e6, 0.001, advanced=True)

    def neutral(self):
        return self.steps == 0 or self.rate == 0

    def run(self, z, mask=None, progress=None):
        """(refined latent, losses [steps + 1, batch]) of z [batch, ...] in the model's latent space; mask like z, 1 where it may move; progress(i, z, values) after each step."""
        if not self.loss.differentiable:
            raise BadInput(self.title, "loss", self.loss.title, VALUES_ONLY)
        start = z.detach().clone().float()
        with torch.inference_mode(False), torch.enable_grad():
            z = start.clone().requires_grad_(True)
            rule = {"Adam": torch.optim.Adam, "SGD": torch.optim.SGD}[self.optimiser]([z], lr=self.rate)
            history = []
            for i in range(self.steps + 1):
                with plain_context():
                    values = self.loss.value(z, LossContext()).float()
                    total = values + self.keep * (z - start).flatten(1).square().mean(1)
                    slope, = torch.autograd.grad(total.sum() * LOSS_SCALE, z)
                slope = slope / LOSS_SCALE
                history.append(values.detach())
                if not bool(torch.isfinite(slope).all()):
                    raise ValueError(f"{self.title}: the gradient of {self.loss.title} is not finite at step {i}; lower the rate or the loss's weight.")
                moving = values.detach() > self.stop_at
                if i == self.steps or not bool(moving.any()):
                    break
                before = z.detach().clone()
                z.grad = slope
                rule.step()
                with torch.no_grad():
                    free = moving.view(-1, *[1] * (z.ndim - 1)).to(z)
                    z.copy_(before + (z - before) * (free if mask is None else free * mask))
                if progress is not None:
                    progress(i, z.detach(), values.detach())
        return z.detach(), torch.stack(history)
