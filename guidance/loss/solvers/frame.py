"""Frame Guidance: some deterministic and some renewed moves of the state in the first half of the steps."""
from __future__ import annotations

from typing import Any

from ...frozen import frozen
from ...gradients import normalised
from ...inverse import levels
from ...method import param, socket
from .base import LossSolver


@frozen(eq=False)
class FrameGuidance(LossSolver):
    """Leads a video by losses of a few of its frames; the gradient through the network carries them to all others.

    Paper: Jang et al., "Frame Guidance: Training-Free Guidance for Frame-Level Control in Video Diffusion Models", arXiv 2506.07177.

        `rounds` times:  g = -grad_x loss(D(x)),  v = rate c(s) g / rms(g)                         c = sqrt(a^2 + s^2), per video
            before the renewed part:   x <- x + v                                        keeps the layout that the first steps settle
            in it ("time travel"):     x <- a D + s z + v,   z fresh noise                corrects what has gone wrong
        then one plain step.    After `end_percent` plain steps alone

    x, s: state and level; a = 1 in k-units, 1 - s on flow models. rounds 0, or rate 0 before the renewed part, is plain Euler; rate 0 in it renews the noise only.
    Losses: Loss of Frames for key frames (pictures, styles, outlines; only their latents are decoded), Frame Consistency Loss for loops. Without the network's Jacobian the other frames would not follow.
    WildVidFit leads the frames of an image model by how much neighbours agree: Frame Consistency Loss over the batch, here or by Universal Guidance.
    Defaults: rate 0.05, 3 rounds, renewed from 0.1 to 0.5 of the steps, none after 0.6: own ones; the released code leaves them to each task (10 and 5 rounds at the first steps), and takes the length of
    v whole (rate c sqrt(N)) over the whole batch, here per video. Its form for CogVideoX renews behind the step; here the form of its flow models serves both. Pictures of a batch are frames where a loss says so.
    Cost: `rounds` times a forward and a backward pass through the active branches, and one plain evaluation.
    """

    node_id = "LodestarFrameGuidance"
    title = "Frame Guidance"
    paper = ("Frame Guidance", "WildVidFit")
    aliases = ("key frames", "video guidance", "time travel", "loop")
    evaluations = "rounds (and the backward passes, about 2 each)"

    loss: Any = socket("LODESTAR_LOSS", "What to minimise: Loss of Frames, Frame Consistency Loss, or any.")
    rate: float = param(0.05, "Size of a move, as a share of the state's own.", 0.0, 10.0, 0.01)
    rounds: int = param(3, "Moves before each step; 0 switches it off.", 0, 30, 1)
    travel_start: float = param(0.1, "From where on a move also renews the noise, as a fraction of the schedule.", 0.0, 1.0, 0.01)
    travel_end: float = param(0.5, "Until where.", 0.0, 1.0, 0.01)
    end_percent: float = param(0.6, "Behind it steps are plain, as a fraction of the schedule.", 0.0, 1.0, 0.01)
    eta = 0.0

    def neutral(self):
        return self.rounds == 0 or self.end_percent == 0 or (self.rate == 0 and self.travel_end <= self.travel_start)

    def led(self, point, loss):
        way = point.index / max(1, point.total - 1)
        if way <= self.end_percent:
            renew = self.travel_start <= way <= self.travel_end and self.travel_start < self.travel_end
            for _ in range(self.rounds if self.rate or renew else 0):
                if self.rate:
                    denoised, g = point.descend(loss)
                    move = self.rate * levels.amplitude(point.s, point.flow) * normalised(g, "unit rms")
                else:
                    denoised, move = point.predict(), 0.0
                point.x = (point.a * denoised + point.s * point.draw() if renew else point.x) + move
        return self.plain(point)
