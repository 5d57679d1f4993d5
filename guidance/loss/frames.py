"""Losses of single frames and of neighbouring ones; frames are those of a video, or the entries of a batch."""
from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from ..frozen import frozen
from ..method import BadInput, param, socket
from .base import Loss, LossContext, zero
from .flow import visible, warp
from .picture import PictureLoss, mean

OVER = ("video", "batch")
PAIRS = ("neighbours", "neighbours and ends", "ends")
KINDS = ("pixels", "features", "flow")


def parse_frames(text, node, count=None):
    """Frame numbers of "0, 8, -1" (negative ones from the end), of `count` frames where that is known."""
    try:
        found = tuple(int(part) for part in text.replace(";", ",").split(",") if part.strip())
    except ValueError:
        found = ()
    if not found:
        raise BadInput(node, "frames", text, "Write numbers of frames, from 0, separated by commas; -1 is the last one.")
    if count is None:
        return found
    wrong = [i for i in found if not -count <= i < count]
    if wrong:
        raise BadInput(node, "frames", wrong[0], f"There are {count} frames, 0 to {count - 1}.")
    return tuple(i % count for i in found)


def place(frame, ratio):
    """(latent frame, picture within it) of a picture: latent 0 holds picture 0 alone, each later one `ratio` pictures."""
    return (0, 0) if frame == 0 else ((frame - 1) // ratio + 1, (frame - 1) % ratio)


def pictures(latents, ratio):
    """How many pictures so many latent frames hold."""
    return 1 + (latents - 1) * ratio


@dataclass
class _OneFrame(LossContext):
    """A context in which every picture is one frame of a slice of the video."""

    slice: Any = None      # [batch, channel, frames, height, width]
    number: int = 0        # the frame, counted from the slice's end
    shrink: float = 1.0

    def picture(self, decoder, denoised):
        key = getattr(decoder, "key", id(decoder)), id(denoised)
        if key not in self._pictures:
            given = self.slice if self.shrink == 1 else F.interpolate(self.slice.flatten(0, 1), scale_factor=self.shrink, mode="bilinear", align_corners=False).unflatten(0, self.slice.shape[:2])
            found = decoder(given)
            self._pictures[key] = denoised, found.unflatten(0, (self.slice.shape[0], -1))[:, self.number]
        return self._pictures[key][1]


@frozen(eq=False)
class FrameLoss(Loss):
    """Another loss of chosen frames alone: key frames that are to look like given pictures, have a style, an outline; of a video only the latents that these frames need are decoded.

        loss = sum over chosen frames i of  part(u_i),      u_i = decode( latents j - context + 1 .. j, made smaller by `shrink` )[i],   j = (i - 1) div ratio + 1
        of one of the pictures that `part` compares with for each frame, in the order of `frames`, or one for all

    ratio: pictures in each latent frame but the first (Wan, Hunyuan, CogVideoX 4, LTX 8, Mochi 6; 1: a latent for each picture). over batch: the entries of a batch are the frames, each with its
    own loss.
    Frame Guidance's latent slicing: video decoders see little of other times, 2 or 3 latents are enough. Their decoding starts anew at the slice, so the first frame of a slice is only right at the video's beginning; with
    context 1 only frame 0 is. Paper: Jang et al., "Frame Guidance", arXiv 2506.07177. Defaults: context 2, shrink 0.5 (the authors').
    """

    part: Any = None
    frames: str = "0"
    over: str = "video"
    ratio: int = 4
    context: int = 2
    shrink: float = 0.5
    title = "Loss of Frames"

    @property
    def differentiable(self):
        return self.part.differentiable

    def active(self, step):
        return self.part.active(step)

    def check(self):
        """BadInput for values that are not possible; returns the loss."""
        chosen = parse_frames(self.frames, self.title)
        target = getattr(self.part, "target", None)
        if target is not None and target.shape[0] not in (1, len(chosen)):
            raise BadInput(self.title, "frames", self.frames, f"The loss compares with {target.shape[0]} pictures; name as many frames, or give it one picture for all.")
        return self

    def of(self, number, count):
        """The part for the chosen frame of this number: with its own picture and mask, where it has several."""
        own = {name: t[number:number + 1] for name in ("target", "mask") if (t := getattr(self.part, name, None)) is not None and t.shape[0] == count > 1}
        target = own.get("target", getattr(self.part, "target", None))
        if self.over == "video" and self.shrink != 1 and target is not None and getattr(self.part, "space", "") == "rgb":
            own["target"] = F.interpolate(target, scale_factor=self.shrink, mode="area")
        return dataclasses.replace(self.part, **own) if own else self.part

    def value(self, denoised, context):
        if self.over == "batch":
            chosen = parse_frames(self.frames, self.title, denoised.shape[0])
            rows = [zero(denoised[i:i + 1]) for i in range(denoised.shape[0])]
            for number, i in enumerate(chosen):
                rows[i] = rows[i] + self.of(number, len(chosen)).value(denoised[i:i + 1], LossContext(context.step))
            return torch.cat(rows)
        if denoised.ndim != 5:
            raise BadInput(self.title, "over", self.over, 'What is sampled is no video; choose "batch" to take the pictures of a batch for frames.')
        chosen = parse_frames(self.frames, self.title, pictures(denoised.shape[2], self.ratio))
        total = zero(denoised)
        for number, i in enumerate(chosen):
            j, inside = place(i, self.ratio)
            part = denoised[:, :, max(0, j - self.context + 1):j + 1]
            last = inside - self.ratio if j else -1
            seen = _OneFrame(context.step, slice=part, number=last, shrink=self.shrink)
            total = total + self.of(number, len(chosen)).value(denoised[:, :, j], seen)
        return total


@frozen(eq=False)
class FrameConsistency(PictureLoss):
    """How much neighbouring frames differ: less of it is a calmer video, or a batch of pictures that agree.

        pixels:    mean |u_i - u_k|^2
        features:  1 - cos( phi(u_i), phi(u_k) ),   phi: means and deviations of the channels in the cells of a grid, without the frame's own mean
        flow:      mean o |u_i - u_k(p + f_i(p))|,  f_i: a given flow from frame i to the next (one for all, or one for each), o: 1 where it hides nothing; or of a network
        over pairs (i, k): neighbours, and the last frame with the first one (a loop), or these two alone

    over batch: the entries of a batch are the frames; the value is shared among them, and so is the gradient: here entries do mix.
    WildVidFit compares features of a self-supervised vision network, and those of a masked video autoencoder, of an image model's frames; phi stands in for the former, the latter is left out (neither is bundled).
    Its pictures are decoded whole; space small or latent needs no decoder. One frame alone, and frames that are alike, give 0. Paper: He et al., "WildVidFit: Video Virtual Try-On in the Wild via Image-Based Controlled
    Diffusion Models", arXiv 2407.10625 (no code; unverified).
    """

    title = "Frame Consistency Loss"
    own_node = True

    kind: str = param("pixels", "What of the frames is compared.", choices=KINDS)
    pairs: str = param(PAIRS[0], "Which frames are compared. ends: the first with the last, for a loop.", choices=PAIRS)
    over: str = param("video", "video: the frames of each video. batch: the pictures of the batch are the frames.", choices=OVER)
    grid: int = param(8, "Cells of each side of the grid (features).", 1, 64, 1, advanced=True)
    flow: Any = socket("LODESTAR_FLOW", "From each frame to the next (flow).", optional=True)
    estimator: Any = socket("LODESTAR_FLOW_NETWORK", "Estimates the flow where none is given (flow).", optional=True)

    def check(self):
        super().check()
        if self.kind == "flow" and self.flow is None and self.estimator is None:
            raise BadInput(self.title, "flow", None, "Connect a flow or a flow network, or compare pixels or features.")
        if self.kind == "flow" and self.flow is None and self.space != "rgb":
            raise BadInput(self.title, "space", self.space, "A flow network sees pictures; choose rgb.")
        return self

    def value(self, denoised, context):
        u = denoised if self.space == "latent" else context.picture(self.decoder, denoised)
        u = u.movedim(2, 1).flatten(0, 1) if u.ndim == 5 else u
        m, batch = self.weights(u), denoised.shape[0]
        videos = u[None] if self.over == "batch" else u.unflatten(0, (batch, -1))
        masks = m[None] if self.over == "batch" else m.unflatten(0, (batch, -1))
        count = videos.shape[1]
        first = list(range(count - 1)) if self.pairs != "ends" else []
        pairs = [(i, i + 1) for i in first] + ([(count - 1, 0)] if self.pairs != PAIRS[0] and count > 1 else [])
        if not pairs:
            return zero(denoised)
        found = torch.stack([self.between(videos[:, i], videos[:, k], masks[:, i], i) for i, k in pairs]).mean(0)      # [videos]
        found = found.expand(batch) / batch if self.over == "batch" else found
        return self.weight * context.factor(self.schedule) * found

    def between(self, a, b, m, number):
        if self.kind == "pixels":
            return mean((a - b).square(), m)
        if self.kind == "features":
            x, y = (_features(t * m, self.grid) for t in (a, b))
            return 1 - F.cosine_similarity(x, y, dim=1, eps=1e-6)
        if self.flow is not None:
            f = self.flow.at(*a.shape[-2:]).to(a)
            f = f[number % f.shape[0]].expand(a.shape[0], -1, -1, -1)
        else:
            f = self.estimator(a, b).to(a)
        return mean((a - warp(b, f)).abs() * visible(f.detach()), m)


def _features(u, grid):
    """[n, features]: means and deviations of the channels in a grid of cells, without the frame's mean."""
    size = (min(grid, u.shape[-2]), min(grid, u.shape[-1]))
    middle = F.adaptive_avg_pool2d(u, size)
    spread = (F.adaptive_avg_pool2d(u.square(), size) - middle.square()).clamp(min=0).add(1e-6).sqrt()
    return torch.cat((middle - u.mean((2, 3), keepdim=True), spread - spread.mean((2, 3), keepdim=True)), 1).flatten(1)


@frozen(eq=False)
class ReferenceSequence(PictureLoss):
    """How far each frame is from its own of a rendered sequence, where that is valid: what a reconstruction shows of known parts, with holes.

        loss = sum over frames of  1/2 sum m (u - y)^2 / sum m  +  structure (1 - SSIM(u, y))            m: the validity mask of each frame; a frame without any counts 0

    Defaults: structure 0 (released code: squares, with 0.2 SSIM and a perceptual part optionally; the perceptual one is left out). Paper: Zhong et al., "Taming Video Diffusion Prior with Scene-Grounding Guidance for 3D Gaussian
    Splatting from Sparse Inputs", arXiv 2503.05082. over batch: the entries of a batch are the frames.
    """

    title = "Reference Sequence Loss"
    pointwise = True
    own_node = True

    image: Any = socket("IMAGE", "The rendered frames, as many as are sampled (of a batch: its entries), or one for all.")
    structure: float = param(0.0, "Weight of the structural similarity.", 0.0, 100.0, 0.05)

    def check(self):
        if self.space not in self.spaces:
            raise BadInput(self.title, "space", self.space, f"Choose one of: {', '.join(self.spaces)}.")
        return self      # masks may be empty: nothing of that frame is known

    def value(self, denoised, context):
        u = denoised if self.space == "latent" else context.picture(self.decoder, denoised)
        u = u.movedim(2, 1).flatten(0, 1) if u.ndim == 5 else u
        found = self.measure(u, self.weights(u), context)
        return self.weight * context.factor(self.schedule) * found.view(denoised.shape[0], -1).sum(1)

    def measure(self, u, m, context):
        y = self.wanted(u)
        known = m.flatten(1).sum(1)
        total = 0.5 * ((u - y).square() * m).flatten(1).sum(1) / known.clamp(min=1e-6)      # summed and then divided: means of small values vanish in half precision
        if self.structure:
            total = total + self.structure * mean(1 - similarity(u, y), m)
        return torch.where(known > 0, total, torch.zeros_like(total))

    def part(self, denoised, number, count, context):
        """The value [batch] of one latent frame [batch, channel, 1, height, width] of a video with a picture for each, decoded alone."""
        pick = lambda t: t if t is None or t.shape[0] == 1 else t.unflatten(0, (-1, count))[:, number] if t.shape[0] % count == 0 else t
        return dataclasses.replace(self, target=pick(self.target), mask=pick(self.mask)).value(denoised, context)


def similarity(a, b, side=7):
    """Structural similarity [n, c, h, w] of pictures in [0, 1] over squares of `side` pixels."""
    pool = lambda t: F.avg_pool2d(F.pad(t, (side // 2,) * 4, mode="replicate"), side, 1)
    x, y = pool(a), pool(b)
    xx, yy, xy = pool(a * a) - x * x, pool(b * b) - y * y, pool(a * b) - x * y
    return (2 * x * y + 1e-4) * (2 * xy + 9e-4) / ((x * x + y * y + 1e-4) * (xx + yy + 9e-4))
