"""Motion Guidance: clipped steps down a motion loss, repeated, around a part of the picture that stays."""
from __future__ import annotations

from typing import Any

from ...cover import cover
from ...frozen import frozen
from ...gradients import rms
from ...inverse import levels
from ...method import BadInput, param, socket
from .base import LossSolver


def clipped(g, most):
    """g [batch, ...] with a root mean square of at most `most`, per sample; 0: as it is."""
    if most <= 0:
        return g
    size = rms(g.float())
    return g * (most / size.clamp(min=1e-20)).clamp(max=1.0).to(g)


@frozen(eq=False)
class MotionGuidance(LossSolver):
    """Moves, turns or scales something in a picture: sampling is led by a motion loss, step by step with a clipped gradient, while the rest of the picture is put back.

    Paper: Geng, Owens, "Motion Guidance: Diffusion-Based Image Editing with Differentiable Motion Estimators", arXiv 2401.18085.

        x <- k x + (1 - k) (a z + s n)                      k: edit mask, z: the source's latent, n: fresh noise; without mask or latent x stays
        q = s scale g,   g = -grad_x loss(D(x));   q <- q min(1, clip / rms(q))           per picture
        D' = D + (s / a) q;   x' = a' D' + s' (x - a D') / s,   eta of it fresh noise
        noised again to s and repeated, `repeats` times in all

    x, s: state and level, primes: the next level; a = 1 in k-units, 1 - s on flow models. q is the released code's sqrt(1 - abar) times its gradient with respect to the scaled state. At the last
    step what the mask leaves out is the source's latent itself.
    Defaults: scale 300, clip 1.56 (its length of 200 for the 16,384 values of a 512 px latent of SD, as a root mean square: for every size alike). The released settings are 500 steps of 10 repeats, which takes about an hour;
    here 4 repeats for a few tens of steps. Its table of weights per step is a loss's schedule here. Its other way to keep the rest, states of an inversion, is replaced by fresh noise. Start from the noise of DDIM Inversion to
    keep more of the source.
    Limits: what the object uncovers is the model's guess. Any loss may lead; the paper's is Flow Motion Loss. Cost: times the repeats, a backward pass through the active branches each.
    """

    node_id = "LodestarMotionGuidance"
    title = "Motion Guidance"
    paper = "Motion Guidance"
    aliases = ("optical flow", "move object", "motion editing")
    evaluations = "0 (backward pass through the active branches: about 2 more; times the repeats)"

    loss: Any = socket("LODESTAR_LOSS", "What to minimise: Flow Motion Loss.")
    scale: float = param(300.0, "Strength of the gradient; 0 switches it off.", 0.0, 1e6, 1.0)
    clip: float = param(1.56, "Most that a step may be, as a root mean square; 0: no limit.", 0.0, 1000.0, 0.01)
    repeats: int = param(4, "How often each step is made, noised again in between.", 1, 30, 1)
    eta: float = param(0.0, "Fresh noise per step. 0: deterministic, 1: ancestral.", 0.0, 1.0, 0.01)
    edit_mask: Any = socket("MASK", "Where the picture may change: what moves, and where it moves to. Needs the latent.", optional=True)
    latent: Any = socket("LATENT", "The source's latent, put back outside the edit mask.", optional=True)
    source: Any = None      # the latent as the model has it, of `problem`

    def validate(self):
        if (self.edit_mask is None) != (self.latent is None):
            raise BadInput(self.title, "edit_mask" if self.edit_mask is None else "latent", None, "The edit mask and the source's latent belong together: connect both, or none.")
        return super().validate()

    def neutral(self):
        return self.scale == 0 and self.edit_mask is None

    @property
    def backward(self):
        return self.scale != 0

    def kept(self, problem, like):
        """(mask, source latent) for latents like this, or None."""
        if self.edit_mask is None:
            return None
        z = problem.inward(self.latent["samples"].to(like))
        if z.shape[1:] != like.shape[1:] or z.shape[0] not in (1, like.shape[0]):
            raise BadInput(self.title, "latent", list(z.shape), f"What is sampled has the shape {list(like.shape)}; give a latent of that size, one or as many.")
        return cover(self.edit_mask, like, self.title, "edit_mask").to(like), z

    def prepared(self, problem, like):
        problem.kept = self.kept(problem, like)
        return problem

    def advance(self, point):
        kept = point.problem.kept
        if kept is not None:
            k, z = kept
            point.x = k * point.x + (1 - k) * (point.a * z + point.s * point.draw())
        moved = super().advance(point) if self.scale else self.plain(point)
        return moved if kept is None or point.s_next > 0 else k * moved + (1 - k) * z

    def led(self, point, loss):
        denoised, g = point.descend(loss)
        q = clipped(point.s * self.scale * g, self.clip)
        return point.go(denoised + point.s / max(point.a, levels.LEAST_SIGNAL) * q, None, self.eta)
