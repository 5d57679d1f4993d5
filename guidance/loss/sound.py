"""Losses of sound: what is known of it in time, its spectra, and the statistics of its latent."""
from __future__ import annotations

from dataclasses import field
from typing import Any

import torch
import torch.nn.functional as F

from ..cover import cover
from ..frozen import frozen
from ..method import BadInput, param, socket
from .base import SCHEDULES, Loss

TASKS = ("continuation", "inpainting", "regeneration", "transition")


def context_mask(task, length, begin, end, fade):
    """[length] in [0, 1]: how much of each place is known. begin, end, fade in fractions of the whole.

    continuation: what is before `begin`; inpainting and transition: all but begin .. end; regeneration: everything. Over `fade` on the known side it falls as a raised cosine.
    """
    t = (torch.arange(length, dtype=torch.float32) + 0.5) / length
    ramp = lambda away: 0.5 - 0.5 * torch.cos(torch.pi * (away / fade).clamp(0, 1)) if fade > 0 else (away > 0).float()
    if task == "regeneration":
        return torch.ones(length)
    left = ramp(begin - t)
    return left if task == "continuation" else torch.maximum(left, ramp(t - end))


def joined(first, second, length, begin, end):
    """The context of a transition [batch, channel, ..., length]: the end of `first` before `begin`, the beginning of `second` from `end` on, silence (0) in between."""
    out = first.new_zeros(*first.shape[:-1], length)
    a, b = round(begin * length), round(end * length)
    if first.shape[-1] < a or second.shape[-1] < length - b:
        raise BadInput("Sound Context", "second", f"{second.shape[-1]} latent frames", f"The first sound needs {a} latent frames, the second {length - b}; give longer ones, or move the transition.")
    out[..., :a] = first[..., first.shape[-1] - a:] if a else out[..., :0]
    out[..., b:] = second[..., :length - b]
    return out


@frozen(eq=False)
class SoundLoss(Loss):
    """Base: weight * schedule * measure(D) of sound latents [batch, channel, length] or [batch, channel, height, length]."""

    weight: float = param(1.0, "Factor of this loss, against others.", -1e6, 1e6, 0.01)
    schedule: str = param("constant", "How the weight changes over the steps; noise: with the share of noise, early more than late.", choices=SCHEDULES, advanced=True)
    start_percent: float = param(0.0, "Start of the window in which the loss counts, as a fraction of the sampling schedule.", 0.0, 1.0, 0.001, advanced=True)
    end_percent: float = param(1.0, "End of that window.", 0.0, 1.0, 0.001, advanced=True)

    def value(self, denoised, context):
        return self.weight * context.factor(self.schedule) * self.measure(denoised, context)

    def fit(self, t, like, what):
        if t.shape[1:] != like.shape[1:] or t.shape[0] not in (1, like.shape[0]):
            raise BadInput(self.title, what, list(t.shape), f"What is sampled has the shape {list(like.shape)}; give a latent of that size, one or as many.")
        return t.to(like)


@frozen(eq=False)
class SoundContext(SoundLoss):
    """How far sound is from a known one where that is known, as latents: its beginning to go on from, both sides of a hole, two pieces to lead from one to the other.

        loss = sqrt( sum m (D - y)^2 )   (norm)    or    sum m (D - y)^2 / sum m   (mean)            y: the context's latent, m: how much of each place is known

    No decoding. Paper: Levy, Di Giorgi, Floris, Katharopoulos, Nickson, "Controllable Music Production with Diffusion Models and Guidance Gradients", arXiv 2311.00613 (no code; the tasks are its, the
    constants are not known). A soft mask fades the two into each other.
    """

    title = "Sound Context Loss"

    norm: bool = param(True, "The Euclidean norm, as posterior sampling takes it; off: the mean of squares.")
    target: Any = None      # [n, channel, (height,) length]
    mask: Any = None        # [n, 1, length]

    def measure(self, denoised, context):
        y = self.fit(self.target, denoised, "context")
        m = cover(self.mask, y[:, :, 0] if denoised.ndim == 4 else y, self.title).to(denoised)
        m = m[:, :, None] if denoised.ndim == 4 else m
        off = ((denoised - y).square() * m).flatten(1).sum(1)
        return (off + 1e-12).sqrt() if self.norm else off / m.expand_as(denoised).flatten(1).sum(1).clamp(min=1e-6)


@frozen(eq=False)
class SoundStyle(SoundLoss):
    """How far the statistics of sound's latent over time are from those of another piece: its timbre and loudness, not its notes.

        loss = mean over channels (mu - mu*)^2 + (sd - sd*)^2            means and deviations of the latent's channels over time

    A stand-in for the paper's classifiers and embeddings, which are networks of their own; a decoder is not needed.
    """

    title = "Sound Style Loss"

    target: Any = None

    def measure(self, denoised, context):
        y = self.target.to(denoised)
        if y.ndim != denoised.ndim or y.shape[1] != denoised.shape[1] or y.shape[0] not in (1, denoised.shape[0]):
            raise BadInput(self.title, "latent", list(y.shape), f"What is sampled has the shape {list(denoised.shape)}; give a latent of the same model, of any length.")
        mean = lambda t: t.flatten(2).mean(2)
        spread = lambda t: t.flatten(2).var(2, unbiased=False).add(1e-8).sqrt()
        return ((mean(denoised) - mean(y)).square() + (spread(denoised) - spread(y)).square()).mean(1)


@frozen(eq=False)
class SpectralSound(SoundLoss):
    """How far the decoded sound's spectra are from those of a given one, at several resolutions.

        loss = mean over windows  mean| |S u| - |S y| | / mean |S y|  +  log_weight mean| log(|S u| + e) - log(|S y| + e) |,   e = 1e-3
        S: short-time Fourier transform, Hann windows of 256, 512, 1024 and 2048 values, steps of a quarter

    It hears timbre and rhythm, not phase. Cost: the decoder of sound and its backward pass.
    """

    title = "Spectral Sound Loss"

    log_weight: float = param(1.0, "Weight of the logarithms, which hear the quiet parts.", 0.0, 100.0, 0.1)
    target: Any = None      # latent of the given sound
    decoder: Any = None     # latent -> waveform [n, channels, values]
    _made: dict = field(default_factory=dict, repr=False)

    def measure(self, denoised, context):
        u = self.decoder(denoised).float().flatten(2)
        if "sound" not in self._made:
            with torch.no_grad():
                self._made["sound"] = self.decoder(self.target.to(denoised)).float().flatten(2).detach().clone()
        y = self._made["sound"].to(u.device)
        if y.shape[0] not in (1, u.shape[0]):
            raise BadInput(self.title, "latent", f"{y.shape[0]} pieces", f"Give one, or one for each of the {u.shape[0]} that are sampled.")
        length = min(u.shape[-1], y.shape[-1])
        u, y = (t[..., :length].mean(1) for t in (u, y))
        found = [self._at(u, y, window) for window in (256, 512, 1024, 2048) if window <= length]
        if not found:
            raise BadInput(self.title, "latent", f"{length} values", "Give at least 256 values of sound.")
        return sum(found) / len(found)

    def _at(self, u, y, window):
        hann = torch.hann_window(window, device=u.device)
        a, b = (torch.stft(t, window, window // 4, window=hann, return_complex=True) for t in (u, y))
        a, b = ((t.real.square() + t.imag.square() + 1e-12).sqrt() for t in (a, b))
        mean = lambda t: t.flatten(1).mean(1)
        return mean((a - b).abs()) / mean(b).clamp(min=1e-6) + self.log_weight * mean(((a + 1e-3).log() - (b + 1e-3).log()).abs())
