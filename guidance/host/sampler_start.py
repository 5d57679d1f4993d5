"""Restoration Start as a SAMPLER of the host: another sampler, whose run begins elsewhere."""
from __future__ import annotations

import comfy.samplers
import torch

from ..method import BadInput
from ..samplers import restoration_start
from .features import is_flow


class Started(comfy.samplers.Sampler):
    """`inner` from the state that a RestorationStart says. The host makes the state of the noise; so it is given the noise that makes the wanted one."""

    def __init__(self, method, inner):
        self.method, self.inner = method, inner

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False):
        if latent_image is None or not bool(torch.count_nonzero(latent_image)):
            raise BadInput(self.method.title, "latent_image", "an empty latent", "It begins at a picture: connect the degraded picture, encoded at the size that is wanted.")
        sampling = model_wrap.inner_model.model_sampling
        flow, level = is_flow(sampling), float(sigmas[0])
        kept = 1.0 if self.method.noise == 0 else restoration_start.share(float(sampling.percent_to_sigma(1.0 - self.method.noise)), flow)
        z = latent_image.to(noise)
        wanted = restoration_start.start(z, noise, level, flow, kept)
        made = lambda n: sampling.noise_scaling(sigmas[0], n, z, self.inner.max_denoise(model_wrap, sigmas))
        still = made(torch.zeros_like(noise))
        own = (wanted - still) / (made(torch.ones_like(noise)) - still)
        if denoise_mask is not None:
            own = own * denoise_mask.to(own) + noise * (1.0 - denoise_mask.to(own))
        return self.inner.sample(model_wrap, sigmas, extra_args, callback, own, latent_image, denoise_mask, disable_pbar)


def sampler(method):
    """The host's SAMPLER of a RestorationStart."""
    method.validate()
    inner = method.sampler
    if inner is not None and not hasattr(inner, "sample"):
        raise BadInput(method.title, "sampler", type(inner).__name__, "Connect a sampler, of KSamplerSelect for example.")
    return Started(method, comfy.samplers.sampler_object("euler") if inner is None else inner)
