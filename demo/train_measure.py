"""Trains the measuring network on fresh scenes, flawed as generated pictures are, and writes its figures.

    python -m demo.train_measure --out demo/weights [--minutes 10] [--threads 1] [--seed 0]
"""
import random

import torch
import torch.nn.functional as F

from . import latents, measure
from .measure import CELL, GRID, Measure
from .scenes import BACKGROUNDS, COLOURS, SHAPES, batch
from .train_loop import train_whole

_CENTRES = (torch.arange(GRID) + 0.5) * CELL


def targets(scenes):
    """heat [n, 16, 16], near [n, 16, 16] (which cells learn attributes), colour, shape, radius, offset [n, 2, 16, 16], background [n]."""
    n = len(scenes)
    heat, near = torch.zeros(n, GRID, GRID), torch.zeros(n, GRID, GRID, dtype=torch.bool)
    colour, shape = torch.zeros(n, GRID, GRID, dtype=torch.long), torch.zeros(n, GRID, GRID, dtype=torch.long)
    radius, offset = torch.zeros(n, GRID, GRID), torch.zeros(n, 2, GRID, GRID)
    ground = torch.tensor([list(BACKGROUNDS).index(s.background) for s in scenes])
    for i, scene in enumerate(scenes):
        for thing in scene.things:
            dx, dy = (thing.x - _CENTRES) / CELL, (thing.y - _CENTRES) / CELL
            square = dx[None, :] ** 2 + dy[:, None] ** 2
            heat[i] = torch.maximum(heat[i], torch.exp(-square / (2 * 0.7 ** 2)))
            heat[i, int(thing.y / CELL), int(thing.x / CELL)] = 1
            cells = square < 1.5
            near[i] |= cells
            colour[i][cells] = list(COLOURS).index(thing.colour)
            shape[i][cells] = SHAPES.index(thing.shape)
            radius[i][cells] = thing.radius / CELL
            offset[i, 0][cells] = dx[None, :].expand(GRID, GRID)[cells]
            offset[i, 1][cells] = dy[:, None].expand(GRID, GRID)[cells]
    return heat, near, colour, shape, radius, offset, ground


def loss_of(network, images, truth):
    """Focal loss of the centres, cross entropy of the names, absolute error of radius and offset."""
    heat, near, colour, shape, radius, offset, ground = truth
    maps, grounds = network(images)
    h, c, s, r, o = maps.split(measure._HEADS, 1)
    h, centre = h[:, 0], heat == 1
    p = h.sigmoid()
    hit = -((1 - p) ** 2 * F.logsigmoid(h))[centre].sum()
    miss = -((1 - heat) ** 4 * p ** 2 * F.logsigmoid(-h))[~centre].sum()

    def at(z):
        return z.permute(0, 2, 3, 1)[near]
    return ((hit + miss) / centre.sum() + F.cross_entropy(at(c), colour[near]) + F.cross_entropy(at(s), shape[near])
            + 0.5 * F.l1_loss(at(r)[:, 0], radius[near]) + 0.5 * F.l1_loss(at(o), at(offset))
            + 0.5 * F.cross_entropy(grounds, ground))


def flawed(images, code, generator):
    """Pictures with the flaws of generated ones: half through the autoencoder, slight blur, colour shifts, noise up to 0.08."""
    n = len(images)

    def draw(*size):
        return torch.rand(size, generator=generator)
    images = torch.where(draw(n, 1, 1, 1) < 0.5, latents.decode(latents.encode(images, code), code), images)
    edge = F.pad(images, (1, 1, 1, 1), mode="replicate")
    soft = F.avg_pool2d(edge, 3, 1)
    images = torch.lerp(images, soft, draw(n, 1, 1, 1) * (draw(n, 1, 1, 1) < 0.4))
    images = images * (1 + (draw(n, 3, 1, 1) - 0.5) * 0.12) + (draw(n, 3, 1, 1) - 0.5) * 0.08
    noise = torch.randn(images.shape, generator=generator) * draw(n, 1, 1, 1) * 0.08 * (draw(n, 1, 1, 1) < 0.6)
    return (images + noise).clamp(0, 1)


def figures(network, code, seed, n=2000):
    """Shares of n fresh scenes that are read fully right (objects, count, relation), clean and flawed."""
    scenes, clean = batch(random.Random(seed), n)
    through = latents.decode(latents.encode(clean, code), code).clamp(0, 1)
    result = {"scenes": n}
    for name, images in (("clean", clean), ("autoencoder", through), ("flawed", flawed(clean, code, torch.Generator().manual_seed(seed)))):
        marks = measure.prompt_accuracy(scenes, images, network)
        result[name] = {key: sum(m[key] for m in marks) / n for key in ("objects", "relation", "count", "background")}
        result[name]["fully_right"] = sum(m["all"] and m["count"] for m in marks) / n
    return result


def main():
    def loss(network, rng, n, code, generator):
        scenes, images = batch(rng, n)
        return loss_of(network, flawed(images, code, generator), targets(scenes))
    train_whole(__doc__, "measure", Measure, loss, figures, minutes=10, batch=32)


if __name__ == "__main__":
    main()
