"""Self-Attention Guidance and Blur Guidance."""
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from ..attention.edits import AttentionEdit
from ..frozen import frozen
from ..layers import select
from ..method import BadInput, Branch, Reading, Term, Transform, param, window
from .common import blur2d, kernel_size

_start, _end = window()
ATTENDED, REST, ALL = "attended", "not attended", "all"
CHUNK = 2 ** 24       # largest number of logits that are held at once


def attention_mass(q, k, image, text=None):
    """How much attention each of the picture's tokens gets: [rows, tokens], the mean over heads of the sum over the picture's queries.

    q, k [rows, heads, tokens, dim]. Self-attention: the mean over the tokens is 1. In joint attention (`text` is a slice) the softmax runs over all tokens, and
    the result is divided by its mean.
    """
    rows, heads, tokens, dim = k.shape
    queries, keys = q[:, :, image].float(), k.float().transpose(-1, -2)
    mass = torch.zeros(rows, keys[..., image].shape[-1], dtype=torch.float32, device=q.device)
    step = max(1, CHUNK // (rows * heads * tokens))
    for i in range(0, queries.shape[2], step):
        weights = (queries[:, :, i:i + step] @ keys * dim ** -0.5).softmax(-1)
        mass += weights[..., image].sum(2).mean(1)
    return mass if text is None else mass / mass.mean(1, keepdim=True)


@frozen
class AttentionMass(AttentionEdit):
    """Changes nothing; notes how much attention each place of the picture gets in one layer."""

    kinds = ("self", "joint")

    def default_layers(self, geometry):
        """The first transformer block of a U-Net's middle, one from the middle of a DiT's first stage."""
        middle = select(geometry, "middle")
        return str(middle[0] if geometry.family == "unet" else middle[len(middle) // 2])

    def apply(self, site, q, k, v, attend):
        if not site.height or not site.width:
            raise ValueError(f"Self-Attention Guidance: the token grid of {site.layer} is not known on this network; choose another layer.")
        with torch.no_grad():
            mass = attention_mass(q, k, site.image, site.text)
            site.note(self, mass.unflatten(1, (-1, site.height, site.width)))
        return attend(q, k, v)

    def gather(self, parts, shape):
        """The mass on the latent's grid: [batch, 1, (frames,) height, width], each part on its area, the mean where several lie."""
        full = (shape[0], 1, shape[2] if len(shape) == 5 else 1, shape[-2], shape[-1])
        total, count = (torch.zeros(full, dtype=torch.float32, device=parts[0][2].device) for _ in range(2))
        for area, _, mass in parts:
            (f0, f1), (y0, y1), (x0, x1) = _bounds(area, full[2:])
            total[:, :, f0:f1, y0:y1, x0:x1] += F.interpolate(mass[:, None].to(total.device), (f1 - f0, y1 - y0, x1 - x0), mode="nearest")
            count[:, :, f0:f1, y0:y1, x0:x1] += 1
        mean = total / count.clamp(min=1)
        return mean if len(shape) == 5 else mean[:, :, 0]


def _bounds(area, sizes):
    """[(start, stop)] of an area (sizes, then starts, in latent cells; frames may be missing) on a grid of (frames, height, width)."""
    if area is None:
        return [(0, n) for n in sizes]
    n = len(area) // 2
    found = [(start, min(size, start + length)) for length, start, size in zip(area[:n], area[n:], sizes[-n:])]
    return [(0, size) for size in sizes[:3 - n]] + found


@frozen
class Blurred(Transform):
    """x' = x + a (d - u): the clean estimate u of `prompt` is blurred where `reading` says so, d, and gets its own noise back; the prediction made of x' is taken
    back to x with its noise kept, D' = D(x') + u - d, which is eps(x') in every parametrisation."""

    prompt: str = "negative"
    sigma: float = 2.0
    kernel: int = 9
    reading: Any = None
    threshold: float = 1.0
    inverted: bool = False

    def needs(self):
        return (Branch(self.prompt),) + ((self.reading,) if self.reading is not None else ())

    def change(self, step, seen):
        """d - u."""
        u = seen[Branch(self.prompt)]
        planes = u.movedim(1, -3).reshape(-1, u.shape[1], *u.shape[-2:]).float()          # each frame of a video alone
        sizes = None if not self.kernel else tuple(min(self.kernel, kernel_size(1e9, n)) for n in planes.shape[-2:])
        soft = blur2d(planes, self.sigma, sizes).to(u.dtype).reshape(u.movedim(1, -3).shape).movedim(-3, 1)
        if self.reading is None:
            return soft - u
        mask = seen[self.reading].to(u.device) > self.threshold
        return torch.where(mask != self.inverted, soft - u, torch.zeros_like(u))

    def enter(self, step, x, seen):
        return x + step.a * self.change(step, seen)

    def leave(self, step, x, denoised, seen):
        return denoised - self.change(step, seen)


class _Sharpen(Term):
    """result = base + scale (u - D'): the prediction of the degraded input is pushed away from."""

    planar = True

    def transform(self, step):
        raise NotImplementedError

    def prompt(self, step):
        """The prompt that is degraded: the negative one where CFG is on, else the only one."""
        return "positive" if step.w == 1.0 else "negative"

    def neutral(self):
        return self.scale == 0 or self.blur_sigma == 0

    def validate(self):
        super().validate()
        if self.kernel and self.kernel % 2 == 0:
            raise BadInput(self.title, "kernel", self.kernel, "It must be odd, or 0 for three sigma to each side.")
        return self

    def branches(self, step):
        prompt = self.prompt(step)
        return (Branch(prompt), Branch(prompt, transform=self.transform(step)))

    def delta(self, step, base, predictions, state):
        clean, degraded = self.branches(step)
        return self.scale * (predictions[clean] - predictions[degraded])


@frozen
class SelfAttentionGuidance(_Sharpen):
    """Pushes away from a prediction of an input that is blurred where the network looks: detail is added where it matters.

    u = D(x, s, negative) (the only prompt where CFG is off);  A = self-attention of `layer` in that prediction, row sums 1
    M(j) = [ mean over heads of sum_i A(i, j) > threshold ]  (the mean of the sum is 1), enlarged to the latent's size
    d = M blur(u) + (1 - M) u;  x' = x + a (d - u)  (the noise is kept; a = 1, or 1 - s on flow models)
    result = base + scale (d - D(x', s, same prompt)), which is scale (eps(x) - eps(x')) in noise predictions of every kind

    Joint attention (Flux, SD3, Qwen ...; derived): the attention of the picture to itself, divided by its mean. Areas and split batches are put together on the
    latent's grid. The blur has a window of `kernel` cells, borders mirrored, videos frame by frame.
    Defaults: scale 0.5, blur 2 (the host's node); SD in other programs 0.75 and 1, window 9, threshold 1, the middle block.
    mask "not attended" blurs the rest, "all" everything (Blur Guidance). On a network that denoises linearly it smooths rather than sharpens.
    Limits: scales over 1 exaggerate edges. A step that a step cache skips uses the mask of the last one. Cost: one more evaluation, which cannot be batched with
    the prompts since its input depends on theirs.
    """

    node_id = "LodestarSelfAttentionGuidance"
    title = "Self-Attention Guidance"
    family = "perturbation"
    paper = "Improving Sample Quality Using Self-Attention Guidance (SAG, blur guidance)"
    aliases = ("SAG",)
    evaluations = "1"

    scale: float = param(0.5, "Strength of the push away from the blurred input's prediction; 0 switches the node off, negative values soften.", -10.0, 50.0, 0.05)
    blur_sigma: float = param(2.0, "Blur of the clean estimate, in cells of the latent; 0 switches the node off.", 0.0, 100.0, 0.1)
    threshold: float = param(1.0, "Attention, relative to the mean, over which a place is blurred.", 0.0, 100.0, 0.05)
    start_percent: float = _start
    end_percent: float = _end
    layers: str = param("", "Layer whose self-attention is read, e.g. middle.0, double.9. Empty: the first of the middle block, the middle of a DiT's first stage.",
                        advanced=True)
    kernel: int = param(9, "Width of the blur's window in cells; 0: three sigma to each side.", 0, 255, 1, advanced=True)
    mask: str = param(ATTENDED, "Where the input is blurred.", choices=(ATTENDED, REST, ALL), advanced=True)

    def transform(self, step):
        prompt = self.prompt(step)
        if self.mask == ALL:
            return Blurred(prompt, self.blur_sigma, self.kernel)
        return Blurred(prompt, self.blur_sigma, self.kernel, Reading(prompt, AttentionMass(self.layers)), self.threshold, self.mask == REST)


@frozen
class BlurGuidance(_Sharpen):
    """Pushes away from a prediction of a blurred input: fine detail is strengthened everywhere.

    u = D(x, s, negative) (the only prompt where CFG is off);  d = blur(u);  x' = x + a (d - u)  (the noise is kept; a = 1, or 1 - s on flow models)
    result = base + scale (d - D(x', s, same prompt)), which is scale (eps(x) - eps(x')) in noise predictions of every kind

    It is Self-Attention Guidance without its mask, for networks of every kind; nothing inside them is touched. The blur has a window of `kernel` cells, borders
    mirrored, videos frame by frame.
    Defaults: scale 0.5, blur 2, window 9, as for Self-Attention Guidance; pixel models: window 31, blur 3 at 128 x 128 and 9 at 256 x 256 (paper's code).
    Limits: structure suffers at large scales, since all of the picture is blurred. Cost: one more evaluation, which cannot be batched with the prompts.
    """

    node_id = "LodestarBlurGuidance"
    title = "Blur Guidance"
    family = "perturbation"
    paper = "Improving Sample Quality Using Self-Attention Guidance (SAG, blur guidance)"
    evaluations = "1"

    scale: float = param(0.5, "Strength of the push away from the blurred input's prediction; 0 switches the node off, negative values soften.", -10.0, 50.0, 0.05)
    blur_sigma: float = param(2.0, "Blur of the clean estimate, in cells of the latent; 0 switches the node off.", 0.0, 100.0, 0.1)
    start_percent: float = _start
    end_percent: float = _end
    kernel: int = param(9, "Width of the blur's window in cells; 0: three sigma to each side.", 0, 255, 1, advanced=True)

    def transform(self, step):
        return Blurred(self.prompt(step), self.blur_sigma, self.kernel)
