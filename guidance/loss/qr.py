"""QR codes: a picture that a reader can scan."""
from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from ..frozen import frozen
from ..method import BadInput, param, socket
from .picture import PictureLoss, mean

POINTS = 20      # samples across a module; the released code's module has as many pixels
SIGMA = 1.5      # of its weights, in these samples
LUMINANCE = (0.2999, 0.587, 0.1114)      # as released


@frozen(eq=False)
class Code:
    """Where a QR code is in a picture, and what it says: box (left, top, right, bottom) in fractions of the picture, light [n, n] bool of its modules."""

    box: tuple
    light: torch.Tensor
    zone: int = 0      # light modules around the code that count as its own

    @property
    def count(self):
        return self.light.shape[0]


def find_code(picture, node="QR Code Loss", field="image"):
    """The Code in a clean picture [3, height, width] of one: dark modules on light ground, upright, nothing else dark. BadInput where there is none."""
    def wrong(why):
        return BadInput(node, field, why, "Give a clean picture of one upright QR code, dark on light with its quiet zone, as a generator makes it (node QR Code).")

    dark = picture.float().mean(0) < 0.5
    height, width = dark.shape
    rows, columns = dark.any(1).nonzero().flatten().tolist(), dark.any(0).nonzero().flatten().tolist()
    if not rows or not columns:
        raise wrong("no dark module")
    top, left, bottom, right = rows[0], columns[0], rows[-1] + 1, columns[-1] + 1
    runs = []
    for line in (dark[top, left:right], dark[top:bottom, left]):      # the finder pattern's upper and left bar: seven modules
        gaps = (~line).nonzero().flatten().tolist()
        runs.append(gaps[0] if gaps else 0)
    if not all(runs):
        raise wrong("no finder pattern in the upper left corner")
    count = round((7 * (right - left) / runs[0] + 7 * (bottom - top) / runs[1]) / 2)
    count = 17 + 4 * round((count - 17) / 4)
    if not 21 <= count <= 177 or any(abs(side / count * 7 - run) > max(1.5, 0.2 * run) for side, run in zip((right - left, bottom - top), runs)):
        raise wrong(f"a pattern of {right - left} x {bottom - top} pixels that is no code")
    y = (top + (torch.arange(count) + 0.5) * (bottom - top) / count).long()
    x = (left + (torch.arange(count) + 0.5) * (right - left) / count).long()
    light = ~dark.cpu()[y][:, x]
    finder = torch.zeros(7, 7, dtype=torch.bool)
    finder[1:6, 1:6] = True
    finder[2:5, 2:5] = False
    if any(not torch.equal(part, finder) for part in (light[:7, :7], light[:7, -7:], light[-7:, :7])):
        raise wrong("a pattern without the three finders of a code")
    return Code((left / width, top / height, right / width, bottom / height), light)


def grid(code, height, width, like, points=POINTS):
    """Points of grid_sample [1, n points, n points, 2] across the code's box, `points` in each module: pixel centres where a module has as many pixels."""
    left, top, right, bottom = code.box
    at = (torch.arange(code.count * points, device=like.device, dtype=torch.float32) + 0.5) / (code.count * points)
    x, y = 2 * (left + (right - left) * at) - 1, 2 * (top + (bottom - top) * at) - 1
    return torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)[None]


def kernel(points=POINTS, sigma=SIGMA):
    """Weights [points, points] within a module: a Gaussian brought to [0, 1], below a tenth nothing."""
    at = torch.arange(points, dtype=torch.float32) - (points - 1) / 2
    one = torch.exp(-at.square() / (2 * sigma * sigma))
    both = one[:, None] * one[None]
    both = (both - both.min()) / (both.max() - both.min())
    return torch.where(both < 0.1, 0.0, both)


def brightness(u):
    """[n, 1, h, w] of pictures [n, 3, h, w], as the authors weigh the colours."""
    return (u * u.new_tensor(LUMINANCE)[:, None, None]).sum(1, keepdim=True)


def modules(u, code, points=POINTS):
    """Brightness [n, 1, count points, count points] of the code's place in pictures [n, 3, h, w]."""
    places = grid(code, *u.shape[-2:], u, points).expand(u.shape[0], -1, -1, -1)
    return F.grid_sample(brightness(u).float(), places, mode="nearest", padding_mode="border", align_corners=False)      # a sample is a pixel: edges do not bleed


def misread(y, light, dark_below, light_above, points=POINTS):
    """[n, 1, count, count] bool: modules whose middle (a third of the module) has not the brightness that a reader needs. y: of `modules`."""
    reach = math.ceil(points / 6)
    middle = slice(points // 2 - reach, points // 2 + reach + points % 2)
    cells = y.unflatten(3, (-1, points)).unflatten(2, (-1, points))[:, :, :, middle, :, middle].mean((3, 5))
    return torch.where(light, cells < light_above, cells > dark_below)


@frozen(eq=False)
class ScanningRobust(PictureLoss):
    """How badly a QR code in the picture would be read; 0 where every module is read right.

        y = 0.2999 R + 0.587 G + 0.1114 B,   q = 0 for dark modules, 1 for light ones
        e = 2 relu(y - dark_below) (1 - q) + 2 relu(light_above - y) q
        loss = mean over modules of  wrong sum_p k_p e_p,   k a Gaussian over the module (sigma 1.5 of 20 samples, in [0, 1], below 0.1 nothing)
        wrong = 1 where the module's middle third is not below dark_below or above light_above (no gradient through it)

    finders: the three patterns in the corners, with the light modules around them, count with all their samples and always, times this weight: without them no reader begins.

    Modules that are read right are left alone, so the picture is free where the code allows it. Modules are sampled at 20 x 20 points whatever their size: the paper's loss where they have 20 pixels. The code's
    place and modules are found in the picture of it, which may have another size than what is sampled. quiet_zone adds modules around the code that have to be light; readers need some.
    Pictures without any trace of a code need sharper thresholds: dark_below 0.3 and light_above 0.8 were read in 98 % of 144 views, the defaults in 63 % (docs/effects/codes.md).
    Papers use it with a QR ControlNet first, through the network at weight 500 beside a perceptual loss at 2 to 10, and then on the latent (Refine by Loss, SR-MPGD).
    Defaults: thresholds 0.45 and 0.65 (released code), no quiet zone (its padding is left out), finders 1 (released code: 0). Deviation: samples instead of pixels where modules are not 20 pixels wide.
    Paper: DiffQRCoder, arXiv 2409.06355.
    """

    title = "QR Code Loss"
    spaces = ("rgb",)

    image: Any = socket("IMAGE", "A clean picture of the QR code, where it is to be in the picture: from the node QR Code, or any generator.")
    quiet_zone: int = param(0, "Modules around the code that have to be light. Readers want 4, many are content with 1.", 0, 8, 1)
    dark_below: float = param(0.45, "Brightness that the middle of a dark module may have at most.", 0.0, 1.0, 0.01, advanced=True)
    light_above: float = param(0.65, "Brightness that the middle of a light module must have at least.", 0.0, 1.0, 0.01, advanced=True)
    finders: float = param(1.0, "Weight of the three patterns in the corners, all of which counts: a reader looks for them first. 0: as the paper, where a ControlNet has drawn them.", 0.0, 100.0, 0.1,
                           advanced=True)
    only_wrong: bool = param(True, "Counts only modules that would be misread; off: all, which pulls the whole picture towards the code.", advanced=True)
    codes: tuple = ()      # of `check`

    def check(self):
        super().check()
        object.__setattr__(self, "codes", tuple(surrounded(find_code(picture, self.title), self.quiet_zone) for picture in self.target))
        return self

    def measure(self, u, m, context):
        if u.shape[0] % len(self.codes):
            raise BadInput(self.title, "image", f"{len(self.codes)} codes", f"Give one, or one for each of the {u.shape[0]} pictures that are sampled.")
        many = u.shape[0] // len(self.codes)
        found = [self._code(u[i * many:(i + 1) * many], m[i * many:(i + 1) * many], code) for i, code in enumerate(self.codes)]
        return torch.cat(found)

    def _code(self, u, m, code):
        y = modules(u, code)
        light = code.light.to(u.device)
        q = light.repeat_interleave(POINTS, 0).repeat_interleave(POINTS, 1)
        e = 2 * torch.where(q, F.relu(self.light_above - y), F.relu(y - self.dark_below))
        k = kernel().to(e)
        each = F.conv2d(e, k[None, None], stride=POINTS)
        if self.only_wrong:
            each = each * misread(y.detach(), light, self.dark_below, self.light_above)
        if self.finders:
            each = torch.where(corners(code).to(u.device), self.finders * k.sum() * F.avg_pool2d(e, POINTS), each)
        places = grid(code, *u.shape[-2:], u, 1).expand(u.shape[0], -1, -1, -1)
        return mean(each, F.grid_sample(m.float(), places, mode="bilinear", padding_mode="border", align_corners=False))


def corners(code):
    """[count, count] bool: the three finder patterns with the light modules around them."""
    found, n = torch.zeros_like(code.light), code.count
    reach = 8 + code.zone      # the quiet zone's, seven modules and a light one
    found[:reach, :reach] = found[:reach, n - reach:] = found[n - reach:, :reach] = True
    return found


def surrounded(code, zone):
    """The Code with `zone` light modules around it; as many as the picture has room for."""
    left, top, right, bottom = code.box
    w, h = (right - left) / code.count, (bottom - top) / code.count
    zone = min(zone, *(math.floor(room + 1e-6) for room in (left / w, top / h, (1 - right) / w, (1 - bottom) / h)))
    if zone <= 0:
        return code
    return Code((left - zone * w, top - zone * h, right + zone * w, bottom + zone * h), F.pad(code.light, (zone,) * 4, value=True), zone)


def wrong_share(u, code, dark_below=0.45, light_above=0.65):
    """Share [n] of the modules that would be misread in pictures [n, 3, h, w]."""
    return misread(modules(u, code), code.light.to(u.device), dark_below, light_above).float().flatten(1).mean(1)
