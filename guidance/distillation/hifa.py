"""HiFA: the distilled picture is drawn to a picture that was denoised in several steps."""
from __future__ import annotations

from ..frozen import frozen
from ..inverse import levels
from ..method import BadInput, param
from .base import COURSES, ISM, WEIGHTS, Pull, ScoreGuidance


@frozen(eq=False)
class HiFAGuidance(ScoreGuidance):
    """HiFA: the noised picture is denoised in several steps, and compared with the result both as latent and as picture, at noise levels that fall with the square root.

        x = a z + s n,   z^ = denoise(x; k steps from t to 0, at the scale cfg),   t = t_max - (t_max - t_min) sqrt(i / (N - 1))
        gradient of  E ( latent |z - z^|^2 / 2  +  rgb |u - decode(z^)|^2 / 2 ),   E = W(s) a / s

    u: the picture that z is of; i of N: the iteration; z^ and decode(z^) are constants. The steps are DDIM's, evenly spread in the model's timesteps, with noise as `eta` says.
    W = s / a makes E constant (the released code's "const"), W = 1 its "noisematch", W = s^2 / (a^2 + s^2) its "sdslike", W = a / sqrt(a^2 + s^2) its "strongerlower"; their common factor 0.05 is left out.
    With one step, rgb 0 and a random course it is SDS with the same weight.
    Defaults: k 4, eta 1, latent 1, rgb 0.1, t from 0.98 to 0.30, square root, const (released code, which takes cfg 100 and 10 000 iterations of a radiance field). For latents cfg 7.5 to 30.
    Its losses of depth and density belong to radiance fields and and its clamp of errors above 200 sqrt(1 - abar), which latents do not reach, are not here.
    rgb needs a VAE, and in a latent's optimisation the backward pass of its decoder. Paper: Zhu, Zhuang, Koyejo, arXiv 2305.18766. Cost: k guided predictions per iteration, with rgb a decoding.
    """

    node_id = "LodestarHiFAGuidance"
    title = "HiFA Guidance"
    paper = "HiFA"
    aliases = ("high-fidelity text-to-3D", "score distillation")
    evaluations = "0 (k guided predictions per iteration)"

    course: str = param("square root", "How the noise level goes from t_max to t_min over the iterations; random: any level between them, each time.", choices=COURSES)
    t_min: float = param(0.30, "Lowest noise level (0 is the clean picture).", 0.0, 1.0, 0.01)
    weighting: str = param(ISM, "Weight W of a noise level; s / a weighs the error of all levels alike.", choices=WEIGHTS, advanced=True)
    steps: int = param(4, "Steps in which the noised picture is denoised.", 1, 100, 1, label="denoising steps")
    latent: float = param(1.0, "Weight of the latent's error.", 0.0, 1000.0, 0.05)
    rgb: float = param(0.1, "Weight of the picture's error; above 0 it needs the VAE.", 0.0, 1000.0, 0.05)
    eta: float = param(1.0, "Fresh noise in those steps: 0 none, 1 as much as the paper.", 0.0, 1.0, 0.05, advanced=True)

    def validate(self):
        super().validate()
        if self.rgb and self.vae is None:
            raise BadInput(self.title, "rgb", self.rgb, "The picture's error needs the model's VAE: connect it, or set rgb to 0.")
        return self

    def once(self, moment, turn):
        s, t = self.level(moment), None if self.sigmas is not None else self.time(moment)
        found = self.denoised(moment, s, t, turn)
        picture = None
        if self.rgb:
            picture = self.rgb * self.factor(moment, s) * (moment.shown() - moment.prior.decode(found).clamp(0, 1))
        return Pull(self.latent * self.error(moment, s, found), found, picture)

    def denoised(self, moment, s, t, turn):
        """z^ by k steps down from level s; the levels between are even in the timesteps, or in the level itself where it was given."""
        x = moment.noised(moment.z, s, moment.noise(turn))
        found = moment.prior.guided(x, s, self.cfg)
        for i in range(1, self.steps):
            left = 1 - i / self.steps
            s_next = s * left if t is None else min(s, moment.prior.sigma(t * left))
            down, up = levels.ancestral(s, s_next, self.eta, moment.prior.flow)
            x = moment.signal(s_next) * found + down * moment.noise_of(x, s, found)
            if up:
                x = x + up * moment.noise(turn + i * self.draws)
            s = s_next
            found = moment.prior.guided(x, s, self.cfg)
        return found
