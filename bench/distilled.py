"""Measuring score distillation: latents of captions that are optimised in place of sampled, and gray objects whose colour is found."""
from __future__ import annotations

from dataclasses import replace

import torch

from ..demo.scenes import RELATIONS, mask_of, render

GRAY = 0.5
WIDE = 128      # pixels of the pictures that the bundled VAE makes of the latents measured


def article(words):
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def related(scene):
    """The first two objects and their relation, without sizes: captions of one relation have its words in the same places."""
    first, second = (article(f"{t.colour} {t.shape}") for t in scene.things[:2])
    return f"{first} {scene.relation} {second}"


def relation_words(subject, batch):
    """The relation of a batch of cases that have one, as words of their prompts."""
    from ..guidance.attention.tokens import Words
    from ..guidance.attention.words import found
    text = related(batch[0].scene)
    return found(Words(subject.clip, text, subject.encode([text])[0][0].shape[1]), [batch[0].scene.relation])


def by_relation(case):
    return replace(case, layout=RELATIONS.index(case.scene.relation))


def parts(setup):
    """(the guidance's Use, the Distiller's Use or None, the others) of a setup."""
    from ..guidance.distillation.base import ScoreGuidance
    from ..guidance.distillation.distil import Distiller
    lead = next(u for u in setup.methods if issubclass(u.cls, ScoreGuidance))
    run = next((u for u in setup.methods if issubclass(u.cls, Distiller)), None)
    return lead, run, [u for u in setup.methods if u is not lead and u is not run]


def guidance_of(subject, setup, batch, positive, negative, **more):
    """The guidance on the MODEL with the setup's other methods."""
    lead, _, others = parts(setup)
    model = subject.guided(replace(setup, methods=tuple(others)), batch)
    return lead.cls(model=model, positive=positive, negative=negative, cfg=setup.cfg, **dict(lead.values), **more).validate()


def distil(subject, setup, batch, positive, negative, steps):
    """Latents [n, 16, 16, 16] that were optimised from zeros; every picture's noise is its own."""
    from ..guidance.distillation.distil import ScoreDistillation
    from ..guidance.host.distillation import distil_latent
    _, run, _ = parts(setup)
    method = ScoreDistillation(guidance=guidance_of(subject, setup, batch, positive, negative), steps=steps, **(dict(run.values) if run else {})).validate()
    noise = torch.cat([c.noise() for c in batch])
    out, _ = distil_latent(method, {"samples": torch.zeros_like(noise), "batch_index": [c.seed * 1_000_003 + c.prompt for c in batch]})
    return out["samples"]


def composite(subject, setup, batch, positive, negative, steps):
    """Latents of pictures whose first object was put in gray where it belongs, after its colour was optimised; without iterations as it was put there."""
    from ..guidance.distillation.composite import CompositeDistillation
    from ..guidance.host.distillation import distil_composite
    _, run, _ = parts(setup)
    alone = [replace(c.scene, things=c.scene.things[1:], jitter=()) for c in batch]
    ground = torch.nn.functional.interpolate(torch.stack([render(s) for s in alone]), size=(WIDE, WIDE), mode="bilinear").movedim(1, -1)
    masks = torch.stack([mask_of(c.scene.things[0], WIDE) for c in batch])
    guidance = guidance_of(subject, setup, batch, positive, negative, vae=subject.vae)
    method = CompositeDistillation(guidance=guidance, steps=steps, **(dict(run.values) if run else {})).validate()
    image, *_ = distil_composite(method, torch.full_like(ground, GRAY), masks, ground)
    return subject.model.get_model_object("latent_format").process_in(subject.vae.encode(image))
