"""Trains the condition LoRA that comes with the pack (demo/condition.py): outlines steer the bundled flow model, whose own weights stay as they are.

    python -m demo.train_condition --host PATH_OF_COMFYUI --out demo/weights [--steps 300] [--batch 8] [--seed 0]

It shows that the mechanism works and serves tests and the example; for Flux take the authors' files.
"""
import os

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from . import latents, networks, text
from .condition import fresh, forward, outlines
from .scenes import random_scene, render
from .train_generator import import_host
from .train_loop import encoder_of, options, train


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
    o = options(__doc__.splitlines()[0], 300, 8)
    import_host(o.host)
    import comfy.ops
    torch.set_grad_enabled(True)
    network = networks.dit(comfy.ops.disable_weight_init, dtype=torch.float32)
    own = network.state_dict()
    given = {k: v.float() for k, v in load_file(os.path.join(o.out, "dit.safetensors")).items()}
    twin = {k.rpartition(".")[0]: k for k in own}
    network.load_state_dict({k if k in own else twin[k.rpartition(".")[0]]: v for k, v in given.items()})
    network.requires_grad_(False)
    encoder, code = encoder_of(o.out), load_file(os.path.join(o.out, "latents.safetensors"))
    train(o, "condition_outlines", lambda: fresh(network, seed=o.seed), lambda rng, n: batch(rng, n, code, encoder),
          lambda weights, made, generator: loss_of(network, weights, made, generator))


if __name__ == "__main__":
    main()
