"""Predictions of a MODEL for a given picture, outside a sampling run: the host loads the model and prepares the prompts as it does for sampling.

The methods of this pack on the MODEL do not take part: readings are of the network itself, with what other nodes put on it (LoRA, ControlNets of the prompts ...).
"""
from __future__ import annotations

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import torch

from ..reading.look import Look
from .attach import attach, bare
from .features import is_flow


class Probe:
    """What `work` gets. x0 [batch, ...]: the picture in the model's own latent space; flow; sigma(level): the noise level at a place of the schedule (0 clean,
    1 noise); each(x, sigma, names) -> the denoised of those prompts, in one batched call; observed(x, sigma): the prediction of the first prompt, seen by the observers."""

    def __init__(self, guider, x0, extra_args, total):
        self.guider, self.x0, self.extra_args = guider, x0, extra_args
        self.sampling = guider.inner_model.model_sampling
        self.flow = is_flow(self.sampling)
        self.bar = comfy.utils.ProgressBar(total) if total and getattr(comfy.utils, "PROGRESS_BAR_ENABLED", True) else None

    def sigma(self, level):
        low, high = float(self.sampling.sigma_min), float(self.sampling.sigma_max)
        return min(high, max(low, float(self.sampling.percent_to_sigma(1.0 - level))))

    def _tick(self, steps=1):
        comfy.model_management.throw_exception_if_processing_interrupted()
        if self.bar is not None:
            self.bar.update(steps)

    def each(self, x, sigma, names):
        self._tick(x.shape[0])
        conds = [self.guider.conds[str(name)] for name in names]
        return comfy.samplers.calc_cond_batch(self.guider.inner_model, conds, x, sigma.to(x), self.extra_args["model_options"])

    def observed(self, x, sigma):
        self._tick(x.shape[0])
        return self.guider(x, sigma.to(x), **self.extra_args)


class _Work(comfy.samplers.Sampler):
    def __init__(self, work, total):
        self.work, self.total, self.result = work, total, None

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False):
        self.result = self.work(Probe(model_wrap, latent_image.to(torch.float32), extra_args, self.total))
        return latent_image


def probe(model, prompts, latent, work, total=0, seed=0, observers=(), take=None):
    """work(Probe) with the MODEL loaded. prompts: {name: CONDITIONING}, the first is that of `observed`; latent: LATENT; total: predicted pictures, for the progress
    bar; observers: what is read (guidance.attention.edits.AttentionObserver), take(observer, found) gets what each saw after a prediction."""
    samples = latent["samples"]
    if getattr(samples, "is_nested", False):
        raise ValueError("Lodestar: this latent packs video and audio together; separate them first.")
    model = attach(model, Look(observers=tuple(observers), take=take), alone=True) if observers else bare(model)
    samples = comfy.sample.fix_empty_latent_channels(model, samples)
    guider = comfy.samplers.CFGGuider(model)
    prompts = {str(name): cond for name, cond in prompts.items()}
    prompts.setdefault("positive", next(iter(prompts.values())))
    guider.inner_set_conds(prompts)
    guider.set_cfg(1.0)
    sampling = model.get_model_object("model_sampling")
    sigmas = torch.tensor([float(sampling.sigma_max), float(sampling.sigma_min)])
    sampler = _Work(work, total)
    guider.sample(torch.zeros_like(samples), samples, sampler, sigmas, disable_pbar=True, seed=seed)
    return sampler.result
