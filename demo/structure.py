"""The bundled structure correction (GenDeg) for the bundled VAE: degraded pictures of 128 pixels as the VAE gives them, and the clean ones that show where the edges are."""
import functools

import torch
import torch.nn.functional as F

from ..guidance.inverse.structure_correction import layout

from . import latents
from .degrading import degrade
from .scenes import SIZE, random_scene, render
from .upsampler import Upsampler
from .weights_file import fill, read

NAME = "structure_correction"
WIDTH, ENCODERS, MIDDLE, DECODERS = 12, (1, 1), 1, (1, 1)


def fresh(seed=0):
    """Weights before training {key: tensor}: nothing is corrected."""
    g, w = torch.Generator().manual_seed(seed), {}
    for key, shape in layout(WIDTH, ENCODERS, MIDDLE, DECODERS).items():
        zero = key.startswith("ending.") or key.endswith((".bias", ".beta", ".gamma"))
        w[key] = torch.zeros(shape) if zero else torch.ones(shape) if ".norm" in key else torch.randn(shape, generator=g) / (torch.Size(shape).numel() / shape[0]) ** 0.5
    return w


@functools.lru_cache(None)
def _upsampler():
    network = Upsampler()
    fill(network, read("upsampler"), "upsampler")
    return network.eval().requires_grad_(False)


def through_vae(pictures, code):
    """Pictures [n, 3, 128, 128] as the bundled VAE gives them back."""
    small = latents.decode(latents.encode(F.avg_pool2d(pictures, 2), code), code)
    with torch.no_grad():
        return ((_upsampler()(2 * small - 1) + 1) / 2).clamp(0, 1)


def pairs(rng, n, kinds, code, part=None):
    """(clean, as the VAE gives the degraded, degraded) pictures [n, 3, 128, 128]; parts of them of so many pixels (a multiple of 8) where `part` says so."""
    clean = torch.stack([render(random_scene(rng), 2 * SIZE) for _ in range(n if part is None else n // 3)])
    bad = torch.stack([degrade(u, rng.choice(kinds), rng.random(), rng) for u in clean])
    if part:      # three of each picture
        clean, bad = clean.repeat(3, 1, 1, 1), bad.repeat(3, 1, 1, 1)
        at = [(8 * rng.randrange((2 * SIZE - part) // 8 + 1), 8 * rng.randrange((2 * SIZE - part) // 8 + 1)) for _ in clean]
        clean, bad = (torch.stack([u[:, y:y + part, x:x + part] for u, (y, x) in zip(t, at)]) for t in (clean, bad))
    return clean, through_vae(bad, code), bad
