"""Trains the structure correction that comes with the pack (demo/structure.py): a NAFNet that sees the clean picture mends what the VAE did to the degraded one.

    python scripts/_module.py lodestar.demo.train_structure --out demo/weights --host . --rate 5e-3 [--steps 130] [--batch 6] [--seed 0]

On the kinds that the authors correct (haze, motion blur, raindrops) and low light. Loss: absolute error. The figures are peak signal-to-noise ratios in dB, negative, of fresh pictures.
"""
import os

import torch
from safetensors.torch import load_file

from ..guidance.inverse.structure_correction import StructureNetwork

from .structure import DECODERS, ENCODERS, MIDDLE, NAME, fresh, pairs
from .train_loop import options, train

KINDS, PART = ("haze", "motion blur", "low light", "raindrops"), 48      # pixels of the parts that it is trained on


def batch(rng, n, code):
    return pairs(rng, n, KINDS, code, None if n >= 16 else PART)      # the figures are those of whole pictures


def loss_of(weights, made):
    clean, drawn, wanted = made
    out = drawn + StructureNetwork(weights, ENCODERS, MIDDLE, DECODERS).residual(2 * clean - 1, 2 * drawn - 1) / 2
    return (out - wanted).abs().mean() if torch.is_grad_enabled() else 10 * torch.log10((out.clamp(0, 1) - wanted).square().mean((1, 2, 3))).mean()


def main():
    o = options(__doc__.splitlines()[0], 130, 6)
    torch.manual_seed(o.seed)
    code = load_file(os.path.join(o.out, "latents.safetensors"))
    train(o, NAME, lambda: fresh(o.seed), lambda rng, n: batch(rng, n, code), lambda weights, made, generator: loss_of(weights, made), held=1)


if __name__ == "__main__":
    main()
