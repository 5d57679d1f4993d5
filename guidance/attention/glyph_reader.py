"""A text recogniser: the vision half of ABINet, from its published weights in safetensors.

Keys (an outer "model.", "module." or "vision." is taken off):

    backbone.resnet.conv1, bn1, layer1 .. layer5.<n>.{conv1, bn1, conv2, bn2, downsample.0, downsample.1}      residual network, strides 2, 1, 2, 1, 1
    backbone.transformer.layers.<n>.{self_attn.in_proj_weight, self_attn.in_proj_bias, self_attn.out_proj, linear1, linear2, norm1, norm2}
    attention.k_encoder.<n>.{0, 1}, attention.k_decoder.<n>.{1, 2}, attention.project, attention.pos_encoder.pe       one query for each position of the text
    cls.weight, cls.bias                                                                                       [classes, width], class 0: no character

Widths, depths and the number of positions are read from the shapes; the classes after 0 are `CHARACTERS` (36 of them, or a part from the start).
Paper: Fang et al., "Read Like Humans: Autonomous, Bidirectional and Iterative Language Modeling for Scene Text Recognition", arXiv 2103.06495.
"""
from __future__ import annotations

import math
import re

import torch
import torch.nn.functional as F
from torch import nn

CHARACTERS = "abcdefghijklmnopqrstuvwxyz1234567890"
HEIGHT, WIDTH = 32, 128
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_PREFIXES = ("module.", "model.", "vision.")


class _Block(nn.Module):
    def __init__(self, inner, outer, stride, downsample):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inner, outer, 1, bias=False), nn.BatchNorm2d(outer)
        self.conv2, self.bn2 = nn.Conv2d(outer, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer)
        self.downsample = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer)) if downsample else nn.Identity()

    def forward(self, x):
        return (self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())) + self.downsample(x)).relu()


class _ResNet(nn.Module):
    STRIDES = (2, 1, 2, 1, 1)

    def __init__(self, first, widths, depths):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, first, 3, 1, 1, bias=False), nn.BatchNorm2d(first)
        inner = first
        for i, (width, depth, stride) in enumerate(zip(widths, depths, self.STRIDES)):
            blocks = []
            for n in range(depth):
                blocks.append(_Block(inner, width, stride if n == 0 else 1, n == 0 and (stride != 1 or inner != width)))
                inner = width
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        for i in range(5):
            x = getattr(self, f"layer{i + 1}")(x)
        return x


def positions(count, width):
    """Sines and cosines [count, 1, width]."""
    place = torch.arange(count, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * (-math.log(10000.0) / width))
    out = torch.zeros(count, width)
    out[:, 0::2], out[:, 1::2] = torch.sin(place * rate), torch.cos(place * rate)[:, :width // 2]
    return out[:, None]


class _Backbone(nn.Module):
    def __init__(self, resnet, width, inner, layers):
        super().__init__()
        self.resnet = resnet
        heads = 8 if width % 8 == 0 else 1
        self.transformer = nn.Module()
        self.transformer.layers = nn.ModuleList(nn.TransformerEncoderLayer(width, heads, inner, dropout=0.0) for _ in range(layers))

    def forward(self, x):
        f = self.resnet(x)
        n, c, h, w = f.shape
        t = f.flatten(2).permute(2, 0, 1)
        t = t + positions(h * w, c).to(t)
        for layer in self.transformer.layers:
            t = layer(t)
        return t.permute(1, 2, 0).view(n, c, h, w)


def _down(inner, outer, stride):
    return nn.Sequential(nn.Conv2d(inner, outer, 3, stride, 1), nn.BatchNorm2d(outer), nn.ReLU())


def _up(inner, outer, **size):
    return nn.Sequential(nn.Upsample(mode="nearest", **size), nn.Conv2d(inner, outer, 3, 1, 1), nn.BatchNorm2d(outer), nn.ReLU())


class _Attention(nn.Module):
    """One query for each position of the text; its keys from a small network down and up again."""

    def __init__(self, width, inner, length):
        super().__init__()
        self.length = length
        self.k_encoder = nn.Sequential(_down(width, inner, (1, 2)), *(_down(inner, inner, 2) for _ in range(3)))
        self.k_decoder = nn.Sequential(*(_up(inner, inner, scale_factor=2) for _ in range(3)), _up(inner, width, size=(HEIGHT // 4, WIDTH // 4)))
        self.project = nn.Linear(width, width)

    def forward(self, x):
        n, c = x.shape[:2]
        k, seen = x, []
        for layer in self.k_encoder:
            k = layer(k)
            seen.append(k)
        for i, layer in enumerate(self.k_decoder[:-1]):
            k = layer(k) + seen[len(self.k_decoder) - 2 - i]
        k = self.k_decoder[-1](k)
        q = self.project(positions(self.length, c).to(x)[:, 0]).expand(n, -1, -1)
        return ((q @ k.flatten(2)) / c ** 0.5).softmax(-1) @ x.flatten(2).transpose(1, 2)


class GlyphReader(nn.Module):
    """pictures [n, 3, 32, 128] -> logits [n, positions, classes]."""

    def __init__(self, weights):
        super().__init__()
        shape = {k: tuple(v.shape) for k, v in weights.items()}
        depths = [1 + max(int(k.split(".")[3]) for k in shape if k.startswith(f"backbone.resnet.layer{i}.")) for i in range(1, 6)]
        widths = [shape[f"backbone.resnet.layer{i}.0.conv2.weight"][0] for i in range(1, 6)]
        width, layers = widths[-1], 1 + max(int(k.split(".")[3]) for k in shape if k.startswith("backbone.transformer.layers."))
        inner = shape["backbone.transformer.layers.0.linear1.weight"][0]
        self.backbone = _Backbone(_ResNet(shape["backbone.resnet.conv1.weight"][0], widths, depths), width, inner, layers)
        self.attention = _Attention(width, shape["attention.k_encoder.0.0.weight"][0], shape["attention.pos_encoder.pe"][0])
        self.cls = nn.Linear(width, shape["cls.weight"][0])
        self.load_state_dict({k: v.float() for k, v in weights.items() if "pos_encoder" not in k}, strict=True)
        self.requires_grad_(False).eval()

    @property
    def length(self):
        return self.attention.length

    @property
    def characters(self):
        return CHARACTERS[:self.cls.out_features - 1]

    def forward(self, pictures):
        return self.cls(self.attention(self.backbone(pictures)))


def load(weights):
    """A GlyphReader from a state dict; ValueError that says what is missing."""
    found = {}
    for name, value in weights.items():
        while name.startswith(_PREFIXES):
            name = name.split(".", 1)[1]
        if name.startswith(("backbone.", "attention.", "cls.")) and not name.endswith("num_batches_tracked"):
            found[name] = value
    needed = ("backbone.resnet.conv1.weight", "backbone.transformer.layers.0.linear1.weight", "attention.k_encoder.0.0.weight", "attention.pos_encoder.pe", "cls.weight")
    missing = [k for k in needed if k not in found]
    if missing:
        raise ValueError(f"This file holds no text recogniser in ABINet's layout: {', '.join(missing)} missing.")
    try:
        return GlyphReader(found)
    except (RuntimeError, KeyError, ValueError) as error:
        raise ValueError(f"This file's tensors do not fit ABINet's layout: {str(error).splitlines()[-1].strip()}") from error


class TextScore:
    """How legible a text is in pictures: the value that TextCtrl measures. `reader` has `length` positions and `characters`, the classes after 0."""

    def __init__(self, reader):
        self.reader = reader

    def __deepcopy__(self, memo):
        return self

    def labels(self, text):
        """One-hot [positions, classes] of a text, class 0 behind its end; ValueError for what the recogniser does not know."""
        plain = re.sub(r"\s", "", text.lower())
        unknown = sorted(set(plain) - set(self.reader.characters))
        if unknown or len(plain) >= self.reader.length:
            raise ValueError(f"it cannot read {''.join(unknown)!r}" if unknown else f"it reads up to {self.reader.length - 1} characters")
        ids = torch.zeros(self.reader.length, dtype=torch.long)
        ids[:len(plain)] = torch.tensor([1 + self.reader.characters.index(c) for c in plain], dtype=torch.long)
        return F.one_hot(ids, len(self.reader.characters) + 1).float()

    def probabilities(self, pictures):
        """Class probabilities [n, positions, classes] of pictures [n, 3, h, w] in 0..1 that show a line of text each."""
        self.reader.to(pictures.device)
        lines = F.interpolate(pictures.float().clamp(0, 1), (HEIGHT, WIDTH), mode="bilinear", antialias=True, align_corners=False)
        mean, std = (torch.tensor(t, device=lines.device).view(1, 3, 1, 1) for t in (MEAN, STD))
        return self.reader((lines - mean) / std).softmax(-1)

    @torch.no_grad()
    def read(self, pictures):
        """The likeliest text of each picture, up to its end."""
        classes, found = self.probabilities(pictures).argmax(-1), []
        for row in classes.tolist():
            row = row[:row.index(0)] if 0 in row else row
            found.append("".join(self.reader.characters[c - 1] for c in row))
        return found

    @torch.no_grad()
    def __call__(self, pictures, texts):
        """[n] in 0..1: mean over positions of the cosine between class probabilities and the wanted class."""
        found = self.probabilities(pictures)
        wanted = torch.stack([self.labels(t) for t in texts]).to(found)
        return F.cosine_similarity(found, wanted, dim=2, eps=1e-6).mean(1)
