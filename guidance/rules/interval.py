"""Guidance in a limited interval."""
from __future__ import annotations

import torch

from ..frozen import frozen
from ..method import BadInput, Gate, param


def _single(value):
    """A bound in the precision of the host's sigmas."""
    return torch.tensor(value, dtype=torch.float32)


@frozen
class GuidanceInterval(Gate):
    """Guides only at the noise levels where guidance helps, and spares the unconditional evaluation at all others.

    Paper: Kynkaanniemi, Aittala, Karras, Laine, Aila, Lehtinen, "Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in
    Diffusion Models", arXiv 2404.07724.

        w(s) = w  where sigma_low < s <= sigma_high and s lies in the window start_percent .. end_percent
             = 1  elsewhere: the conditional prediction alone, the negative prompt is not evaluated

    Start and end are fractions of the sampling schedule, the two sigmas noise levels; both windows must be open. A sigma of 0 is no bound.

    Defaults: the percent window 0.2 to 0.8 keeps the middle, where the paper finds guidance useful. The paper's sigmas: (0.28, 1.61] for
    EDM2-XXL on ImageNet-512 (steps 17 to 22 of 32, w = 2), (0.28, 5.42] for SDXL; they are meant for models in k-units (SD, SDXL).
    On flow models sigma runs from 1 to 0 and these figures do not apply: use the percent window.

    Cost: less than CFG: evaluations = steps + steps inside. Limits: with a sampler that calls the network between steps each call decides for itself.
    """

    node_id = "LodestarGuidanceInterval"
    title = "Guidance Interval"
    family = "rules"
    paper = "Applying Guidance in a Limited Interval"
    aliases = ("limited interval", "CFG interval", "guidance limiter")
    evaluations = "-1 outside the interval"

    start_percent: float = param(0.2, "Guidance starts at this fraction of the sampling schedule (0 = first step).", 0.0, 1.0, 0.001)
    end_percent: float = param(0.8, "Guidance ends at this fraction of the sampling schedule (1 = last step).", 0.0, 1.0, 0.001)
    sigma_low: float = param(0.0, "No guidance at and below this noise level. 0: no bound. Paper, SDXL: 0.28.", 0.0, 10000.0, 0.01, advanced=True)
    sigma_high: float = param(0.0, "No guidance above this noise level. 0: no bound. Paper, SDXL: 5.42.", 0.0, 10000.0, 0.01, advanced=True)

    def validate(self):
        super().validate()
        if 0.0 < self.sigma_high <= self.sigma_low:
            raise BadInput(self.title, "sigma_high", self.sigma_high, f"It must be above sigma_low ({self.sigma_low}), or 0 for no bound.")
        return self

    def neutral(self):
        return self.start_percent <= 0.0 and self.end_percent >= 1.0 and self.sigma_low == 0.0 and self.sigma_high == 0.0

    def active(self, step):
        """The gate acts at every step: it is the guidance that is on or off."""
        return True

    def open(self, step):
        """Whether guidance is on at this step."""
        if not step.inside(self.start_percent, self.end_percent):
            return False
        if self.sigma_low == 0.0 and self.sigma_high == 0.0:
            return True
        sigma, low, high = step.sigma.flatten()[0].detach().to("cpu", torch.float32), _single(self.sigma_low), _single(self.sigma_high)
        return bool(sigma > low and (self.sigma_high == 0.0 or sigma <= high))

    def scale(self, step, w, state):
        return w if self.open(step) else 1.0
