"""Refine by Loss on a LATENT of the host."""
from __future__ import annotations

import comfy.model_management
import comfy.sampler_helpers
import torch

from ..method import BadInput
from .inversion import latent_preview


def refine(method, model, latent):
    """(LATENT, values [batch] before, after): refined in the model's latent space, with previews; interruptible."""
    samples = latent["samples"]
    if getattr(samples, "is_nested", False):
        raise BadInput(method.title, "latent", "audio and video together", "Separate them first.")
    if not bool(torch.isfinite(samples).all()):
        raise BadInput(method.title, "latent", "not finite", "The latent holds numbers that are none; it was broken before this node.")
    if method.neutral():
        return latent, None, None
    latent_format = model.get_model_object("latent_format")
    device = model.load_device
    with torch.inference_mode(False):
        z = latent_format.process_in(samples.clone().float()).to(device)
        mask = latent.get("noise_mask")
        if mask is not None:
            mask = comfy.sampler_helpers.prepare_mask(mask.clone().float(), z.shape, device)
        callback = latent_preview.prepare_callback(model, method.steps)

        def progress(i, now, values):
            comfy.model_management.throw_exception_if_processing_interrupted()
            callback(i, now, now, method.steps)

        out, history = method.run(z, mask, progress)
        refined = latent_format.process_out(out).to(samples)
    return {**latent, "samples": refined}, history[0], history[-1]
