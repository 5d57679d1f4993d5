"""A small diffusion model of lines of text (TextSR): it sees the low-resolution line and the bytes of what is written there.

Keys, each with weight and bias where nothing else is said:

    line [2]                            (without weight or bias) height and width of a line in pixels, multiples of 4
    enter                               convolution of the noisy and the low-resolution line, in cells of 2 x 2 pixels (24 channels)
    time.0, time.2                      linear layers of the noise level's sines and cosines
    text.embed.weight [258, w]          of the bytes of the UTF-8 text, 256: behind its end, 257: the end
    text.place                          linear layer of where a character stands (sines and cosines); also `place` of each attention, for the picture's cells
    text.layers.N                       transformer layers among the bytes (torch.nn.TransformerEncoderLayer)
    down.I, middle, up.I                {conv1, conv2, time, skip (where widths differ)}, and attend.{to_q, to_k, to_v, to_out, place, offset}: cross-attention of cells to bytes,
                                        whose result is joined by how far the cell is from the characters that it looks at
    reduce.I                            convolutions that halve
    leave                               convolution to the velocity (12 channels)

Widths and depths are read from the shapes; heads have 16 channels.
"""
from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

END, PAD = 257, 256
FREQUENCIES = 6      # of a place
HEAD = 16


def places(x):
    """Sines and cosines [..., 2 FREQUENCIES] of places x in 0..1."""
    angles = x[..., None] * math.pi * 2.0 ** torch.arange(FREQUENCIES, dtype=torch.float32, device=x.device)
    return torch.cat((angles.sin(), angles.cos()), -1)


def encode(lines, length):
    """(ids [n, length], where each byte's character stands [n, length] in 0..1) of texts; an empty text is one end, and means that nothing is known."""
    ids, at = torch.full((len(lines), length), PAD), torch.zeros(len(lines), length)
    for i, line in enumerate(lines):
        found = [(b, (k + 0.5) / len(line)) for k, c in enumerate(line) for b in c.encode("utf-8")][:length - 1]
        for j, (b, place) in enumerate(found):
            ids[i, j], at[i, j] = b, place
        ids[i, len(found)] = END
    return ids, at


class _Attend(nn.Module):
    def __init__(self, width, text):
        super().__init__()
        self.to_q, self.to_k, self.to_v, self.to_out = nn.Linear(width, width), nn.Linear(text, width), nn.Linear(text, width), nn.Linear(width, width)
        self.place, self.offset = nn.Linear(2 * FREQUENCIES, width), nn.Linear(2 * FREQUENCIES * (width // HEAD), width)

    def forward(self, h, text, at, mask):
        n, c, height, width = h.shape
        x = F.group_norm(h, 8).flatten(2).transpose(1, 2)
        here = ((torch.arange(width, device=h.device) + 0.5) / width).repeat(height)
        q, k, v = (t.unflatten(-1, (-1, HEAD)).transpose(1, 2) for t in (self.to_q(x) + self.place(places(here)), self.to_k(text), self.to_v(text)))
        share = (q @ k.transpose(-1, -2) / HEAD ** 0.5).masked_fill(~mask[:, None, None], -torch.inf).softmax(-1)
        away = here[None, None] - (share @ at[:, None, :, None])[..., 0]      # [n, heads, cells]
        out = (share @ v).transpose(1, 2).flatten(2) + self.offset(places(away).transpose(1, 2).flatten(2))
        return h + self.to_out(out).transpose(1, 2).view(n, c, height, width)


class _Block(nn.Module):
    def __init__(self, given, width, time, text):
        super().__init__()
        self.conv1, self.conv2, self.time = nn.Conv2d(given, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1), nn.Linear(time, width)
        self.skip = nn.Conv2d(given, width, 1) if given != width else None
        self.attend = _Attend(width, text)

    def forward(self, x, time, text, at, mask):
        h = self.conv1(F.silu(F.group_norm(x, 8))) + self.time(time)[..., None, None]
        h = self.conv2(F.silu(F.group_norm(h, 8))) + (x if self.skip is None else self.skip(x))
        return self.attend(h, text, at, mask)


class TextNetwork(nn.Module):
    """forward(noisy [n, 3, h, w], level [n] in 0..1, low-resolution line [n, 3, h, w], ids, places) -> velocity; pictures in [-1, 1]."""

    def __init__(self, widths=(32, 64), text=64, time=64, layers=1, line=(16, 64)):
        super().__init__()
        self.register_buffer("line", torch.tensor(line, dtype=torch.float32))
        self.length = 32
        self.enter, self.leave = nn.Conv2d(24, widths[0], 3, padding=1), nn.Conv2d(widths[0], 12, 3, padding=1)
        self.time = nn.Sequential(nn.Linear(32, time), nn.SiLU(), nn.Linear(time, time))
        self.text = nn.Module()
        self.text.embed, self.text.place = nn.Embedding(258, text), nn.Linear(2 * FREQUENCIES, text)
        self.text.layers = nn.ModuleList(nn.TransformerEncoderLayer(text, text // HEAD, 2 * text, dropout=0.0, batch_first=True, norm_first=True) for _ in range(layers))
        before = (widths[0], *widths[:-1])
        self.down = nn.ModuleList(_Block(a, b, time, text) for a, b in zip(before, widths))
        self.reduce = nn.ModuleList(nn.Conv2d(w, w, 3, 2, 1) for w in widths[:-1])
        self.middle = _Block(widths[-1], widths[-1], time, text)
        self.up = nn.ModuleList(_Block(widths[i] + (widths[i + 1] if i + 1 < len(widths) else widths[i]), widths[i], time, text) for i in reversed(range(len(widths))))

    @property
    def size(self):
        """(height, width) of a line in pixels."""
        return tuple(int(v) for v in self.line)

    def forward(self, x, level, low, ids, at):
        longest = int((ids != PAD).sum(1).max())
        ids, at = ids[:, :longest], at[:, :longest]
        mask = ids != PAD
        text = self.text.embed(ids) + self.text.place(places(at))
        for layer in self.text.layers:
            text = layer(text, src_key_padding_mask=~mask)
        angles = 1000.0 * level[:, None] * torch.exp(-math.log(10000.0) * torch.arange(16, device=x.device) / 16)
        time = self.time(torch.cat((angles.sin(), angles.cos()), -1))
        h, kept = self.enter(F.pixel_unshuffle(torch.cat((x, low), 1), 2)), []
        for i, block in enumerate(self.down):
            h = block(h, time, text, at, mask)
            kept.append(h)
            h = self.reduce[i](h) if i < len(self.reduce) else h
        h = self.middle(h, time, text, at, mask)
        for i, block in enumerate(self.up):
            h = h if i == 0 else F.interpolate(h, scale_factor=2, mode="nearest")
            h = block(torch.cat((h, kept.pop()), 1), time, text, at, mask)
        return F.pixel_shuffle(self.leave(F.silu(h)), 2)


def parse(tensors):
    """The TextNetwork of a file's tensors, frozen; ValueError that says what is wrong."""
    shape = {k: tuple(v.shape) for k, v in tensors.items()}
    needed = ("line", "enter.weight", "time.0.weight", "text.embed.weight", "text.place.weight", "middle.conv1.weight", "leave.weight")
    missing = [k for k in needed if k not in shape]
    if missing:
        raise ValueError(f"It holds no network of lines of text: {', '.join(missing)} missing.")
    count = lambda stem: 1 + max((int(k.split(".")[len(stem.split("."))]) for k in shape if k.startswith(stem + ".")), default=-1)
    line = tuple(int(v) for v in tensors["line"].flatten().tolist())
    step = 2 ** count("down")
    if len(line) != 2 or min(line) < step or any(v % step for v in line):
        raise ValueError(f"`line` is {line}; height and width in pixels are wanted, multiples of {step}.")
    with torch.inference_mode(False):      # nodes run in it
        try:
            network = TextNetwork(tuple(shape[f"down.{i}.conv2.weight"][0] for i in range(count("down"))), shape["text.embed.weight"][1], shape["time.0.weight"][0], count("text.layers"), line)
            network.load_state_dict({k: v.clone().float() for k, v in tensors.items()})
        except (RuntimeError, KeyError, IndexError, ValueError) as error:
            raise ValueError(f"It is not complete, or of another form: {error}") from error
    return network.eval().requires_grad_(False)
