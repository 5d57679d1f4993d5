"""Weather, bad light and moving cameras for the scenes, and the bundled generator of such degradations (GenDeg): the bundled U-Net with the clean picture's latent as further input channels.

`degrade` makes pictures for its training; `fresh` its weights before training, `whole` the network's parameters among them.
"""
import math

import torch
import torch.nn.functional as F

from ..guidance.inverse.degradation_synthesis import BINS, KINDS, conditioned, level_of, one_hot

from . import latents, networks, text
from .scenes import SIZE, random_scene, render

NAME = "degradation_generator"
WORDS = dict(zip(KINDS, ("in in", "of of", "to to", "at at", "below below", "above above")))      # stand for the kinds: the bundled text encoder has no words for them
PHRASES = {kind: f" {words}" for kind, words in WORDS.items()}
FIRST = "input_blocks.0.0.weight"


def _line(length, angle):
    """A line of so many pixels as a kernel [1, 1, k, k] whose sum is 1."""
    half = max(1, math.ceil(length / 2))
    y, x = torch.meshgrid(*[torch.arange(-half, half + 1.0)] * 2, indexing="ij")
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    kernel = (1 - across.abs()).clamp(min=0) * ((length + 1) / 2 - along.abs()).clamp(0, 1)
    return (kernel / kernel.sum())[None, None]


def _through(kernel, u):
    pad = kernel.shape[-1] // 2
    return F.conv2d(F.pad(u[:, None], (pad,) * 4, mode="replicate"), kernel)[:, 0]


def _spots(rng, h, w, count, radius):
    """Soft round spots [h, w] in [0, 1]."""
    y, x = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
    found = torch.zeros(h, w)
    for _ in range(count):
        r = radius * rng.uniform(0.6, 1.4)
        found = torch.maximum(found, (r + 0.5 - torch.hypot(x - rng.uniform(0, w), y - rng.uniform(0, h))).clamp(0, 1))
    return found


def degrade(u, kind, amount, rng):
    """A picture [3, h, w] in [0, 1] with a degradation of an amount in [0, 1]."""
    h, w = u.shape[-2:]
    if kind == "haze":
        far = torch.linspace(1.0, rng.uniform(0.3, 1.0), h)[:, None]
        through = torch.exp(-2.2 * amount * far)
        return u * through + rng.uniform(0.7, 0.95) * (1 - through)
    if kind == "low light":
        return (u * (1 - 0.9 * amount)) ** (1 + 0.5 * rng.random() * amount)
    if kind == "motion blur":
        return _through(_line(2 + 24 * amount, rng.uniform(0, math.pi)), u)
    if kind == "rain":
        drops = torch.zeros(h, w)
        for _ in range(round(4 + 90 * amount)):
            drops[rng.randrange(h), rng.randrange(w)] = 1.0
        length = rng.uniform(8, 14)
        streaks = (_through(_line(length, math.pi / 2 + rng.uniform(-0.4, 0.4)), drops[None])[0] * length).clamp(0, 1)
        return u + (0.95 - u) * rng.uniform(0.5, 0.95) * streaks
    if kind == "snow":
        return u + (0.97 - u) * rng.uniform(0.7, 1.0) * _spots(rng, h, w, round(3 + 80 * amount), rng.uniform(1.2, 2.2))
    if kind == "raindrops":
        out, (y, x) = u, torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
        for _ in range(round(1 + 12 * amount)):
            cx, cy, r = rng.uniform(0, w), rng.uniform(0, h), rng.uniform(3, 8)
            grid = torch.stack((2 * (cx - 3 * (x - cx)) / w - 1, 2 * (cy - 3 * (y - cy)) / h - 1), -1)[None]      # a drop shows the scene upside down
            seen = F.grid_sample(F.avg_pool2d(u[None], 3, 1, 1), grid, padding_mode="reflection", align_corners=False)[0]
            mask = 0.9 * ((r + 1 - torch.hypot(x - cx, y - cy)) / 2).clamp(0, 1)
            out = out * (1 - mask) + (0.85 * seen + 0.1) * mask
        return out.clamp(0, 1)
    raise ValueError(f"unknown degradation {kind!r}; known: {', '.join(KINDS)}")


def pairs(rng, n, kinds=None):
    """(scenes, kinds, pictures [n, 3, 64, 64], degraded pictures)."""
    scenes = [random_scene(rng) for _ in range(n)]
    kinds = [rng.choice(KINDS) for _ in scenes] if kinds is None else kinds
    pictures = torch.stack([render(s, SIZE) for s in scenes])
    return scenes, kinds, pictures, torch.stack([degrade(u, k, rng.random(), rng) for u, k in zip(pictures, kinds)])


def network():
    """The host's U-Net in the bundled shape, for the noisy latent and the clean picture's behind it. The host must be on the path."""
    import comfy.ops
    return wide(comfy.ops.disable_weight_init, dtype=torch.float32)


def wide(operations, dtype=None, device=None):
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    return UNetModel(**{**networks.UNET, "in_channels": 2 * latents.CHANNELS}, transformer_depth=list(networks.UNET_DEPTH_IN), transformer_depth_output=list(networks.UNET_DEPTH_OUT),
                     dtype=dtype, device=device, operations=operations)


def fresh(base, seed=0):
    """Weights before training {key: tensor}: the U-Net's (base: its parameters), its first convolution widened, and the projections of the level.

    A bin's column changes smoothly from bin to bin, each token with a slope of its own, so that few examples serve all bins."""
    g = torch.Generator().manual_seed(seed)
    w = {key: torch.cat((value, 0.3 * value), 1) if key == FIRST else value.clone() for key, value in base.items()}
    at, width = torch.linspace(-1, 1, BINS), text.WIDTH
    slope, centre = 3 * torch.randn(text.LENGTH, 1, generator=g), 2 * torch.rand(text.LENGTH, 1, generator=g) - 1
    w["stats_proj.weight"] = torch.cat((torch.tanh(slope * (at - centre)), torch.zeros(text.LENGTH, 1)), 1)
    w["stats_proj.bias"] = torch.zeros(text.LENGTH)
    w["cc_projection.weight"] = torch.cat((torch.eye(width), 0.7 * torch.randn(width, 2, generator=g)), 1)
    w["cc_projection.bias"] = torch.zeros(width)
    return w


def projections(weights):
    """Those of the level among the file's tensors."""
    return {k: v for k, v in weights.items() if k.startswith(("stats_proj.", "cc_projection."))}


def whole(weights):
    """The parameters {key: tensor} of the network with further input channels."""
    return {k: v for k, v in weights.items() if k not in projections(weights)}


def context_of(weights, encoder, captions, levels):
    """The conditioning [n, tokens, width] of captions and levels [n, 2], NaN where none is given."""
    with torch.no_grad():
        states, _ = encoder(text.tokenize(captions))
    return conditioned(projections(weights), states, one_hot(levels))


def measured(clean, degraded):
    """Levels [n, 2] of pictures."""
    return level_of(clean, degraded)
