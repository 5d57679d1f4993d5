"""Measuring what is not allowed."""
from __future__ import annotations

import torch

from ..demo.scenes import SIZE

METRICS = ("violations",)
VALUES = ("$left",)
PIXELS = 2 * SIZE      # of the VAE's pictures
UPPER = (0.6, 1.0, 1.0)      # red, green, blue that the left half may have at most


def value(text, subject, batch):
    """What "$left" (a mask of the left half) stands for."""
    with torch.inference_mode(False):
        return (torch.arange(PIXELS) < PIXELS // 2).float().expand(1, PIXELS, PIXELS).clone()


def values(metric, measured):
    """One value per picture: the share of the left half's cells whose rough colour is beyond the bound."""
    from ..guidance.host.decode import RoughPicture
    latents = measured.subject.model.get_model_object("latent_format")
    seen = RoughPicture(latents, "bench")(latents.process_in(measured.latents[measured.main]))
    half = seen[..., :seen.shape[-1] // 2]
    return (half > torch.tensor(UPPER)[:, None, None] + 1e-3).any(1).float().mean((1, 2))
