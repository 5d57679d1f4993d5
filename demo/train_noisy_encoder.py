"""Trains the bundled noise-aware encoder: python -m demo.train_noisy_encoder --out demo/weights

Latents of fresh scenes and what the scene encoder gives of their pictures; the levels of the U-Net's schedule. Needs no host. Some minutes on one core."""
import argparse
import json
import os
import random
import time

import torch
from safetensors.torch import load_file, save_file

from ..guidance.training.noisy_encoder import TrainNoiseAwareEncoder
from . import latents
from .measure import fit_size
from .scene_clip import load_tower
from .scenes import batch
from .train_noisy import schedule

NAME = "noisy_encoder"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--scenes", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    code, tower, rng = load_file(os.path.join(args.out, "latents.safetensors")), load_tower(), random.Random(60_001 + args.seed)
    found, begin = [], time.time()
    with torch.no_grad():
        for _ in range(args.scenes // 100):
            x0 = latents.encode(batch(rng, 100, None)[1], code)
            found.append((x0, tower(fit_size(latents.decode(x0, code).clamp(0, 1)))[1]))
    x0, wanted = (torch.cat(parts) for parts in zip(*found))
    print(f"{len(x0)} scenes, {time.time() - begin:.0f} s", flush=True)
    method = TrainNoiseAwareEncoder(steps=args.steps, batch=48, width=64, seed=args.seed)
    tick = lambda step, total, loss: step % 100 or print(f"{step} of {total}: {loss:.3f}, {time.time() - begin:.0f} s", flush=True)
    encoder, report = method.run(x0, wanted, schedule, tick=tick)
    save_file(encoder.tensors(), os.path.join(args.out, f"{NAME}.safetensors"))
    figures = {"seed": args.seed, "steps": args.steps, "scenes": args.scenes, "cosine_above_others": {f"{p:g} of the schedule": round(v, 3) for p, v in report.items()}}
    with open(os.path.join(args.out, f"{NAME}.json"), "w", encoding="utf-8") as f:
        json.dump(figures, f, indent=1)
        f.write("\n")
    print(figures, f"{time.time() - begin:.0f} s")


if __name__ == "__main__":
    main()
