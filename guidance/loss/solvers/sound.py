"""Sound Guidance: posterior sampling of sound by losses, with what is known put back where wanted."""
from __future__ import annotations

from typing import Any

from ...cover import cover
from ...frozen import frozen
from ...inverse import levels
from ...method import BadInput, param, socket
from .base import LossSolver


@frozen(eq=False)
class SoundGuidance(LossSolver):
    """Continues, fills, renews and joins sound, and leads its style: each step is followed by one down the gradient of losses of it.

    Paper: Levy, Di Giorgi, Floris, Katharopoulos, Nickson, "Controllable Music Production with Diffusion Models and Guidance Gradients", arXiv 2311.00613.

        x' = step(x) - scale c(s) c(s') grad_x loss(D(x))                                    c = sqrt(a^2 + s^2)
        project: D <- (1 - m) D + m y  before the step, as well                              y: context's latent, m: its mask

    D: clean estimate; x, s: state and level, primes: the next level; a = 1 in k-units, 1 - s on flow models. With the norm of Sound Context Loss this is diffusion posterior sampling of what is known; losses of style
    add to it. project keeps the known part exact, without a gradient of its own. No code is released and the paper's constants are not known: the step is that of Diffusion Posterior Sampling.
    Defaults: scale 1 (a few tens of steps), eta 1. Losses of latents need no decoder. Works on every latent; masks have time along their width. Cost: a backward pass through the active branches.
    """

    node_id = "LodestarSoundGuidance"
    title = "Sound Guidance"
    paper = "Controllable Music Production with Diffusion Models and Guidance Gradients"
    aliases = ("audio continuation", "audio inpainting", "music transition", "regeneration")
    evaluations = "0 (backward pass through the active branches: about 2 more)"

    loss: Any = socket("LODESTAR_LOSS", "What to minimise: Sound Context Loss, Sound Style Loss, Spectral Sound Loss, or any.")
    scale: float = param(1.0, "Step along the gradient; 0 switches it off.", 0.0, 1000.0, 0.1)
    eta: float = param(1.0, "Fresh noise per step. 0: deterministic, 1: ancestral.", 0.0, 1.0, 0.01)
    context: Any = socket("LATENT", "What is known, to be put back exactly. Needs its mask.", optional=True)
    known: Any = socket("MASK", "Where the context is known, from Sound Context.", optional=True)

    def validate(self):
        if (self.context is None) != (self.known is None):
            raise BadInput(self.title, "known" if self.known is None else "context", None, "The context and its mask belong together: connect both, or none.")
        return super().validate()

    def neutral(self):
        return self.scale == 0 and self.context is None

    @property
    def backward(self):
        return self.scale != 0

    def prepared(self, problem, like):
        problem.kept = None
        if self.context is not None:
            y = problem.inward(self.context["samples"].to(like))
            if y.shape[1:] != like.shape[1:] or y.shape[0] not in (1, like.shape[0]):
                raise BadInput(self.title, "context", list(y.shape), f"What is sampled has the shape {list(like.shape)}; give a latent of that size, one or as many.")
            m = cover(self.known, like[:, :, 0] if like.ndim == 4 else like, self.title, "known").to(like)
            problem.kept = (m[:, :, None] if like.ndim == 4 else m), y
        return problem

    def advance(self, point):
        loss = point.problem.at(point) if self.scale else None
        shift = None
        if loss is None:
            denoised = point.predict()
        else:
            denoised, g = point.descend(loss)
            shift = self.scale * levels.paper_shift(point.s, point.s_next, point.flow) * g
        if point.problem.kept is None:
            return point.go(denoised, point.noise_of(denoised), self.eta, shift)
        m, y = point.problem.kept
        x0 = (1 - m) * denoised + m * y
        return point.go(x0, None, self.eta, None if shift is None else (1 - m) * shift)
