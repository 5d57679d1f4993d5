"""Sampling inside a mask: what is outside is put back at every noise level; by a hard mask, one that shrinks, or a change map."""
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from ..frozen import frozen
from ..method import BadInput, param, socket
from .operators.masked import Inpainting
from .problem import Measurement
from .solver import Solver

FORMS = ("change map", "blended", "shrinking")


@frozen(eq=False)
class MaskedSampler(Solver):
    """Makes part of a picture anew: at every noise level the rest is put back. A change map says for each place how much may change.

    Paper: Levin, Fried, "Differential Diffusion: Giving Each Pixel Its Strength", arXiv 2306.00950; blended, shrinking: Avrahami, Fried, Lischinski, "Blended Latent Diffusion", arXiv 2206.02779.

        x' = f step(x) + (1 - f) (a' y + s' z)
        change map:  f = 1 where  M >= 1 - (i + 1) / steps, else 0         a place with M begins to change when 1 - M of the steps are done: its own denoise strength
        blended:     f = 1 where  M > 1/2, else 0
        shrinking:   f = 1 where a neighbour within r has M > 1/2,  r = `grow` (1 - (i + 1) / steps) cells: for thin masks, which the coarse levels would miss

    M: the mask, 1 (white) where all may change, averaged over a latent cell; y: the latent that is kept; i: the step; x, s: state and noise level, primes: the next level; a = 1 in k-units, 1 - s on
    flow models; z fresh noise. M = 1: the sampler alone; M = 0: y again. A mask that covers some places fully and none partly is the same in the first two forms. Where y is given to the sampler as well, as
    latent to start from, part of the schedule may be left out (blended: the authors leave out its noisiest quarter).

    The host's own inpainting is `blended` with a soft mask, and its Differential Diffusion node the change map; here they go with any sampler node of this pack's kind, videos included.
    Defaults: eta 0. Cost: none.
    """

    node_id = "LodestarMaskedSampler"
    title = "Masked Sampler"
    paper = ("Levin et al., Differential Diffusion: Giving Each Pixel Its Strength, arXiv 2306.00950", "Avrahami et al., Blended Latent Diffusion, arXiv 2206.02779")
    aliases = ("differential diffusion", "blended diffusion", "change map", "inpainting")
    evaluations = "0"
    backward = False

    source: Any = socket("LATENT", "What is kept where nothing changes.")
    mask: Any = socket("MASK", "White where the picture is made anew, black where it is kept; gray: in between (change map).")
    form: str = param("change map", "By a map of how much may change, a hard mask, or a hard mask that shrinks to its size.", choices=FORMS)
    grow: int = param(4, "shrinking: how many cells the mask is larger at the start.", 0, 64, 1, advanced=True)
    eta: float = param(0.0, "Fresh noise per step. 0: deterministic, 1: ancestral.", 0.0, 1.0, 0.01)

    @property
    def measurement(self):
        return Measurement(Inpainting(torch.zeros(1, 1, 1)), self.source["samples"])

    def free(self, like, way):
        """f, broadcast against latents, when `way` of the steps are done."""
        m = torch.as_tensor(self.mask).to(like.float())
        m = F.interpolate((m[None] if m.ndim == 2 else m)[:, None], like.shape[-2:], mode="area")
        if self.form == "change map":
            f = m >= 1 - way - 1e-6
            f = f & (m > 0)      # what may not change at all is kept to the end
        else:
            r = round(self.grow * (1 - way)) if self.form == "shrinking" else 0
            f = F.max_pool2d(m, 2 * r + 1, 1, r) > 0.5
        if like.ndim == 5:
            frames = f.shape[0] == like.shape[2] and f.shape[0] != like.shape[0]
            f = f.movedim(0, 1)[None] if frames else f[:, :, None]
        if f.shape[0] not in (1, like.shape[0]):
            raise BadInput(self.title, "mask", f"{f.shape[0]} masks", f"Give one mask, or one for each of the {like.shape[0]} pictures.")
        return f.to(like)

    def advance(self, point):
        moved = self.plain(point)
        y = point.problem.measured(moved.shape[0]).to(moved)
        f = self.free(moved, (point.index + 1) / point.total)
        return f * moved + (1 - f) * (point.a_next * y + (point.s_next * point.draw() if point.s_next else 0.0))
