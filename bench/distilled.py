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
    """(the guidances' Uses, the Use that puts two together or None, the Distiller's Use or None, the others) of a setup."""
    from ..guidance.distillation.base import ScoreGuidance
    from ..guidance.distillation.distil import Distiller
    from ..guidance.distillation.hybrid import HybridDistillation
    of = lambda cls: [u for u in setup.methods if issubclass(u.cls, cls)]
    leads, both, runs = of(ScoreGuidance), of(HybridDistillation), of(Distiller)
    return leads, next(iter(both), None), next(iter(runs), None), [u for u in setup.methods if u not in (*leads, *both, *runs)]


def guidance_of(subject, setup, batch, positive, negative, **more):
    """The guidance, or two of them together, on the MODEL with the setup's other methods; one with model "$other" is the other bundled model's."""
    leads, both, _, others = parts(setup)
    given = dict(model=subject.guided(replace(setup, methods=tuple(others)), batch), positive=positive, negative=negative, cfg=setup.cfg, **more)
    made = [lead.cls(**{**given, **{k: subject.value(v, batch) if v == "$other" else v for k, v in lead.values}}).validate() for lead in leads]
    return made[0] if both is None else both.cls(a=made[0], b=made[1], **dict(both.values)).validate()


def distil(subject, setup, batch, positive, negative, steps):
    """Latents [n, 16, 16, 16] that were optimised from zeros; every picture's noise is its own."""
    from ..guidance.distillation.distil import ScoreDistillation
    from ..guidance.host.distillation import distil_latent
    _, _, run, _ = parts(setup)
    method = ScoreDistillation(guidance=guidance_of(subject, setup, batch, positive, negative), steps=steps, **(dict(run.values) if run else {})).validate()
    noise = torch.cat([c.noise() for c in batch])
    out, _ = distil_latent(method, {"samples": torch.zeros_like(noise), "batch_index": [c.seed * 1_000_003 + c.prompt for c in batch]})
    return out["samples"]


def pictures(subject, setup, batch, positive, negative, steps):
    """Latents of gray pictures whose pixels were optimised; one by one, as their noise goes by their place in a batch."""
    from ..guidance.distillation.distil import DistilPictures
    from ..guidance.host.distillation import distil_pictures
    _, _, run, _ = parts(setup)
    out = []
    for c in batch:
        texts = subject.encode([c.scene.caption])
        guidance = guidance_of(subject, setup, [c], texts, negative, vae=subject.vae)
        method = DistilPictures(guidance=guidance, steps=steps, seed=c.seed * 1_000_003 + c.prompt, **(dict(run.values) if run else {})).validate()
        out.append(subject.vae.encode(distil_pictures(method, torch.full((1, WIDE, WIDE, 3), GRAY))[0]))
    return torch.cat(out)


def composite(subject, setup, batch, positive, negative, steps):
    """Latents of pictures whose first object was put in gray where it belongs, after its colour was optimised; without iterations as it was put there."""
    from ..guidance.distillation.composite import CompositeDistillation
    from ..guidance.host.distillation import distil_composite
    _, _, run, _ = parts(setup)
    alone = [replace(c.scene, things=c.scene.things[1:], jitter=()) for c in batch]
    ground = torch.nn.functional.interpolate(torch.stack([render(s) for s in alone]), size=(WIDE, WIDE), mode="bilinear").movedim(1, -1)
    masks = torch.stack([mask_of(c.scene.things[0], WIDE) for c in batch])
    guidance = guidance_of(subject, setup, batch, positive, negative, vae=subject.vae)
    method = CompositeDistillation(guidance=guidance, steps=steps, **(dict(run.values) if run else {})).validate()
    image, *_ = distil_composite(method, torch.full_like(ground, GRAY), masks, ground)
    return subject.model.get_model_object("latent_format").process_in(subject.vae.encode(image))
