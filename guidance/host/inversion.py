"""DDIM inversion in the host: a run of its own guider, so that methods, areas, ControlNets and memory management work as in sampling."""
from __future__ import annotations

import math

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from tqdm.auto import tqdm

from ..attention.sources import Recorder
from ..inversion import ddim
from ..method import BadInput
from .features import is_flow
from .sampler_cfgpp import Capture

try:
    import latent_preview
except ImportError:  # the host from PyPI keeps it in its package
    from comfy.cmd import latent_preview


class InversionSampler(comfy.samplers.Sampler):
    """A sampler that goes up the noise levels from the clean latent. `result` keeps the final state as the model sees it, `trajectory` all states."""

    def __init__(self, method):
        self.method, self.result, self.trajectory = method, None, None

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False):
        method = self.method
        flow = is_flow(model_wrap.inner_model.model_sampling)
        model = comfy.samplers.KSamplerX0Inpaint(model_wrap, sigmas)
        total = len(sigmas) - 1
        extra_args = {**extra_args, "denoise_mask": None}
        recorder, lowest = Recorder(), float(sigmas[0])
        recorder.add(ddim.signal(lowest, flow) * latent_image, lowest)
        with tqdm(total=total, disable=disable_pbar) as bar:
            def report(i, x, sigma, g):
                bar.update(1)
                recorder.add(x, sigma)
                if callback is not None:
                    callback(i, g, x, total)

            def plain(x, sigma):
                comfy.model_management.throw_exception_if_processing_interrupted()
                return model(x, sigma, **extra_args)

            def run(predict):
                return ddim.invert(predict, latent_image.to(torch.float32), sigmas, flow, method.refine, method.midpoint, report)

            if method.rule == "cfg++":
                with Capture(model, extra_args, method.cfg) as predict:
                    x = run(predict)
            else:
                x = run(plain)
        self.result, self.trajectory = x, recorder.finish()
        return x


class InvertedNoise:
    """A NOISE that puts the host's samplers exactly at the inverted state.

    The host makes its first state as scale_noise * noise + scale_latent * latent (both from the model's own noise_scaling at the first sigma); this
    solves for the noise, whatever latent is connected to the sampler. Valid for schedules that start at the inversion's highest level.
    """

    seed = 0

    def __init__(self, state, scale_noise, scale_latent, to_model, trajectory=None):
        self.state, self.scale_noise, self.scale_latent, self.to_model = state, scale_noise, scale_latent, to_model
        self.trajectory = trajectory

    def generate_noise(self, input_latent):
        latent = input_latent["samples"]
        state = self.state
        if state.shape[0] == 1 and latent.shape[0] > 1:
            state = state.expand(latent.shape[0], *state.shape[1:])
        if state.shape != latent.shape:
            raise ValueError(f"Inverted noise: the inverted latent has shape {list(state.shape)}, the latent to sample {list(latent.shape)}. "
                             "Connect the latent that was inverted, or an empty one of the same size.")
        state = state.to(torch.float32)
        if self.scale_latent != 0.0 and torch.count_nonzero(latent) > 0:
            state = state - self.scale_latent * self.to_model(latent.to("cpu", torch.float32))
        return state / self.scale_noise


def noise_scales(sampling, sigma):
    """(of noise, of latent) in the host's first state at level sigma, full denoise included."""
    top = float(sampling.sigma_max)
    full = math.isclose(top, float(sigma), rel_tol=1e-05) or float(sigma) > top
    sigma = torch.as_tensor(float(sigma), dtype=torch.float32)

    def first(noise, latent):
        return float(sampling.noise_scaling(sigma, torch.full((1, 1, 1, 1), noise), torch.full((1, 1, 1, 1), latent), full).flatten()[0])

    return first(1.0, 0.0), first(0.0, 1.0)


def schedule(method, sampling):
    """The replay's falling sigmas: the last `steps` steps of a schedule that is steps / strength long, as the host's denoise does."""
    total = max(method.steps, int(method.steps / method.strength))
    return comfy.samplers.calculate_sigmas(sampling, method.scheduler, total)[-(method.steps + 1):]


def invert(method, model, positive, negative, latent, sigmas=None):
    """(LATENT, NOISE, SIGMAS): the state at the highest level, the noise that leads there (its `trajectory`: all states on the way), the schedule of the replay.

    The LATENT is for samplers that add no noise of their own (eps and v models); on flow models, where the host scales the latent away, use the NOISE.
    """
    method.validate()
    sampling = model.get_model_object("model_sampling")
    if sigmas is None:
        sigmas = schedule(method, sampling)
    sigmas = ddim.rising(sigmas).flip(0).to("cpu", torch.float32)
    if len(sigmas) < 2:
        raise BadInput(method.title, "sigmas", [float(s) for s in sigmas], "Connect a schedule of at least one step.")
    if negative is None and (method.cfg != 1.0 or method.rule == "cfg++"):
        raise BadInput(method.title, "cfg", method.cfg, "Connect a negative prompt, or set cfg to 1 and the rule to cfg.")
    samples = latent["samples"]
    if getattr(samples, "is_nested", False):
        raise BadInput(method.title, "latent", "audio and video together", "Inversion of nested latents is not supported; separate them first.")
    scale_noise, scale_latent = noise_scales(sampling, sigmas[0])
    if not scale_noise > 0.0:
        raise BadInput(method.title, "model", type(model.model).__name__, "This model does not sample from noise.")
    samples = comfy.sample.fix_empty_latent_channels(model, samples)

    guider = comfy.samplers.CFGGuider(model)
    if negative is None:
        guider.inner_set_conds({"positive": positive})
    else:
        guider.set_conds(positive, negative)
    guider.set_cfg(method.cfg)
    sampler = InversionSampler(method)
    rising = sigmas.flip(0)
    callback = latent_preview.prepare_callback(model, len(rising) - 1)
    quiet = not getattr(comfy.utils, "PROGRESS_BAR_ENABLED", True)
    out = guider.sample(torch.zeros_like(samples), samples, sampler, rising, callback=callback, disable_pbar=quiet, seed=0)
    state = sampler.result.to("cpu", torch.float32)
    result = {k: v for k, v in latent.items() if k != "noise_mask"}
    result["samples"] = out.to(comfy.model_management.intermediate_device())
    return result, InvertedNoise(state, scale_noise, scale_latent, model.get_model_object("process_latent_in"), sampler.trajectory), sigmas
