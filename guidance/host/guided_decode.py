"""Guided Decode in the host: the VAE's pictures, corrected one by one on the device that samples."""
from __future__ import annotations

import comfy.model_management as management
import torch

from ..inverse.guidance_branch import GuidanceBranch, fitting, guided
from ..method import BadInput


def decoded(method):
    """Pictures [n, height, width, channels] of a GuidedDecode; videos as their frames. BadInput for what cannot be."""
    samples = method.latent.get("samples") if isinstance(method.latent, dict) else None
    if not isinstance(samples, torch.Tensor) or getattr(samples, "is_nested", False):
        raise BadInput(method.title, "latent", type(samples).__name__, "One latent of pictures is wanted; take those of several kinds apart first.")
    if not isinstance(method.branch, GuidanceBranch):
        raise BadInput(method.title, "branch", type(method.branch).__name__, "Connect Load Guidance Branch.")
    image = method.image
    if not isinstance(image, torch.Tensor) or image.ndim != 4 or image.shape[-1] < 3 or not len(image):
        raise BadInput(method.title, "image", type(image).__name__ if not isinstance(image, torch.Tensor) else list(image.shape), "The degraded picture with three colours is wanted.")
    pictures = method.vae.decode(samples)
    if pictures.ndim == 5:
        pictures = pictures.reshape(-1, *pictures.shape[-3:])
    if pictures.ndim != 4 or pictures.shape[-1] < 3:
        raise BadInput(method.title, "vae", f"decodes to {list(pictures.shape)}", "A VAE of pictures is wanted.")
    if method.strength == 0:
        return pictures
    device = management.get_torch_device()
    branch, done = method.branch.to(device), []
    given = fitting(image, min(len(image), len(pictures)), pictures.shape[1:3])
    for i, drawn in enumerate(pictures):
        management.throw_exception_if_processing_interrupted()
        part = drawn[None, ..., :3].movedim(-1, 1).to(device, torch.float32)
        made = guided(branch, given[i % len(given)][None].to(device), part, method.strength).movedim(1, -1).to(drawn)
        done.append(torch.cat((made, drawn[None, ..., 3:]), -1))
    return torch.cat(done)
