"""The small text encoder shared by both generators: words of the caption grammar in, context [n, LENGTH, WIDTH] out.

Its targets are what a caption says of its scene (train_text.py), so the state at each noun already knows the noun's
colour, size and expected place, as a large language encoder's would.
"""
import re

import torch
import torch.nn.functional as F
from torch import nn

from .scenes import BACKGROUNDS, COLOURS, PLACES, SHAPES, SIZES

LENGTH = 24
WIDTH = 128
PAD, START, END = 0, 1, 2
WORDS = ("a", "an", "and", "on", "the", "of", "to", "in", "at", "above", "below", "background",
         *PLACES, *SIZES, *COLOURS, *BACKGROUNDS, *SHAPES)
VOCABULARY = {word: i + 3 for i, word in enumerate(WORDS)}
VOCABULARY["grey"] = VOCABULARY["gray"]
VOCABULARY["centre"] = VOCABULARY["center"]
SHAPE_IDS = tuple(VOCABULARY[s] for s in SHAPES)


def split(text):
    """Lower-case words of a text; punctuation separates and is dropped."""
    return re.findall(r"[a-z0-9']+", text.lower())


def encode_words(text):
    """(ids, unknown words) of a text: the ids of the known words in order, without start, end and padding."""
    words = split(text)
    return [VOCABULARY[w] for w in words if w in VOCABULARY], [w for w in words if w not in VOCABULARY]


def pad_ids(ids):
    """START, the ids (cut to what fits), END, then PAD up to LENGTH."""
    ids = [START] + list(ids)[:LENGTH - 2] + [END]
    return ids + [PAD] * (LENGTH - len(ids))


def tokenize(texts):
    """Token ids [n, LENGTH] of several texts; unknown words are left out."""
    return torch.tensor([pad_ids(encode_words(t)[0]) for t in texts])


class Block(nn.Module):
    """Pre-norm transformer block, bidirectional."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x, mask):
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(b, n, c))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class TextEncoder(nn.Module):
    """ids [n, LENGTH] -> (states [n, LENGTH, WIDTH], pooled [n, WIDTH], the state at END)."""

    def __init__(self, width=WIDTH, depth=3, heads=4):
        super().__init__()
        self.embed = nn.Embedding(len(WORDS) + 3, width)
        self.position = nn.Parameter(torch.randn(LENGTH, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)

    def forward(self, ids):
        mask = (ids != PAD)[:, None, None, :]
        x = self.embed(ids) + self.position.to(self.embed.weight.dtype)
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x)
        pooled = x[torch.arange(len(x), device=x.device), (ids == END).int().argmax(1)]
        return x, pooled
