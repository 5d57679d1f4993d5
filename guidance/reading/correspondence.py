"""Dense Correspondence."""
from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..attention.capture import FeatureCapture, deepest
from ..frozen import frozen
from ..layers import select
from ..method import BadInput, Method, param
from .noising import noise_of, noised
from .pictures import enlarged

FEATURES = ("keys", "queries")


def default_layers(geometry):
    """The U-Net's first output block above its deepest level (SD1.5: output.6); the second half of the last stage of DiTs."""
    if geometry.family != "unet":
        return f"{geometry.stages()[-1]}.50%-100%"
    low = {layer.index for layer in select(geometry, deepest(geometry)) if layer.stage == "output"}
    above = [layer.index for layer in geometry.layers if layer.stage == "output" and layer.index > max(low, default=-1)]
    return f"output.{min(above)}" if above else f"output.{max(low)}" if low else "all"


def together(found):
    """Features [batch, cells, width] of unit length and their grid (height, width), of what FeatureCapture saw: per layer without the mean over all cells and
    pictures, of unit length, brought to the largest grid; layers count alike."""
    grids = {name: grid for name, (_, _, grid, _) in found.items()}
    frames, height, width = max(grids.values(), key=lambda g: g[1] * g[2])
    parts = []
    for name, (total, count, (f, h, w), _) in found.items():
        t = total / count
        t = F.normalize(t - t.mean((0, 1), keepdim=True), dim=-1)
        if (h, w) != (height, width):
            t = t.unflatten(1, (f, h, w))[:, 0].movedim(-1, 1)
            t = F.normalize(F.interpolate(t, (height, width), mode="bilinear", align_corners=False).flatten(2).transpose(1, 2), dim=-1)
        else:
            t = t[:, :height * width]
        parts.append(t)
    return F.normalize(torch.cat(parts, -1), dim=-1), (height, width)


class Summed:
    """What a FeatureCapture sees in several predictions, summed: `found` is as it has it for one."""

    def __init__(self):
        self.found = {}

    def clear(self):
        self.found = {}

    def take(self, observer, found):
        for name, (total, count, grid, window) in found.items():
            mine = self.found.setdefault(name, [torch.zeros_like(total), 0, grid, window])
            mine[0] = mine[0] + total
            mine[1] += count


@dataclass
class Matches:
    """For each cell of the first picture: where it is in the second, `places` [height, width, 2] (x, y in fractions), how alike the features are, `score`
    [height, width] in [-1, 1], and whether the second picture's cell finds back, `mutual` [height, width] bool."""

    places: torch.Tensor
    score: torch.Tensor
    mutual: torch.Tensor


def match(first, second, height, width, reach=2, temperature=0.05, slack=1, rows=1024):
    """Matches of features [cells, width] of two pictures on one grid. The best cell is refined by the mean of the places around it (within `reach` cells),
    weighted by softmax(similarity / temperature). `slack`: how many cells off a cell may come back to still be mutual."""
    best, score, places = [], [], []
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    y, x = y.flatten().to(first.device), x.flatten().to(first.device)
    back = torch.full((second.shape[0],), -2.0, device=first.device)
    origin = torch.zeros(second.shape[0], dtype=torch.long, device=first.device)
    for begin in range(0, first.shape[0], rows):
        like = first[begin:begin + rows] @ second.T
        top = like.max(1)
        near = ((y[None] - y[top.indices][:, None]).abs() <= reach) & ((x[None] - x[top.indices][:, None]).abs() <= reach)
        weights = (like / temperature).masked_fill(~near, -torch.inf).softmax(1)
        places.append(torch.stack((weights @ (x + 0.5) / width, weights @ (y + 0.5) / height), -1))
        best.append(top.indices)
        score.append(top.values)
        most = like.max(0)
        better = most.values > back
        origin = torch.where(better, most.indices + begin, origin)
        back = torch.maximum(back, most.values)
    best = torch.cat(best)
    returned = origin[best]
    own = torch.arange(first.shape[0], device=first.device)
    mutual = ((y[returned] - y[own]).abs() <= slack) & ((x[returned] - x[own]).abs() <= slack)
    grid = (height, width)
    return Matches(torch.cat(places).view(*grid, 2), torch.cat(score).view(grid), mutual.view(grid))


def warped(picture, places):
    """The second picture [height, width, channels] as the first one sees it; places [h, w, 2] in fractions. Around its cell every match is a shift; a pixel is the
    bilinear mean of what the four cells around it give (matches are not averaged: between two far places there is nothing)."""
    height, width = picture.shape[:2]
    rows, columns = places.shape[:2]
    source = picture.movedim(-1, 0)[None].float()
    y, x = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
    v, u = y * rows - 0.5, x * columns - 0.5
    out = 0.0
    for dy in (0, 1):
        for dx in (0, 1):
            i, j = v.floor() + dy, u.floor() + dx
            share = (1 - (v - i).abs())[:, None] * (1 - (u - j).abs())[None]
            i, j = i.long().clamp(0, rows - 1), j.long().clamp(0, columns - 1)
            off = torch.stack(torch.broadcast_tensors((x - (j + 0.5) / columns)[None], (y - (i + 0.5) / rows)[:, None]), -1)
            at = (places[i][:, j].to(source) + off.to(source)) * 2 - 1
            out = out + share.to(source) * F.grid_sample(source, at[None], mode="bilinear", padding_mode="border", align_corners=False)[0]
    return out.movedim(0, -1).clamp(0, 1)


def listed(matches, count):
    """At most `count` matches as [{"from": [x, y], "to": [x, y], "score": s}, ...] in fractions, the surest first: of the mutual ones the best of each part of an
    even division of the picture."""
    height, width = matches.score.shape
    side = max(1.0, math.sqrt(height * width / max(1, count)))
    best = {}
    for y, x in matches.mutual.nonzero().tolist():
        part, score = (int(y // side), int(x // side)), float(matches.score[y, x])
        if score > best.get(part, (-2.0,))[0]:
            best[part] = score, y, x
    found = sorted(best.values(), reverse=True)[:count]
    return [{"from": [round((x + 0.5) / width, 4), round((y + 0.5) / height, 4)], "to": [round(float(v), 4) for v in matches.places[y, x]], "score": round(s, 4)}
            for s, y, x in found]


def drawn(first, second, points):
    """IMAGE [height, 2 width, 3]: both pictures [height, width, 3] side by side, each of the points of `listed` joined by a line of a colour of its own."""
    from PIL import Image, ImageDraw
    both = torch.cat((first, second), 1).detach().float().cpu().clamp(0, 1)
    image = Image.fromarray((both * 255).round().to(torch.uint8).numpy())
    pen, (height, width) = ImageDraw.Draw(image), first.shape[:2]
    thick = max(1, width // 256)
    for i, point in enumerate(points):
        colour = tuple(round(255 * v) for v in colorsys.hsv_to_rgb(i / len(points), 0.9, 1.0))
        ends = [(p[0] * width + left, p[1] * height) for p, left in ((point["from"], 0), (point["to"], width))]
        pen.line([c for end in ends for c in end], fill=colour, width=thick)
        for x, y in ends:
            pen.ellipse((x - 1.5 * thick, y - 1.5 * thick, x + 1.5 * thick, y + 1.5 * thick), outline=colour, fill=colour)
    array = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return array.view(height, 2 * width, 3).float() / 255


@frozen
class DenseCorrespondence(Method):
    """Finds for every part of one picture the same part of another, by the features that a text-to-image model has for them, and warps one onto the other.

        f = keys (or queries) of self-attention at x = a x0 + s n, all heads of a cell as one vector, mean over `samples` noises,
            less the mean over both pictures, of unit length
        match(p) = argmax over q of f1(p) f2(q), then the mean of the places around it, weighted by softmax(similarity / 0.05)
        confidence = the similarity, and 0 where the match does not find back to within a cell

    The ensemble over noises is that of DiffMatch's sampling (its network is trained for matching and is not needed here). Works on every network whose
    attention is in reach (`docs/layers.md`); the nodes of this pack on the model do not take part.

    Defaults: level 0.2, 4 noises; U-Nets: the first output block above the deepest level; DiTs: the second half of the last stage (own measurements on the
    bundled models; no published value for keys). There the mean error is 4 px of 64 on the U-Net, 12 on the DiT. Cost: one evaluation per noise for both
    pictures. Memory: two pictures x cells x width x 4 bytes for each layer (Flux at 1024 px: 0.1 GB a layer); name fewer layers where it is short. Limits:
    parts that look alike (two equal things, an even ground) are told apart by nothing. Both pictures are brought to the first one's size.
    """

    node_id = "LodestarDenseCorrespondence"
    title = "Dense Correspondence"
    family = "reading"
    paper = "Diffusion Model for Dense Matching"
    aliases = ("matching", "DIFT", "warp", "DiffMatch")
    evaluations = "1 per noise"

    level: float = param(0.2, "Noise that is added to the pictures, as a place in the schedule: 0 none, 1 pure noise.", 0.0, 1.0, 0.01)
    samples: int = param(4, "Noises that are averaged.", 1, 1000, 1)
    layers: str = param("", "Layers whose features are compared. Empty: a good one of the network.")
    features: str = param(FEATURES[0], "What is compared: the keys or the queries of self-attention.", choices=FEATURES)
    lines: int = param(24, "How many matches are drawn.", 0, 1000, 1)
    seed: int = param(0, "Seed of the noises.", 0, 2 ** 63 - 1, 1, advanced=True)

    def observer(self, geometry):
        return FeatureCapture(self.layers or default_layers(geometry), what=self.features)

    def look(self, x0, predict, sigma_of, flow):
        """Runs the predictions predict(x, sigma) of both pictures x0 [2, ...]; they share their noises."""
        sigma = torch.full((x0.shape[0],), sigma_of(self.level), device=x0.device)
        for i in range(self.samples):
            predict(noised(x0, noise_of(x0.shape[1:], self.seed, i).to(x0).expand_as(x0), sigma, flow), sigma)

    def matches(self, found):
        """Matches of the first picture in the second, from what the observer saw ({layer: ...}, summed over the calls)."""
        if not found:
            raise BadInput(self.title, "layers", self.layers, "No self-attention was read there; choose other layers.")
        features, (height, width) = together(found)
        return match(features[0], features[1], height, width)


def confidence(matches, size):
    """Mask [height, width] of a size: similarity where the match is mutual."""
    return enlarged((matches.score.clamp(min=0) * matches.mutual)[None], size)[0].clamp(0, 1)
