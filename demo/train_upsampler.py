"""Trains the upsampler: decoded latents (64 px) to the true picture of the scene at 128 px, absolute error.

    python -m demo.train_upsampler --out demo/weights [--minutes 5] [--threads 1] [--seed 0]
"""
import argparse
import json
import os
import random
import time

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from . import latents
from .scenes import SIZE, random_scene, render
from .upsampler import Upsampler


def pairs(rng, generator, n, code, noise=0.12):
    """(decoded [n, 3, 64, 64], true [n, 3, 128, 128]), both in [-1, 1]; half of the latents carry a little noise."""
    scenes = [random_scene(rng) for _ in range(n)]
    true = torch.stack([render(s, 2 * SIZE) for s in scenes])
    small = torch.where(torch.rand(n, 1, 1, 1, generator=generator) < 0.5, F.avg_pool2d(true, 2), torch.stack([render(s) for s in scenes]))
    z = latents.encode(small, code)
    strength = noise * torch.rand(n, 1, 1, 1, generator=generator) * (torch.rand(n, 1, 1, 1, generator=generator) < 0.5)
    z = z + strength * torch.randn(z.shape, generator=generator)
    return latents.decode(z, code) * 2 - 1, true * 2 - 1


def psnr(a, b):
    """Mean over the pictures of the peak signal-to-noise ratio in dB, for values in [-1, 1]."""
    return (-10 * torch.log10(((a.clamp(-1, 1) - b) / 2).square().mean((1, 2, 3)))).mean().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--steps", type=int, default=0, help="stop after this many steps instead (repeatable)")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng, generator = random.Random(args.seed), torch.Generator().manual_seed(args.seed)
    code = load_file(os.path.join(args.out, "latents.safetensors"))
    network = Upsampler()
    torch.nn.init.zeros_(network.leave.weight)
    torch.nn.init.zeros_(network.leave.bias)
    print(f"{sum(p.numel() for p in network.parameters())} parameters", flush=True)
    optimiser = torch.optim.AdamW(network.parameters(), lr=0.0, betas=(0.9, 0.98), weight_decay=0.0)
    start, step, recent = time.time(), 0, []
    while True:
        part = step / args.steps if args.steps else (time.time() - start) / (args.minutes * 60)
        if part >= 1:
            break
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 20) * min(1, (1 - part) / 0.6)
        decoded, true = pairs(rng, generator, args.batch, code)
        loss = F.l1_loss(network(decoded), true)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 0.5)
        optimiser.step()
        step += 1
        recent.append(loss.item())
        if step % 50 == 0:
            print(f"step {step} loss {sum(recent) / len(recent):.5f} {time.time() - start:.0f}s", flush=True)
            recent = []
    weights = {k: v.half().contiguous() for k, v in network.state_dict().items()}
    save_file(weights, os.path.join(args.out, "upsampler.safetensors"))
    network.load_state_dict({k: v.float() for k, v in weights.items()})
    result = {"seed": args.seed, "steps": step, "batch": args.batch}
    with torch.no_grad():
        for name, noise in (("clean", 0.0), ("noisy", 0.12)):
            decoded, true = pairs(random.Random(10_000_019), torch.Generator().manual_seed(1), 200, code, noise)
            bicubic = F.interpolate(decoded, scale_factor=2, mode="bicubic", align_corners=False)
            result[name] = {"psnr": round(psnr(network(decoded), true), 2), "psnr_bicubic": round(psnr(bicubic, true), 2)}
    with open(os.path.join(args.out, "upsampler.json"), "w") as f:
        json.dump(result, f, indent=1)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
