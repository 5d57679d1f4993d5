"""Trains the estimator of blur and noise that comes with the pack (demo/degradation_lora.py) on quarters of degraded pictures of the scenes, by squared error.

    python scripts/_module.py lodestar.demo.train_degradation_estimator --host PATH_OF_COMFYUI --out demo/weights [--steps 260] [--batch 8] [--rate 8e-3] [--seed 0]
"""
import torch

from ..guidance.inverse.degradation import parse_estimator

from .degradation_lora import ESTIMATOR, fresh_estimator
from .degraded import pairs
from .train_loop import options, train


def batch(rng, n, generator):
    _, _, bad, scores = pairs(rng, n, generator)
    top, left = rng.randrange(65), rng.randrange(65)
    return bad[..., top:top + 64, left:left + 64], scores


def main():
    o = options(__doc__.splitlines()[0], 260, 8)
    torch.set_grad_enabled(True)
    noise = torch.Generator().manual_seed(o.seed + 1)
    train(o, ESTIMATOR, lambda: fresh_estimator(o.seed), lambda rng, n: batch(rng, n, noise), lambda weights, made, generator: (parse_estimator(weights, "train", "file")(made[0]) - made[1]).square().mean())


if __name__ == "__main__":
    main()
