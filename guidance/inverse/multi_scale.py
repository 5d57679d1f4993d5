"""Restoration of a damaged picture at several scales at once."""
from __future__ import annotations

import torch
import torch.nn.functional as F

from ..frozen import frozen
from ..method import BadInput, Branch, Term, Windows, param, progress, window
from ..perturbation.upsample import Pooled, enlarged, pooled

_start, _end = window()


def nearby(values, known, reach):
    """Means of values [b, 1, (f,) h, w] over the known cells at most `reach` cells away; where there are none, over all known cells of the picture."""
    planes = lambda t: t.movedim(1, -3).reshape(-1, 1, *t.shape[-2:])
    v, k = planes(values * known), planes(known)
    side = 2 * reach + 1
    mean = lambda t: F.avg_pool2d(t, side, 1, reach)
    everywhere = v.mean((-2, -1), keepdim=True) / k.mean((-2, -1), keepdim=True).clamp(min=1e-6)
    here = mean(k)
    found = torch.where(here > 1e-6, mean(v) / here.clamp(min=1e-6), everywhere)
    return found.reshape(values.shape)


def share(prior, own, other, known, reach, agreement):
    """Share [b, 1, (f,) h, w] of a scale: prior / (prior + (1 - prior) exp(-g)), g = agreement (e' - e) / (e' + e) 2; e, e': squared errors of this scale and of the other one where the picture is known."""
    square = lambda t: t.float().square().mean(1, keepdim=True)
    e, f = (nearby(square(t), known, reach) for t in (own, other))
    g = 2 * agreement * (f - e) / (f + e).clamp(min=1e-12)
    return prior / (prior + (1 - prior) * torch.exp(-g))


@frozen
class MultiScaleRestoration(Term):
    """Restores the damaged parts of a large picture at several scales at once, with a ControlNet that sees what is left of it: the whole made small keeps the layout, the picture at its size joins, crops draw the detail.

    P = mean over m x m cells, m = factor;  U = every cell m x m times;  y: the picture that is kept, k: where (1 - the latent's mask);  u: part of the schedule that is done, 0 to 1
    low = D(P x) at its own noise level,  crops = mean over the crops that hold a place of D(crop of x),  each with CFG and with the ControlNets' hints at its scale
    base' = base + k (y - base)                                             what is known is put in before scales are compared
    result = base + coarse U [I_c (low - P base')] + fine I_f (1 - U P)(crops - base)
    I = pi / (pi + (1 - pi) exp(-g)),  pi_c = 1 - u,  pi_f = u,  g = 2 agreement (e' - e) / (e' + e)
    e: mean squared error of the scale where the picture is known, within `reach`, in the band that it would give (low - P y; (1 - U P)(crops - y)); e': that of base in the same band. No mask: g = 0

    Paper: DiffuMural, arXiv 2504.09513: predictions at three scales (256, 512, 1024), each led by a ControlNet that is shown the damaged picture, go together, weighted place by place and step by step by "dynamic diffusers", with processing by
    frequencies and a loss of cyclic consistency. No code was found, and of the paper only the abstract and the figures' captions were at hand (formulas unverified): this is what of it runs while sampling, with any ControlNet. Deviations: the diffusers are trained networks;
    here the consistency with what is known says how far a scale is to be trusted. Each scale gives one band in place of all. The cyclic loss trains the ControlNet there; here base' stands for it. Contours of the damage by k-means and the
    reward loss belong to that training and are left out.

    Put the ControlNet on both prompts (Apply ControlNet) and the mask on the latent (Set Latent Noise Mask). Without a ControlNet the scales go together all the same, by the mask; without a mask by the schedule alone. eps, v and flow models, U-Nets and
    DiTs, videos frame by frame.
    Defaults: factor 2 and crops of half the side, so that both are of the trained size where the picture is twice as large; full strength of both; the rest by reasoning, not tuned.
    Limits: the picture should be larger than those the model was trained on, else the small one is too small. Rules other than CFG act on the large picture only. Not on hosts before December 2024.
    Cost for each prompt: 1 / factor^2 until the last step and windows^2 crop^2 from the second on.
    """

    node_id = "LodestarMultiScaleRestoration"
    title = "Multi-Scale Restoration"
    family = "inverse"
    paper = "DiffuMural: Restoring Dunhuang Murals with Multi-scale Diffusion, arXiv 2504.09513"
    aliases = ("DiffuMural", "collaborative diffusion", "multi-scale inpainting", "mural")
    evaluations = "1 / factor^2 + windows^2 crop^2 for each prompt (by default 2.5)"
    planar = True
    resizes = True

    factor: int = param(2, "How many times smaller the small picture is.", 2, 8, 1)
    coarse: float = param(1.0, "How much of the small picture's layout is taken over; 0 spares it.", 0.0, 1.0, 0.05)
    fine: float = param(1.0, "How much of the crops' detail is taken over; 0 spares them.", 0.0, 1.0, 0.05)
    crop: float = param(0.5, "Side of a crop, as a share of the picture's.", 0.1, 0.95, 0.005)
    windows: int = param(3, "Crops along each side.", 2, 8, 1)
    agreement: float = param(1.0, "How much it counts which scale is nearer to what is known of the picture; 0: the schedule alone says how they go together.", 0.0, 10.0, 0.1)
    reach: float = param(0.125, "How far from a place the known parts speak for it, as a share of the picture's side.", 0.01, 1.0, 0.005, advanced=True)
    start_percent: float = _start
    end_percent: float = _end

    def neutral(self):
        return self.coarse == 0 and self.fine == 0

    def _both(self, step, **how):
        """The positive and, where CFG asks for it, the negative prompt's branch."""
        return tuple(Branch(prompt, **how) for prompt in (("positive", "negative") if step.w != 1.0 else ("positive",)))

    def small(self, step):
        """The branches of the small picture; none where it has no say."""
        return self._both(step, transform=Pooled(self.factor)) if self.coarse and progress(step) < 1 else ()

    def parts(self, step):
        """The branches of the crops."""
        return self._both(step, windows=Windows(self.crop, self.windows)) if self.fine and progress(step) > 0 else ()

    def branches(self, step):
        if min(step.x.shape[-2:]) < 2 * self.factor:
            raise BadInput(self.title, "factor", self.factor, f"A latent of {step.x.shape[-2]} x {step.x.shape[-1]} cells cannot be made so much smaller.")
        return self.small(step) + self.parts(step)

    def delta(self, step, base, predictions, state):
        m, shape, u = self.factor, base.shape, progress(step)
        y, k = known(step, base)
        guided = lambda found: predictions[found[0]] if len(found) == 1 else predictions[found[1]] + step.w * (predictions[found[0]] - predictions[found[1]])
        inner = None if k is None else (pooled(k.float(), m) > 1 - 1e-4).to(torch.float32)      # small cells of which everything is known
        reach = max(1, round(self.reach * min(shape[-2:])))
        out = torch.zeros_like(base)
        if found := self.small(step):
            low = guided(found)
            rest = low - pooled(base if k is None else base + k * (y - base), m)
            weight = 1 - u if k is None else share(1 - u, low - pooled(y, m), pooled(base - y, m), inner, max(1, reach // m), self.agreement)
            out = out + self.coarse * enlarged((weight * rest).to(base.dtype), m, shape)
        if found := self.parts(step):
            detail = lambda t: t - enlarged(pooled(t, m), m, shape)
            crops = guided(found)
            weight = u if k is None else share(u, detail(crops - y), detail(base - y), enlarged(inner, m, shape), reach, self.agreement)
            out = out + self.fine * (weight * detail(crops - base)).to(base.dtype)
        return out


def known(step, like):
    """(The picture that the run keeps, where it keeps it [b or 1, 1, (f,) h, w]), or (None, None) where everything is made anew."""
    found = step.maps["kept"]() if "kept" in step.maps else None
    if found is None:
        return None, None
    y, free = found
    k = 1 - free[:, :1].to(like).clamp(0, 1)
    if not bool(k.any()):
        return None, None
    return y.to(like), k.expand(like.shape[0], *k.shape[1:])
