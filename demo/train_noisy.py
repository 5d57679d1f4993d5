"""Trains the bundled noise-aware classifier of backgrounds: python -m demo.train_noisy --out demo/weights

Latents of fresh scenes, classes 0 white, 1 gray, 2 black; the levels of the U-Net's schedule. Needs no host. Under a minute on one core."""
import argparse
import json
import os
import random
import time

import torch
from safetensors.torch import load_file, save_file

from ..guidance.training.classifier import Examples, TrainNoiseAwareClassifier
from . import latents
from .scenes import BACKGROUNDS, batch

NAME = "noisy_backgrounds"


def schedule(percent, start=0.00085, end=0.012, steps=1000):
    """The level of the bundled U-Net at a place of its schedule."""
    abar = torch.cumprod(1 - torch.linspace(start ** 0.5, end ** 0.5, steps, dtype=torch.float64) ** 2, 0)
    at = min(steps - 1, max(0, round((1 - percent) * (steps - 1))))
    return float(((1 - abar[at]) / abar[at]).sqrt())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--scenes", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    scenes, pictures = batch(random.Random(50_001 + args.seed), args.scenes)
    labels = torch.tensor([float(tuple(BACKGROUNDS).index(s.background)) for s in scenes])
    x0, begin = latents.encode(pictures, load_file(os.path.join(args.out, "latents.safetensors"))), time.time()
    method = TrainNoiseAwareClassifier(examples=Examples(((x0, labels),)), steps=args.steps, width=32, seed=args.seed)
    predictor, report = method.run([x0], schedule)
    save_file(predictor.tensors(), os.path.join(args.out, f"{NAME}.safetensors"))
    figures = {"seed": args.seed, "steps": args.steps, "scenes": args.scenes, "right": {f"{p:g} of the schedule": round(v, 3) for p, v in report.items()}}
    with open(os.path.join(args.out, f"{NAME}.json"), "w", encoding="utf-8") as f:
        json.dump(figures, f, indent=1)
        f.write("\n")
    print(figures, f"{time.time() - begin:.0f} s")


if __name__ == "__main__":
    main()
