"""Measuring what moves, and what is not allowed: scenes whose first object is to be elsewhere, and the losses and figures that go with them."""
from __future__ import annotations

import math
import random
from dataclasses import replace

import torch

from ..demo.scenes import SIZE, mask_of

METRICS = ("place_error", "kept", "violations", "known_error", "apart")
SAMPLED = ("$own", "$drags")      # made before evaluations are counted
VALUES = (*SAMPLED, "$photometric", "$moved", "$left", "$rendered", "$known", "$observed", "$agree")
SEED = 50_001          # of the movements
PIXELS = 2 * SIZE      # of the VAE's pictures
MISSING = SIZE / 2     # pixels that count where nothing of the colour is seen
NEAR = 8.0             # pixels
UPPER = (0.6, 1.0, 1.0)      # red, green, blue that the left half may have at most


def shifted(case):
    """`reference`: the scene; the case's own has its first object 14 to 26 pixels further, clear of the other and the border where there is room; the prompt names no place."""
    rng, scene = random.Random(SEED + case.prompt), case.scene
    first, others = scene.things[0], scene.things[1:]
    for _ in range(200):
        way, far = rng.uniform(0, 2 * math.pi), rng.uniform(14, 26)
        x, y = first.x + far * math.cos(way), first.y + far * math.sin(way)
        if all(first.radius < v < SIZE - first.radius for v in (x, y)) and all(math.hypot(x - o.x, y - o.y) > first.radius + o.radius for o in others):
            break
    x, y = (min(max(v, first.radius), SIZE - first.radius) for v in (x, y))
    noun = lambda t: f"{'an' if t.colour[0] in 'aeiou' else 'a'} {t.colour} {t.shape}"
    caption = " and ".join(map(noun, scene.things))
    return replace(case, scene=replace(scene, things=(replace(first, x=x, y=y), *others), relation=None, caption=caption), reference=scene)


def _mask(case):
    """[128, 128] of the first object before it moved, a little larger than it is."""
    return (torch.nn.functional.max_pool2d(mask_of(case.reference.things[0], PIXELS)[None, None], 5, 1, 2)[0, 0] > 0.2).float()


def _flow(batch):
    from ..guidance.loss.flow import Flow, of_mask
    made = []
    for c in batch:
        old, new = c.reference.things[0], c.scene.things[0]
        made.append(of_mask(_mask(c)[None], 2 * (new.x - old.x), 2 * (new.y - old.y)))
    return Flow(torch.cat([f.vectors for f, _ in made])), torch.cat([there for _, there in made])


def value(text, subject, batch):
    """What "$own" (what the model makes of the same noise), "$drags" (from where something of the first object's colour is in it to where the object is to be), "$photometric" (a motion loss), "$moved" (edit masks), "$left" (a mask of the left half), "$rendered", "$known", "$observed" (losses of the wanted picture's left half) and "$agree" (a batch's
    pictures are to be alike) stand for."""
    from ..guidance.loss.motion import FlowMotion
    with torch.inference_mode(False):
        if text == "$left":
            return (torch.arange(PIXELS) < PIXELS // 2).float().expand(1, PIXELS, PIXELS).clone()
        if text == "$agree":
            from ..guidance.loss.frames import FrameConsistency
            return FrameConsistency(over="batch", space="latent", pairs="neighbours and ends").check()
        if text in ("$rendered", "$known", "$observed"):
            return _of_left_half(text, subject.model.get_model_object("latent_format").process_in(subject.target(batch)))
        batch = [c if c.reference is not None else shifted(c) for c in batch]      # for times
        if text in SAMPLED:
            latents, seen = own(subject, batch)
            return {"samples": latents} if text == "$own" else " | ".join(_drag(c, r) for c, r in zip(batch, seen))
        flow, there = _flow(batch)
        if text == "$moved":
            grown = torch.nn.functional.max_pool2d(torch.maximum(torch.stack([_mask(c) for c in batch]), there)[:, None], 9, 1, 4)
            return grown[:, 0]
        from ..guidance.host.decode import Decoder
        source = subject.vae.decode(subject.rendered([c.reference for c in batch])).movedim(-1, 1).clone()
        return FlowMotion(target=source, flow=flow, decoder=Decoder(subject.vae, subject.model.get_model_object("latent_format"))).check()


def own(subject, batch):
    """(latents that the model samples from the cases' noise without a method, what the measuring network sees in their pictures)."""
    from ..demo import measure
    from .plan import Setup
    key, kept = tuple((c.prompt, c.seed) for c in batch), vars(subject).setdefault("own", {})
    if key not in kept:
        latents, _, _ = subject.run(Setup("own", 4.0, prompts="shifted"), batch, 20)
        kept[key] = latents, measure.load().decode(subject.pictures(latents))
    return kept[key]


def _drag(case, seen):
    """From the thing of the first object's colour, or else any, to where that is to be; none moves where nothing is seen."""
    wanted = case.scene.things[0]
    found = sorted(seen.things, key=lambda t: t.colour != wanted.colour)
    x, y = (found[0].x, found[0].y) if found else (wanted.x, wanted.y)
    inside = lambda v: min(max(v / SIZE, 0.0), 1.0)
    return f"{inside(x):.4f}, {inside(y):.4f} > {inside(wanted.x):.4f}, {inside(wanted.y):.4f}"


def _of_left_half(text, latents):
    """The loss of what is known of the wanted pictures: the left half of their latents."""
    from ..guidance.loss.frames import ReferenceSequence
    from ..guidance.loss.quantile import Quantile
    from ..guidance.loss.sound import SoundContext
    mask = (torch.arange(PIXELS) < PIXELS // 2).float().expand(1, PIXELS, PIXELS).clone()
    if text == "$known":
        return SoundContext(target=latents, mask=mask)
    cls = ReferenceSequence if text == "$rendered" else Quantile
    return cls(target=latents, mask=mask, space="latent").check()


def _distance(case, reading):
    """From where the first object is to be, to the nearest thing of its colour; half the picture where there is none."""
    wanted = case.scene.things[0]
    return min((math.hypot(t.x - wanted.x, t.y - wanted.y) for t in reading.things if t.colour == wanted.colour), default=MISSING)


def values(metric, measured):
    """One value per picture."""
    found = [measured.cases[i] for i in measured.main]
    if metric == "violations":
        from ..guidance.host.decode import RoughPicture
        latents = measured.subject.model.get_model_object("latent_format")
        seen = RoughPicture(latents, "bench")(latents.process_in(measured.latents[measured.main]))
        half = seen[..., :seen.shape[-1] // 2]
        return (half > torch.tensor(UPPER)[:, None, None] + 1e-3).any(1).float().mean((1, 2))
    if metric == "known_error":
        half = slice(0, measured.latents.shape[-1] // 2)
        return (measured.latents[measured.main] - measured.subject.target(found))[..., half].square().mean((1, 2, 3)).sqrt()
    if metric == "apart":      # root mean square distance to the next picture of those that were sampled together
        z, groups = measured.latents[measured.main], {}
        for i, c in enumerate(found):
            groups.setdefault((c.group, c.seed), []).append(i)
        following = {i: them[(n + 1) % len(them)] for them in groups.values() for n, i in enumerate(them)}
        return torch.stack([(z[i] - z[following[i]]).square().mean().sqrt() for i in range(len(found))])
    if metric == "place_error":
        return torch.tensor([_distance(c, r) for c, r in zip(found, measured.readings())])
    first = [c.scene.things[0] for c in found]
    return torch.tensor([float(any((s.colour, s.shape) == (t.colour, t.shape) and math.hypot(s.x - t.x, s.y - t.y) < NEAR for s in r.things)) for t, r in zip(first, measured.readings())])
