"""Trains the flow network on pairs of scenes whose objects were moved, turned and scaled, and writes its figures.

    python -m demo.train_flow --out demo/weights [--minutes 9] [--threads 1] [--seed 0]
"""
import random
import time

import torch
import torch.nn.functional as F
from guidance.loss.flow_network import FlowNetwork

from .flow_pairs import errors, pairs
from .train_loop import train_whole
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
    def loss(network, rng, n, code, generator):
        return loss_of(network, spoilt(pairs(rng, n), code, generator))
    # of the processor's time: others on the machine do not change what comes out much
    train_whole(__doc__.splitlines()[0], "flow", FlowNetwork, loss, figures, minutes=9, batch=8, clock=time.process_time, out="demo/weights")


if __name__ == "__main__":
    main()
