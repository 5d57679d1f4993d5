"""Trains the bundled readout heads: python -m demo.train_readout --host PATH [--what shapes|places|looks] [--out demo/weights]

They read out of the features of the bundled U-Net, with clean latents of fresh scenes: where the shapes of a scene are (white on black); which places of two scenes match, whose things were moved, turned and
scaled; how alike two scenes look, whose things are the same at other places. One to five minutes on one core."""
import argparse
import json
import os
import random
import sys
import time

import torch
from safetensors.torch import save_file

from . import latents
from .flow_pairs import pairs
from .scenes import batch, mask_of

STEPS = {"shapes": 150, "places": 400, "looks": 200}      # of 8, 16 and 12


def maps_of(scenes):
    """[n, 1, 16, 16] from -1 (background) to 1: the cells that any shape covers."""
    covered = torch.stack([torch.stack([mask_of(t) for t in s.things]).amax(0) for s in scenes])[:, None]
    return torch.nn.functional.avg_pool2d(covered, 4) * 2 - 1


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", required=True)
    parser.add_argument("--what", choices=tuple(STEPS), default="shapes")
    parser.add_argument("--out", default="demo/weights")
    parser.add_argument("--steps", type=int, default=0, help="0: what the bundled one was trained for")
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
    begin, rng, given = time.time(), random.Random(60_001 + args.seed), {"maps": None, "groups": None, "moves": None}
    if args.what == "shapes":
        scenes, pictures = batch(rng, args.scenes)
        given["maps"] = maps_of(scenes)
    else:
        a, b, flow = pairs(rng, args.scenes // 2)
        pictures = torch.stack((a, b), 1).flatten(0, 1)
        given["moves" if args.what == "places" else "groups"] = flow if args.what == "places" else torch.arange(len(pictures)).float() // 2
    x0 = latents.encode(pictures, read("latents"))
    model, clip, _ = load_demo_model("unet")
    empty = clip.encode_from_tokens(clip.tokenize(""), return_pooled=True)
    method = TrainReadoutHead(steps=args.steps or STEPS[args.what], batch={"shapes": 8, "places": 16, "looks": 12}[args.what], rate=args.rate, width=64, seed=args.seed)
    readout, first, last = train(method, model, [[empty[0], {"pooled_output": empty[1]}]], {"samples": x0}, **given)
    save_file(readout.tensors(), os.path.join(args.out, f"readout_{args.what}.safetensors"))
    figures = {"seed": args.seed, "steps": method.steps, "rate": args.rate, "scenes": args.scenes, "loss_at_first": round(first, 4), "loss_at_last": round(last, 4)}
    with open(os.path.join(args.out, f"readout_{args.what}.json"), "w", encoding="utf-8") as f:
        json.dump(figures, f, indent=1)
        f.write("\n")
    print(figures, f"{time.time() - begin:.0f} s")


if __name__ == "__main__":
    main()
