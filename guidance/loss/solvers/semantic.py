"""SGG: the gradient of a loss region by region, and of the whole picture, in turn."""
from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F

from ...frozen import frozen
from ...inverse import levels
from ...method import BadInput, param, socket
from .base import LossSolver

MOST = 16      # regions


def regions(picture):
    """[k, h, w]: one mask for each colour of a label map [1, h, w, c] in [0, 1], the commonest first; colours that differ by less than 1/32 are one."""
    flat = (picture[0, ..., :3] * 32).round()
    colours, counts = flat.reshape(-1, flat.shape[-1]).unique(dim=0, return_counts=True)
    colours = colours[counts.argsort(descending=True)]
    return torch.stack([(flat == c).all(-1) for c in colours]).float()


@frozen(eq=False)
class SemanticGradientGuidance(LossSolver):
    """Leads by a loss region by region in one step and over the whole picture in the next, so that small regions of a label map are led as surely as large ones.

    Paper: Peng, Hu, Ke, Liu, "Diffusion-based Image Translation with Label Guidance for Domain Adaptive Semantic Segmentation" (SGG), arXiv 2308.12350.

        global:  g = -grad_x loss(D(x))
        local:   g = sum_c m_c g_c,   g_c = -grad_x loss of region c alone
        x' = step(x) + strength v g,     v = s_up^2 c'^2 / c^2 in the paper's coordinates the variance of the step        c = sqrt(a^2 + s^2)
        in turn: `every` local steps, `every` global ones

    m_c: the region of the label map that has its c-th colour, on the latent's cells; x, s: state and level, primes: the next level; a = 1 in k-units, 1 - s on flow models. The loss is any loss of pictures
    that takes a mask: Palette Segmentation Loss (the cross-entropy of a label map), or Colour, Edge, Wavelet Target. A region's loss is the mean over its own cells, so that its
    gradient does not depend on how large it is. To translate a picture, start from its noised latent (SplitSigmas, or a scheduler's denoise). With one region local is global.

    The paper's segmentation network and constants have no released code; the order, the masked gradients and the shift by the variance are its own. Its second part trains a chain of
    models, which is no sampler's matter. Defaults: eta 1 (the shift is that of DDPM); strength 10, one step each. Cost: global: a backward pass through the network; local: one for each region.
    """

    node_id = "LodestarSemanticGradientGuidance"
    title = "Semantic Gradient Guidance"
    paper = "Diffusion-based Image Translation with Label Guidance"
    aliases = ("SGG", "label guidance", "segmentation")
    evaluations = "0 (backward passes through the active branches: one, or one for each region)"

    loss: Any = socket("LODESTAR_LOSS", "What to minimise; a loss of pictures that takes a mask.")
    labels: Any = socket("IMAGE", "The label map: each colour is a region.")
    strength: float = param(10.0, "Of the shift; 0 switches it off.", 0.0, 1e6, 1.0)
    every: int = param(1, "So many local steps, then so many global ones.", 1, 100, 1)
    local: bool = param(True, "Off: every step is global.")
    eta: float = param(1.0, "Fresh noise per step, at least a little: the shift has its variance.", 0.05, 1.0, 0.01)

    def validate(self):
        super().validate()
        if not (dataclasses.is_dataclass(self.loss) and any(f.name == "mask" for f in dataclasses.fields(self.loss))):
            raise BadInput(self.title, "loss", getattr(self.loss, "title", self.loss), "Its regions are masked one by one; connect a single loss of pictures, such as Palette Segmentation Loss.")
        n = len(regions(torch.as_tensor(self.labels)))
        if n > MOST:
            raise BadInput(self.title, "labels", f"{n} colours", f"A label map has at most {MOST}; save it without smoothing (as PNG, scaled by nearest neighbours).")
        return self

    def neutral(self):
        return self.strength == 0

    def problem(self, sigmas, flow, percent_to_sigma=None):
        made = super().problem(sigmas, flow, percent_to_sigma)
        with torch.inference_mode(False):
            made.regions = regions(torch.as_tensor(self.labels).clone())
        return made

    def led(self, point, loss):
        local = self.local and (point.index // self.every) % 2 == 0 and len(point.problem.regions) > 1
        denoised, g = self._by_region(point) if local else point.descend(loss)
        _, up = levels.ancestral(point.s, point.s_next, self.eta, point.flow)
        # the paper's mean + variance * gradient in its coordinates: x' / c' moves by (up / c')^2 c g
        shift = self.strength * up * up * levels.amplitude(point.s, point.flow) / max(levels.amplitude(point.s_next, point.flow), 1e-12) * g
        return point.go(denoised, point.noise_of(denoised), self.eta, shift)

    def _by_region(self, point):
        total, given = 0.0, self.loss.mask
        for m in point.problem.regions:
            mask = m[None] if given is None else m[None] * F.interpolate(given[:, None].to(m), m.shape, mode="area")[:, 0]
            if not bool((mask > 0).any()):
                continue
            part = dataclasses.replace(self.loss, mask=mask)
            step = dataclasses.replace(point.problem, loss=part)
            denoised, g = point.descend(step.at(point))
            cells = F.interpolate(m[None, None], g.shape[-2:], mode="area").to(g)
            total = total + (cells if g.ndim == 4 else cells[:, :, None]) * g
        return denoised, total
