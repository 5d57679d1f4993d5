"""Masks of the graph on latents of every kind: pictures, videos, sound."""
from __future__ import annotations

import torch.nn.functional as F

from .method import BadInput


def cover(mask, like, node, field="mask"):
    """How much of each cell a mask [n, h, w] marks, in [0, 1], to broadcast against `like`: [1 or batch, 1, (frames,) height, width], or [.., 1, length] of sound.

    n: one, one for each of the batch, or of a video with one sample one for each frame (in latent frames, or in pictures, whose nearest one counts). Sound has time along the mask's width.
    """
    m = mask.to(device=like.device).float()
    m = m if m.ndim == 3 else m[None]
    if like.ndim == 3:
        m = F.interpolate(m.mean(1, keepdim=True), like.shape[-1], mode="area" if m.shape[-1] >= like.shape[-1] else "nearest")
        return _rows(m, like, node, field)
    size = like.shape[-2:]
    m = F.interpolate(m[:, None], size, mode="area" if m.shape[-2] >= size[0] and m.shape[-1] >= size[1] else "nearest")
    if like.ndim == 4:
        return _rows(m, like, node, field)
    if like.ndim != 5:
        raise BadInput(node, "latent", list(like.shape), "It works on pictures, videos and sound.")
    frames = like.shape[2]
    if m.shape[0] not in (1, like.shape[0]) or (m.shape[0] > 1 and like.shape[0] == 1):      # frames of one video
        if m.shape[0] < frames:
            raise BadInput(node, field, f"{mask.shape[0]} masks", f"Give one, one for each of the batch, or one for each of the {frames} frames.")
        pick = [round(i * (m.shape[0] - 1) / max(1, frames - 1)) for i in range(frames)]
        return m[pick].transpose(0, 1)[None]
    return m[:, :, None]


def _rows(m, like, node, field):
    if m.shape[0] not in (1, like.shape[0]):
        raise BadInput(node, field, f"{m.shape[0]} masks", f"Give one, or one for each of the {like.shape[0]} that are sampled.")
    return m
