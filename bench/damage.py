"""Measuring restorers of damaged pictures: scenes twice as large as the trained size, of which parts are gone, and how near what is made in their place is to the true picture."""
from __future__ import annotations

import random

import torch

from ..demo import damage as of
from ..demo.scenes import SIZE, render
from . import restoration

TASKS = ("damaged",)
METRICS = ("damage_psnr", "damage_features", "damage_seam")
SIDE = 4 * SIZE      # pixels of a picture


def pictures(batch):
    """(true pictures [n, 3, 256, 256], masks [n, 1, 256, 256] of the damage) of cases, the same for every setup."""
    masks = [of.torn(random.Random(60_001 + c.seed * 1_000_003 + c.prompt), SIDE) for c in batch]
    return torch.stack([render(c.scene, SIDE) for c in batch]), torch.stack(masks)


def sampled(subject, setup, batch, texts, steps):
    """Latents [n, 16, 32, 32]: the damaged parts made anew by the host's inpainting, the bundled ControlNet seeing what is left."""
    import comfy.samplers
    true, masks = pictures(batch)
    z, free = of.encode(true, subject.code), masks[..., ::8, ::8]
    z = z * (1 - free)      # nothing of what is gone
    control = of.load_control().set_cond_hint(of.shown(true, masks), 1.0, (0.0, 1.0))
    led = lambda conds: [[tokens, {**more, "control": control, "control_apply_to_uncond": False}] for tokens, more in conds]
    guider = comfy.samplers.CFGGuider(subject.guided(setup, batch))
    guider.set_conds(led(subject.encode(texts)), led(subject.encode([""])))
    guider.set_cfg(setup.cfg)
    noise = torch.cat([c.noise(SIDE // 8) for c in batch])
    return guider.sample(noise, z, subject.sampler(setup, batch), subject.sigmas(steps), denoise_mask=free, disable_pbar=True, seed=batch[0].seed)


def values(metric, made, batch, judge, subject):
    """One value per picture, over the damaged parts alone. damage_psnr: peak signal-to-noise ratio in dB; damage_features: distance of the measuring network's maps of the true picture and of the true one with those parts as
    they were made, as a share; damage_seam: root mean square error of the steps across the borders of the damage."""
    true, masks = pictures(batch)
    true = subject.pictures(of.encode(true, subject.code)).clamp(0, 1)
    masks = torch.nn.functional.interpolate(masks, true.shape[-2:], mode="nearest")
    made = made.clamp(0, 1) * masks + true * (1 - masks)
    if metric == "damage_features":
        return restoration.feature_distance(made, true, judge.network)
    if metric == "damage_psnr":
        return -10 * torch.log10(((made - true).square().sum((1, 2, 3)) / (3 * masks.sum((1, 2, 3)))).clamp(min=1e-10))
    away, weight = 0.0, 0.0
    for axis in (-1, -2):
        border = masks.diff(dim=axis).abs()
        away = away + ((made - true).diff(dim=axis).square() * border).mean(1).sum((1, 2))
        weight = weight + border.sum((1, 2, 3))
    return (away / weight).sqrt()
