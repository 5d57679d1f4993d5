"""Trains the small classifier of the scenes (demo/scene_vgg.py): kinds of single objects, and the colours of a grid's cells.

    python -m demo.train_scene_vgg --out demo/weights [--steps 400] [--batch 32] [--threads 1] [--seed 0]
"""
import argparse
import json
import os
import random
import time

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from .scene_vgg import CHANNELS, CLASSES, LABELS, NAME, layout
from .scenes import COLOURS, SIZE, batch, mask_of
from .train_measure import flawed
from .train_scene_clip import unfinished

GRID = SIZE // 4
_COLOURS = tuple(COLOURS)


def fresh(generator):
    """Tensors of a new network."""
    found = {}
    for key, (a, b) in layout().items():
        found[f"{key}.weight"], found[f"{key}.bias"] = torch.randn(b, a, 3, 3, generator=generator) * (2 / (9 * a)) ** 0.5, torch.zeros(b)
    c = CHANNELS[-1]
    for key, a, b in (("classifier.0", c, 64), ("classifier.3", 64, len(CLASSES))):
        found[f"{key}.weight"], found[f"{key}.bias"] = torch.randn(b, a, generator=generator) * (2 / a) ** 0.5, torch.zeros(b)
    found["head.weight"], found["head.bias"] = torch.randn(len(LABELS), c, 1, 1, generator=generator) * c ** -0.5, torch.zeros(len(LABELS))
    return found


def forward(w, pictures):
    """(class logits [n, 28], cell logits [n, 8, 16, 16]) of pictures [n, 3, 64, 64]."""
    x = (pictures - 0.5) / 0.5
    for i, key in enumerate(layout()):
        x = F.conv2d(F.max_pool2d(x, 2) if i in (2, 4) else x, w[f"{key}.weight"], w[f"{key}.bias"], padding=1).relu()
    classes = F.linear(F.linear(x.mean((2, 3)), w["classifier.0.weight"], w["classifier.0.bias"]).relu(), w["classifier.3.weight"], w["classifier.3.bias"])
    return classes, F.conv2d(x, w["head.weight"], w["head.bias"])


def cells(scenes):
    """[n, 16, 16]: the colour that covers most of each cell, 0 where it is the background."""
    out = torch.zeros(len(scenes), GRID, GRID, dtype=torch.long)
    for i, scene in enumerate(scenes):
        for t in scene.things:
            out[i][F.avg_pool2d(mask_of(t)[None], SIZE // GRID)[0] > 0.5] = 1 + _COLOURS.index(t.colour)
    return out


def kinds(scenes):
    return torch.tensor([CLASSES.index(f"{s.things[0].colour} {s.things[0].shape}") for s in scenes])


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--out", default="demo/weights")
    p.add_argument("--steps", type=int, default=400)
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--seed", type=int, default=0)
    o = p.parse_args()
    torch.set_num_threads(o.threads)
    rng, generator = random.Random(o.seed), torch.Generator().manual_seed(o.seed)
    code = load_file(os.path.join(o.out, "latents.safetensors"))
    weights = {k: v.requires_grad_() for k, v in fresh(generator).items()}
    optimiser = torch.optim.AdamW(weights.values(), lr=0.0, betas=(0.9, 0.98), weight_decay=0.01)
    begin, recent = time.time(), []
    spoil = lambda images: unfinished(flawed(images, code, generator), generator)
    for step in range(1, o.steps + 1):
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * min(1, step / 50) * min(1, (o.steps - step + 1) / (0.6 * o.steps))
        single, alone = batch(rng, o.batch, 1)
        several, together = batch(rng, o.batch // 2)
        classes, grid = forward(weights, spoil(torch.cat((alone, together))))
        loss = F.cross_entropy(classes[:o.batch], kinds(single)) + F.cross_entropy(grid, cells(single + several))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        optimiser.step()
        recent.append(loss.item())
        if step % 50 == 0:
            print(f"step {step} loss {sum(recent) / len(recent):.4f} {time.time() - begin:.0f}s", flush=True)
            recent = []
    half = {k: v.detach().half().contiguous() for k, v in weights.items()}
    rng = random.Random(10_000_019 + o.seed)
    with torch.no_grad():
        single, alone = batch(rng, 1000, 1)
        classes, grid = forward({k: v.float() for k, v in half.items()}, alone)
        right, truth = classes.argmax(1) == kinds(single), cells(single)
        hit = grid.argmax(1)
        result = {"seed": o.seed, "steps": o.steps, "kinds": round(right.float().mean().item(), 4),
                  "cells": round((hit == truth).float().mean().item(), 4), "object_cells": round((hit == truth)[truth > 0].float().mean().item(), 4)}
    save_file(half, os.path.join(o.out, f"{NAME}.safetensors"))
    with open(os.path.join(o.out, f"{NAME}.json"), "w", encoding="utf-8") as f:
        json.dump(result, f, indent=1)
        f.write("\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
