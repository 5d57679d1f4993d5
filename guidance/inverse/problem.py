"""A measurement as the solvers see it, and the measurement of a graph."""
from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from ..frozen import frozen
from ..method import BadInput


@frozen(eq=False)
class Measurement:
    """What is known of a picture: an operator, the degraded picture (IMAGE [n, h, w, c] with the VAE that sees it) or latent (LATENT samples), the noise level of either.

    space "rgb": the operator acts on decoded pictures in [0, 1]; "latent": on latents as the VAE gives them.
    """

    operator: Any
    picture: Any
    noise: float = 0.0
    vae: Any = None

    @property
    def space(self):
        return "latent" if self.vae is None else "rgb"

    def __deepcopy__(self, memo):
        return self


@dataclass
class Problem:
    """y = A u + noise, u the clean estimate or what `decode` makes of it; everything per sample.

    decode(latent) -> picture [rows, channel, height, width] and encode, its way back, both with gradient; None where the operator acts on the latent itself.
    unit: the papers' pictures are in [-1, 1], ours in [0, 1]: residuals and noise are multiplied by it (2 for pictures, 1 for latents), so that the papers' scales hold.
    """

    operator: Any
    y: torch.Tensor
    noise: float = 0.0
    decode: Any = None
    encode: Any = None
    unit: float = 1.0
    title: str = "Measurement"
    led: Any = None      # a loss beside the measurement (loss.solvers.base.LossProblem), for solvers that take both

    @property
    def deviation(self):
        """The standard deviation of the measurement's noise, in the units of `residual`."""
        return self.unit * self.noise

    def picture(self, denoised):
        """What the operator is applied to."""
        return denoised if self.decode is None else self.decode(denoised)

    def measured(self, rows):
        """y, one for each row."""
        y = self.y
        if y.shape[0] == rows:
            return y
        if rows % y.shape[0]:
            raise BadInput(self.title, "batch of the degraded picture", y.shape[0], f"Give one picture, or one for each of the {rows} that are sampled.")
        return y.repeat_interleave(rows // y.shape[0], 0)

    def residual(self, u):
        """unit (y - A u)."""
        seen = self.operator.measure(u)
        y = self.measured(u.shape[0]).to(device=seen.device, dtype=seen.dtype)
        if y.shape != seen.shape:
            raise BadInput(self.title, "size of the degraded picture", list(y.shape[1:]), f"The operator makes {list(seen.shape[1:])} of what is sampled; "
                           "measure a picture of the size that is sampled, or sample one of the size that was measured.")
        return self.unit * (y - seen)

    def correction(self, u):
        """A+ y - A+ A u: what u lacks, in its own units."""
        seen = self.operator.measure(u)
        y = self.measured(u.shape[0]).to(seen)
        return self.operator.pseudo_inverse(y, u) - self.operator.pseudo_inverse(seen, u)

    def damped(self, u, prior, noise):
        """What u lacks, as far as a measurement with variance `noise` tells it of a u with variance `prior`: prior A^T (prior A A^T + noise)^-1 (y - A u)."""
        return prior / self.unit * self.operator.solve(self.residual(u), prior, noise, u)

    def corrected(self, denoised, weight=1.0, damping=None):
        """The clean estimate with the missing part added, damped if (prior, noise) are given; through decoder and encoder where the operator acts on pictures, without the autoencoder's error."""
        with torch.no_grad():
            u = self.picture(denoised)
            fix = weight * (self.correction(u) if damping is None else self.damped(u, *damping))
            if self.decode is None:
                return denoised + fix.to(denoised)
            return denoised + (self.encode(u + fix) - self.encode(u)).to(denoised)

    def first(self, like):
        """A+ y as a latent shaped as `like`."""
        with torch.no_grad():
            u = self.picture(like)
            u = self.operator.pseudo_inverse(self.measured(u.shape[0]).to(u), u)
            return u if self.decode is None else self.encode(u).to(like)

    def count(self, batch):
        """How many values were measured, per sample."""
        return float(self.operator.settle(torch.ones_like(self.y[:1])).expand_as(self.y[:1]).sum()) * self.measured(batch).shape[0] / batch


def per_sample(t, batch):
    """[batch, everything else]; the frames of a video are rows of their own in pictures."""
    return t.reshape(batch, -1)


def distance(problem, denoised):
    """|unit (y - A u)|, not squared, per sample; its gradient at 0 is 0."""
    r = problem.residual(problem.picture(denoised))
    return torch.linalg.vector_norm(per_sample(r, denoised.shape[0]), dim=1)


def misfit(problem, denoised):
    """|unit (y - A u)|^2 / (2 deviation^2), per sample: the negative log likelihood of the measurement."""
    if not problem.noise > 0:
        raise BadInput(problem.title, "noise", problem.noise, "A likelihood needs the noise level of the measurement; enter one above 0.")
    r = problem.residual(problem.picture(denoised))
    return 0.5 * per_sample(r, denoised.shape[0]).square().sum(1) / problem.deviation**2


def latent_mask(problem, like):
    """A problem about pixels that are missing as one about latent cells: the cells all of whose pixels are known, y the encoded picture."""
    from .operators.masked import Masked
    if not isinstance(problem.operator, Masked):
        raise BadInput(problem.title, "operator", getattr(problem.operator, "title", problem.operator), "This solver replaces what is known; it needs an operator that keeps some "
                       "places and loses the others (Inpainting, Missing Traces).")
    if problem.decode is None:
        return problem
    with torch.no_grad():
        y = problem.measured(problem.picture(like).shape[0])
        y = problem.encode(y.to(like)).to(like)
    return dataclasses.replace(problem, y=y, decode=None, encode=None, unit=1.0)
