"""Measuring what searches for a noise or refines a finished latent, and what keeps a part of a picture."""
from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import torch

from ..demo.scenes import SIZE

TASKS = ("search", "refined")
METRICS = ("outside",)
PIXELS = 2 * SIZE      # of the VAE's pictures
FACTOR = 8             # pixels of the blocks that are kept


@contextmanager
def quiet():
    """No progress bars of the host."""
    import comfy.utils
    before, comfy.utils.PROGRESS_BAR_ENABLED = getattr(comfy.utils, "PROGRESS_BAR_ENABLED", True), False
    try:
        yield
    finally:
        comfy.utils.PROGRESS_BAR_ENABLED = before


class Fixed:
    """A NOISE of a batch's own noise."""

    seed = 0

    def __init__(self, noise):
        self.noise = noise

    def generate_noise(self, latent):
        return self.noise


def blocks():
    from ..guidance.inverse.operators import SuperResolution
    return SuperResolution(FACTOR)


def labels(batch):
    """[n, 128, 128, 3]: the first picture's objects, each in a colour of its own, on black; one label map serves a batch."""
    from ..demo.scenes import mask_of
    out = torch.zeros(1, PIXELS, PIXELS, 3)
    for channel, thing in enumerate(batch[0].scene.things[:3]):
        out[0, ..., channel] = torch.where(out[0].amax(-1) > 0, torch.zeros(()), (mask_of(thing, PIXELS) > 0.5).float())
    return out


VALUES = {"$right": lambda subject, batch: (torch.arange(PIXELS) >= PIXELS // 2).float().expand(1, PIXELS, PIXELS).clone(), "$blocks": lambda subject, batch: blocks(),
          "$labels": lambda subject, batch: labels(batch)}


def sampled(subject, setup, batch, positive, negative, steps):
    """Latents of a search for a noise (its plain sampling at 0 iterations), or of plain sampling that is refined."""
    from ..guidance.host import optimise
    from ..guidance.host.refine import refine
    from ..guidance.loss.latent_text import OptimiseLatentAndText
    noise = torch.cat([c.noise() for c in batch])
    empty = {"samples": torch.zeros_like(noise)}
    with quiet(), torch.inference_mode(False):
        method = subject.build(setup.methods[0], batch)
        if setup.task == "refined":
            with torch.inference_mode():
                plain = subject.run(replace(setup, methods=(), task="sample"), batch, steps)[0]
            return refine(method.validate(), subject.model, {"samples": plain.clone()})[0]["samples"]
        run = optimise.optimise_text if isinstance(method, OptimiseLatentAndText) else optimise.optimise_noise
        return run(method.check(), subject.model, _own(positive), _own(negative), empty, noise=Fixed(noise))[0]["samples"]


def _own(conditioning):
    """A copy that a gradient may pass."""
    return [[t.clone(), {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in more.items()}] for t, more in conditioning]


def returned(subject, setup, batch, positive, negative, steps):
    """Latents that EDICT's inversion and its replay give back."""
    import comfy.samplers

    from ..guidance.host.sampler_edict import invert
    method = replace(subject.build(setup.methods[0], batch), steps=steps, cfg=setup.cfg)
    with quiet():
        _, noise, sigmas, sampler = invert(method, subject.model, positive, negative, {"samples": subject.target(batch)})
    empty = torch.zeros_like(subject.target(batch))
    guider = comfy.samplers.CFGGuider(subject.model)
    guider.set_conds(positive, negative)
    guider.set_cfg(method.cfg)
    return guider.sample(noise.generate_noise({"samples": empty}), empty, sampler, sigmas, disable_pbar=True, seed=0)


def outside(measured):
    """How far each picture is from those of 8 pixel blocks: the root mean square of what its pseudo-inverse's projection takes away."""
    operator = blocks()
    made = [measured.subject.vae.decode(z).movedim(-1, 1).float() for z in measured.latents[measured.main].split(8)]
    seen = torch.cat(made).clamp(0, 1)
    return (operator.project(seen) - seen).square().mean((1, 2, 3)).sqrt()
