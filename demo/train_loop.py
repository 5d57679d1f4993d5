"""What the scripts share that train a small addition (a LoRA, an adapter) to a bundled network: options, the frozen text encoder, the loop, and what is saved."""
import argparse
import json
import os
import random
import time

import torch
from safetensors.torch import load_file, save_file

from . import networks, text


def options(about, steps, batch):
    """The command line: --host PATH [--out DIR] [--steps N] [--batch N] [--seed N] [--rate R]."""
    p = argparse.ArgumentParser(description=about)
    p.add_argument("--host", required=True)
    p.add_argument("--out", default="demo/weights")
    p.add_argument("--steps", type=int, default=steps)
    p.add_argument("--batch", type=int, default=batch)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--rate", type=float, default=2e-3)
    return p.parse_args()


def encoder_of(folder):
    """The bundled text encoder, frozen, in float32."""
    encoder = text.TextEncoder()
    encoder.load_state_dict({k: v.float() for k, v in load_file(os.path.join(folder, "text.safetensors")).items()})
    return encoder.requires_grad_(False)


def frozen_unet(folder):
    """(The bundled U-Net, frozen, in float32; the signal's share of the variance at its 1000 levels). The host must be on the path."""
    import comfy.ops
    network = networks.unet(comfy.ops.disable_weight_init, dtype=torch.float32)
    network.load_state_dict({k: v.float() for k, v in load_file(os.path.join(folder, "unet.safetensors")).items()})
    beta = torch.linspace(0.00085 ** 0.5, 0.012 ** 0.5, 1000, dtype=torch.float64) ** 2
    return network.requires_grad_(False), torch.cumprod(1 - beta, 0).float()


def train(o, name, fresh, batch, loss_of):
    """Trains and writes NAME.safetensors (fp16, averaged weights) and NAME.json (the loss on scenes of its own, with and without training) to o.out.

    fresh() -> {key: tensor}; batch(rng, n) -> what loss_of(weights, made, generator) takes.
    """
    weights = {k: v.requires_grad_() for k, v in fresh().items()}
    optimiser = torch.optim.AdamW(weights.values(), o.rate, betas=(0.9, 0.98), weight_decay=0.0)
    rng, generator = random.Random(o.seed), torch.Generator().manual_seed(o.seed)
    average = {k: v.detach().clone() for k, v in weights.items()}
    begin, recent = time.time(), []
    for step in range(1, o.steps + 1):
        for group in optimiser.param_groups:
            group["lr"] = o.rate * min(1.0, step / 40) * min(1.0, (o.steps - step + 1) / (0.3 * o.steps))
        loss = loss_of(weights, batch(rng, o.batch), generator)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([w for w in weights.values() if w.grad is not None], 1.0)
        optimiser.step()
        keep = min(0.98, (1 + step) / (20 + step))
        for k, v in weights.items():
            average[k].lerp_(v.detach(), 1 - keep)
        recent.append(loss.item())
        if step % 20 == 0:
            print(f"step {step} loss {sum(recent) / len(recent):.4f} {time.time() - begin:.0f}s", flush=True)
            recent = []
    with torch.no_grad():
        with_it, without = [], []
        for i in range(8):
            made = batch(random.Random(10_000 + i), 16)
            for found, w in ((with_it, average), (without, fresh())):
                found.append(loss_of(w, made, torch.Generator().manual_seed(i)).item())
    figures = {"steps": o.steps, "loss": round(sum(with_it) / 8, 4), "loss_without_training": round(sum(without) / 8, 4)}
    print(figures)
    save_file({k: v.half().contiguous() for k, v in average.items()}, os.path.join(o.out, f"{name}.safetensors"))
    with open(os.path.join(o.out, f"{name}.json"), "w", encoding="utf-8") as f:
        json.dump(figures, f, indent=1)
        f.write("\n")
