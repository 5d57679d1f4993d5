"""A small classifier of noisy latents that knows their noise level, one for all levels or several experts, and the safetensors file it is kept in.

Keys of the file (fp16 or fp32), for each expert N = 0, 1, ...:
    experts.N.enter.{weight [width, channels, 3, 3], bias}        the latent divided by c = sqrt(a^2 + s^2)
    experts.N.time.{0, 2}.{weight, bias}                          of 16 sines and cosines of the angle t = atan2(s, a) / (pi / 2): 0 clean, 1 noise
    experts.N.blocks.I.{norm, film, conv}.{weight, bias}          x + conv(silu(norm(x) (1 + scale) + shift)); after every second one cells are averaged two by two
    experts.N.norm, experts.N.leave.{weight [classes, width], bias}    of the mean over the cells
    edges [experts + 1]      angles from 0 to 1: expert N is for edges[N] <= t < edges[N + 1]
    values [classes]         the number that each class stands for (the mean return of a bin; else 0, 1, 2 ...)
"""
from __future__ import annotations

import math
import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..frozen import frozen

BANDS = 16
BLOCKS = 4


def group_norm(width):
    """Normalisation in up to 8 groups of at least 4 channels, so that each has several values even where one cell is left."""
    return nn.GroupNorm(max(1, min(8, width // 4)), width)


def bands(t):
    """Sines and cosines [n, 2 BANDS] of shares of noise t [n]."""
    phases = t[:, None] * torch.exp(torch.linspace(0, math.log(30.0), BANDS, device=t.device))
    return torch.cat((phases.sin(), phases.cos()), 1)


class _Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.film, self.conv = group_norm(width), nn.Linear(width, 2 * width), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x, time):
        scale, shift = self.film(time)[:, :, None, None].chunk(2, 1)
        return x + self.conv(F.silu(self.norm(x) * (1 + scale) + shift))


class NoisyClassifier(nn.Module):
    """forward(x / c [n, channels, height, width], t [n]) -> logits [n, classes]; see the module's text."""

    def __init__(self, channels, classes, width=48, blocks=BLOCKS):
        super().__init__()
        self.enter = nn.Conv2d(channels, width, 3, padding=1)
        self.time = nn.Sequential(nn.Linear(2 * BANDS, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(_Block(width) for _ in range(blocks))
        self.norm, self.leave = group_norm(width), nn.Linear(width, classes)

    def forward(self, x, t):
        time = F.silu(self.time(bands(t)))
        h = self.enter(x)
        for i, block in enumerate(self.blocks):
            h = block(h, time)
            if i % 2 and min(h.shape[-2:]) > 1:
                h = F.avg_pool2d(h, 2, ceil_mode=True)
        return self.leave(F.silu(self.norm(h)).mean((2, 3)))


def angle(sigma, flow):
    """t = atan2(s, a) / (pi / 2) of noise levels: the same for models of both kinds at the same share of noise."""
    a = 1 - sigma if flow else torch.ones_like(sigma)
    return torch.atan2(sigma, a) / (math.pi / 2)


@frozen(eq=False)
class Predictor:
    """Experts (NoisyClassifier, ...) for ranges of the angle, and what their classes stand for. Immutable in use; its weights are ordinary tensors without gradients."""

    experts: tuple
    edges: Any      # [experts + 1]
    values: Any      # [classes]

    def __deepcopy__(self, memo):
        return self

    @property
    def classes(self):
        return len(self.values)

    @property
    def channels(self):
        return self.experts[0].enter.weight.shape[1]

    def expert_of(self, t):
        """The numbers [n] of the experts for angles t [n]."""
        return torch.bucketize(t, self.edges[1:-1].to(t), right=True)

    def logits(self, x, sigma, flow):
        """[batch, classes] for noisy latents x [batch, channels, (frames,) height, width] at levels sigma [batch]; of a video the mean over its frames."""
        frames = x.shape[2] if x.ndim == 5 else 1
        s = sigma.to(x).repeat_interleave(frames)
        x = x.movedim(2, 1).flatten(0, 1) if x.ndim == 5 else x
        a = 1 - s if flow else torch.ones_like(s)
        x = x / (a * a + s * s).sqrt().view(-1, 1, 1, 1)
        t = angle(s, flow)
        number, out = self.expert_of(t), x.new_zeros(x.shape[0], self.classes)
        for i in number.unique().tolist():
            rows = (number == i).nonzero().flatten()
            out = out.index_copy(0, rows, self.experts[i].to(x.device)(x[rows], t[rows]))
        return out.unflatten(0, (-1, frames)).mean(1)

    def tensors(self):
        """{key: tensor} of the file, in half precision where that is exact enough."""
        found = {f"experts.{i}.{k}": v.detach().cpu().half().contiguous() for i, e in enumerate(self.experts) for k, v in e.state_dict().items()}
        return {**found, "edges": self.edges.float().cpu().contiguous(), "values": self.values.float().cpu().contiguous()}


def settled(network):
    return network.eval().requires_grad_(False)


def parse(tensors):
    """The Predictor of a file's tensors; ValueError that says what is wrong."""
    numbers = sorted({int(m[1]) for k in tensors if (m := re.match(r"experts\.(\d+)\.", k))})
    if not numbers or numbers != list(range(len(numbers))) or "edges" not in tensors or "values" not in tensors:
        raise ValueError("It holds no noise-aware classifier: experts.0.*, edges and values are wanted.")
    with torch.inference_mode(False):      # nodes run in it; gradients go through these
        experts = []
        for n in numbers:
            own = {k[len(f"experts.{n}."):]: v.clone().float() for k, v in tensors.items() if k.startswith(f"experts.{n}.")}
            try:
                width, channels = own["enter.weight"].shape[:2]
                depth = len({k.split(".")[1] for k in own if k.startswith("blocks.")})
                network = NoisyClassifier(channels, own["leave.weight"].shape[0], width, depth)
                network.load_state_dict(own)
            except (KeyError, RuntimeError) as error:
                raise ValueError(f"Expert {n} is not complete: {error}") from error
            experts.append(settled(network))
        edges, values = tensors["edges"].clone().float(), tensors["values"].clone().float()
    if len(edges) != len(experts) + 1 or any(e.leave.weight.shape[0] != len(values) for e in experts):
        raise ValueError(f"{len(experts)} experts need {len(experts) + 1} edges, and each as many classes as there are values ({len(values)}).")
    return Predictor(tuple(experts), edges, values)
