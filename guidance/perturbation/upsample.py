"""Upsample Guidance."""
from __future__ import annotations

import torch.nn.functional as F

from ..frozen import frozen
from ..method import Branch, Term, Transform, param


def pooled(x, m):
    """Means over m x m cells; what is left over at the right and the bottom is cut off. Videos frame by frame."""
    planes = x.movedim(1, -3)
    flat = F.avg_pool2d(planes.reshape(-1, *planes.shape[-3:]), m)
    return flat.reshape(*planes.shape[:-2], *flat.shape[-2:]).movedim(-3, 1)


def enlarged(x, m, shape):
    """Every cell m x m times, up to the height and width of `shape`; the last ones stretch over what `pooled` cut off."""
    planes = x.repeat_interleave(m, -2).repeat_interleave(m, -1)
    rows, columns = shape[-2] - planes.shape[-2], shape[-1] - planes.shape[-1]
    if not rows and not columns:
        return planes
    flat = planes.reshape(-1, 1, *planes.shape[-2:])
    return F.pad(flat, (0, columns, 0, rows), mode="replicate").reshape(*planes.shape[:-2], *shape[-2:])


@frozen
class Pooled(Transform):
    """The network is given the picture made smaller by `factor`, as a sample of its own: the mean of m x m cells has the signal and 1/m of the noise.

    k-units: x' = P x, s' = s / m. Flow: x' = P x / c, c = 1 - s + s / m, s' = s / (m (1 - s) + s).
    """

    factor: int = 2

    def enter(self, step, x, seen):
        if min(x.shape[-2:]) < self.factor:
            raise ValueError(f"Upsample Guidance: a latent of {x.shape[-2]} x {x.shape[-1]} cells cannot be made smaller by {self.factor}. Choose a smaller factor.")
        return pooled(x, self.factor) / (step.a + step.s / self.factor if step.flow else 1.0)

    def level(self, step, sigma):
        return sigma / (self.factor * (1 - sigma) + sigma) if step.flow else sigma / self.factor


@frozen
class UpsampleGuidance(Term):
    """Lets a model draw pictures larger than those it was trained on: its own prediction at the trained size keeps the layout.

    P = mean over m x m cells, m = factor;  U = every cell m x m times.  P x has the small picture's signal and 1/m of the noise, so it is a sample of
    k-units: x_low = P x at s_low = s / m;  flow: x_low = P x / c, c = 1 - s + s / m, at s_low = s / (m (1 - s) + s)
    low = D(x_low, s_low) with CFG at the sampler's scale;  result = base + scale U (low - P base)
    At scale 1 the small picture inside the result is exactly `low`. This is the paper's guidance of the noise prediction written for x0.

    Works on eps, v and flow models and on every network. Sizes that are no multiple of the factor lose a strip of the layout's guidance at the right and bottom,
    which is filled from its neighbours. Prompts, areas, masks and ControlNets are made for the small size; SDXL's size conditions too, where the prompt does not set them.
    Defaults: factor 2 (the size over the trained size), scale 1, the first 60 % of the schedule (paper, latent models); 30 % for the cascades of pixel models.
    Limits: guidance by other rules than CFG acts on the large picture only. A VAE's latents are not quite the same at half the size. Not on hosts before
    December 2024. Cost: 1 / factor^2 of an evaluation, and as much again for the negative prompt; a call of their own each.
    """

    node_id = "LodestarUpsampleGuidance"
    title = "Upsample Guidance"
    family = "perturbation"
    paper = "Upsample Guidance"
    evaluations = "1 / factor^2 for each prompt"
    planar = True
    resizes = True

    factor: int = param(2, "How many times larger the picture is than those the model was trained on; 1 switches the node off.", 1, 8, 1)
    scale: float = param(1.0, "Share of the small prediction's layout that is taken over; 0 switches the node off.", 0.0, 10.0, 0.05)
    start_percent: float = param(0.0, "Start of the window in which the method acts, as a fraction of the sampling schedule (0 = first step).", 0.0, 1.0, 0.001)
    end_percent: float = param(0.6, "End of that window (1 = last step).", 0.0, 1.0, 0.001)

    @property
    def small(self):
        """The positive and the negative prompt's small predictions."""
        return tuple(Branch(prompt, transform=Pooled(self.factor)) for prompt in ("positive", "negative"))

    def neutral(self):
        return self.scale == 0 or self.factor == 1

    def branches(self, step):
        return self.small if step.w != 1.0 else self.small[:1]

    def delta(self, step, base, predictions, state):
        positive, negative = self.small
        low = predictions[positive]
        if step.w != 1.0:
            low = predictions[negative] + step.w * (low - predictions[negative])
        return self.scale * enlarged(low - pooled(base, self.factor), self.factor, base.shape)
