"""Trains the generator of degradations that comes with the pack (demo/degrading.py): it makes haze, rain, snow, motion blur, low light or raindrops of a wanted level on a clean picture.

    python scripts/_module.py lodestar.demo.train_degrading --host PATH_OF_COMFYUI --out demo/weights --rate 5e-4 [--steps 5000] [--batch 4] [--seed 0]

In most steps it sees quarters of the pictures, twice as many, which costs less. As the authors: of twenty pictures one has no text and no level, one no clean picture, one neither. It begins with the bundled U-Net, all of whose weights are trained.
"""
import os

import torch
from safetensors.torch import load_file

from . import latents
from .degrading import NAME, PHRASES, context_of, fresh, measured, network, pairs, whole
from .scenes import SIZE
from .train_generator import import_host
from .train_loop import encoder_of, frozen_unet, options, train

DROP, QUARTERS, BEGIN = 0.05, 0.8, 0.15


def batch(rng, n, code):
    """(degraded latents, clean latents, captions, levels [n, 2])."""
    quarters = n < 16 and rng.random() < QUARTERS      # the figures are those of whole pictures
    scenes, kinds, clean, bad = pairs(rng, n)
    if quarters:      # two of each picture
        scenes, kinds, clean, bad = 2 * scenes, 2 * kinds, clean.repeat(2, 1, 1, 1), bad.repeat(2, 1, 1, 1)
        at = [(4 * rng.randrange(SIZE // 8 + 1), 4 * rng.randrange(SIZE // 8 + 1)) for _ in scenes]
        clean, bad = (torch.stack([u[:, y:y + SIZE // 2, x:x + SIZE // 2] for u, (y, x) in zip(t, at)]) for t in (clean, bad))
    levels, captions, seen = measured(clean, bad), [], torch.ones(len(scenes), 1, 1, 1)
    for i, (s, kind) in enumerate(zip(scenes, kinds)):
        drawn, caption = rng.random(), "" if quarters or rng.random() < 0.3 else s.caption
        captions.append("" if drawn < 2 * DROP else caption + PHRASES[kind])
        levels[i] = float("nan") if drawn < 2 * DROP else levels[i]
        seen[i] = 0.0 if DROP <= drawn < 3 * DROP else 1.0
    return latents.encode(bad, code), seen * latents.encode(clean, code), captions, levels


def loss_of(net, weights, made, alpha, encoder, generator):
    """The squared error of the clean estimate at levels of 0.3 to 14 (evenly in their logarithm), at low ones that of the noise.

    At the last level some see noise alone, as sampling begins: the schedule ends where the picture's mean still shows, and a network that trusts it there draws gray."""
    z, clean, captions, levels = made
    sigmas = ((1 - alpha) / alpha).sqrt()
    sigma = 0.3 * (14.5 / 0.3) ** torch.rand(len(z), generator=generator)
    begin = torch.rand(len(z), generator=generator) < BEGIN
    level = torch.where(begin, len(alpha) - 1, (sigmas[None] - sigma[:, None]).abs().argmin(1))
    noise, a = torch.randn(z.shape, generator=generator), alpha[level][:, None, None, None]
    x = torch.where(begin[:, None, None, None], noise, a.sqrt() * z + (1 - a).sqrt() * noise)
    noise = (x - a.sqrt() * z) / (1 - a).sqrt()
    out = torch.func.functional_call(net, whole(weights), (torch.cat((x, clean), 1), level.float()), {"context": context_of(weights, encoder, captions, levels)})
    return ((out - noise).square() * ((1 - a) / a).clamp(0.2, 60.0)).mean()


def main():
    o = options(__doc__.splitlines()[0], 5000, 4)
    import_host(o.host)
    torch.set_grad_enabled(True)
    torch.manual_seed(o.seed)
    plain, alpha = frozen_unet(o.out)
    net = network().requires_grad_(False)
    encoder, code = encoder_of(o.out), load_file(os.path.join(o.out, "latents.safetensors"))
    train(o, NAME, lambda: fresh(plain.state_dict(), o.seed), lambda rng, n: batch(rng, n, code), lambda weights, made, generator: loss_of(net, weights, made, alpha, encoder, generator), held=2)


if __name__ == "__main__":
    main()
