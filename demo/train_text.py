"""Trains the text encoder: each noun's state must tell its object's colour, shape, size and expected place,
the pooled state the background, the count and the set of objects.

    python -m demo.train_text --out demo/weights/text.safetensors [--steps 2500] [--seed 0]
"""
import argparse
import random
import time

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from . import text
from .scenes import BACKGROUNDS, COLOURS, SHAPES, SIZE, SIZES, random_scene

_COLOURS, _SIZES, _GROUNDS = list(COLOURS), list(SIZES), list(BACKGROUNDS)


def targets(scenes):
    """Tensors of the truth for each noun [n, 3, ...] and for each scene; absent objects are masked by `present`."""
    noun = torch.zeros(len(scenes), 3, 3, dtype=torch.long)
    place = torch.zeros(len(scenes), 3, 2)
    present = torch.zeros(len(scenes), 3, dtype=torch.bool)
    kinds = torch.zeros(len(scenes), len(COLOURS) * len(SHAPES))
    whole = torch.zeros(len(scenes), 2, dtype=torch.long)
    for i, s in enumerate(scenes):
        whole[i] = torch.tensor([_GROUNDS.index(s.background), len(s.things) - 1])
        for j, t in enumerate(s.things):
            c, k = _COLOURS.index(t.colour), SHAPES.index(t.shape)
            noun[i, j] = torch.tensor([c, k, _SIZES.index(t.size)])
            place[i, j] = torch.tensor([t.x, t.y]) / SIZE * 2 - 1
            present[i, j] = True
            kinds[i, c * len(SHAPES) + k] = 1
    return noun, place, present, kinds, whole


class Heads(nn.Module):
    """Read-outs used in training only."""

    def __init__(self, width=text.WIDTH):
        super().__init__()
        self.noun = nn.Linear(width, len(COLOURS) + len(SHAPES) + len(SIZES) + 4)
        self.whole = nn.Linear(width, len(BACKGROUNDS) + 3 + len(COLOURS) * len(SHAPES))

    def loss(self, states, pooled, ids, truth):
        noun, place, present, kinds, whole = truth
        is_noun = torch.isin(ids, torch.tensor(text.SHAPE_IDS))
        out = self.noun(states[is_noun])          # caption order is object order
        noun, place = noun[present], place[present]
        c, k, s, where = out.split([len(COLOURS), len(SHAPES), len(SIZES), 4], 1)
        log_sd = where[:, 2:].clamp(-4, 2)
        nll = (log_sd + 0.5 * ((place - where[:, :2]) / log_sd.exp()).square()).mean()
        b, n, o = self.whole(pooled).split([len(BACKGROUNDS), 3, kinds.shape[1]], 1)
        return (F.cross_entropy(c, noun[:, 0]) + F.cross_entropy(k, noun[:, 1]) + F.cross_entropy(s, noun[:, 2]) + nll
                + F.cross_entropy(b, whole[:, 0]) + F.cross_entropy(n, whole[:, 1])
                + 5 * F.binary_cross_entropy_with_logits(o, kinds))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    encoder, heads = text.TextEncoder(), Heads()
    params = [*encoder.parameters(), *heads.parameters()]
    optimiser = torch.optim.AdamW(params, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=args.steps, pct_start=0.05)
    start = time.time()
    for step in range(args.steps):
        scenes = [random_scene(rng) for _ in range(args.batch)]
        ids = text.tokenize([s.caption for s in scenes])
        loss = heads.loss(*encoder(ids), ids, targets(scenes))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimiser.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step} loss {loss.item():.3f} {time.time() - start:.0f}s", flush=True)
    save_file({k: v.half().contiguous() for k, v in encoder.state_dict().items()}, args.out)


if __name__ == "__main__":
    main()
