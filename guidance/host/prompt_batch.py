"""One prompt for each picture of a batch, as one conditioning."""
from __future__ import annotations

import math

import torch

from ..method import BadInput

NODE = "Prompt per Picture"


def encode(clip, lines):
    """A conditioning whose row i is the i-th text: shorter texts are repeated to the longest's length, as the host does where it batches prompts."""
    lines = [line.strip() for line in lines.splitlines() if line.strip()]
    if not lines:
        raise BadInput(NODE, "prompts", "", "Write one prompt in each line.")
    return joined([clip.encode_from_tokens_scheduled(clip.tokenize(line)) if hasattr(clip, "encode_from_tokens_scheduled") else _plain(clip, line) for line in lines])


def _plain(clip, line):
    cond, pooled = clip.encode_from_tokens(clip.tokenize(line), return_pooled=True)
    return [[cond, {"pooled_output": pooled}]]


def joined(found):
    """Conditionings of one text each as one: tokens and all other tensors row by row. BadInput where their lengths fit only by more than four repetitions."""
    lengths = [f[0][0].shape[1] for f in found]
    whole = math.lcm(*lengths)
    if whole > 4 * max(lengths) or any(len(f) != len(found[0]) for f in found):
        raise BadInput(NODE, "prompts", f"texts of {', '.join(map(str, lengths))} tokens", "This text encoder gives each text its own length; write texts of the same number of words.")
    out = []
    for parts in zip(*found):
        tokens = torch.cat([p[0].repeat(1, whole // p[0].shape[1], 1) for p in parts])
        options = dict(parts[0][1])
        for name, value in options.items():
            if isinstance(value, torch.Tensor):
                rows = [p[1].get(name) for p in parts]
                if any(r is None or r.shape != value.shape for r in rows):
                    raise BadInput(NODE, "prompts", f"texts whose {name} differ in size", "Write texts of the same number of words.")
                options[name] = torch.cat(rows)
        out.append([tokens, options])
    return out
