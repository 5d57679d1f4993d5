"""The strengths of Training-Free Guidance for a MODEL of the host, by what a validation loss says of finished pictures."""
from __future__ import annotations

import dataclasses

import comfy.model_management
import comfy.samplers
import comfy.utils
import torch

from ..loss.base import LossContext
from ..loss.solvers.search import search
from .sampler_inverse import sampler


def searched(method, model, positive, negative, cfg, latent, sigmas, validation, seeds, seed, beam, rounds):
    """(method with the best strengths, table): `seeds` pictures are made with each candidate, from the same noise; their mean validation loss is the score."""
    samples = latent["samples"]
    latents = model.get_model_object("latent_format")
    shape = (1, latents.latent_channels, *samples.shape[2:])      # an empty latent may have another model's channels
    noises = [torch.randn(shape, generator=torch.Generator().manual_seed(seed + i)) for i in range(seeds)]
    bar = comfy.utils.ProgressBar(1 + rounds * beam * 3)

    def score(values):
        comfy.model_management.throw_exception_if_processing_interrupted()
        candidate, total = dataclasses.replace(method, **values).validate(), 0.0
        for i, noise in enumerate(noises):
            guider = comfy.samplers.CFGGuider(model)
            guider.set_conds(positive, negative)
            guider.set_cfg(cfg)
            out = guider.sample(noise, torch.zeros_like(noise), sampler(candidate), sigmas, disable_pbar=True, seed=seed + i)
            z = latents.process_in(out.float())
            with torch.inference_mode(False), torch.no_grad():
                total += float(validation.value(z.clone(), LossContext()).mean())
        return total / len(noises)

    best, table = search(score, {"rho": method.rho, "mu": method.mu, "smoothing": method.smoothing}, beam, rounds, lambda values, value: bar.update(1))
    return dataclasses.replace(method, **best), table
