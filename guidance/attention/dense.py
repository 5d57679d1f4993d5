"""Dense Diffusion: attention modulated so that words and places find each other."""
from __future__ import annotations

from typing import Any

import torch

from ..frozen import frozen
from ..method import Edit, param, socket, window
from .matrix import MatrixEdit
from .regions import Regions, columns

_start, _ = window()


def time_left(step):
    """How much of the model's time is left, t / 1000 of the paper: 1 at pure noise, 0 at the picture. On flow models the noise level itself."""
    sigma = float(step.sigma.flatten()[0])
    if step.flow or step.percent_to_sigma is None:
        return min(1.0, max(0.0, sigma))
    low, high = 0.0, 1.0
    for _ in range(24):      # percent_to_sigma falls from the highest level to the lowest
        middle = (low + high) / 2
        low, high = (middle, high) if step.percent_to_sigma(middle) > sigma else (low, middle)
    return 1 - (low + high) / 2


def picture_part(site, part, queries):
    """(rows of `part` that are tokens of the picture, which ones they are) as slices; part is a slice of `queries` queries."""
    first, last = site.image.start or 0, site.image.stop if site.image.stop is not None else queries
    start, stop = max(part.start, first), min(part.stop, last)
    if stop <= start:
        return slice(0, 0), slice(0, 0)
    return slice(start - part.start, stop - part.start), slice(start - first, stop - first)


def modulated(z, wanted, touched, amount):
    """Logits z moved by `amount` of the way to their row's highest value where `wanted`, to its lowest elsewhere; columns not `touched` stay.

    z [rows, heads, n, keys]; wanted, touched bool [n, keys]; amount [n, 1].
    """
    open_ = torch.isfinite(z)       # keys that a mask closes stay closed, and count for nothing
    top = z.amax(-1, keepdim=True)
    bottom = torch.where(open_, z, torch.inf).amin(-1, keepdim=True)
    return torch.where(touched & open_, torch.where(wanted, z + amount * (top - z), z - amount * (z - bottom)), z)


@frozen
class DenseModulation(MatrixEdit):
    """The edit. cross, own: the strengths of this step for attention to words and of the picture to itself; size: how much less large regions get."""

    regions: Any = None
    cross: float = 1.0
    own: float = 0.3
    size: float = 1.0

    kinds = ("self", "cross", "joint")
    title = "Dense Diffusion"

    @property
    def mark(self):
        return self.regions.mark

    def default_layers(self, geometry):
        return "all"

    def _fields(self, site, device, count):
        """hard maps [regions, tokens] and the factor (1 - size a_i) [tokens, 1], a_i the area of its regions, times the greatest weight of them."""
        def make():
            m = self.regions.at(site, device, hard=True, tokens=count)
            area = (m.float() * m.float().mean(1, keepdim=True)).sum(0)
            weight = (m.float() * torch.tensor([r.weight for r in self.regions], device=device)[:, None]).amax(0)
            return m, ((1 - self.size * area).clamp(min=0) * torch.where(m.any(0), weight, 1.0))[:, None]
        return self.regions.cached(("dense", self.size, site.height, site.width, site.frames, site.window, count, str(device)), make)

    def logits(self, site, z, part):
        keys = z.shape[-1]
        count = site.frames * site.height * site.width
        if site.kind != "joint" and part.stop > count:
            self.regions.at(site, tokens=part.stop)      # more queries than the grid has: says so
        rows, which = picture_part(site, part, count if site.kind != "joint" else part.stop)
        if which.stop == which.start:
            return z
        m, amount = self._fields(site, z.device, count)
        here, amount = m[:, which], amount[which]
        local = z[:, :, rows]
        if site.kind == "self":
            changed = self._own(local, here, m, amount)
        elif site.kind == "cross":
            changed = self._words(local, here, amount, site.prompt, keys)
        else:
            changed = local.clone()
            changed[..., site.image] = self._own(local[..., site.image], here, m, amount)
            changed[..., site.text] = self._words(local[..., site.text], here, amount, _moved(site.prompt, -site.text.start), site.text.stop - site.text.start)
        if rows == slice(0, z.shape[2]):
            return changed
        z = z.clone()
        z[:, :, rows] = changed
        return z

    def _own(self, z, here, m, amount):
        if not self.own:
            return z
        wanted = (here.float().T @ m.float()) > 0
        return modulated(z, wanted, here.any(0)[:, None].expand_as(wanted), self.own * amount)

    def _words(self, z, here, amount, prompt, keys):
        if not self.cross:
            return z
        wanted = torch.zeros(here.shape[1], keys, dtype=torch.bool, device=z.device)
        named = torch.zeros(keys, dtype=torch.bool, device=z.device)
        for region, cover in zip(self.regions, here):
            at = columns(region.tokens, self.regions.length, prompt)
            wanted[:, at] |= cover[:, None]
            named[at] = True
        return modulated(z, wanted, here.any(0)[:, None] | named[None], self.cross * amount)


def _moved(s, by):
    return None if s is None else slice(s.start + by, s.stop + by)


@frozen
class DenseDiffusion(Edit):
    """Words of the prompt appear in their regions: attention logits are moved towards their highest or lowest value.

    z_ij += c_i (z_max - z_ij) where token j belongs to a region that pixel i lies in, z_ij -= c_i (z_ij - z_min) elsewhere
    c_i = cross_strength t^5 (1 - size a_i) for attention to words, self_strength t^5 (1 - size a_i) for the picture's attention to itself (j: pixels of the same region)
    z_max, z_min over all keys of the query and head; a_i = area of pixel i's regions (the factor is also multiplied by the region's weight); t from 1 at pure noise to 0 (flow models: the noise level)

    Joint attention: the picture's queries, text columns and picture columns each with their own z_max, z_min. Pixels in no region keep their attention except that the regions' words
    are lowered there (the released code knows no such pixels: there a background region covers the rest). Only the positive prompt's rows are edited.
    Defaults: 1.0, 0.3, size 1, the first 30% of the schedule (released code). It encodes the regions' phrases on their own: `phrase_by_phrase` of Prompt with Regions.
    Limits: a region's words must be in the prompt.
    Cost: the attention matrix of the edited layers is written out (in parts), the fused kernels are not used there while it acts.
    """

    node_id = "LodestarDenseDiffusion"
    title = "Dense Diffusion"
    family = "attention"
    paper = "Dense Text-to-Image Generation with Attention Modulation (DenseDiffusion)"
    aliases = ("DenseDiffusion", "attention modulation", "dense prompting")
    evaluations = "0 (attention written out in the edited layers)"
    planar = True

    regions: Any = socket("LODESTAR_REGIONS", "The regions with their words, from the node Prompt with Regions.")
    cross_strength: float = param(1.0, "How strongly words are drawn to their regions.", 0.0, 2.0, 0.05)
    self_strength: float = param(0.3, "How strongly each region's pixels are drawn to one another.", 0.0, 2.0, 0.05)
    start_percent: float = _start
    end_percent: float = param(0.3, "End of the window in which the method acts, as a fraction of the sampling schedule (1 = last step).", 0.0, 1.0, 0.001)
    size: float = param(1.0, "How much less large regions are modulated than small ones; 0: all alike.", 0.0, 1.0, 0.05, advanced=True)
    power: float = param(5.0, "How fast the modulation fades over time: t to this power.", 0.0, 20.0, 0.5, advanced=True)
    layers: str = param("all", "Layers whose attention is modulated, e.g. all, output, double.*.", advanced=True)

    def validate(self):
        super().validate()
        if isinstance(self.regions, Regions):
            self.regions.need(self.title, words=True)
        return self

    def neutral(self):
        return self.cross_strength == 0 and self.self_strength == 0

    def edits(self, step):
        fade = time_left(step) ** self.power
        if fade == 0:
            return ()
        return (DenseModulation(self.layers, self.regions, self.cross_strength * fade, self.self_strength * fade, self.size),)
