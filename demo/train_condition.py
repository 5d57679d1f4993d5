"""Trains the condition LoRA that comes with the pack (demo/condition.py): outlines steer the bundled flow model, whose own weights stay as they are.

    python -m demo.train_condition --host PATH_OF_COMFYUI --out demo/weights [--steps 300] [--batch 8] [--seed 0]

It shows that the mechanism works and serves tests and the example; for Flux take the authors' files.
"""
import argparse
import json
import os
import random
import time

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from . import latents, networks, text
from .condition import fresh, forward, outlines
from .scenes import random_scene, render
from .train_generator import import_host


def batch(rng, n, code, encoder):
    """(latents, context, pooled, conditions) of n scenes; one caption in five names no place, one in five is empty."""
    scenes = [random_scene(rng) for _ in range(n)]
    captions = [" and ".join(f"a {t.colour} {t.shape}" for t in s.things) if rng.random() < 0.2 else s.caption for s in scenes]
    captions = [c if rng.random() > 0.2 else "" for c in captions]
    with torch.no_grad():
        context, pooled = encoder(text.tokenize(captions))
    drawn = torch.stack([outlines(s) if rng.random() < 0.7 else F.avg_pool2d(outlines(s, 128), 2) for s in scenes])      # finer lines too
    return latents.encode(torch.stack([render(s) for s in scenes]), code), context, pooled, latents.encode(drawn, code)


def loss_of(network, weights, made, generator):
    """Flow matching with the condition; as in training, t is logit-normal, here nearer to the noise, where the layout is settled."""
    x, context, pooled, condition = made
    t = torch.sigmoid(torch.randn(len(x), generator=generator) * 1.2 + 0.8)
    noise, s = torch.randn(x.shape, generator=generator), t[:, None, None, None]
    return (forward(network, (1 - s) * x + s * noise, t, context, pooled, [(weights, condition, None)]) - (noise - x)).square().mean()


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--host", required=True)
    p.add_argument("--out", default="demo/weights")
    p.add_argument("--steps", type=int, default=300)
    p.add_argument("--batch", type=int, default=8)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--rate", type=float, default=2e-3)
    o = p.parse_args()
    import_host(o.host)
    import comfy.ops
    torch.set_grad_enabled(True)
    network = networks.dit(comfy.ops.disable_weight_init, dtype=torch.float32)
    own = network.state_dict()
    given = {k: v.float() for k, v in load_file(os.path.join(o.out, "dit.safetensors")).items()}
    twin = {k.rpartition(".")[0]: k for k in own}
    network.load_state_dict({k if k in own else twin[k.rpartition(".")[0]]: v for k, v in given.items()})
    network.requires_grad_(False)
    encoder = text.TextEncoder()
    encoder.load_state_dict({k: v.float() for k, v in load_file(os.path.join(o.out, "text.safetensors")).items()})
    encoder.requires_grad_(False)
    code = load_file(os.path.join(o.out, "latents.safetensors"))
    weights = {k: v.requires_grad_() for k, v in fresh(network, seed=o.seed).items()}
    optimiser = torch.optim.AdamW(weights.values(), o.rate, betas=(0.9, 0.98), weight_decay=0.0)
    rng, generator = random.Random(o.seed), torch.Generator().manual_seed(o.seed)
    average = {k: v.detach().clone() for k, v in weights.items()}
    begin, recent = time.time(), []
    for step in range(1, o.steps + 1):
        for group in optimiser.param_groups:
            group["lr"] = o.rate * min(1.0, step / 40) * min(1.0, (o.steps - step + 1) / (0.3 * o.steps))
        loss = loss_of(network, weights, batch(rng, o.batch, code, encoder), generator)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(weights.values()), 1.0)
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
            made = batch(random.Random(10_000 + i), 16, code, encoder)
            for found, w in ((with_it, average), (without, fresh(network))):
                found.append(loss_of(network, w, made, torch.Generator().manual_seed(i)).item())
    figures = {"steps": o.steps, "loss": round(sum(with_it) / 8, 4), "loss_without_training": round(sum(without) / 8, 4)}
    print(figures)
    save_file({k: v.half().contiguous() for k, v in average.items()}, os.path.join(o.out, "condition_outlines.safetensors"))
    with open(os.path.join(o.out, "condition_outlines.json"), "w", encoding="utf-8") as f:
        json.dump(figures, f, indent=1)
        f.write("\n")


if __name__ == "__main__":
    main()
