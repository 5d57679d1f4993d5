"""CFG++ in the host: the sampler function, and the capture of the unconditional prediction of each call."""
from __future__ import annotations

import comfy.model_management
import comfy.samplers
import torch
from tqdm.auto import tqdm

from ..samplers import cfgpp
from .features import is_flow, wrappers


class Capture:
    """The host's prediction with guidance scale `scale`, and with it the prediction whose noise CFG++ keeps.

    Use as a context: it lends the guider its scale and gives the old one back. Call: (x, sigma) -> (g, u). The host's mask is applied to both, so that
    the kept part of an inpainting has the noise of the original. Where the unconditional prediction is not evaluated (a gate closed it), u is c.
    """

    def __init__(self, model, extra_args, scale, terms="usual strength"):
        self.model, self.terms = model, terms
        self.guider = model.inner_model
        self.extra_args = dict(extra_args or {})
        self.mask = self.extra_args.setdefault("denoise_mask", None)
        self.seen = None
        # a copy of the caller's options: the function lives as long as this run. At scale exactly 1 hosts and engine spare the unconditional
        # prediction, which CFG++ needs there; a scale that is 1 in the last digits only keeps it, while a gate's 1 still spares it
        options = dict(self.extra_args.get("model_options", {}))
        options["sampler_post_cfg_function"] = [*options.get("sampler_post_cfg_function", []), self._look]
        self.options = self.extra_args["model_options"] = options
        self.scale = scale if abs(scale - 1.0) > 1e-6 else 1.0 + 1e-6

    def __enter__(self):
        self.lent = hasattr(self.guider, "cfg") and getattr(self.guider, "conds", {}).get("negative") is not None
        if self.lent:
            self.before, self.guider.cfg = self.guider.cfg, self.scale
        return self

    def __exit__(self, *error):
        if self.lent:
            self.guider.cfg = self.before
        self.seen = None

    def _look(self, args):
        u = args["uncond_denoised"].detach() if args.get("uncond") is not None else None
        if u is not None and not wrappers() and not bool(u.any()):
            u = None      # hosts without wrappers give zeros for a negative prompt that a closed gate has spared
        self.seen = (args["cond_denoised"].detach(), u, float(args.get("cond_scale", getattr(self.guider, "cfg", 1.0))))
        return args["denoised"]

    def _keep(self, prediction, sigma):
        """What the host's inpainting does to a prediction."""
        mask = self.mask
        if mask is None:
            return prediction
        if "denoise_mask_function" in self.options:
            mask = self.options["denoise_mask_function"](sigma, mask, extra_options={"model": self.model.inner_model, "sigmas": self.model.sigmas})
        return prediction * mask + self.model.latent_image * (1.0 - mask)

    def __call__(self, x, sigma, index=0):
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.seen = None
        g = self.model(x, sigma, **self.extra_args)
        if self.seen is None:
            raise RuntimeError(f"CFG++ needs the unconditional prediction, and {type(self.guider).__name__} does not run post-CFG functions. "
                               "Use it with KSampler, SamplerCustom or a guider that takes a positive and a negative prompt.")
        c, u, w = self.seen
        self.seen = None
        plain = c if u is None else u + (c - u) * w
        u = self._keep((c if u is None else u).to(g), sigma)
        if self.terms == "usual strength":
            u = u + (g - self._keep(plain.to(g), sigma))
        return g, u


@torch.no_grad()
def sample_cfgpp(model, x, sigmas, extra_args=None, callback=None, disable=None, *, scale=0.6, eta=0.0, order=1, terms="usual strength", s_noise=1.0,
                 noise_sampler=None):
    """The CFG++ sampler as a sampler function of the host. Its own `scale` stands in for the guider's cfg; noise_sampler(sigma, sigma_next) as there."""
    seed = (extra_args or {}).get("seed")
    sampling = model.inner_model.inner_model.model_sampling
    flow = is_flow(sampling)
    if flow:
        s_noise = s_noise * getattr(sampling, "noise_scale", 1.0)
    draw = cfgpp.noise_source(x, seed)
    position = [0]
    if noise_sampler is not None:
        def draw():
            return noise_sampler(sigmas[position[0]], sigmas[position[0] + 1])

    with tqdm(total=len(sigmas) - 1, disable=disable) as bar, Capture(model, extra_args, scale, terms) as predict:
        def report(i, x, sigma, x0):
            position[0] = i
            if i:
                bar.update(1)
            if callback is not None:
                callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": x0})

        out = cfgpp.sample(predict, x, sigmas, flow, eta, order, draw, s_noise, report)
        bar.update(1)
    return out


def sampler(method):
    """The host's SAMPLER of a CFGPlusPlusSampler."""
    method.validate()
    options = {"scale": method.scale, "eta": method.eta, "order": int(method.order), "terms": method.terms}
    return comfy.samplers.KSAMPLER(sample_cfgpp, extra_options=options)
