"""Smoothed Energy Guidance."""
from __future__ import annotations

from ..attention.edits import AttentionEdit
from ..frozen import frozen
from ..method import Branch, param, window
from .common import Push, blur2d, rescaling

_start, _end = window()
INFINITE = 9999.0


def smoothed(q, height, width, sigma):
    """q [rows, heads, frames * height * width, dim] blurred over each frame's grid by a Gaussian of sigma tokens; sigma >= INFINITE: each frame's mean."""
    rows, heads, tokens, dim = q.shape
    if not height or not width or tokens % (height * width):
        raise ValueError(f"{tokens} tokens are no grid of {height} x {width}")
    frames = tokens // (height * width)
    grid = q.float().reshape(rows, heads, frames, height * width, dim)
    if sigma >= INFINITE:
        return grid.mean(3, keepdim=True).expand(-1, -1, -1, height * width, -1).reshape(q.shape).to(q.dtype)
    planes = grid.movedim(3, 4).reshape(rows, heads * frames * dim, height, width)
    return blur2d(planes, sigma).reshape(rows, heads, frames, dim, height * width).movedim(4, 3).reshape(q.shape).to(q.dtype)


@frozen
class SmoothQueries(AttentionEdit):
    """Self-attention with blurred queries, which is the same as blurring its logits over the queries: softmax(blur(Q) K^T) = softmax(blur(Q K^T)).

    In joint attention the picture's queries alone are blurred. Rotary embeddings are undone before the blur and redone after it.
    """

    sigma: float = INFINITE

    kinds = ("self", "joint")
    unrotates = True

    def apply(self, site, q, k, v, attend):
        if self.sigma <= 0:
            return attend(q, k, v)
        part = q[:, :, site.image]
        if site.rotation is not None:
            part = site.rotation.turn(part, site.image, back=True)
        part = smoothed(part, site.height, site.width, self.sigma)
        if site.rotation is not None:
            part = site.rotation.turn(part, site.image)
        if part.shape[2] != q.shape[2]:
            whole = q.clone()
            whole[:, :, site.image] = part
            part = whole
        return attend(part, k, v)


@frozen
class SmoothedEnergyGuidance(Push):
    """Pushes away from a prediction whose self-attention looks with blurred queries: its energy landscape is flatter, its structure vaguer.

    ptb = D(x, s, positive) with the queries of `layers` blurred over their grid, q <- G(blur_sigma) * q  (blur_sigma 9999: every query is the mean query)
    result = base + scale (cond - ptb)
    `rescale` rho brings the standard deviation back to cond's: result (rho std(cond) / std(result) + 1 - rho), per sample.

    Blurring the queries equals blurring the attention logits along the queries, so no attention matrix is made and fast attention stays. Kernel: 3 sigma to each
    side, cut to the grid, borders mirrored. Videos are blurred frame by frame. Joint attention (Flux, SD3, Qwen ...): the picture's queries alone. Rotary
    position embeddings are undone for the blur. The formula is the same for eps, v and flow models.
    Defaults: scale 3, infinite blur, the middle block (paper, SDXL); 2.8 on blocks 7 to 9 of SD3.5, steps 0.01 to 0.2, in other programs.
    A scale that is right for one sigma is right for another: the strength is set by blur_sigma, from 0 (nothing) over 1, 3, 10 to 9999.
    Limits: little effect where the selected layers' grid is small and blur_sigma below one token. Cost: one more evaluation, batched with the prompts.
    """

    node_id = "LodestarSmoothedEnergyGuidance"
    title = "Smoothed Energy Guidance"
    family = "perturbation"
    paper = "Smoothed Energy Guidance (SEG)"
    aliases = ("SEG",)
    evaluations = "1"
    planar = True

    scale: float = param(3.0, "Strength of the push away from the smoothed prediction; 0 switches the node off.", 0.0, 100.0, 0.1)
    blur_sigma: float = param(INFINITE, "Blur of the queries, in tokens of the layer: 0 none, 9999 infinite (every query becomes the mean query).", 0.0, INFINITE, 0.1)
    layers: str = param("middle", "Layers whose self-attention is smoothed in the extra branch, e.g. middle, output.3-5, double.7-9.")
    start_percent: float = _start
    end_percent: float = _end
    rescale: float = rescaling()

    @property
    def branch(self):
        return Branch(edits=(SmoothQueries(self.layers, self.blur_sigma),))

    def neutral(self):
        return self.scale == 0 or self.blur_sigma == 0
