"""EDICT as a sampler of the host, and its inversion."""
from __future__ import annotations

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from tqdm.auto import tqdm

from ..inversion import ddim, edict
from ..method import BadInput
from .features import is_flow
from .inversion import InvertedNoise, latent_preview, noise_scales, schedule


def fine(device):
    """Double precision where the device has it: a pair is undone exactly then."""
    return torch.float32 if device.type == "mps" else torch.float64


def _predict(model, extra_args):
    def predict(z, sigma):
        comfy.model_management.throw_exception_if_processing_interrupted()
        return model(z.to(torch.float32), sigma.to(torch.float32), **extra_args).to(z.dtype)
    return predict


@torch.no_grad()
def sample_edict(model, x, sigmas, extra_args=None, callback=None, disable=None, *, method):
    """The EDICT Sampler as a sampler function of the host."""
    flow = is_flow(model.inner_model.inner_model.model_sampling)
    first = x.to(fine(x.device))
    second = first.clone()
    if method.apart is not None:
        apart = method.apart.to(second)
        if apart.shape[1:] != x.shape[1:] or apart.shape[0] not in (1, x.shape[0]):
            raise BadInput(method.title, "size of what is sampled", list(x.shape), f"The pair of states is of {list(apart.shape)}; sample a latent of that size.")
        second = second + apart
    with tqdm(total=len(sigmas) - 1, disable=disable) as bar:
        def report(i, x, sigma):
            bar.update(1)
            if callback is not None:
                callback({"x": x.to(torch.float32), "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": x.to(torch.float32)})
        out = edict.descend(_predict(model, extra_args or {}), (first, second), sigmas, method.mix, flow, report)[0]
    return out.to(x.dtype)


def sampler(method):
    """The host's SAMPLER of an EDICTSampler."""
    method.validate()
    return comfy.samplers.KSAMPLER(sample_edict, extra_options={"method": method})


class _Up(comfy.samplers.Sampler):
    """Goes up the noise levels from the clean latent; `result` is the pair at the highest."""

    def __init__(self, method):
        self.method, self.result = method, None

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False):
        flow, falling = is_flow(model_wrap.inner_model.model_sampling), sigmas.flip(0)
        model = comfy.samplers.KSamplerX0Inpaint(model_wrap, falling)
        total = len(sigmas) - 1
        with tqdm(total=total, disable=disable_pbar) as bar:
            def report(i, x, sigma):
                bar.update(1)
                if callback is not None:
                    callback(i, x.to(torch.float32), x.to(torch.float32), total)
            clean = edict.start(latent_image.to(fine(latent_image.device)), falling, flow)
            self.result = edict.ascend(_predict(model, {**extra_args, "denoise_mask": None}), clean, falling, self.method.mix, flow, report)
        return self.result[0].to(torch.float32)


def guider_of(method, model, positive, negative):
    """The host's guider of a method with a `cfg`; BadInput where a negative prompt is missing."""
    if negative is None and method.cfg != 1.0:
        raise BadInput(method.title, "cfg", method.cfg, "Connect a negative prompt, or set cfg to 1.")
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": positive} if negative is None else {"positive": positive, "negative": negative})
    guider.set_cfg(method.cfg)
    return guider


def prepared(method, model, latent, sigmas):
    """(sampling, falling sigmas on the CPU, samples) of a run that begins with noise; BadInput where that is not possible."""
    sampling = model.get_model_object("model_sampling")
    sigmas = schedule(method, sampling) if sigmas is None else sigmas
    sigmas = ddim.rising(sigmas).flip(0).to("cpu", torch.float32)
    if len(sigmas) < 2:
        raise BadInput(method.title, "sigmas", [float(s) for s in sigmas], "Connect a schedule of at least one step.")
    samples = latent["samples"]
    if getattr(samples, "is_nested", False):
        raise BadInput(method.title, "latent_image", "audio and video together", "Separate them first.")
    if not noise_scales(sampling, sigmas[0])[0] > 0.0:
        raise BadInput(method.title, "model", type(model.model).__name__, "This model does not sample from noise.")
    return sampling, sigmas, comfy.sample.fix_empty_latent_channels(model, samples)


def noise_of(model, sampling, sigma, state):
    """The NOISE that puts the host's samplers at this first state."""
    return InvertedNoise(state.to("cpu", torch.float32), *noise_scales(sampling, sigma), model.get_model_object("process_latent_in"))


def invert(method, model, positive, negative, latent, sigmas=None):
    """(LATENT, NOISE, SIGMAS, SAMPLER): the first state at the highest level, the noise that leads there, the schedule of the replay, and the sampler that knows the second state."""
    method.validate()
    sampling, sigmas, samples = prepared(method, model, latent, sigmas)
    guider, up = guider_of(method, model, positive, negative), _Up(method)
    rising = sigmas.flip(0)
    out = guider.sample(torch.zeros_like(samples), samples, up, rising, callback=latent_preview.prepare_callback(model, len(rising) - 1),
                        disable_pbar=not getattr(comfy.utils, "PROGRESS_BAR_ENABLED", True), seed=0)
    first, second = (t.to("cpu") for t in up.result)
    kept = first.to(torch.float32).to(first.dtype)      # what the replay begins with
    again = edict.EDICTSampler(mix=method.mix, apart=second - kept)
    result = {k: v for k, v in latent.items() if k != "noise_mask"}
    result["samples"] = out.to(comfy.model_management.intermediate_device())
    return result, noise_of(model, sampling, sigmas[0], first), sigmas, sampler(again)
