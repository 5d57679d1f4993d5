"""Motion loss: how far what moved between a source picture and the estimate is from a wanted flow."""
from __future__ import annotations

from typing import Any

import torch

from ..frozen import frozen
from ..method import BadInput, param, socket
from .flow import visible, warp
from .picture import PictureLoss, mean

FLOWS = ("wanted", "estimated")


@frozen(eq=False)
class FlowMotion(PictureLoss):
    """How far what moves from a source picture to the estimate is from a wanted flow: something is to be elsewhere, turned or larger, and to look the same.

        loss = flow_weight mean |F(y, u) - f| + colour_weight mean o |y - u(p + f(p))|

    y: source picture, f: wanted flow from y to the estimate u, in pixels; F: the estimator; o: 1 where the wanted flow hides nothing (what leaves the picture, and what something else moves
    over, does not count). colours_along: the flow that colours are compared along: the wanted one (the released code's "oracle"), or the estimated one. Without an estimator the colours along the
    wanted flow are all that counts: what was behind the object is then free.

    Defaults: flow 3, colour 100 (the released command), colours along the wanted flow (released: the estimated one, of RAFT; small estimators are less certain). Limits: early estimates are blurred,
    a flow network sees little in them: the colours lead first. Where two things move onto one place, that which moves further is taken to be in front. Paper: Geng, Owens, "Motion Guidance: Diffusion-Based Image Editing with
    Differentiable Motion Estimators", arXiv 2401.18085. Cost: decoder and estimator with their backward passes.
    """

    title = "Flow Motion Loss"
    spaces = ("rgb",)
    pointwise = True
    own_node = True

    image: Any = socket("IMAGE", "The source picture, as large as what is sampled.")
    flow: Any = socket("LODESTAR_FLOW", "Where each pixel of the source is to move: from Flow From Mask, Estimate Flow.")
    estimator: Any = socket("LODESTAR_FLOW_NETWORK", "From Load Flow Network; without it only colours along the wanted flow are compared.", optional=True)
    flow_weight: float = param(3.0, "Weight of the estimated flow's distance to the wanted one, in pixels.", 0.0, 1e6, 0.1)
    colour_weight: float = param(100.0, "Weight of the colours along the flow.", 0.0, 1e6, 1.0)
    colours_along: str = param("wanted", "The flow that colours are compared along.", choices=FLOWS)
    occlusion: bool = param(True, "Leaves out what the wanted flow hides; off: what was there is asked to shine through.", advanced=True)

    def check(self):
        super().check()
        if self.estimator is None and (self.colours_along == "estimated" or not self.colour_weight):
            raise BadInput(self.title, "estimator", None, "Connect Load Flow Network, or compare colours along the wanted flow with a weight.")
        return self

    def measure(self, u, m, context):
        y = self.wanted(u)
        f = self._each(self.flow.at(*u.shape[-2:]).to(u), u, "flow")
        o = visible(f) if self.occlusion else torch.ones_like(f[:, :1])
        total, found = u.new_zeros(u.shape[0]), None
        if self.estimator is not None and (self.flow_weight or self.colours_along == "estimated"):
            found = self.estimator(y, u).to(u)
            total = total + self.flow_weight * mean((found - f).abs(), m)
        if self.colour_weight:
            along = found if self.colours_along == "estimated" else f
            total = total + self.colour_weight * mean((y - warp(u, along)).abs() * o, m)
        return total
