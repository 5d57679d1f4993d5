"""Measuring the losses of pictures: what each of them is given, and its value of the finished pictures, with and without its gradient."""
from __future__ import annotations

import torch

from ..demo.scenes import BACKGROUNDS, COLOURS
from .plan import use

PIXELS = 128      # of the VAE's pictures
VALUES = ("$wanted", "$colour", "$grounds_of_scenes", "$disc", "$classes")


def _hex(colour):
    return "#" + "".join(f"{round(255 * v):02x}" for v in colour)


def value(text, subject, batch):
    """What "$wanted" (the pictures of the captions' scenes as the VAE makes them), "$colour" (that which a batch shares), "$grounds_of_scenes" (the backgrounds' colours), "$disc" (the middle as a mask) and
    "$classes" (all colours and backgrounds, as a palette) stand for."""
    with torch.inference_mode(False):
        if text == "$wanted":
            return subject.vae.decode(subject.target(batch)).movedim(-1, 1).clone()
        if text == "$disc":
            at = (torch.arange(PIXELS) + 0.5) / PIXELS - 0.5
            return (at[:, None].square() + at.square() < 0.2**2).float()[None]
    if text == "$colour":
        return _hex(COLOURS[batch[0].forbidden or "red"])
    return "; ".join(map(_hex, (*(COLOURS.values() if text == "$classes" else ()), *BACKGROUNDS.values())))


_seen = dict(decoder="$decoder")
_to = dict(target="$wanted", **_seen)
LOSSES = {
    "wavelet": use("loss.wavelet:WaveletTarget", **_to),
    "edges": use("loss.edges:EdgeTarget", **_to),
    "spectrum": use("loss.spectrum:SpectrumTarget", **_to),
    "colours": use("loss.colour:ColourDistribution", **_to),
    "coloured_shape": use("loss.shape:ColouredShape", colour="$colour", others="$grounds_of_scenes", region="$disc", **_seen),
    "label_map": use("loss.palette:PaletteSegmentation", palette="$classes", **_to),
    "variation": use("loss.smooth:TotalVariation", **_seen),
    "asymmetry": use("loss.smooth:Symmetry", **_seen),
    "beyond_range": use("loss.smooth:RangePenalty", **_seen),
    "structure_loss": use("loss.structure:MultiscaleStructure", **_to),
    "file_size": use("loss.blackbox:JpegSize", **_seen),
}
METRICS = tuple(LOSSES)


def values(metric, measured):
    """The loss's value of each finished picture."""
    from ..guidance.loss.base import LossContext
    from .subject import groups_of
    subject, found = measured.subject, [measured.cases[i] for i in measured.main]
    latents = subject.model.get_model_object("latent_format").process_in(measured.latents[measured.main])
    places, out = {c: i for i, c in enumerate(found)}, torch.zeros(len(found))
    with torch.inference_mode(False), torch.no_grad():
        for batch in groups_of(found, 8):
            rows = [places[c] for c in batch]
            out[rows] = subject.build(LOSSES[metric], batch).value(latents[rows].clone(), LossContext()).float()
    return out
