"""What the training scripts share. Of a small addition (a LoRA, an adapter) to a bundled network: options, the frozen text encoder, the loop, and what is saved. Of a small network of its own: all of it."""
import argparse
import json
import os
import random
import time

import torch
from safetensors.torch import load_file, save_file

from . import networks, text


def options(about, steps, batch):
    """The command line: --host PATH [--out DIR] [--steps N] [--batch N] [--seed N] [--rate R] [--go-on]."""
    p = argparse.ArgumentParser(description=about)
    p.add_argument("--host", required=True)
    p.add_argument("--out", default="demo/weights")
    p.add_argument("--steps", type=int, default=steps)
    p.add_argument("--batch", type=int, default=batch)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--rate", type=float, default=2e-3)
    p.add_argument("--go-on", action="store_true", help="begin with what an earlier run left in --out; give it another seed")
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


def earlier(folder, name):
    """(weights in float32, figures) that an earlier run left."""
    with open(os.path.join(folder, f"{name}.json"), encoding="utf-8") as f:
        return {k: v.float() for k, v in load_file(os.path.join(folder, f"{name}.safetensors")).items()}, json.load(f)


def train(o, name, fresh, batch, loss_of, held=8):
    """Trains and writes NAME.safetensors (fp16, averaged weights) and NAME.json (the loss on scenes of its own, with and without training) to o.out.

    fresh() -> {key: tensor}; batch(rng, n) -> what loss_of(weights, made, generator) takes. held: batches of 16 on which the figures are measured.
    """
    path = os.path.join(o.out, f"{name}.safetensors")
    begin, before = earlier(o.out, name) if o.go_on else (fresh(), {"steps": 0})
    weights = {k: v.requires_grad_() for k, v in begin.items()}
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
    made = [batch(random.Random(10_000 + i), 16) for i in range(held)]

    @torch.no_grad()
    def held_out(make):
        return round(sum(loss_of(make(), m, torch.Generator().manual_seed(i)).item() for i, m in enumerate(made)) / held, 4)
    without = before["loss_without_training"] if "loss_without_training" in before else held_out(fresh)
    figures = {"steps": before["steps"] + o.steps, "loss": held_out(lambda: average), "loss_without_training": without}
    print(figures)
    save_file({k: v.half().contiguous() for k, v in average.items()}, path)
    with open(os.path.join(o.out, f"{name}.json"), "w", encoding="utf-8") as f:
        json.dump(figures, f, indent=1)
        f.write("\n")


def train_whole(about, name, make, loss_of, figures, minutes, batch, clock=time.time, out=None):
    """Trains a small network of its own from the command line (--out, --minutes or --steps, --batch, --threads, --seed, --go-on), and writes NAME.safetensors (fp16, averaged weights) and NAME.json (its figures) to --out.

    loss_of(network, rng, n, code, generator) -> the loss of n fresh examples; figures(network, code, seed) -> {name: value}; clock: what --minutes are counted by; out: where to by default (None: it has to be given).
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--out", default=out, required=out is None)
    parser.add_argument("--minutes", type=float, default=minutes)
    parser.add_argument("--steps", type=int, default=0, help="stop after this many steps instead (repeatable)")
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--go-on", action="store_true", help="begin with what an earlier run left in --out; give it another seed")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng, generator = random.Random(args.seed), torch.Generator().manual_seed(args.seed)
    code = load_file(os.path.join(args.out, "latents.safetensors"))
    network, before = make(), 0
    if args.go_on:
        weights, figures_before = earlier(args.out, name)
        network.load_state_dict(weights)
        before = figures_before["steps"]
    print(f"{sum(p.numel() for p in network.parameters())} parameters", flush=True)
    optimiser = torch.optim.AdamW(network.parameters(), lr=0.0, betas=(0.9, 0.98), weight_decay=0.01)
    average = {k: v.detach().clone() for k, v in network.state_dict().items()}
    start, step, recent = clock(), 0, []
    while True:
        part = step / args.steps if args.steps else (clock() - start) / (args.minutes * 60)
        if part >= 1:
            break
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 50) * min(1, (1 - part) / 0.6)
        loss = loss_of(network, rng, args.batch, code, generator)
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
            print(f"step {step} loss {sum(recent) / len(recent):.4f} {clock() - start:.0f}s", flush=True)
            recent = []
    network.load_state_dict({k: v.half().float() for k, v in average.items()})
    network.eval().requires_grad_(False)
    save_file({k: v.half().contiguous() for k, v in average.items()}, os.path.join(args.out, f"{name}.safetensors"))
    result = {"seed": args.seed, "steps": before + step, "batch": args.batch, **figures(network, code, 10_000_019 + args.seed)}
    with open(os.path.join(args.out, f"{name}.json"), "w", encoding="utf-8") as f:
        json.dump(result, f, indent=1)
        f.write("\n")
    print(json.dumps(result, indent=1))
