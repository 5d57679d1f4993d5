"""Trains the pixel-aware attention that comes with the pack (demo/pixel_aware.py): the bundled U-Net, whose own weights stay as they are, draws the picture of which it sees a blurred and noisy one.

    python scripts/_module.py lodestar.demo.train_pixel_aware --host PATH_OF_COMFYUI --out demo/weights [--steps 90] [--batch 4] [--rate 4e-3] [--seed 0]

Loss: the noise's squared error, as in the authors' training, weighted as in the U-Net's own. One caption in two is empty.
"""
import os

import torch
from safetensors.torch import load_file

from ..guidance.attention.sources import Held
from ..guidance.inverse.pixel_aware import LooksAtPixels, encoded, parse
from . import networks, text
from .degraded import encode, pairs
from .module_training import placed
from .pixel_aware import NAME, fresh, layers
from .train_generator import import_host
from .train_loop import encoder_of, frozen_unet, options, train


class Trained(LooksAtPixels):
    """The edit with features that can be differentiated."""

    def _encoded(self):
        return encoded(self.weights.encoder, self.latent.value)


def places():
    """The bundled U-Net's, as Pixel-Aware Attention finds them."""
    head = networks.UNET["num_head_channels"]
    return tuple((f"up_blocks.{i}.attentions.{j}", f"up_blocks.{i}.resnets.{j}", (i, j), n, width // head) for n, ((i, j), width, _) in enumerate(layers()))


def batch(rng, n, code, encoder, generator):
    """(true latents, degraded latents, context)."""
    scenes, pictures, bad, _ = pairs(rng, n, generator)
    with torch.no_grad():
        context, _ = encoder(text.tokenize([s.caption if rng.random() > 0.5 else "" for s in scenes]))
    return encode(pictures, code), encode(bad, code), context


def loss_of(network, weights, made, alpha, generator):
    x, z, context = made
    level = torch.randint(0, 1000, (len(x),), generator=generator)
    a, noise = alpha[level][:, None, None, None], torch.randn(x.shape, generator=generator)
    with placed(network, Trained("", parse(weights, "train", "weights"), Held(z), places())):
        out = network(a.sqrt() * x + (1 - a).sqrt() * noise, level.float(), context=context)
    snr = (a / (1 - a)).flatten()
    return ((out - noise).square().mean((1, 2, 3)) * (snr.clamp(max=5) + 1) / snr).mean()


def main():
    o = options(__doc__.splitlines()[0], 90, 4)
    import_host(o.host)
    torch.set_grad_enabled(True)
    network, alpha = frozen_unet(o.out)
    encoder, code = encoder_of(o.out), load_file(os.path.join(o.out, "latents.safetensors"))
    noise = torch.Generator().manual_seed(o.seed + 1)
    train(o, NAME, lambda: fresh(o.seed), lambda rng, n: batch(rng, n, code, encoder, noise), lambda weights, made, generator: loss_of(network, weights, made, alpha, generator))


if __name__ == "__main__":
    main()
