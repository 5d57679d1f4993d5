"""Trains the degradation-guided LoRA that comes with the pack (demo/degradation_lora.py): one step from a blurred and noisy picture to the true one. The bundled U-Net's own weights stay as they are.

    python scripts/_module.py lodestar.demo.train_degradation_lora --host PATH_OF_COMFYUI --out demo/weights [--steps 170] [--batch 4] [--rate 4e-3] [--seed 0]

Loss: 2 x squared error and 5 x the distance of features (of the bundled VGG in place of LPIPS), weighted as the authors'; no adversarial part. One picture in ten (there
in twenty) has the prompt of bad quality and itself as its target. It starts in the middle of the schedule, where so short a training gets further than from the last timestep, which the authors take.
"""
import os

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from ..guidance.inverse.degradation import Degradation
from ..guidance.inverse.degradation_lora import ModulatedLayers, parse

from . import latents, text
from .degradation_lora import NAME, fresh
from .degraded import BAD, GOOD, LEVEL, encode, pairs
from .module_training import placed
from .scene_vgg import layout
from .train_generator import import_host
from .train_loop import encoder_of, frozen_unet, options, train

NEGATIVE = 0.1


def batch(rng, n, code, encoder, generator):
    """(degraded latents, wanted latents, context, scores)."""
    scenes, pictures, bad, scores = pairs(rng, n, generator)
    negative = [rng.random() < NEGATIVE for _ in scenes]
    texts = [BAD if no else s.caption if rng.random() > 0.3 else GOOD for s, no in zip(scenes, negative)]
    with torch.no_grad():
        context, _ = encoder(text.tokenize(texts))
    z = encode(bad, code)
    return z, torch.where(torch.tensor(negative)[:, None, None, None], z, encode(pictures, code)), context, scores


def features(w, pictures):
    """Maps of the bundled VGG's stages, each place of unit length, of pictures in [0, 1]."""
    x, found = (pictures - 0.5) / 0.5, []
    for i, key in enumerate(layout()):
        x = F.conv2d(F.max_pool2d(x, 2) if i in (2, 4) else x, w[f"{key}.weight"], w[f"{key}.bias"], padding=1).relu()
        if i % 2:
            found.append(F.normalize(x, dim=1))
    return found


def restored(network, weights, z, context, scores, alpha, level=LEVEL):
    """The clean estimate of one step from the picture itself."""
    lora = parse(weights, "train", "lora")
    edit = ModulatedLayers("", lora, Degradation(tuple(map(tuple, scores.tolist()))), 1.0)
    a = alpha[level]
    with placed(network, edit):
        noise = network(z, torch.full((len(z),), float(level)), context=context)
    return (z - (1 - a).sqrt() * noise) / a.sqrt()


def loss_of(network, weights, made, alpha, code, vgg):
    z, wanted, context, scores = made
    out, true = (latents.decode(t, code) for t in (restored(network, weights, z, context, scores, alpha), wanted))
    apart = sum((a - b).square().sum(1).mean() for a, b in zip(features(vgg, out), features(vgg, true)))
    return 2 * (2 * (out - true)).square().mean() + 5 * 0.2 * apart


def main():
    o = options(__doc__.splitlines()[0], 170, 4)
    import_host(o.host)
    torch.set_grad_enabled(True)
    network, alpha = frozen_unet(o.out)
    encoder, code, vgg = encoder_of(o.out), load_file(os.path.join(o.out, "latents.safetensors")), {k: v.float() for k, v in load_file(os.path.join(o.out, "scene_vgg.safetensors")).items()}
    noise = torch.Generator().manual_seed(o.seed + 1)
    train(o, NAME, lambda: fresh(network, seed=o.seed), lambda rng, n: batch(rng, n, code, encoder, noise), lambda weights, made, generator: loss_of(network, weights, made, alpha, code, vgg))


if __name__ == "__main__":
    main()
