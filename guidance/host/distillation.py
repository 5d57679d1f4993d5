"""Score distillation on the host: every prediction is made inside the host's own sampling call of its guidance's model, so that loading, prompts, ControlNets, hooks, memory limits and
interrupts are the host's and the methods on the MODEL act."""
from __future__ import annotations

import comfy.model_management
import comfy.sampler_helpers
import comfy.samplers
import torch

from ..distillation.distil import LatentCanvas, PictureCanvas
from ..method import BadInput
from .decode import Decoder
from .encode import Encoder
from .features import is_flow
from .inversion import latent_preview

SCHEDULE = 100      # steps of the schedule that methods with step numbers see


class Prior:
    """A guidance's model during a run: see guidance.distillation.base.Moment."""

    def __init__(self, guidance, seed, alone):
        self.guidance, self.patcher, self.seed, self.alone = guidance, guidance.model, seed, alone
        sampling = self.patcher.get_model_object("model_sampling")
        self.latent_format = self.patcher.get_model_object("latent_format")
        self.dimensions = getattr(self.latent_format, "latent_dimensions", 2)
        self.flow = is_flow(sampling)
        self.noise_scale = getattr(sampling, "noise_scale", 1.0) if self.flow else 1.0
        self.sampling, self.guider, self.options = sampling, None, None
        vae = guidance.vae
        self.decode = None if vae is None else Decoder(vae, self.latent_format)
        self._encode = None if vae is None else Encoder(vae, self.latent_format, 1)

    def encode(self, pictures):
        if self._encode is None:
            raise BadInput(self.guidance.title, "vae", None, "Where pictures are optimised the guidance needs its model's VAE.")
        return self._encode(pictures)

    def sigma(self, level):
        low, high = float(self.sampling.sigma_min), float(self.sampling.sigma_max)
        return min(high, max(low, float(self.sampling.percent_to_sigma(1.0 - level))))

    def _ready(self):
        comfy.model_management.throw_exception_if_processing_interrupted()
        if not self.alone:      # another model, or the VAE, may have taken its place; else it is there
            comfy.model_management.load_models_gpu([self.patcher, *(getattr(self.guider, "loaded_models", None) or [])])

    def _fit(self, x, s):
        return torch.full((x.shape[0],), float(s), device=x.device, dtype=torch.float32)

    def guided(self, x, s, cfg):
        self._ready()
        self.guider.set_cfg(cfg)
        with torch.inference_mode():
            out = self.guider(x, self._fit(x, s), **self.options)
        return out.float().clone()

    def plain(self, x, s, name):
        self._ready()
        with torch.inference_mode():
            out, = comfy.samplers.calc_cond_batch(self.guider.inner_model, [self.guider.conds[name]], x, self._fit(x, s), self.options["model_options"])
        return out.float().clone()

    def within(self, shape, work):
        """work() inside a sampling call of this model for latents of a shape."""
        g = self.guidance
        guider = comfy.samplers.CFGGuider(self.patcher)
        more = getattr(g, "inverse", None) if getattr(g, "inverse", None) is not None else getattr(g, "bad", None)
        guider.inner_set_conds({"positive": g.positive, "negative": g.negative, **({"inverse": more} if more is not None else {})})
        guider.set_cfg(g.cfg)
        empty = torch.zeros(shape)
        sigmas = comfy.samplers.calculate_sigmas(self.sampling, "normal", SCHEDULE)
        guider.sample(empty, empty, _Within(self, work), sigmas, disable_pbar=True, seed=self.seed)


class _Within(comfy.samplers.Sampler):
    def __init__(self, prior, work):
        self.prior, self.work = prior, work

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False):
        self.prior.guider = model_wrap
        self.prior.options = {k: v for k, v in extra_args.items() if k in ("model_options", "seed")}
        self.work()
        return latent_image


def _within(priors, shapes, work):
    if not priors:
        return work()
    return priors[0].within(shapes[0], lambda: _within(priors[1:], shapes[1:], work))


def _priors(method, pictures):
    parts = method.guidance.parts()
    heavy = len({id(g.model) for g, _, _ in parts}) > 1 or any(g.vae is not None for g, _, _ in parts) or method.loss is not None
    priors = [Prior(g, method.seed, not heavy) for g, _, _ in parts]
    if pictures:
        for p in priors:
            if p.guidance.vae is None:
                raise BadInput(p.guidance.title, "vae", None, f"{method.title} optimises pictures: connect the VAE of the guidance's model to it.")
    return priors


def _optimise(method, canvas, priors):
    """Runs the method; the gradient's sizes."""
    with torch.no_grad():
        shapes = [tuple(canvas.latent(p).shape) for p in priors]
    first = priors[0]
    callback = latent_preview.prepare_callback(first.patcher, method.steps)
    sizes = []

    def progress(i, z, seen):
        comfy.model_management.throw_exception_if_processing_interrupted()
        callback(i, z, seen, method.steps)

    _within(priors, shapes, lambda: sizes.extend(method.run(canvas, priors, progress)))
    return sizes


def _same_latents(method, priors, channels):
    """All models must have the latents of the first: the same kind and scale."""
    mark = lambda p: (type(p.latent_format).__name__, round(float(getattr(p.latent_format, "scale_factor", 1.0) or 1.0), 6), p.latent_format.latent_channels)
    for p in priors:
        if p.latent_format.latent_channels != channels:
            raise BadInput(method.title, "latent", f"{channels} channels", f"{p.guidance.title}'s model has latents of {p.latent_format.latent_channels}: encode with its VAE, or use an Empty Latent of its kind.")
        if mark(p) != mark(priors[0]):
            raise BadInput(method.title, "guidance", f"{mark(priors[0])[0]} and {mark(p)[0]}", "The two models have different latents; optimise pictures (Distil Pictures) in place of a latent.")


def distil_latent(method, latent):
    """(LATENT, sizes of the gradient)."""
    import comfy.sample
    samples = latent["samples"]
    if getattr(samples, "is_nested", False):
        raise BadInput(method.title, "latent", "audio and video together", "Separate them first.")
    if not bool(torch.isfinite(samples).all()):
        raise BadInput(method.title, "latent", "not finite", "The latent holds numbers that are none; it was broken before this node.")
    if method.neutral():
        return latent, []
    priors = _priors(method, False)
    first = priors[0]
    samples = comfy.sample.fix_empty_latent_channels(first.patcher, samples)
    if samples.ndim == 4 and first.dimensions == 3:
        samples = samples.unsqueeze(2)
    _same_latents(method, priors, samples.shape[1])
    with torch.inference_mode(False):
        device = first.patcher.load_device
        z = first.latent_format.process_in(samples.clone().float()).to(device)
        mask = latent.get("noise_mask")
        if mask is not None:
            mask = comfy.sampler_helpers.prepare_mask(mask.clone().float(), z.shape, device)
        canvas = LatentCanvas(z, mask, latent.get("batch_index"))
        sizes = _optimise(method, canvas, priors)
        out = first.latent_format.process_out(canvas.z.detach()).to(device="cpu", dtype=torch.float32)
    return {**latent, "samples": out.to(comfy.model_management.intermediate_device())}, sizes


def _pictures(image, device):
    return image[..., :3].movedim(-1, 1).clone().float().to(device)


def distil_pictures(method, image, mask=None):
    """(IMAGE, sizes of the gradient)."""
    if method.neutral():
        return image, []
    priors = _priors(method, True)
    with torch.inference_mode(False):
        device = priors[0].patcher.load_device
        u = _pictures(image, device)
        if mask is not None:
            mask = resized(mask.clone().float().reshape(-1, 1, *mask.shape[-2:]).to(device), u)
        canvas = PictureCanvas(u, mask)
        sizes = _optimise(method, canvas, priors)
        return canvas.u.detach().movedim(1, -1).cpu(), sizes


def resized(mask, u):
    """A mask [m, 1, h, w] with the size of pictures u."""
    return torch.nn.functional.interpolate(mask, size=u.shape[-2:], mode="bilinear", align_corners=False) if mask.shape[-2:] != u.shape[-2:] else mask


def distil_composite(method, thing, mask, background):
    """(IMAGE, MASK of the object, what was found for each picture, sizes of the gradient)."""
    if thing.shape[0] not in (1, background.shape[0]):
        raise BadInput(method.title, "object", f"{thing.shape[0]} pictures", f"Give one, or one for each of the {background.shape[0]} backgrounds.")
    with torch.inference_mode(False):
        priors = [] if method.neutral() else _priors(method, True)
        device = priors[0].patcher.load_device if priors else background.device
        ground, object_ = _pictures(background, device), _pictures(thing, device)
        cover = resized(mask.clone().float().reshape(-1, 1, *mask.shape[-2:]).to(device), object_)
        n = len(ground)
        canvas = method.canvas(object_.expand(n, -1, -1, -1), cover.expand(n, -1, -1, -1), ground)
        sizes = [] if method.neutral() else _optimise(method, canvas, priors)
        with torch.no_grad():
            return canvas.picture().clamp(0, 1).movedim(1, -1).cpu(), canvas.parts()[1][:, 0].cpu(), canvas.told(), sizes
