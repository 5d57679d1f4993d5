"""The particle samplers as samplers of the host: starts, calls of as many particles as fit, masks."""
from __future__ import annotations

import contextlib
import logging

import comfy.model_management
import comfy.samplers
import torch
from tqdm.auto import tqdm

from ..method import BadInput
from ..particles.enkg import EnsembleKalmanGuidance
from ..particles.swarm import Swarm
from .features import is_flow
from .measurements import bind
from .sampler_inverse import SESSION

MOST = 32      # rows of a call


class HostSwarm(Swarm):
    """A Swarm whose predictions are the host's."""

    def __init__(self, model, x, sigmas, extra_args, method, noise_sampler=None):
        self.model, self.method = model, method
        self.guider = model.inner_model
        base = self.guider.inner_model
        self.base, self.sampling = base, base.model_sampling
        flow = is_flow(self.sampling)
        self.extra_args = dict(extra_args or {})
        self.mask = self.extra_args.setdefault("denoise_mask", None)
        self.session = self.extra_args.get("model_options", {}).get(SESSION)
        self.states = {}
        scale = getattr(self.sampling, "noise_scale", 1.0) if flow else 1.0
        super().__init__(self.evaluate, x, sigmas, flow, self.extra_args.get("seed"), self.fresh_start, method.record, scale)
        self.chunk = self.fitting()
        if noise_sampler is not None:
            self.fresh = lambda: noise_sampler(self.sigmas[self.position], self.sigmas[self.position + 1])
        self.position = 0

    # starts

    def fresh_start(self, noise, factor=1.0):
        """The host's first state with other noise (None: its own), `factor` times as large; the host's own state where it was given no noise."""
        given, latent = self.model.noise, self.model.latent_image
        if not bool(given.any()):
            return self.x
        first = self.sigmas[0]
        for most in (False, True):
            found = self.sampling.noise_scaling(first, given.clone(), latent, most)
            if torch.allclose(found.to(self.x), self.x, rtol=1e-4, atol=1e-4 * float(first)):
                break
        return self.sampling.noise_scaling(first, ((given if noise is None else noise.to(given)) * factor).clone(), latent, most).to(self.x)

    # calls

    def fitting(self):
        """Particles per network call. Prompts, masks and hints with a row for each entry are repeated by the host in our order; where there are more or other rows, particles go one by one."""
        rows = self.batch
        if any(n > 1 and rows % n for n in self.rows_given()) or (rows > 1 and self.session is not None):
            return 1
        if self.method.chunk:
            return self.method.chunk
        free, count = comfy.model_management.get_free_memory(self.x.device), max(1, min(self.method.count, MOST // rows))
        while count > 1 and self.base.memory_required([2 * count * rows, *self.x.shape[1:]]) * 1.5 > free:
            count -= 1
        return count

    def rows_given(self):
        """The batch sizes of what the prompts bring."""
        for entries in getattr(self.guider, "conds", {}).values():
            for entry in entries or ():
                yield from (t.shape[0] for t in (entry.get("mask"),) if isinstance(t, torch.Tensor))
                yield from (t.shape[0] for c in entry.get("model_conds", {}).values() for t in (getattr(c, "cond", None),) if isinstance(t, torch.Tensor) and t.ndim)
                control = entry.get("control")
                while control is not None:
                    hint = getattr(control, "cond_hint_original", None)
                    if isinstance(hint, torch.Tensor):
                        yield hint.shape[0]
                    control = getattr(control, "previous_controlnet", None)

    def parted(self, x, sigma, call):
        """call(x, sigma) of so many rows at once, as a list."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        size = self.chunk * self.batch
        found = []
        for at in range(0, x.shape[0], size):
            part = x[at:at + size]
            with self.widened(part.shape[0]) as extra, self.remembering(at):
                found.append(call(part, sigma[at:at + size], extra))
            comfy.model_management.throw_exception_if_processing_interrupted()
        return found

    def evaluate(self, x, sigma):
        return torch.cat(self.parted(x, sigma, lambda x, sigma, extra: self.model(x, sigma, **extra)))

    def tiled(self, t, rows):
        return t if t.shape[0] in (1, rows) else t.repeat(rows // t.shape[0], *[1] * (t.ndim - 1))

    @contextlib.contextmanager
    def widened(self, rows):
        """The extra arguments of a call of so many rows, and the host's inpainting at that size."""
        if self.mask is None:
            yield self.extra_args
            return
        kept = self.model.noise, self.model.latent_image
        try:
            self.model.noise, self.model.latent_image = (self.tiled(t, rows) for t in kept)
            yield {**self.extra_args, "denoise_mask": self.tiled(self.mask, rows)}
        finally:
            self.model.noise, self.model.latent_image = kept

    @contextlib.contextmanager
    def remembering(self, at):
        """What the methods on the MODEL remember, by place."""
        run = getattr(self.session, "run", None)
        if run is None:
            yield
            return
        kept = run.states
        run.states = self.states.setdefault(at, {i: {} for i in kept})
        try:
            yield
        finally:
            run.states = kept

    # the single predictions of a corrector

    def parts(self, x, sigma):
        def call(x, sigma, extra):
            self.method.store.clear()
            self.model(x, sigma, **extra)
            seen = self.method.store.pop("seen", None)
            if seen is None or not set(self.method.exponents) <= set(seen):
                raise BadInput(self.method.title, "model", "another MODEL", "Connect the MODEL that this node gives to the guider: it hands the single predictions to the sampler.")
            return {name: self.keep(t.to(x), sigma, extra["denoise_mask"]) for name, t in seen.items()}
        found = self.parted(x, sigma, call)
        return {name: torch.cat([part[name] for part in found]) for name in self.method.exponents}

    def keep(self, prediction, sigma, mask):
        """What the host's inpainting does to a prediction."""
        if mask is None:
            return prediction
        options = self.extra_args.get("model_options", {})
        if "denoise_mask_function" in options:
            mask = options["denoise_mask_function"](sigma, mask, extra_options={"model": self.guider, "sigmas": self.model.sigmas})
        return prediction * mask + self.tiled(self.model.latent_image, prediction.shape[0]) * (1.0 - mask)

    def inside(self, t):
        return t if self.mask is None else t * self.tiled(self.mask, t.shape[0])


@torch.no_grad()
def sample_particles(model, x, sigmas, extra_args=None, callback=None, disable=None, *, method, noise_sampler=None):
    """A particle sampler as a sampler function of the host."""
    swarm = HostSwarm(model, x, sigmas, extra_args, method, noise_sampler)
    base = swarm.base
    if isinstance(method, EnsembleKalmanGuidance):
        problem = bind(method.measurement, base.latent_format, x)
        problem.title = method.title
    else:
        problem = method.problem(sigmas, swarm.flow, swarm.sampling.percent_to_sigma)
    with tqdm(total=len(sigmas) - 1, disable=disable) as bar:
        def report(i, x, sigma, denoised):
            bar.update(max(0, i + 1 - bar.n))
            swarm.position = min(i + 1, swarm.steps - 1)
            if callback is not None:
                callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})

        out = method.run(swarm, problem, report)
        bar.update(len(sigmas) - 1 - bar.n)
    logging.info("Lodestar: %s: %s", method.title, swarm.record.words().splitlines()[0])
    if swarm.mask is not None and float(sigmas[-1]) == 0 and "denoise_mask_function" not in swarm.extra_args.get("model_options", {}):
        many = lambda t: t if t.shape[0] in (1, out.shape[0]) else t.repeat_interleave(out.shape[0] // t.shape[0], 0)
        out = out * many(swarm.mask) + many(model.latent_image) * (1.0 - many(swarm.mask))      # a step behind the last prediction does not reach what is kept
    return out


def sampler(method):
    """The host's SAMPLER of a particle sampler."""
    method.validate()
    return comfy.samplers.KSAMPLER(sample_particles, extra_options={"method": method})
