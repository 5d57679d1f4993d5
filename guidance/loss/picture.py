"""What losses of pictures have in common: where they look (picture, small picture, latent), mask, window and schedule."""
from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from ..frozen import frozen
from ..method import BadInput, param, socket
from .base import SCHEDULES, Loss

SPACES = ("rgb", "small", "latent")


@frozen(eq=False)
class PictureLoss(Loss):
    """weight * schedule * measure(u, m): u the clean estimate as pictures [n, channels, height, width], m its mask [n, 1, height, width] in [0, 1]; one value per sample.

    space: "rgb", the decoded picture; "small", the latent as a rough picture by the latent format's linear map, no decoding; "latent". decoder(denoised) makes the picture of
    the first two. Values of a video's frames are averaged.
    """

    spaces: ClassVar[tuple] = SPACES
    pointwise: ClassVar[bool] = False      # whether its target has to have the size of what it is compared with
    own_node: ClassVar[bool] = False      # whether its node is written by hand (it needs more than a picture); else nodes/losses.py makes one

    weight: float = param(1.0, "Factor of this loss, against others.", -1e6, 1e6, 0.01)
    mask: Any = socket("MASK", "Where the picture counts; everywhere without it.", optional=True)
    space: str = param("rgb", "rgb: the estimate is decoded at every step; small: a rough picture of the latent's size, without decoding; latent: the latent itself.", choices=SPACES, advanced=True)
    schedule: str = param("constant", "How the weight changes over the steps; noise: with the share of noise, early more than late.", choices=SCHEDULES, advanced=True)
    start_percent: float = param(0.0, "Start of the window in which the loss counts, as a fraction of the sampling schedule.", 0.0, 1.0, 0.001, advanced=True)
    end_percent: float = param(1.0, "End of that window.", 0.0, 1.0, 0.001, advanced=True)
    decoder: Any = None
    target: Any = None      # [n, channels, h, w] in the space of the loss, where it has a target picture

    def check(self):
        """BadInput for values that are not possible; returns the loss."""
        if self.space not in self.spaces:
            raise BadInput(self.title, "space", self.space, f"Choose one of: {', '.join(self.spaces)}.")
        if self.mask is not None and not bool((self.mask > 0).any()):
            raise BadInput(self.title, "mask", "empty", "Nothing is marked in the mask; paint white what counts.")
        return self

    def measure(self, u, m, context):
        """[n] values of pictures u under masks m."""
        raise NotImplementedError

    def value(self, denoised, context):
        u = denoised if self.space == "latent" else context.picture(self.decoder, denoised)
        u = u.movedim(2, 1).flatten(0, 1) if u.ndim == 5 else u
        found = self.measure(u, self.weights(u), context)
        return self.weight * context.factor(self.schedule) * found.view(denoised.shape[0], -1).mean(1)

    def weights(self, u):
        """The mask on the size of u: [n, 1, height, width]."""
        if self.mask is None:
            return u.new_ones(u.shape[0], 1, *u.shape[-2:])
        m = self.mask.to(u)
        m = F.interpolate((m if m.ndim == 3 else m[None])[:, None], u.shape[-2:], mode="area")
        return self._each(m, u, "mask")

    def wanted(self, u):
        """The target for pictures u: of their number, and where the loss compares point by point of their size."""
        y = self.target.to(u)
        if y.shape[-2:] != u.shape[-2:]:
            if self.pointwise and self.space != "small":
                raise BadInput(self.title, "image", f"{y.shape[-1]} x {y.shape[-2]}", f"What is sampled has {u.shape[-1]} x {u.shape[-2]} ({self.space}); give a target of that size.")
            y = F.interpolate(y, u.shape[-2:], mode="area") if self.pointwise else y
        return self._each(y, u, "image")

    def _each(self, t, u, name):
        if t.shape[0] == u.shape[0]:
            return t
        if u.shape[0] % t.shape[0]:
            raise BadInput(self.title, name, f"{t.shape[0]} pictures", f"Give one, or one for each of the {u.shape[0]} that are sampled.")
        return t.repeat_interleave(u.shape[0] // t.shape[0], 0) if t.shape[0] > 1 else t.expand(u.shape[0], *t.shape[1:])


def mean(values, m):
    """Mean [n] of values [n, channels, h, w] over the cells that m [n, 1, h, w] marks, by its weights."""
    m = m.expand(values.shape[0], values.shape[1], *m.shape[-2:]) if m.shape[-2:] == values.shape[-2:] else F.interpolate(m, values.shape[-2:], mode="area").expand_as(values)
    return (values * m).flatten(1).sum(1) / m.flatten(1).sum(1).clamp(min=1e-6)


def gray(u):
    """Luminance [n, 1, h, w] of pictures; the mean over channels of anything else."""
    if u.shape[1] != 3:
        return u.mean(1, keepdim=True)
    return (u * u.new_tensor((0.299, 0.587, 0.114))[:, None, None]).sum(1, keepdim=True)


def positions(u):
    """(x, y) of the cells' centres in fractions of the picture, [1, 1, 1, w] and [1, 1, h, 1]."""
    h, w = u.shape[-2:]
    return ((torch.arange(w, device=u.device, dtype=u.dtype) + 0.5) / w).view(1, 1, 1, w), ((torch.arange(h, device=u.device, dtype=u.dtype) + 0.5) / h).view(1, 1, h, 1)
