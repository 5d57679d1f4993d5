"""Trains the bundled readout head of shapes: python -m demo.train_readout --host PATH [--out demo/weights]

Reads where the shapes of a scene are (white on black) out of the features of the bundled U-Net; clean latents are those of fresh scenes. About a minute on one core, 150 steps of 8."""
import argparse
import json
import os
import random
import sys
import time

import torch
from safetensors.torch import save_file

from . import latents
from .scenes import batch, mask_of

NAME = "readout_shapes"


def maps_of(scenes):
    """[n, 1, 16, 16] from -1 (background) to 1: the cells that any shape covers."""
    covered = torch.stack([torch.stack([mask_of(t) for t in s.things]).amax(0) for s in scenes])[:, None]
    return torch.nn.functional.avg_pool2d(covered, 4) * 2 - 1


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", required=True)
    parser.add_argument("--out", default="demo/weights")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--scenes", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    sys.path.insert(0, args.host)
    from ..bench.host import start
    start(True)
    from ..guidance.host.readout import train
    from ..guidance.training.readout import TrainReadoutHead
    from .loader import load_demo_model
    from .weights_file import read
    scenes, pictures = batch(random.Random(60_001 + args.seed), args.scenes)
    x0, begin = latents.encode(pictures, read("latents")), time.time()
    model, clip, _ = load_demo_model("unet")
    empty = clip.encode_from_tokens(clip.tokenize(""), return_pooled=True)
    readout, first, last = train(TrainReadoutHead(steps=args.steps, rate=args.rate, width=64, seed=args.seed), model, [[empty[0], {"pooled_output": empty[1]}]], {"samples": x0}, maps_of(scenes), None)
    save_file(readout.tensors(), os.path.join(args.out, f"{NAME}.safetensors"))
    figures = {"seed": args.seed, "steps": args.steps, "rate": args.rate, "scenes": args.scenes, "loss_at_first": round(first, 4), "loss_at_last": round(last, 4)}
    with open(os.path.join(args.out, f"{NAME}.json"), "w", encoding="utf-8") as f:
        json.dump(figures, f, indent=1)
        f.write("\n")
    print(figures, f"{time.time() - begin:.0f} s")


if __name__ == "__main__":
    main()
