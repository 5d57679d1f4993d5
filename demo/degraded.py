"""Degraded pictures of the scenes, for what restores them: blurred and noisy by known amounts."""
import torch

from ..guidance.inverse.operators import GaussianBlur

from . import latents
from .scenes import SIZE, random_scene, render

BLUR, NOISE = 5.0, 0.4      # pixels (of 128) and standard deviation that the score 1 stands for
BAD, GOOD = "", "the background"      # the prompts of bad and of good quality, where no caption says what there is: the bundled text encoder has no words for either
LEVEL = 499                 # the timestep that one-step restorers are told: the schedule "simple" begins there with one step at denoise 0.5


def degrade(pictures, scores, generator):
    """Pictures [n, 3, h, w] in [0, 1] blurred and noised by scores [n, 2] in [0, 1]."""
    blurred = torch.cat([GaussianBlur(max(1e-3, BLUR * float(b))).measure(u[None]) if b > 0 else u[None] for u, b in zip(pictures, scores[:, 0])])
    return (blurred + NOISE * scores[:, 1, None, None, None] * torch.randn(pictures.shape, generator=generator)).clamp(0, 1)


def encode(pictures, code):
    """Latents of pictures of 128 pixels, as the bundled VAE makes them."""
    return latents.encode(torch.nn.functional.avg_pool2d(pictures, 2), code)


def drawn(rng, n):
    """Scores [n, 2]: one picture in four is only blurred, one in four only noisy."""
    found = torch.tensor([[rng.random(), rng.random()] for _ in range(n)])
    for i in range(n):
        kind = rng.random()
        if kind < 0.5:
            found[i, int(kind < 0.25)] = 0
    return found


def pairs(rng, n, generator, scores=None):
    """(scenes, pictures [n, 3, 128, 128], degraded pictures, scores)."""
    scenes = [random_scene(rng) for _ in range(n)]
    pictures = torch.stack([render(s, 2 * SIZE) for s in scenes])
    scores = drawn(rng, n) if scores is None else scores
    return scenes, pictures, degrade(pictures, scores, generator), scores
