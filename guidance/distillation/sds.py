"""Score Distillation Sampling."""
from __future__ import annotations

from ..frozen import frozen
from ..method import param
from .base import Pull, ScoreGuidance


@frozen(eq=False)
class SDSGuidance(ScoreGuidance):
    """Score Distillation Sampling: the picture is noised, and moved to where the model's prediction of the noise differs from the noise that was added.

        x = a z + s n,   n^ = (x - a D(x)) / s,   gradient of z:  W(s) (n^ - n) = W(s) (a / s) (z - D(x))

    z: the clean latent; D: the guided clean estimate at the scale cfg; n: fresh noise; s: a random level between t_min and t_max. No backward pass through the network.
    It seeks modes: with a Gaussian prior every start ends at its mean. Hence high scales, smooth and saturated pictures, and nearly the same one for all seeds.
    Defaults: cfg 100, t from 0.98 to 0.02, W = s^2 / (a^2 + s^2) (paper). Some code writes the scale as cfg + 1.
    Small models and latents take 7.5 to 30. On the bundled U-Net 50 iterations at rate 0.2 are as readable as sampled pictures; at 0.1 they do not get there: smooth, half of the objects unreadable. Paper: Poole et al., arXiv 2209.14988. Cost: one guided prediction per iteration and draw.
    """

    node_id = "LodestarSDSGuidance"
    title = "SDS Guidance"
    paper = "DreamFusion: Text-to-3D using 2D Diffusion (SDS)"
    aliases = ("score distillation sampling", "DreamFusion")
    evaluations = "0 (one guided prediction per iteration)"

    cfg: float = param(100.0, "Guidance scale; the paper's 100 makes up for the noise in the gradient, 7.5 to 30 saturate less.", 0.0, 200.0, 0.5)

    def once(self, moment, turn):
        s, z = self.level(moment), moment.z
        denoised = moment.prior.guided(moment.noised(z, s, moment.noise(turn)), s, self.cfg)
        return Pull(self.error(moment, s, denoised), denoised)
