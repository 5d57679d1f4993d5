"""Trains the pair of streams that comes with the pack (demo/unicon.py): pictures and their depth, each at a noise level of its own. The bundled U-Net's own weights stay as they are.

    python -m demo.train_unicon --host PATH_OF_COMFYUI --out demo/weights [--steps 1000] [--batch 8] [--rate 2e-3] [--seed 0]

As in the authors' training the two levels are independent; in two steps of five one stream is clean, because these few steps would seldom see the levels that a given picture has.
"""
import os

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from guidance.attention.joint_lora import parse
from guidance.attention.joint_streams import Rows, placed_in

from . import latents, text
from .scenes import random_scene, render
from .train_generator import import_host
from .train_loop import encoder_of, frozen_unet, options, train
from .unicon import NAME, depth, fresh


def batch(rng, n, code, encoder):
    """(latents [2 n, ...], pictures before their depths; context [2 n, ...]); a prompt in ten is empty for the picture, for its depth, for both."""
    scenes = [random_scene(rng) for _ in range(n)]
    drawn = [rng.random() for _ in scenes]
    of_image = [s.caption if r > 0.2 else "" for s, r in zip(scenes, drawn)]
    of_depth = [s.caption if not 0.1 < r <= 0.3 else "" for s, r in zip(scenes, drawn)]
    with torch.no_grad():
        context, _ = encoder(text.tokenize(of_image + of_depth))
    return latents.encode(torch.stack([render(s) for s in scenes] + [depth(s) for s in scenes]), code), context


class Attached:
    """The two streams inside the network, for training: `rows` says which rows are which, `lora` is the JointLora of the step."""

    def __init__(self, network):
        self.rows = self.lora = None
        self.stages = {"input": network.input_blocks, "middle": network.middle_block, "output": network.output_blocks}

    def exchange(self):
        """Puts the streams in place for one forward; returns what undoes it."""
        touched = []
        for stage, part in self.stages.items():
            modules = [m for m in part.modules() if hasattr(m, "attn1")]
            for module, block in zip(modules, self.lora.blocks[stage], strict=True):
                heads = module.attn1.heads
                for at, make in placed_in(module, block, self.rows, lambda q, k, v, heads=heads: _attend(q, k, v, heads)):
                    touched.append(at)
                    at.forward = make(at.forward)
        return lambda: [at.__dict__.pop("forward") for at in touched]


def _attend(q, k, v, heads):
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def loss_of(network, attached, weights, made, alpha, generator):
    """The noise's squared error in both streams, weighted as in the network's own training."""
    x, context = made
    n = len(x) // 2
    level = torch.randint(0, 1000, (2, n), generator=generator)
    still = torch.rand(n, generator=generator)
    level[0, still < 0.2] = 0
    level[1, still > 0.8] = 0
    level = level.flatten()
    a = alpha[level][:, None, None, None]
    noise = torch.randn(x.shape, generator=generator)
    attached.rows, attached.lora = Rows(1, 2 * n, [True]), parse(weights, "train", "weights")
    undo = attached.exchange()
    try:
        out = network(a.sqrt() * x + (1 - a).sqrt() * noise, level.float(), context=context)
    finally:
        undo()
    snr = (a / (1 - a)).flatten()
    return ((out - noise).square().mean((1, 2, 3)) * (snr.clamp(max=5) + 1) / snr).mean()


def main():
    o = options(__doc__.splitlines()[0], 1000, 8)
    import_host(o.host)
    torch.set_grad_enabled(True)
    network, alpha = frozen_unet(o.out)
    encoder, code = encoder_of(o.out), load_file(os.path.join(o.out, "latents.safetensors"))
    attached = Attached(network)
    train(o, NAME, lambda: fresh(o.seed), lambda rng, n: batch(rng, n, code, encoder),
          lambda weights, made, generator: loss_of(network, attached, weights, made, alpha, generator))


if __name__ == "__main__":
    main()
