"""Pairs of pictures of a scene whose objects were moved, turned and scaled, with the true flow between them."""
import math
from dataclasses import dataclass

import torch

from .scenes import _GRID, _signed_distance, BACKGROUNDS, COLOURS, SIZE, random_scene

FURTHEST = 20.0      # pixels


@dataclass(frozen=True)
class Motion:
    """(dx, dy) in pixels, a turn in radians (clockwise in the picture) and a factor about the object's own centre."""

    dx: float = 0.0
    dy: float = 0.0
    turn: float = 0.0
    scale: float = 1.0


def random_motion(rng, thing):
    """Half are moves of up to a few pixels; what leaves the picture is brought back to its border. Circles aren't turned: nobody would see it."""
    reach = 4.0 if rng.random() < 0.5 else FURTHEST
    low, high = 0.6 * thing.radius, SIZE - 0.6 * thing.radius
    x, y = (min(max(c + rng.uniform(-reach, reach), low), high) for c in (thing.x, thing.y))
    turned = thing.shape != "circle" and rng.random() < 0.4
    return Motion(x - thing.x, y - thing.y, rng.uniform(-0.6, 0.6) if turned else 0.0, rng.uniform(0.75, 1.3) if rng.random() < 0.4 else 1.0)


def _grain(rng):
    """A soft texture: waves (amplitude per channel, wave vector, phase), or none."""
    if rng.random() < 0.6:
        return ()
    return tuple((tuple(rng.uniform(-0.1, 0.1) for _ in range(3)), rng.uniform(-0.6, 0.6), rng.uniform(-0.6, 0.6), rng.uniform(0, 2 * math.pi)) for _ in range(3))


def _painted(colour, grain, x, y):
    out = torch.tensor(colour)[:, None, None].expand(3, *x.shape)
    for amplitude, u, v, phase in grain:
        out = out + torch.tensor(amplitude)[:, None, None] * torch.cos(u * x + v * y + phase)
    return out


def _own(thing, motion, x, y):
    """Coordinates of the moved object's points in its own unmoved frame, about its centre."""
    x, y = (x - thing.x - motion.dx) / motion.scale, (y - thing.y - motion.dy) / motion.scale
    c, s = math.cos(motion.turn), math.sin(motion.turn)
    return c * x + s * y, c * y - s * x


def pair(rng):
    """(a [3, 64, 64], b, flow [2, 64, 64]) of one scene before and after."""
    scene = random_scene(rng)
    x, y = _GRID[None, :].expand(SIZE, SIZE), _GRID[:, None].expand(SIZE, SIZE)
    ground, camera = _grain(rng), (0.0, 0.0)
    if ground and rng.random() < 0.5:
        camera = rng.uniform(-6, 6), rng.uniform(-6, 6)
    offsets = scene.jitter
    back = tuple(c + o for c, o in zip(BACKGROUNDS[scene.background], offsets[0]))
    a, b = _painted(back, ground, x, y), _painted(back, ground, x - camera[0], y - camera[1])
    flow = torch.tensor(camera)[:, None, None].expand(2, SIZE, SIZE)
    for thing, offset in zip(scene.things, offsets[1:]):
        motion = random_motion(rng, thing) if rng.random() < 0.75 else Motion()
        grain, colour = _grain(rng), tuple(c + o for c, o in zip(COLOURS[thing.colour], offset))
        here = _own(thing, Motion(), x, y)
        there = _own(thing, motion, x, y)
        m = (0.5 - _signed_distance(thing.shape, *here, thing.radius)).clamp(0, 1)
        n = (0.5 - _signed_distance(thing.shape, *there, thing.radius) * motion.scale).clamp(0, 1)
        a, b = a + m * (_painted(colour, grain, *here) - a), b + n * (_painted(colour, grain, *there) - b)
        c, s = math.cos(motion.turn) * motion.scale, math.sin(motion.turn) * motion.scale
        moved = torch.stack((c * here[0] - s * here[1] - here[0] + motion.dx, s * here[0] + c * here[1] - here[1] + motion.dy))
        flow = torch.where(m > 0.5, moved, flow)
    return a.clamp(0, 1), b.clamp(0, 1), flow


def pairs(rng, n):
    return tuple(torch.stack(t) for t in zip(*(pair(rng) for _ in range(n))))


def errors(flow, truth):
    """End-point errors (all pixels, those that move): means [n]; without any that moves 0."""
    off = (flow - truth).square().sum(1).add(1e-8).sqrt()
    moving = (truth.square().sum(1) > 0.01).float()
    return off.mean((1, 2)), (off * moving).sum((1, 2)) / moving.sum((1, 2)).clamp(min=1)
