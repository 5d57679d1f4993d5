"""The bundled block-wise semantics and guidance (MegaSR) for the bundled U-Net: encoders of the degraded picture and of maps of it, and a small network that finds these maps."""
import torch
import torch.nn.functional as F

from ..guidance.inverse.block_semantics import CELL, MAPS
from . import text, unicon
from .pixel_aware import layers as decoder
from .scenes import SHAPES, mask_of

NAME = "block_semantics"
BLOCKS = ("input.1", "input.3", "middle.0", "output.0", "output.1", "output.2", "output.3")
SEEN, STRUCTURE, EDGES, INNER = (40, 64, 64), (32, 32), (24, 24), 32      # widths: of the encoders' maps, the finest first; of what finds the maps
SEGMENTS = dict(zip(SHAPES, ((1.0, 0.2, 0.2), (0.2, 1.0, 0.2), (0.2, 0.4, 1.0), (1.0, 1.0, 0.2))))      # colours of the segments; the background black


def maps(scene, size=64):
    """{name: [channels, size, size] in [0, 1]}: outlines of the things, their nearness, their shapes as colours."""
    edges, segments = torch.zeros(1, size, size), torch.zeros(3, size, size)
    for thing in scene.things:
        mask = mask_of(thing, size)
        edges = torch.maximum(edges, F.max_pool2d(mask[None], 3, 1, 1) + F.max_pool2d(-mask[None], 3, 1, 1))
        segments = segments * (1 - mask) + torch.tensor(SEGMENTS[thing.shape])[:, None, None] * mask
    return {"edges": edges.clamp(0, 1), "depth": unicon.depth(scene, size)[:1], "segmentation": segments}


def fresh(seed=0):
    """Weights before training {key: tensor}: nothing of the picture is added."""
    g, w = torch.Generator().manual_seed(seed), {}

    def conv(name, out, given, kernel=3, scale=1.0):
        w[f"{name}.weight"] = scale * torch.randn(out, given, kernel, kernel, generator=g) / (given * kernel * kernel) ** 0.5
        w[f"{name}.bias"] = torch.zeros(out)

    def encoder(part, channels, widths, outs, scale):
        for i, width in enumerate(widths):
            conv(f"{part}.enter" if i == 0 else f"{part}.down.{i - 1}", width, channels if i == 0 else widths[i - 1], scale=1.4)
        each = len(outs) // len(widths)
        for i, out in enumerate(outs):
            conv(f"{part}.leave.{i}", out, widths[len(widths) - 1 - i // each], scale=scale)
    cell, skips = CELL * CELL, [seen for *_, seen in decoder()]
    encoder("semantics", 3 * cell, SEEN, [text.WIDTH] * len(SEEN), 1.0)
    w["semantics.norm.weight"], w["semantics.norm.bias"] = torch.ones(text.WIDTH), torch.zeros(text.WIDTH)
    encoder("structure", (MAPS["depth"] + MAPS["segmentation"]) * cell, STRUCTURE, skips, 0.0)
    encoder("edges", MAPS["edges"] * cell, EDGES, [2 * n for n in skips], 0.0)
    conv("extract.enter", INNER, 3 * 16)
    for i in range(3):
        conv(f"extract.inner.{i}", INNER, INNER)
    conv("extract.leave", 4 * sum(MAPS.values()), INNER)
    for layer in BLOCKS:
        w[f"blocks.{layer}.gate"], w[f"blocks.{layer}.levels"] = torch.zeros(1), torch.zeros(len(SEEN))
    return w
