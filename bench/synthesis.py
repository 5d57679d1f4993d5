"""Measuring what degrades pictures (Degradation Synthesis): how near the level of what it makes is to what was asked for, and whether the scene is kept."""
from __future__ import annotations

import random

import torch

from ..demo import degrading as of
from ..demo.scenes import SIZE, render
from ..guidance.inverse.degradation_synthesis import KINDS, DegradationLevel, DegradationSynthesis, level_of
from . import stats

TASKS = ("synthesis", "synthesis image to image", "synthesis true")
METRICS = ("mean_error", "deviation_error", "mean_follows", "deviation_follows", "scene_ssim")


def kind_of(case):
    return KINDS[case.prompt % len(KINDS)]


def pictures(batch):
    """(clean pictures [n, 3, 64, 64], degraded ones) of cases, the same for every setup: the level of the second is what is asked for."""
    clean = torch.stack([render(c.scene, SIZE) for c in batch])
    return clean, torch.stack([of.degrade(u, kind_of(c), rng.random(), rng) for u, c, rng in ((u, c, random.Random(80_001 + c.seed * 1_000_003 + c.prompt)) for u, c in zip(clean, batch))])


def network(subject):
    """(the bundled model that degrades, its file for the level)."""
    if getattr(subject, "degrading", None) is None:
        from ..demo.loader import load_demo_patcher
        from ..demo.weights_file import read
        from ..guidance.inverse.degradation_synthesis import parse
        subject.degrading = load_demo_patcher("degrading"), parse(read(of.NAME), "bench", "file", phrases=of.PHRASES)
    return subject.degrading


def sampled(subject, setup, batch, texts, steps):
    """Latents [n, 16, 16, 16]. synthesis: by the node, with each case's kind and level; image to image: by the plain model from the middle of the schedule on, with the words of the kind; true: the degraded pictures
    themselves as the autoencoder keeps them."""
    import comfy.samplers

    from ..guidance.host.degradation_synthesis import prepared
    clean, bad = pictures(batch)
    code = subject.code
    if setup.task == "synthesis true":
        return of.latents.encode(bad, code)
    sigmas, noise = subject.sigmas(steps), torch.cat([c.noise() for c in batch])
    if setup.task == "synthesis image to image":
        sigmas, model = sigmas[len(sigmas) // 2:], subject.guided(setup, batch)
        positive, negative, start = subject.encode([t + of.PHRASES[kind_of(c)] for c, t in zip(batch, texts)]), subject.encode([""]), of.latents.encode(clean, code)
    else:
        patcher, generator = network(subject)
        values, found = dict(setup.methods[0].values), []
        for c, text, u, (mean, deviation) in zip(batch, texts, clean, level_of(clean, bad).tolist()):
            image = torch.nn.functional.interpolate(u[None], scale_factor=2).movedim(1, -1)
            found.append(prepared(DegradationSynthesis(**values, clip=subject.clip, vae=subject.vae, generator=generator, image=image, text=text, degradation=kind_of(c), level=DegradationLevel(((mean, deviation),))), patcher))
        model, negative, start = found[0][0], [], torch.zeros_like(noise)
        seen = torch.cat([f[1][0][1]["concat_latent_image"] for f in found])
        positive = [[torch.cat([f[1][0][0] for f in found]), {**found[0][1][0][1], "concat_latent_image": seen}]]
        negative = [[found[0][2][0][0], {**found[0][2][0][1], "concat_latent_image": seen}]]
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(setup.cfg)
    return guider.sample(noise, start, comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True, seed=batch[0].seed)


def values(metric, made, batch, subject):
    """One value per picture [n, 3, 64, 64]. mean_error, deviation_error: distance of the level from the wish; mean_follows, deviation_follows: each picture's part of the correlation of both; scene_ssim: structural
    similarity to the clean picture."""
    clean, bad = pictures(batch)
    wished = level_of(clean, bad)
    clean = subject.pictures(of.latents.encode(clean, subject.code)).clamp(0, 1)
    made = made.clamp(0, 1)
    if metric == "scene_ssim":
        return stats.ssim(made, clean)
    at = int(metric.startswith("deviation"))
    found, wished = level_of(clean, made)[:, at], wished[:, at]
    if metric.endswith("error"):
        return (found - wished).abs()
    whole = lambda t: (t - t.mean()) / t.std(correction=0).clamp(min=1e-9)
    return whole(found) * whole(wished)
