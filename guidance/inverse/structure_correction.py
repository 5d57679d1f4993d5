"""GenDeg's structure correction: a NAFNet that sees the clean picture mends what the VAE did to the degraded one."""
from __future__ import annotations

import re
from typing import Any

import torch
import torch.nn.functional as F

from ..frozen import frozen
from ..method import BadInput

_KEY = re.compile(r"^(?:(encoders|decoders)\.(\d+)\.(\d+)|(middle_blks)\.(\d+))\.conv1\.weight$")
EXAMPLE = "intro.weight [width, 6, 3, 3], encoders.0.0.conv1.weight, middle_blks.0.conv1.weight, decoders.0.0.conv1.weight, ending.weight"
EPS = 1e-6


@frozen(eq=False)
class StructureNetwork:
    """A NAFNet from six colours (the clean picture's, the degraded one's) to three. weights: {key: tensor} in its authors' names; encoders, middle, decoders: how many blocks each has. Compared by identity.

        block:  y = h + beta conv3(g(dw(conv1(norm h))) sca(mean)),   out = y + gamma conv5(g(conv4(norm y))),   g(a, b) = a b
    """

    weights: Any
    encoders: tuple
    middle: int
    decoders: tuple
    name: str = "structure correction"

    def __deepcopy__(self, memo):
        return self

    def to(self, device):
        return StructureNetwork({k: v.to(device, torch.float32) for k, v in self.weights.items()}, self.encoders, self.middle, self.decoders, self.name)

    def conv(self, x, name, **options):
        return F.conv2d(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"), **options)

    def norm(self, x, name):
        """Over the channels of each pixel."""
        return F.layer_norm(x.movedim(1, -1), x.shape[1:2], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], EPS).movedim(-1, 1)

    def block(self, h, name):
        def gate(t):
            a, b = t.chunk(2, 1)
            return a * b
        t = self.conv(self.norm(h, f"{name}.norm1"), f"{name}.conv1")
        t = gate(self.conv(t, f"{name}.conv2", padding=1, groups=t.shape[1]))
        t = t * self.conv(t.mean((2, 3), keepdim=True), f"{name}.sca.1")
        y = h + self.conv(t, f"{name}.conv3") * self.weights[f"{name}.beta"]
        return y + self.conv(gate(self.conv(self.norm(y, f"{name}.norm2"), f"{name}.conv4")), f"{name}.conv5") * self.weights[f"{name}.gamma"]

    def residual(self, clean, degraded):
        """What is to be added to degraded pictures [n, 3, h, w]; both in [-1, 1]. Sides are padded with zeros to what the network halves."""
        h, w = clean.shape[-2:]
        side = 2 ** len(self.encoders)
        x, kept = self.conv(F.pad(torch.cat((clean, degraded), 1), (0, -w % side, 0, -h % side)), "intro", padding=1), []
        for i, count in enumerate(self.encoders):
            for j in range(count):
                x = self.block(x, f"encoders.{i}.{j}")
            kept.append(x)
            x = self.conv(x, f"downs.{i}", stride=2)
        for j in range(self.middle):
            x = self.block(x, f"middle_blks.{j}")
        for i, count in enumerate(self.decoders):
            x = F.pixel_shuffle(self.conv(x, f"ups.{i}.0"), 2) + kept.pop()
            for j in range(count):
                x = self.block(x, f"decoders.{i}.{j}")
        return self.conv(x, "ending", padding=1)[..., :h, :w]


def corrected(network, clean, degraded, strength=1.0):
    """Degraded pictures [n, 3, h, w] in [0, 1] with their structure mended: d + strength f(clean, d). Strength 0 leaves every bit."""
    return degraded if strength == 0 else (degraded + strength / 2 * network.residual(2 * clean - 1, 2 * degraded - 1)).clamp(0, 1)


def layout(width, encoders, middle, decoders):
    """{key: shape} of a network."""
    found = {"intro.weight": (width, 6, 3, 3), "intro.bias": (width,), "ending.weight": (3, width, 3, 3), "ending.bias": (3,)}

    def block(name, c):
        for part, shape in {"conv1": (2 * c, c, 1, 1), "conv2": (2 * c, 1, 3, 3), "conv3": (c, c, 1, 1), "sca.1": (c, c, 1, 1), "conv4": (2 * c, c, 1, 1), "conv5": (c, c, 1, 1), "norm1": (c,), "norm2": (c,)}.items():
            found[f"{name}.{part}.weight"], found[f"{name}.{part}.bias"] = shape, shape[:1]
        found[f"{name}.beta"] = found[f"{name}.gamma"] = (1, c, 1, 1)
    c = width
    for i, count in enumerate(encoders):
        for j in range(count):
            block(f"encoders.{i}.{j}", c)
        found[f"downs.{i}.weight"], found[f"downs.{i}.bias"] = (2 * c, c, 2, 2), (2 * c,)
        c *= 2
    for j in range(middle):
        block(f"middle_blks.{j}", c)
    for i, count in enumerate(decoders):
        found[f"ups.{i}.0.weight"] = (2 * c, c, 1, 1)
        c //= 2
        for j in range(count):
            block(f"decoders.{i}.{j}", c)
    return found


def parse(weights, node, field, name="structure correction"):
    """A StructureNetwork of a file's tensors; BadInput that names the key and what would be right."""
    wrong = lambda what: BadInput(node, field, name, f"{what} Keys like {EXAMPLE} are expected (a NAFNet of six input colours, with its keys as they are).")
    if "intro.weight" not in weights or weights["intro.weight"].ndim != 4:
        raise wrong(f"It is no NAFNet; it has {', '.join(list(weights)[:3]) or 'no keys'}.")
    counts = {"encoders": {}, "decoders": {}, "middle_blks": {0: 0}}
    for key in weights:
        at = _KEY.match(key)
        if at:
            place, i, j = (at[1], int(at[2]), int(at[3])) if at[1] else (at[4], 0, int(at[5]))
            counts[place][i] = max(counts[place].get(i, 0), j + 1)
    encoders, decoders = (tuple(counts[p].get(i, 0) for i in range(1 + max(counts[p], default=-1))) for p in ("encoders", "decoders"))
    if len(encoders) != len(decoders):
        raise wrong(f"It has {len(encoders)} encoders and {len(decoders)} decoders.")
    wanted = layout(weights["intro.weight"].shape[0], encoders, counts["middle_blks"][0], decoders)
    odd = next((k for k in wanted if k not in weights or tuple(weights[k].shape) != wanted[k]), None) or next((k for k in weights if k not in wanted), None)
    if odd:
        raise wrong(f"{odd}: {list(weights[odd].shape) if odd in weights else 'missing'}, where {list(wanted[odd]) if odd in wanted else 'no such tensor'} would be right.")
    return StructureNetwork({k: v.float() for k, v in weights.items()}, encoders, counts["middle_blks"][0], decoders, name)
