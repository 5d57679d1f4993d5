"""What losses that look through an image encoder have in common: what the encoder is given, layers by number, one encoding a step for all.

An encoder is anything with
    see(pictures [n, 3, h, w] in about [0, 1], layers) -> Seen      differentiable
    side        the size that it wants, 0 for any
    layers      the numbers of its hidden layers; 0, where it has one, is what goes into the first
    style_layers, feature_layers      those that are taken where none are named
    key         equal for encoders that see the same
guidance.host.vision makes one of a CLIP_VISION, guidance.loss.networks one of a weight file.
"""
from __future__ import annotations

from dataclasses import field
from typing import Any

import torch
import torch.nn.functional as F

from ..frozen import frozen
from ..method import BadInput, Method, param
from .picture import PictureLoss


@frozen
class Seen:
    """embedding [n, d], not of unit length, or None; maps {layer: [n, c, h, w]}."""

    embedding: Any = None
    maps: dict = field(default_factory=dict)


def unit(e):
    """Embeddings of unit length."""
    return F.normalize(e.float(), dim=-1, eps=1e-8)


def numbers(text, encoder, node, default, name="layers"):
    """The layers that a text names, "2, -1": negative ones from the end; `default` where it is empty. BadInput for what the encoder has not."""
    words = text.replace(",", " ").split()
    if not words:
        return tuple(default)
    known = tuple(encoder.layers)
    try:
        wanted = tuple(known[int(w)] if int(w) < 0 else int(w) for w in words)
    except (ValueError, IndexError):
        wanted = (None,)
    if any(w not in known for w in wanted):
        raise BadInput(node, name, text, f"Write numbers of layers, separated by commas; this encoder has {known[0]} to {known[-1]}, -1 is the last." if len(known) > 8
                       else f"Write numbers of layers, separated by commas; this encoder has {', '.join(map(str, known))}, -1 is the last.")
    return wanted


def sized(u, side):
    """Pictures squeezed or stretched to side x side, as the encoders' own preparation does it; left alone for 0."""
    return u if not side or u.shape[-2:] == (side, side) else F.interpolate(u, (side, side), mode="bicubic", antialias=True)


def framed(u, m, side):
    """What an encoder is given of pictures u [n, 3, h, w] under masks m [n, 1, h, w]: the box around what is marked, with a gradient there only; all where nothing is left out."""
    if bool((m >= 1).all()):
        return sized(u, side)
    u = m * u + (1 - m) * u.detach()
    boxes = [_box(each[0] > 0) for each in m]
    if len(set(boxes)) == 1:
        top, bottom, left, right = boxes[0]
        return sized(u[..., top:bottom, left:right], side)
    side = side or max(max(b - t, r - l) for t, b, l, r in boxes)
    return torch.cat([sized(u[i:i + 1, :, t:b, l:r], side) for i, (t, b, l, r) in enumerate(boxes)])


def _box(marked):
    rows, columns = marked.any(1).nonzero().flatten().tolist(), marked.any(0).nonzero().flatten().tolist()
    if not rows:
        return 0, marked.shape[0], 0, marked.shape[1]
    return rows[0], rows[-1] + 1, columns[0], columns[-1] + 1


def cutouts(u, count, power, least, side, seed):
    """`count` random squares of pictures u, [count n, 3, side, side]: the same places in every picture, by seed. Sides U^power (largest - least) + least, U uniform."""
    h, w = u.shape[-2:]
    largest, generator = min(h, w), torch.Generator().manual_seed(seed)
    least, parts = min(least or largest, largest), []
    for draw in torch.rand(count, 3, generator=generator):
        size = max(1, int(float(draw[0]) ** power * (largest - least) + least))
        top, left = int(float(draw[1]) * (h - size + 1)), int(float(draw[2]) * (w - size + 1))
        parts.append(F.adaptive_avg_pool2d(u[..., top:top + size, left:left + size], side or least))
    return torch.cat(parts)


@frozen(eq=False)
class EncoderLoss(PictureLoss, Method):
    """Base of losses that look through an encoder. Values of a video's frames are averaged; a mask is the box that the encoder sees, and where the picture may change."""

    own_node = True
    family = "loss"
    spaces = ("rgb", "small")
    evaluations = "0 (a backward pass through decoder and encoder; with route network also through the active branches: about 2 more)"

    known: dict = field(default_factory=dict, repr=False)      # what was found out about the references, once

    def active(self, step):
        return self.weight != 0 and super().active(step)

    def check(self):
        self.validate()
        return super().check()

    def seen(self, encoder, u, m, context, layers=()):
        """What the encoder sees of pictures u under masks m; once a step for all losses that ask alike."""
        mask = None if self.mask is None else id(self.mask)
        return context.once(("seen", encoder.key, layers, mask), u, lambda: encoder.see(framed(u.float(), m.float(), encoder.side), layers))

    def reference(self, name, encoder, pictures, like, layers=(), mask=None):
        """Seen of given pictures [n, 3, h, w], found once and brought to the device of `like`."""
        key = name, like.device, layers
        if key not in self.known:
            with torch.inference_mode(False), torch.no_grad():
                y = pictures.to(like.device, torch.float32)
                m = y.new_ones(y.shape[0], 1, *y.shape[-2:])
                if mask is not None:
                    m = F.interpolate(mask.to(m)[:, None], y.shape[-2:], mode="area").expand(y.shape[0], -1, -1, -1)
                self.known[key] = encoder.see(framed(y, m, encoder.side), layers)
        return self.known[key]


@frozen(eq=False)
class CutoutLoss(EncoderLoss):
    """Base of those that may look at random cutouts in place of the whole picture; their values are averaged."""

    cutouts: int = param(0, "Random squares of the picture that the encoder looks at in place of the whole, at each step others: fewer patterns that only the encoder sees. 0: the whole picture.",
                         0, 256, 1, advanced=True)
    cut_power: float = param(0.3, "How large they are: 0 as large as fits, 1 evenly from the encoder's size to that, more: mostly small.", 0.0, 10.0, 0.05, advanced=True)
    cut_seed: int = param(0, "Seed of their places.", 0, 2 ** 32 - 1, 1, advanced=True)

    def embeddings(self, encoder, u, m, context):
        """Unit embeddings [views, n, d] of the picture or of its cutouts."""
        if not self.cutouts:
            return unit(self.embedded(self.seen(encoder, u, m, context)))[None]
        key = "cutouts", encoder.key, self.cutouts, self.cut_power, self.cut_seed, None if self.mask is None else id(self.mask)
        seen = context.once(key, u, lambda: encoder.see(self.views(u, m, context, encoder.side), ()))
        return unit(self.embedded(seen)).unflatten(0, (self.cutouts, -1))

    def views(self, u, m, context, side):
        """The cutouts [cutouts n, 3, side, side] of pictures u under masks m at this step."""
        step = context.step
        seed = (self.cut_seed * 1_000_003 + (0 if step is None else 17 * step.index + step.call)) % 2 ** 63
        return cutouts(framed(u.float(), m.float(), 0), self.cutouts, self.cut_power, side, side, seed)

    def embedded(self, seen):
        return embedding_of(seen, self.title)


@frozen(eq=False)
class SeveralLoss(CutoutLoss):
    """Base of those that compare with several texts or pictures: all of them with every picture, or one with each."""

    each: bool = param(False, "Off: all texts or pictures given count for every picture of the batch. On: the first is for the first picture, and so on.", label="one for each picture", advanced=True)

    def among(self, t, u, name):
        """Given vectors [k, d] as [1, n or 1, k or 1, d], to be compared with [views, n, 1, d]."""
        return self._each(t, u, name)[None, :, None] if self.each else t[None, None]


def embedding_of(seen, node, field_name="clip_vision"):
    """The embedding; BadInput for an encoder that has none."""
    if seen.embedding is None:
        raise BadInput(node, field_name, "an encoder without an embedding", "Use one of the CLIP family (CLIP Vision Loader), which gives one vector for a picture.")
    return seen.embedding
