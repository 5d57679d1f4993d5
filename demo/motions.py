"""Scenes that move: every object drifts at a speed of its own, turned back at the border; the background stands still."""
import math
from dataclasses import replace

from .scenes import MARGIN, SIZE

FRAMES = 8
FARTHEST = 20.0       # pixels that an object goes in a video, at most
STILL = 0.25          # share of the objects that do not move


def _turned(v, low, high):
    """A place that left low..high, mirrored back into it."""
    away = (v - low) % (2 * (high - low))
    return low + min(away, 2 * (high - low) - away)


def moving(rng, scene, frames=FRAMES, only=None):
    """The scene's frames: a list of Scenes. only: the one object that moves (all others stand still); None lets each move or stand by chance."""
    ways = []
    for i, _ in enumerate(scene.things):
        far, angle, still = rng.uniform(6.0, FARTHEST), rng.uniform(0, 2 * math.pi), rng.random() < STILL
        far = 0.0 if (still if only is None else i != only) else far
        ways.append((far * math.cos(angle), far * math.sin(angle)))
    found = []
    for f in range(frames):
        at = f / (frames - 1) - 0.5      # the scene itself is the middle of its video
        things = []
        for thing, (dx, dy) in zip(scene.things, ways):
            low, high = thing.radius + MARGIN, SIZE - thing.radius - MARGIN
            things.append(replace(thing, x=_turned(thing.x + at * dx, low, high), y=_turned(thing.y + at * dy, low, high)))
        found.append(replace(scene, things=tuple(things)))
    return found
