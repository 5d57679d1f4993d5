"""FreeU."""
from __future__ import annotations

import math
from dataclasses import replace

import torch

from ..frozen import frozen
from ..method import BadInput, Edit, param, window
from .edits import FeatureEdit

_start, _end = window()
VERSIONS = ("2", "1")


def low_frequencies(x):
    """The part of x [..., height, width] in the four lowest Fourier coefficients on the low side of 0 (frequencies 0 and -1 of each axis), real part.

    What the published filter takes from the middle of the shifted spectrum (threshold 1), as a few projections: runs on every device and in every dtype.
    """
    height, width = x.shape[-2:]
    rows = torch.arange(height, device=x.device, dtype=torch.float32) * (2 * math.pi / height)
    columns = torch.arange(width, device=x.device, dtype=torch.float32) * (2 * math.pi / width)
    zero = torch.zeros_like
    angles = {(a, b): (rows if a else zero(rows))[:, None] + (columns if b else zero(columns)) for a in range(min(2, height)) for b in range(min(2, width))}
    basis = torch.stack([f(angle) for angle in angles.values() for f in (torch.cos, torch.sin)]).flatten(1)
    share = x.float().flatten(-2) @ basis.T / (height * width)
    return (share @ basis).unflatten(-1, (height, width))


@frozen
class Reweight(FeatureEdit):
    """The edit: features times b in half their channels, the skip connection's low frequencies times s. levels: {channels: (b, s)} as a tuple of pairs."""

    levels: tuple = ()
    version: str = VERSIONS[0]

    everywhere = True

    def default_layers(self, geometry):
        return "all"

    def feature(self, site, h, skip):
        found = dict(self.levels).get(h.shape[1])
        if found is None or skip is None:
            return h, skip
        b, s = found
        half = h.shape[1] // 2
        if self.version == "2":
            mean = h.mean(1, keepdim=True)
            low, high = mean.amin((-2, -1), keepdim=True), mean.amax((-2, -1), keepdim=True)
            spread = high - low      # a constant map has no structure to strengthen
            b = torch.where(spread > 0, (b - 1) * (mean - low) / spread.clamp(min=torch.finfo(h.dtype).tiny), torch.zeros_like(mean)) + 1
        h = torch.cat((h[:, :half] * b, h[:, half:]), 1)
        return h, (skip.float() + (s - 1) * low_frequencies(skip)).to(skip.dtype)


@frozen
class FreeU(Edit):
    """Cleaner structure and detail from a U-Net by reweighting what its decoder gets: features up, the skip connections' low frequencies down.

    At the two deepest levels of the decoder (4 and 2 times the network's base channels), before features h and skip connection are joined:
    h[first half of the channels] <- b h          version 1
    h[first half of the channels] <- (1 + (b - 1) m) h,  m the mean over channels, scaled to 0 ... 1 per sample       version 2
    skip <- skip with its lowest Fourier coefficients times s

    Equal to the host's FreeU and FreeU_V2 nodes, with a window, and without their division by zero on constant features. Only U-Nets have skip connections.
    Defaults: version 2 with b 1.3, 1.4 and s 0.9, 0.2 (the host's); authors for SD1.5 b 1.5, 1.6, for SDXL 1.3, 1.4. Identity: b = s = 1. Cost: small.
    """

    node_id = "LodestarFreeU"
    title = "FreeU"
    family = "attention"
    paper = "FreeU: Free Lunch in Diffusion U-Net (arXiv 2309.11497)"
    aliases = ("FreeU V2", "free lunch")
    evaluations = "0"

    b1: float = param(1.3, "Factor of the features at the deepest level (4 times the base channels).", 0.0, 10.0, 0.01)
    b2: float = param(1.4, "Factor of the features one level up (2 times the base channels).", 0.0, 10.0, 0.01)
    s1: float = param(0.9, "Factor of the skip connection's low frequencies at the deepest level.", 0.0, 10.0, 0.01)
    s2: float = param(0.2, "Factor of the skip connection's low frequencies one level up.", 0.0, 10.0, 0.01)
    version: str = param(VERSIONS[0], "2 strengthens features where they are large, 1 everywhere alike (its usual b: 1.1, 1.2).", choices=VERSIONS)
    start_percent: float = _start
    end_percent: float = _end
    channels: int = 320      # the network's base channels

    def neutral(self):
        return (self.b1, self.b2, self.s1, self.s2) == (1.0, 1.0, 1.0, 1.0)

    def fitted(self, facts):
        if facts.geometry.family != "unet" or facts.model_channels is None:
            raise BadInput(self.title, "model", facts.network, "It reweights the skip connections of a U-Net, and this network has none.")
        return replace(self, channels=facts.model_channels)

    def edits(self, step):
        return (Reweight("all", ((4 * self.channels, (self.b1, self.s1)), (2 * self.channels, (self.b2, self.s2))), self.version),)
