"""Trains the bundled value function, how much contrast a scene will have: python -m demo.train_value --out demo/weights

Latents of fresh scenes; the return is the standard deviation of the decoded picture over its pixels, mean over the channels; the levels of the U-Net's schedule. Needs no host. Half a minute on one core."""
import argparse
import json
import os
import random
import time

import torch
from safetensors.torch import load_file, save_file

from ..guidance.training.classifier import Examples
from ..guidance.training.value import TrainValueFunction
from . import latents
from .scenes import batch
from .train_noisy import schedule

NAME = "value_contrast"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--scenes", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    begin, code = time.process_time(), load_file(os.path.join(args.out, "latents.safetensors"))
    x0 = latents.encode(batch(random.Random(60_001 + args.seed), args.scenes)[1], code)
    returns = latents.decode(x0, code).flatten(2).std(2).mean(1)
    method = TrainValueFunction(examples=Examples(((x0, returns),)), steps=args.steps, width=32, seed=args.seed)
    function, report = method.run([x0], schedule)
    save_file(function.tensors(), os.path.join(args.out, f"{NAME}.safetensors"))
    figures = {"seed": args.seed, "steps": args.steps, "scenes": args.scenes, "contrast": [round(function.middle, 3), round(function.unit, 3)],
               "correlation": {f"{p:g} of the schedule": round(v, 3) for p, v in report.items()}}
    with open(os.path.join(args.out, f"{NAME}.json"), "w", encoding="utf-8") as f:
        json.dump(figures, f, indent=1)
        f.write("\n")
    print(figures, f"{time.process_time() - begin:.0f} s")


if __name__ == "__main__":
    main()
