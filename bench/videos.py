"""Measuring on the bundled video model: a batch is one video of one object, frame after frame."""
from __future__ import annotations

import math
import random
from dataclasses import replace

import torch

from ..demo.motions import FRAMES
from ..demo.scenes import SIZE, random_scene

KIND = "video"
METRICS = ("flicker", "travel")
VALUES = ("$moving",)
SEED = 60_001          # of the scenes; no seed of the training
NEAR = 8.0             # pixels around an object that belong to it
STEPS = 20             # of the plain video that masks are read from
PIXELS = 2 * SIZE      # of the VAE's pictures


def cases(found):
    """The frames of a video in place of each case, with one object in it."""
    def scene(case):
        return random_scene(random.Random(SEED + case.prompt), 1)
    return [replace(c, scene=s, group=c.prompt, frame=f) for c in found if not c.extra for s in (scene(c),) for f in range(FRAMES)]


def reach(readings, size):
    """Bool [size, size]: the cells within NEAR pixels of any object that is seen in any frame of a video."""
    centre = (torch.arange(size) + 0.5) * (SIZE / size)
    out = torch.zeros(size, size, dtype=torch.bool)
    for reading in readings:
        for t in reading.things:
            half = t.radius + NEAR
            out |= ((centre[None] - t.x).abs() < half) & ((centre[:, None] - t.y).abs() < half)
    return out


def moving(subject, batch):
    """The mask [1, 128, 128] of what moves in the video that plain sampling gives: objects in any frame, with a border."""
    from ..demo import measure
    from .plan import Setup
    known, name = vars(subject).setdefault("masks_of_videos", {}), tuple(batch)
    if name not in known:
        latents, _, _ = subject.run(Setup("plain", 4.0, prompts=KIND), batch, STEPS)
        mask = reach(measure.load().decode(subject.pictures(latents)), PIXELS).float()[None]
        known[name] = mask if bool(mask.any()) else torch.ones_like(mask)
    return known[name]


def values(metric, measured):
    """One value per frame. flicker: mean absolute difference to the next frame (of the last, to the one before) where no object comes near in the whole video; travel: pixels from the
    first object seen to the nearest one seen in the next frame, 0 where there is none."""
    readings, pictures, videos = measured.readings(), measured.pictures[measured.main], {}
    for i, n in enumerate(measured.main):
        videos.setdefault((measured.cases[n].group, measured.cases[n].seed), []).append(i)
    out = torch.zeros(len(pictures))
    for frames in videos.values():
        away = ~reach([readings[i] for i in frames], pictures.shape[-1])
        for place, i in enumerate(frames):
            j = frames[place + 1] if place + 1 < len(frames) else frames[place - 1]
            if metric == "flicker":
                out[i] = (pictures[i] - pictures[j]).abs()[:, away].mean() if bool(away.any()) else 0.0
            else:
                first = readings[i].things[:1]
                out[i] = min((math.hypot(t.x - f.x, t.y - f.y) for f in first for t in readings[j].things), default=0.0)
    return out
