"""Cross-Attention Segmentation."""
from __future__ import annotations

import torch

from ..attention.capture import MapCapture, MapRecord, SelfCapture
from ..frozen import frozen
from ..method import BadInput, Method, param
from .noising import noise_of, noised
from .pictures import enlarged, stretched

OWN_CELLS = {"unet": 1024, "other": 4096}      # the largest grid whose attention to itself is read: U-Nets have smaller ones, others only one


def refined(maps, own, times):
    """Maps [batch, classes, h, w] averaged `times` times over the cells that each cell attends to; own [batch, h w, h, w] are the weights of its self-attention."""
    flat, weights = maps.flatten(2), own.flatten(2)
    for _ in range(times):
        flat = torch.einsum("bqk,bck->bcq", weights, flat)
    return flat.view_as(maps)


def labelled(maps, threshold):
    """(masks bool [batch, classes, h, w], labels [batch, h, w], -1 for the background) of maps [batch, classes, h, w], each from 0 to 1: the strongest class of a
    cell, where it is above the threshold."""
    best = maps.max(1)
    labels = torch.where(best.values > threshold, best.indices, torch.full_like(best.indices, -1))
    return torch.stack([labels == k for k in range(maps.shape[1])], 1), labels


class Seen(dict):
    """{observer: MapRecord}: what the observers of several predictions have seen."""

    def take(self, observer, found):
        self[observer].add(found)

    def __missing__(self, observer):
        return self.setdefault(observer, MapRecord())


@frozen
class CrossAttentionSegmentation(Method):
    """Finds the parts of a given picture that words name, from the attention that a text-to-image model pays to them. No training.

        x = a x0 + s n at a low noise level, one prediction with a prompt that names all classes
        M_c = mean over heads, layers and the tokens of class c of A[cell, token]
        M_c <- A_self M_c, `refine` times: averaged over the cells that a cell attends to;  then each map is stretched from 0 to 1

    A cell belongs to the class with the largest map, where that is above `threshold`, else to none.
    The maps are the extractor of Unleashing T2I Diffusion Models for Visual Perception (one step at nearly no noise, mean over heads and over the layers of a
    size), without its trained head. Joint attention: the picture's cells on the text, normalised over it. Guidance is off; the nodes of this pack on the model do not
    take part.

    Defaults: level 0.02 (the paper: t = 1 of 1000); the threshold is measured on the bundled models (intersection over union with the true masks 0.74 on the
    U-Net, 0.53 on the DiT, whose maps are coarser). Several noises are averaged. Cost: one evaluation per noise. Attention between cells is read on grids of
    at most 1024 cells (networks with one grid: 4096); maps of larger ones stay as they are. Limits: words of one prompt compete; what is in the picture but
    in no class may go to the nearest one: name it too. Every class gets its strongest cells, also one that is not in the picture.
    """

    node_id = "LodestarCrossAttentionSegmentation"
    title = "Cross-Attention Segmentation"
    family = "reading"
    paper = "Unleashing T2I Diffusion Models for Visual Perception (VPD)"
    aliases = ("VPD", "segment", "masks from words")
    evaluations = "1 per noise"

    level: float = param(0.02, "Noise that is added to the picture, as a place in the schedule: 0 none, 1 pure noise.", 0.0, 1.0, 0.01)
    threshold: float = param(0.6, "A cell belongs to a class where its map is above this share of its range.", 0.0, 1.0, 0.01)
    refine: int = param(1, "How often maps are averaged over the cells that attend to each other; fills shapes, 0 leaves the maps.", 0, 10, 1)
    samples: int = param(2, "Noises that are averaged.", 1, 1000, 1)
    layers: str = param("all", "Layers whose attention is read, e.g. all, output, double.*.")
    seed: int = param(0, "Seed of the noises.", 0, 2 ** 63 - 1, 1, advanced=True)
    side: int = param(64, "Longest side of the maps in cells; larger grids are averaged down.", 4, 256, 1, advanced=True)

    def observers(self, words, geometry):
        """What is read: the maps of the words, and self-attention where it is needed."""
        maps = MapCapture(self.layers, length=words.length, mark=words.mark, side=self.side)
        return (maps, SelfCapture(self.layers, most=OWN_CELLS["unet" if geometry.family == "unet" else "other"])) if self.refine else (maps,)

    def look(self, x0, predict, sigma_of, flow):
        """Runs the predictions predict(x, sigma) of pictures x0 [batch, ...]."""
        sigma = torch.full((x0.shape[0],), sigma_of(self.level), device=x0.device)
        for i in range(self.samples):
            noise = noise_of(x0.shape[1:], self.seed, i).to(x0).expand_as(x0)
            predict(noised(x0, noise, sigma, flow), sigma)

    def maps(self, record, own, words, height, width):
        """Maps [batch, classes, height, width] from 0 to 1 of the classes; record, own: MapRecords of the words' maps and of self-attention (None without)."""
        if not record.grids:
            raise BadInput(self.title, "layers", self.layers, "No attention to the text was read there; choose other layers.")
        grid = max(record.grids, key=lambda key: key[1] * key[2])
        found = record.picture(grid[1], grid[2])[:, :, 0]
        classes = torch.stack([found[:, list(t)].mean(1) for t in words.tokens], 1)
        if self.refine and own is not None and own.grids:
            key = max(own.grids, key=lambda key: key[1] * key[2])
            total, count = own.grids[key]
            small = enlarged(classes.flatten(0, 1), key[1:3]).unflatten(0, classes.shape[:2])
            classes = refined(small, total[:, :, 0] / count, self.refine)
        return stretched(enlarged(classes.flatten(0, 1), (height, width)).clamp(min=0)).unflatten(0, classes.shape[:2])
