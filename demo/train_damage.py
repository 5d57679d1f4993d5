"""Trains the Control-LoRA that comes with the pack (demo/damage.py): it shows the bundled U-Net what is left of a damaged picture. The U-Net's own weights stay as they are.

    python scripts/_module.py lodestar.demo.train_damage --host PATH_OF_COMFYUI --out demo/weights [--steps 80] [--batch 4] [--rate 5e-3] [--seed 0]

Half of the pictures are whole scenes, half parts seen from nearer, as the patches of a larger picture are; one caption in two is empty.
"""
import os

import torch
from safetensors.torch import load_file

from . import text
from .damage import NAME, controlnet, damaged, encode, fresh, residuals, shown
from .train_generator import import_host
from .train_loop import encoder_of, frozen_unet, options, train


def batch(rng, n, code, encoder):
    """(latents, pictures that the ControlNet is given, masks on the latent, context)."""
    scenes, pictures, masks, parts = damaged(rng, n)
    captions = ["" if part or rng.random() < 0.3 else s.caption for s, part in zip(scenes, parts)]
    with torch.no_grad():
        context, _ = encoder(text.tokenize(captions))
    return encode(pictures, code), shown(pictures, masks), masks[..., ::8, ::8], context


def loss_of(network, control, weights, made, alpha, generator):
    """The squared error of the clean estimate at levels of 0.8 to 8 (evenly in their logarithm), three times as much where the picture is damaged; above a level of 2 no more than there."""
    z, hints, masks, context = made
    levels = ((1 - alpha) / alpha).sqrt()
    sigma = 0.8 * (8 / 0.8) ** torch.rand(len(z), generator=generator)
    level = (levels[None] - sigma[:, None]).abs().argmin(1)
    noise, a = torch.randn(z.shape, generator=generator), alpha[level][:, None, None, None]
    x, level = a.sqrt() * z + (1 - a).sqrt() * noise, level.float()
    added = residuals(network, control, weights, x, hints, level, context)
    out = network(x, level, context=context, control={k: list(v) for k, v in added.items()})
    return ((out - noise).square() * (0.5 + masks) * ((1 - a) / a).clamp(max=4.0)).mean()


def main():
    o = options(__doc__.splitlines()[0], 80, 4)
    import_host(o.host)
    torch.set_grad_enabled(True)
    torch.manual_seed(o.seed)
    network, alpha = frozen_unet(o.out)
    control = controlnet()
    encoder, code = encoder_of(o.out), load_file(os.path.join(o.out, "latents.safetensors"))
    train(o, NAME, lambda: fresh(network, control, code, seed=o.seed), lambda rng, n: batch(rng, n, code, encoder),
          lambda weights, made, generator: loss_of(network, control, weights, made, alpha, generator), held=3)


if __name__ == "__main__":
    main()
