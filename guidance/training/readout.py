"""Readout heads: small networks that read a map, or the looks, out of a diffusion network's features; their training and the file they are kept in.

Keys of the file (fp16 or fp32), I = 0, 1, ... counting the layers:
    about [bytes]                                         "kind|layer layer ...": spatial, appearance or correspondence, and the layers whose features are read, in order
    parts.I.{conv1, conv2, conv3, shortcut}.weight        1 x 1 to a quarter of the width, 3 x 3, 1 x 1; behind each parts.I.{norm1, norm2, norm3, norms}.{weight, bias}
    parts.I.time.{weight, bias}                           of 16 sines and cosines of the share of noise t = atan2(s, a) / (pi / 2), added behind conv1
    mixing [layers]                                       the layers' weights before their softmax
    head.{0, 2}.{weight, bias}                            3 x 3 convolutions; the last one gives the map before tanh(h / 4) (spatial), or the vector of a place (appearance, correspondence)
"""
from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..attention.properties import gathered
from ..frozen import frozen
from ..loss.flow import resized
from ..method import BadInput, Method, param, socket
from .classifier import noised
from .predictor import BANDS, angle, bands, group_norm, settled
from .steps import AdamW

KINDS = ("spatial", "appearance", "correspondence")
SOFT = 4.0      # the hyperbolic tangent's input is divided by it: without, the first steps of a training drive it to where it has no slope


def refuse_what_is_no_picture(x, node, field):
    """BadInput for latents that are neither [n, channels, height, width] nor that with one frame."""
    if x.ndim != 4 and not (x.ndim == 5 and x.shape[2] == 1):
        raise BadInput(node, field, "a video" if x.ndim == 5 else "no picture", "Readout heads are for pictures.")


class _Part(nn.Module):
    """A layer's features [n, channels, height, width] as [n, width, height, width]."""

    def __init__(self, channels, width):
        super().__init__()
        narrow = width // 4
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(channels, narrow, 1, bias=False), nn.Conv2d(narrow, narrow, 3, padding=1, bias=False), nn.Conv2d(narrow, width, 1, bias=False)
        self.shortcut = nn.Conv2d(channels, width, 1, bias=False)
        self.norm1, self.norm2 = group_norm(narrow), group_norm(narrow)
        self.norm3, self.norms = group_norm(width), group_norm(width)
        self.time = nn.Linear(2 * BANDS, narrow)

    def forward(self, x, time):
        h = F.relu(self.norm1(self.conv1(x))) + F.relu(self.time(time))[:, :, None, None]
        h = self.norm3(self.conv3(F.relu(self.norm2(self.conv2(h)))))
        return F.relu(h + self.norms(self.shortcut(x)))


class ReadoutHead(nn.Module):
    """forward([features of each layer [n, channels, h, w]], t [n], (height, width)) -> [n, out, height, width]; all layers are brought to that size."""

    def __init__(self, channels, out, width=64):
        super().__init__()
        self.parts = nn.ModuleList(_Part(c, width) for c in channels)
        self.mixing = nn.Parameter(torch.zeros(len(channels)))
        self.head = nn.Sequential(nn.Conv2d(width, width // 2, 3, padding=1), nn.SiLU(), nn.Conv2d(width // 2, out, 3, padding=1))

    def forward(self, features, t, size):
        time, mixed = bands(t), 0.0
        for part, x, weight in zip(self.parts, features, self.mixing.softmax(0)):
            x = x if x.shape[-2:] == size else F.interpolate(x, size, mode="bilinear", align_corners=False)
            mixed = mixed + weight * part(x, time)
        return self.head(mixed)


@frozen(eq=False)
class Readout:
    """A trained head, what it reads ("spatial", "appearance" or "correspondence") and the layers' names in order."""

    network: Any
    kind: str
    layers: tuple

    def __deepcopy__(self, memo):
        return self

    @property
    def channels(self):
        return self.network.head[2].weight.shape[0]

    def read(self, found, batch, sigma, flow, size, where=None):
        """Maps [batch, out, *size] from -1 to 1 (spatial), unit vectors [batch, out] (appearance), or one at each place [batch, out, *size] (correspondence), of features {layer: [tensors]} that a graph reader kept (guidance.attention.properties); where [batch or 1, 1, *size]: what of the picture
        a vector is taken from."""
        kept = gathered(found, batch)
        missing = [name for name in self.layers if name not in kept]
        if missing:
            raise BadInput("Readout Guidance", "readout", f"features of {', '.join(missing)}", f"This network gave those of {', '.join(kept) or 'no layer'}: the head belongs to another one.")
        features = [kept[name][:, 0].float() for name in self.layers]
        wanted = [p.conv1.weight.shape[1] for p in self.network.parts]
        if [f.shape[1] for f in features] != wanted:
            raise BadInput("Readout Guidance", "readout", f"features of {wanted} channels", f"This network's have {[f.shape[1] for f in features]}: the head belongs to another one.")
        out = self.network.to(features[0].device)(features, angle(sigma, flow).float(), size)
        if self.kind == "spatial":
            return (out / SOFT).tanh()
        if self.kind == "correspondence":
            return F.normalize(out, dim=1)
        return F.normalize(out.mean((2, 3)) if where is None else (out * where.to(out)).sum((2, 3)), dim=1)

    def tensors(self):
        """{key: tensor} of the file."""
        about = torch.tensor(list(f"{self.kind}|{' '.join(self.layers)}".encode()), dtype=torch.uint8)
        return {**{k: v.detach().cpu().half().contiguous() for k, v in self.network.state_dict().items()}, "about": about}


def parse(tensors):
    """The Readout of a file's tensors; ValueError that says what is wrong."""
    try:
        kind, _, layers = bytes(tensors["about"].to(torch.uint8).tolist()).decode().partition("|")
        channels = [tensors[f"parts.{i}.conv1.weight"].shape[1] for i in range(len(layers.split()))]
        with torch.inference_mode(False):      # nodes run in it; gradients go through these
            network = ReadoutHead(channels, tensors["head.2.weight"].shape[0], tensors["head.0.weight"].shape[1])
            network.load_state_dict({k: v.clone().float() for k, v in tensors.items() if k != "about"})
    except (KeyError, RuntimeError, UnicodeDecodeError) as error:
        raise ValueError(f"It holds no readout head ({error}).") from error
    if kind not in KINDS:
        raise ValueError(f"It holds a head of the kind {kind!r}; known are {', '.join(KINDS)}.")
    return Readout(settled(network), kind, tuple(layers.split()))


@frozen(eq=False)
class TrainReadoutHead(Method):
    """Trains a readout head on the MODEL's own features inside the graph: what it is to read is given for clean latents, and it learns to read it at every noise level.

        f_l = features of layer l at x = a x0 + s n, s drawn evenly over the schedule;   h = head(sum_l softmax(mixing)_l part_l(f_l, t)),  t = atan2(s, a) / (pi / 2)
        spatial      mean (tanh(h / 4) - map)^2,  map from -1 to 1: edges, depth, a pose, a mask ... as a picture for each latent
        appearance   max(0, margin + cos(h, other) - cos(h, same)),  h the mean over places: latents of one group look alike
        correspondence   mean over places p of - log softmax_q(c cos(h_a(p), h_b(q))) at q = p + flow(p), and the same from b to a:  latents in pairs a, b, and the flow from one to the other; c learned

    Layers: the residual blocks of a U-Net's decoder, the values of every third layer of DiTs. The head belongs to that network.
    Defaults: AdamW 1e-3, 300 steps of 8 (paper: 5000 steps; 1000 of 1e-4 for appearance), margin 0.5 (paper), width 64 (paper 384), 64 places of a pair, half of them where something moves. Deviations: features behind the residual block's addition (paper: before it),
    the share of noise in place of the network's own embedding of time, a head of two convolutions for three, appearance as the mean over places (the released code compares place by place, of pictures that
    have their things in the same places), a learning rate that falls. Paper: Luo et al., arXiv 2312.02150. Cost: an evaluation of 8 latents per step.
    """

    node_id = "LodestarTrainReadoutHead"
    title = "Train Readout Head"
    family = "training"
    paper = "Readout Guidance"
    aliases = ("hyperfeatures", "feature head")
    evaluations = "1 per step of the training"

    steps: int = param(300, "Steps of the training.", 1, 1000000, 1)
    batch: int = param(8, "Latents of a step.", 2, 1024, 1)
    rate: float = param(1e-3, "Learning rate; it falls to 0 over the last third.", 0.0, 1.0, 1e-5, advanced=True)
    width: int = param(64, "Channels of the head, a multiple of 32.", 32, 1024, 32, advanced=True)
    margin: float = param(0.5, "By how much latents of one group are to be more alike than others (appearance).", 0.0, 2.0, 0.01, advanced=True)
    seed: int = param(0, "Weights at first, order and noise.", 0, 2**63 - 1, 1)
    layers: str = param("", "Whose features are read. Empty: a U-Net's decoder, every third layer of DiTs.", advanced=True)

    def validate(self):
        super().validate()
        if self.width % 32:
            raise BadInput(self.title, "width", self.width, "It must be a multiple of 32.")
        return self

    def run(self, x0, maps, groups, features_of, sigma_of, flow=False, tick=None, moves=None):
        """(Readout, loss at first, loss at last) of clean latents x0 [n, ...]: maps [n, out, height, width] from -1 to 1, groups [n], or moves, vectors [n / 2, 2, h, w] in pixels of their own grid from the first
        latent of each pair to the second; features_of(x, sigma) -> ({layer: [tensors]}) of noisy ones."""
        kind = "spatial" if maps is not None else "appearance" if groups is not None else "correspondence"
        moves = None if moves is None else resized(moves.float(), *x0.shape[-2:])
        generator, history, readout = torch.Generator().manual_seed(self.seed), [], None
        members = None if groups is None else {int(g): (groups == g).nonzero().flatten() for g in groups.unique()}
        with torch.inference_mode(False), torch.enable_grad():
            optimiser = None
            for i in range(self.steps):
                rows = self._rows(len(x0), members, generator, moves is not None)
                times = torch.rand(len(rows), generator=generator) * 0.98 + 0.01
                if moves is not None:
                    times = times[::2].repeat_interleave(2)      # the two of a pair are compared at one level
                levels = torch.tensor([float(sigma_of(p)) for p in times.tolist()])
                x, s = noised(x0[rows], levels, flow, generator)
                found = {k: [p.detach().clone().float() for p in parts] for k, parts in features_of(x, s).items()}
                if readout is None:
                    with torch.random.fork_rng(devices=[]):
                        torch.manual_seed(self.seed)
                        network = ReadoutHead([v[0].shape[1] for v in found.values()], maps.shape[1] if kind == "spatial" else self.width, self.width)
                    readout = Readout(network.to(next(iter(found.values()))[0].device), kind, tuple(found))
                    scale = torch.tensor(math.log(1 / 0.07), requires_grad=True)
                    optimiser = AdamW([*network.parameters(), *([scale] if moves is not None else [])])
                h = readout.read(found, len(rows), s.to(next(iter(found.values()))[0].device), flow, tuple(x0.shape[-2:]))
                if kind == "spatial":
                    loss = (h - maps[rows].to(h)).square().mean()
                else:
                    loss = triplet(h, self.margin) if kind == "appearance" else matched(h, moves[rows[::2] // 2].to(h), scale.exp().clamp(max=100.0), generator)
                optimiser.step(loss, self.rate * min(1.0, 3 * (self.steps - i) / self.steps))
                history.append(float(loss.detach()))
                if tick is not None:
                    tick(i + 1, self.steps, history[-1])
        few = max(1, self.steps // 10)
        return Readout(settled(readout.network), kind, readout.layers), sum(history[:few]) / few, sum(history[-few:]) / few

    def _rows(self, count, members, generator, paired=False):
        """The latents of a step: any of them; pairs; or threes of two of one group and one of another, one behind the other."""
        if paired:
            first = 2 * torch.randint(count // 2, (max(1, self.batch // 2),), generator=generator)
            return torch.stack((first, first + 1), 1).flatten()
        if members is None:
            return torch.randint(count, (self.batch,), generator=generator)
        names, rows = list(members), []
        for _ in range(max(1, self.batch // 3)):
            a, b = torch.randperm(len(names), generator=generator)[:2].tolist()
            pick = lambda own, n: own[torch.randperm(len(own), generator=generator)[:n]] if len(own) >= n else own[:1].repeat(n)
            rows += [*pick(members[names[a]], 2).tolist(), *pick(members[names[b]], 1).tolist()]
        return torch.tensor(rows)


def triplet(h, margin):
    """mean max(0, margin + cos(first, third) - cos(first, second)) of unit vectors [3 n, width] in threes."""
    first, second, third = h.unflatten(0, (-1, 3)).unbind(1)
    return (margin + (first * third).sum(1) - (first * second).sum(1)).clamp(min=0).mean()


PLACES = 64      # of a pair, in a step


def matched(h, moves, scale, generator):
    """How little the places of pairs find each other: h [2 n, width, height, width of the grid] of unit vectors, the two of a pair one behind the other; moves [n, 2, height, width] in cells."""
    total, (height, width) = 0.0, h.shape[-2:]
    for first, second, move in zip(h[::2], h[1::2], moves):
        x, y = (torch.arange(n, device=h.device, dtype=h.dtype) + 0.5 for n in (width, height))
        gone = torch.stack(((x + move[0]).flatten(), (y[:, None] + move[1]).flatten()), 1)
        inside = ((gone >= 0) & (gone < gone.new_tensor((width, height)))).all(1)
        moving = (move.abs().amax(0) > 0.25).flatten()
        chosen = [p for some in (inside & moving, inside) for p in some.nonzero().flatten()[torch.randperm(int(some.sum()), generator=generator)[:PLACES // 2].to(h.device)].tolist()]
        if not chosen:
            continue
        here = torch.tensor(chosen, device=h.device)
        to = gone[here].floor().long()
        there = to[:, 1] * width + to[:, 0]
        a, b = first.flatten(1).T, second.flatten(1).T
        total = total + F.cross_entropy(scale * a[here] @ b.T, there) + F.cross_entropy(scale * b[there] @ a.T, here)
    return total / (2 * len(moves)) + 0 * scale
