"""Heat maps of words, of what Capture Attention has read."""
from __future__ import annotations

import re

import torch

from ..method import BadInput
from ..reading.pictures import enlarged, overlaid, spectrum, stretched

SCALES = ("each", "common")
_WORD = re.compile(r"[^\s,.;:()\[\]{}\"]+")


def tokens_of(words, phrases):
    """[(phrase, positions of its tokens)] of a prompt; without phrases those of each of its words that can be found. `words` is guidance.attention.tokens.Words."""
    if phrases:
        return [(p, words.find(p)) for p in phrases]
    found = []
    for word in dict.fromkeys(_WORD.findall(words.text)):
        try:
            found.append((word, words.find(word)))
        except BadInput:      # a weight, a part of a longer token
            continue
    return found


def phrase_maps(record, groups, least=0):
    """Maps [batch, phrases, frames, height, width] of the record's largest grid: the mean over the tokens of each phrase. None where nothing was read."""
    if not record.grids:
        return None
    frames, height, width, _ = max(record.grids, key=lambda key: key[1] * key[2])
    found = record.picture(height, width, least)
    return torch.stack([found[:, list(tokens)].mean(1) for tokens in groups], 1)


def heat(maps, size, scale=SCALES[0]):
    """Heat [batch, frames, phrases, height, width] from 0 to 1 of maps [batch, phrases, frames, h, w]: "each" map from its least value to its largest; "common": 0
    stays, 1 is the largest value of a picture's maps, so that they can be compared."""
    batch, phrases, frames = maps.shape[:3]
    large = enlarged(maps.transpose(1, 2).flatten(0, 2), size).clamp(min=0)
    if scale == "each":
        return stretched(large).unflatten(0, (batch, frames, phrases))
    large = large.unflatten(0, (batch, frames, phrases))
    return large / large.flatten(1).amax(1).clamp(min=1e-12).view(-1, 1, 1, 1, 1)


def drawn(heats, pictures=None, strength=0.6):
    """IMAGE [batch frames phrases, height, width, 3] of heat [batch, frames, phrases, height, width], over pictures [n, height, width, 3] where there are any: one
    for all, or n shared out evenly over the batch and its frames."""
    batch, frames, phrases = heats.shape[:3]
    flat = heats.flatten(0, 2)
    if pictures is None:
        return spectrum(flat)
    place = torch.arange(batch * frames) * pictures.shape[0] // (batch * frames)
    return overlaid(pictures[place].repeat_interleave(phrases, 0).to(flat), flat, strength)
