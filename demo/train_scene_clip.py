"""Trains the scene encoder: pictures (flawed and unfinished ones too) and captions of one batch have to find each other.

    python -m demo.train_scene_clip --out demo/weights [--steps 700] [--batch 48] [--threads 1] [--seed 0]
"""
import argparse
import json
import os
import random
import time

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from . import text
from .scene_clip import NAME, SceneTower
from .scenes import batch
from .train_loop import encoder_of
from .train_measure import flawed


def unfinished(images, generator):
    """Pictures as a sampler's early estimates are: half of them blurred, most at a quarter of the size, and paler."""
    n = len(images)
    draw = lambda: torch.rand(n, 1, 1, 1, generator=generator)
    soft = F.interpolate(F.avg_pool2d(images, 4), scale_factor=4, mode="bilinear")
    blurred = torch.lerp(images, soft, draw() * (draw() < 0.5))
    grey = blurred.mean((2, 3), keepdim=True)
    return torch.lerp(blurred, grey, 0.6 * draw() * (draw() < 0.5))


def logits(tower, pictures, pooled):
    """[pictures, captions]: scaled cosines."""
    _, image = tower(pictures)
    return tower.scale.exp() * F.normalize(image, dim=1) @ F.normalize(tower.text(pooled), dim=1).T


def captions(encoder, scenes):
    with torch.no_grad():
        return encoder(text.tokenize([s.caption for s in scenes]))[1]


def figures(tower, encoder, code, seed, n=1024, choices=64):
    """Share of n pictures whose own caption is the nearest of `choices`, clean and flawed."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    right = {"clean": 0, "flawed": 0, "unfinished": 0}
    with torch.no_grad():
        for _ in range(n // choices):
            scenes, clean = batch(rng, choices)
            pooled = captions(encoder, scenes)
            for name, pictures in (("clean", clean), ("flawed", flawed(clean, code, generator)), ("unfinished", unfinished(clean, generator))):
                right[name] += int((logits(tower, pictures, pooled).argmax(1) == torch.arange(choices)).sum())
    return {k: round(v / (n // choices * choices), 4) for k, v in right.items()} | {"of": choices}


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--out", default="demo/weights")
    p.add_argument("--steps", type=int, default=700)
    p.add_argument("--batch", type=int, default=48)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--seed", type=int, default=0)
    o = p.parse_args()
    torch.set_num_threads(o.threads)
    torch.manual_seed(o.seed)
    rng, generator = random.Random(o.seed), torch.Generator().manual_seed(o.seed)
    code, encoder, tower = load_file(os.path.join(o.out, "latents.safetensors")), encoder_of(o.out), SceneTower()
    print(f"{sum(w.numel() for w in tower.parameters())} parameters", flush=True)
    optimiser = torch.optim.AdamW(tower.parameters(), lr=0.0, betas=(0.9, 0.98), weight_decay=0.01)
    average = {k: v.detach().clone() for k, v in tower.state_dict().items()}
    begin, recent = time.time(), []
    for step in range(1, o.steps + 1):
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * min(1, step / 50) * min(1, (o.steps - step + 1) / (0.6 * o.steps))
        scenes, images = batch(rng, o.batch)
        found = logits(tower, unfinished(flawed(images, code, generator), generator), captions(encoder, scenes))
        own = torch.arange(o.batch)
        loss = (F.cross_entropy(found, own) + F.cross_entropy(found.T, own)) / 2
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
        optimiser.step()
        with torch.no_grad():
            for k, v in tower.state_dict().items():
                average[k].lerp_(v, 1 - min(0.99, step / (step + 10)))
        recent.append(loss.item())
        if step % 50 == 0:
            print(f"step {step} loss {sum(recent) / len(recent):.4f} {time.time() - begin:.0f}s", flush=True)
            recent = []
    tower.load_state_dict({k: v.half().float() for k, v in average.items()})
    tower.eval().requires_grad_(False)
    save_file({k: v.half().contiguous() for k, v in average.items()}, os.path.join(o.out, f"{NAME}.safetensors"))
    result = {"seed": o.seed, "steps": o.steps, "batch": o.batch, **figures(tower, encoder, code, 10_000_019 + o.seed)}
    with open(os.path.join(o.out, f"{NAME}.json"), "w", encoding="utf-8") as f:
        json.dump(result, f, indent=1)
        f.write("\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
