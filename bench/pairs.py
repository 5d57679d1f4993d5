"""Measuring pairs of streams (UniCon): pictures and their depth, made of each other or together."""
from __future__ import annotations

from dataclasses import replace

import torch

from ..demo import latents as code_of
from ..demo.unicon import FARTHEST, depth, nearness
from ..guidance.attention.unicon import MODES, joint_latent

TASKS = MODES[:3]
METRICS = ("depth_overlap", "depth_error")
CONTRAST = 0.2      # by which a thing's colour differs from its background's, in some channel
OWN_NOISE = 500     # added to the seed for the depth's noise


def depths(subject, batch):
    """Latents of the depth of a batch's scenes."""
    return code_of.encode(torch.stack([depth(c.scene) for c in batch]), subject.code)


def sampled(subject, setup, batch, texts, steps):
    """Latents [n, 32, 16, 16] of the pictures and, behind their channels, of their depths."""
    import comfy.samplers
    latent = joint_latent(setup.task, {"samples": subject.target(batch)}, {"samples": depths(subject, batch)})
    noise = torch.cat([c.noise() for c in batch] + [replace(c, seed=c.seed + OWN_NOISE).noise() for c in batch])
    guider = comfy.samplers.CFGGuider(subject.guided(setup, batch))
    guider.set_conds(subject.encode(texts * 2), subject.encode([""]))
    guider.set_cfg(setup.cfg)
    mask = latent["noise_mask"]
    out = guider.sample(noise, latent["samples"], subject.sampler(setup, batch), subject.sigmas(steps), denoise_mask=None if bool((mask == 1).all()) else mask, disable_pbar=True, seed=batch[0].seed)
    return torch.cat(out.chunk(2), 1)


def things(pictures):
    """Bool [n, height, width]: where pictures [n, 3, height, width] are not of their background's colour, which is the median of the border."""
    border = torch.cat((pictures[..., 0, :], pictures[..., -1, :], pictures[..., :, 0], pictures[..., :, -1]), -1)
    return (pictures - border.median(-1).values[..., None, None]).abs().amax(1) > CONTRAST


def near(pictures):
    """Bool [n, height, width]: where depth pictures are nearer than their background, which is the median of the border (black in the truth; a made one may have another shade: depth_error counts that)."""
    gray = pictures.mean(1)
    border = torch.cat((gray[..., 0, :], gray[..., -1, :], gray[..., :, 0], gray[..., :, -1]), -1)
    return gray - border.median(-1).values[..., None, None] > 0.5 * nearness(_Thing(FARTHEST))


class _Thing:
    def __init__(self, radius):
        self.radius = radius


def values(metric, pictures, made, true):
    """One value per picture. made: their depth pictures; true: those of the scenes."""
    if metric == "depth_error":
        return (made.clamp(0, 1) - true.clamp(0, 1)).square().mean((1, 2, 3)).sqrt()
    a, b = things(pictures), near(made)
    return (a & b).sum((1, 2)) / (a | b).sum((1, 2)).clamp(min=1)
