"""Fits the linear autoencoder: python -m demo.train_latents --out demo/weights/latents.safetensors"""
import argparse
import random

import torch
from safetensors.torch import save_file

from . import latents
from .scenes import batch


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    code = latents.fit(batch(rng, 4000)[1])
    save_file(code, args.out)
    fresh = batch(rng, 500)[1]
    again = latents.decode(latents.encode(fresh, code), code)
    mse = (again - fresh).square().mean((1, 2, 3))
    print(f"PSNR {(-10 * torch.log10(mse)).mean():.1f} dB, latent std {latents.encode(fresh, code).std():.3f}")


if __name__ == "__main__":
    main()
