"""Trains the flow network on pairs of scenes whose objects were moved, turned and scaled, and writes its figures.

    python -m demo.train_flow --out demo/weights [--minutes 5] [--threads 1] [--seed 0]
"""
import argparse
import json
import os
import random
import time

import torch
import torch.nn.functional as F
from guidance.loss.flow_network import FlowNetwork
from safetensors.torch import load_file, save_file

from .flow_pairs import errors, pairs
from .train_measure import flawed


def loss_of(network, made):
    a, b, truth = made
    flow, seen = network(a, b, parts=True)
    everywhere, moving = errors(flow, truth)
    total = (everywhere + 0.5 * moving).mean()
    for part in seen:
        everywhere, moving = errors(part, F.interpolate(truth, part.shape[-2:], mode="area"))
        total = total + 0.3 * (everywhere + 0.5 * moving).mean()
    return total


def spoilt(made, code, generator):
    """Half of the pairs with the flaws of generated pictures."""
    a, b, flow = made
    half = len(a) // 2
    return torch.cat((flawed(a[:half], code, generator), a[half:])), torch.cat((flawed(b[:half], code, generator), b[half:])), flow


@torch.no_grad()
def figures(network, code, seed, n=256):
    """End-point errors in pixels of a 64 px picture on scenes of their own, beside those of no motion at all."""
    made = pairs(random.Random(seed), n)
    result = {"pairs": n}
    for name, (a, b, truth) in (("clean", made), ("flawed", tuple(flawed(t, code, torch.Generator().manual_seed(seed)) for t in made[:2]) + (made[2],))):
        found = torch.cat([network(x, y) for x, y in zip(a.split(32), b.split(32))])
        for kind, off, still in zip(("all", "moving"), errors(found, truth), errors(torch.zeros_like(truth), truth)):
            some = still > 0
            result[f"{name}_{kind}"] = round(off[some].mean().item(), 3)
            result[f"no_motion_{kind}"] = round(still[some].mean().item(), 3)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="demo/weights")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--steps", type=int, default=0, help="stop after this many steps instead (repeatable)")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng, generator = random.Random(args.seed), torch.Generator().manual_seed(args.seed)
    code = load_file(os.path.join(args.out, "latents.safetensors"))
    network = FlowNetwork()
    print(f"{sum(p.numel() for p in network.parameters())} parameters", flush=True)
    optimiser = torch.optim.AdamW(network.parameters(), lr=0.0, betas=(0.9, 0.98), weight_decay=0.01)
    average = {k: v.detach().clone() for k, v in network.state_dict().items()}
    start, step, recent = time.process_time(), 0, []      # of the processor: others on the machine do not change what comes out much
    while True:
        part = step / args.steps if args.steps else (time.process_time() - start) / (args.minutes * 60)
        if part >= 1:
            break
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 50) * min(1, (1 - part) / 0.6)
        loss = loss_of(network, spoilt(pairs(rng, args.batch), code, generator))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        step += 1
        with torch.no_grad():
            for k, v in network.state_dict().items():
                average[k].lerp_(v, 1 - min(0.99, step / (step + 10)))
        recent.append(loss.item())
        if step % 50 == 0:
            print(f"step {step} loss {sum(recent) / len(recent):.4f} {time.process_time() - start:.0f}s", flush=True)
            recent = []
    network.load_state_dict({k: v.half().float() for k, v in average.items()})
    network.eval().requires_grad_(False)
    save_file({k: v.half().contiguous() for k, v in average.items()}, os.path.join(args.out, "flow.safetensors"))
    result = {"seed": args.seed, "steps": step, "batch": args.batch, **figures(network, code, 10_000_019 + args.seed)}
    with open(os.path.join(args.out, "flow.json"), "w", encoding="utf-8") as f:
        json.dump(result, f, indent=1)
        f.write("\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
