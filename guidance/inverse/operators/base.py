"""What a measurement operator is."""
from __future__ import annotations

from typing import ClassVar

import torch

from ...method import Method


class Operator(Method):
    """Base of all operators: y = A u of pictures (or latents) u [batch, channel, (frame,) height, width], of any height and width.

    Computed in float32 (float64 where u is), returned in the dtype of u. Gradients pass through `measure`. Linear operators also have the adjoint A^T and the
    pseudo-inverse A+, both taking `like`, a tensor with the shape of u. y is a picture too, so that it can be shown and saved: what is not measured is 0 in it.
    """

    family = "inverse"
    linear: ClassVar[bool] = True
    spaces: ClassVar[tuple] = ("rgb", "latent")      # where it has a meaning: pictures in [0, 1], latents of a model

    def measure(self, u):
        """A u."""
        return self._in_wide(self.forward, u)

    def adjoint(self, y, like):
        """A^T y, so that <A u, y> = <u, A^T y>."""
        return self._in_wide(lambda v: self.transposed(v, like), y)

    def pseudo_inverse(self, y, like):
        """A+ y, so that A A+ A u = A u (up to the class's stated regularisation)."""
        return self._in_wide(lambda v: self.inverted(v, like), y)

    def project(self, u):
        """A+ A u: the part of u that the measurement sees."""
        return self.pseudo_inverse(self.measure(u), u)

    def gram(self, like):
        """The number g with A A^T = g on everything measured, or None where there is no such number."""
        return None

    def solve(self, r, prior, noise, like):
        """A^T (prior A A^T + noise)^-1 r for variances prior > 0 (a number, or a tensor that broadcasts) and noise >= 0 (a number), of a residual r; A+ r / prior at noise 0."""
        if noise == 0:
            return self.pseudo_inverse(r, like) / prior
        g = self.gram(like)
        if g is not None:
            return self.adjoint(r, like) / (prior * g + noise)
        return self._in_wide(lambda v: self.filtered(v, prior, noise, like), r)

    def shaped(self, u, gain):
        """V gain(s) V^T u, A = U s V^T: each part of u that A sees with one singular value times gain of it; s (a tensor) is 0 where it sees nothing."""
        return self._in_wide(lambda v: self.spectral(v, gain), u)

    def drawn(self, u, generator):
        """A measurement of u with the noise that belongs to the operator itself; most have none."""
        return self.measure(u)

    def settle(self, y):
        """y with what is not measured set to 0 (noise was added everywhere, or the picture went through a file)."""
        return y

    def show(self, y):
        """y as a picture with three channels."""
        return y

    def read(self, picture):
        """The y that `show` made a picture of."""
        return self.settle(picture)

    # what the operators implement, in float32 or wider

    def forward(self, u):
        raise NotImplementedError

    def transposed(self, y, like):
        raise NotImplementedError(f"{self.title} is not linear; it has no adjoint")

    def inverted(self, y, like):
        return self.transposed(y, like)

    def filtered(self, r, prior, noise, like, rounds=60):
        """The solution by conjugate gradients per sample, for operators that do not know their singular values."""
        x, p = torch.zeros_like(r), r.clone()
        left, rows = r.clone(), r.shape[0]
        inner = lambda a, b: (a * b).flatten(1).sum(1).view(rows, *[1] * (r.ndim - 1))
        old = inner(left, left)
        stop = 1e-14 * old.clamp(min=1e-30)
        for _ in range(rounds):
            q = prior * self.forward(self.transposed(p, like)) + noise * p
            step = old / inner(p, q).clamp(min=1e-30)
            x, left = x + step * p, left - step * q
            new = inner(left, left)
            if bool((new <= stop).all()):
                break
            p, old = left + new / old.clamp(min=1e-30) * p, new
        return self.transposed(x, like)

    def spectral(self, u, gain):
        """`shaped`, for operators with one singular value; the others know their own."""
        g = self.gram(u)
        if g is None:
            raise NotImplementedError(f"{self.title} does not know its singular values")
        low, high = gain(torch.tensor([0.0, g**0.5], dtype=torch.float64)).to(u)
        seen = self.inverted(self.settle(self.forward(u)), u)
        return high * seen + low * (u - seen)

    @staticmethod
    def _in_wide(function, t):
        return function(t if t.dtype == torch.float64 else t.float()).to(t.dtype)


def flat(u):
    """[rows, channel, height, width] of a picture or a video, and the function that turns such rows back."""
    if u.ndim == 4:
        return u, lambda v: v
    b, c, f = u.shape[:3]
    return u.movedim(2, 1).flatten(0, 1), lambda v: v.view(b, f, *v.shape[1:]).movedim(1, 2)


def planes(u):
    """[planes, height, width] of anything, and the function that turns such planes (of any size) back."""
    lead = u.shape[:-2]
    return u.reshape(-1, *u.shape[-2:]), lambda v: v.view(*lead, *v.shape[-2:])
