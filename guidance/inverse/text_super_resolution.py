"""TextSR: the lines of text in an enlarged picture are drawn anew by a diffusion model that is told what is written there."""
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from ..frozen import frozen
from ..method import BadInput, Method, param, socket
from .text_network import encode


def sample(network, low, lines, noise, steps, text=1.0, picture=1.0, check=lambda: None):
    """Lines [n, 3, h, w] in [-1, 1] from noise, by Euler steps of equal length from level 1 to 0; check() is called before each.

        v = v(0, 0) + picture (v(low, 0) - v(0, 0)) + text (v(low, lines) - v(low, 0))          0: no picture, no text
    """
    ids, at = encode(lines, network.length)
    none, nowhere = (t.to(low.device) for t in encode([""] * len(lines), network.length))
    ids, at, x = ids.to(low.device), at.to(low.device), noise
    for i in range(steps):
        check()
        level = torch.full((len(x),), 1 - i / steps, device=x.device)
        if text == picture == 1:      # the sum is its last part
            x = x - network(x, level, low, ids, at) / steps
            continue
        v = seen = network(x, level, low, none, nowhere)
        if picture != 1:
            blank = network(x, level, torch.zeros_like(low), none, nowhere)
            v = blank + picture * (v - blank)
        if text != 0:
            v = v + text * (network(x, level, low, ids, at) - seen)
        x = x - v / steps
    return x


def boxes_of(mask, size):
    """[(top, bottom, left, right)] in pixels of a picture of `size`: the smallest box around each of the masks [k, h, w]; None for an empty one."""
    found, (high, wide) = [], size
    for m in mask:
        rows, columns, (h, w) = (m >= 0.5).any(1).nonzero().flatten(), (m >= 0.5).any(0).nonzero().flatten(), m.shape
        found.append(None if not len(rows) else (int(rows[0]) * high // h, -(-(int(rows[-1]) + 1) * high // h), int(columns[0]) * wide // w, -(-(int(columns[-1]) + 1) * wide // w)))
    return found


def low_pass(x, sigma):
    """x [n, c, h, w] blurred by a Gaussian of sigma pixels, its border repeated."""
    if sigma <= 0:
        return x
    reach = max(1, int(3 * sigma + 0.5))
    line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device) / sigma) ** 2)
    line, c = line / line.sum(), x.shape[1]
    x = F.pad(x, (reach, reach, reach, reach), mode="replicate")
    x = F.conv2d(x, line.view(1, 1, 1, -1).expand(c, -1, -1, -1), groups=c)
    return F.conv2d(x, line.view(1, 1, -1, 1).expand(c, -1, -1, -1), groups=c)


@frozen(eq=False)
class TextSuperResolution(Method):
    """Makes the text in an enlarged picture legible: each line is cut out, drawn anew by a small diffusion model that sees it and is told its characters, and put back.

        L = R crop(u)                                                                       the line, brought to the model's size
        v = v(0, 0) + picture_scale (v(L, 0) - v(0, 0)) + text_scale (v(L, t) - v(L, 0))    every step, from noise; t: the text's bytes (UTF-8), 0: none
        u' = B u + (g - B g)   in the line's box                                            g: what was drawn; B: a blur of `blend` line heights (0: u' = g)

    u: the picture, enlarged by anything (an upscale model, bicubic). Where the text is a mask says, one for each line; what is written a text, one line for each mask, or a recogniser reads it: first in u, then, with more
    `rounds`, in what was drawn (iterative conditioning), because a line that is legible is read better. Without a text and a recogniser the model draws by the picture alone: plain super-resolution.

    Paper: Ye et al., "TextSR: Diffusion Super-Resolution with Multilingual OCR Guidance", arXiv 2505.23119; neither code nor weights are released. Verified in what could be read of it (abstract, reviews): lines cut
    out by a detector, the OCR's text as UTF-8 bytes through a text encoder and cross-attention, the low-resolution line beside the noise, guidance that weighs text and picture, readings in rounds, the blend of low and
    high frequencies. Unverified: the guidance's exact form (here that of two conditions, one after the other) and the blur's width. Ours: the small network in pixels (theirs is a latent diffusion with ByT5), that bytes carry their
    character's place in the line and cells how far they are from it, upright boxes in place of affine ones, flow matching in place of DDPM, no detector: masks.
    Defaults: 12 steps, both scales 1 (no extrapolation), 1 round. Identities: no mask, or text_scale 0 with another text, changes nothing; what is outside the boxes stays bit by bit; a picture does not depend on its batch.
    Limits: upright lines; the bundled network knows capital letters, small ones (drawn as capitals) and digits of one font, four or five of them in a line of 16 x 64 pixels. It runs where the picture is. Cost: a pass of
    the small network a step and line, up to 3 with other scales than 1, none of a diffusion model.
    """

    node_id = "LodestarTextSuperResolution"
    title = "Text Super-Resolution"
    family = "inverse"
    paper = "TextSR: Diffusion Super-Resolution with Multilingual OCR Guidance, arXiv 2505.23119"
    aliases = ("TextSR", "scene text", "OCR", "super-resolution", "upscale")
    planar = True

    mask: Any = socket("MASK", "Where the text is: one mask for each line (a batch of masks), the box around it is taken. The same for all pictures of a batch.")
    text: str = param("", "What is written, one line for each mask; an empty line, or no text at all: the recogniser's reading, and without one nothing is said.")
    network: Any = socket("LODESTAR_TEXT_NETWORK", "From Load Text Network; without one the small one that comes with the pack.", optional=True)
    recogniser: Any = socket("LODESTAR_RECOGNISER", "Reads lines for which no text is given: from Load Text Recogniser.", optional=True)
    steps: int = param(12, "Steps of the sampling.", 1, 200, 1)
    text_scale: float = param(1.0, "Weight of the text: 0 draws by the picture alone, above 1 trusts the text more than the picture.", 0.0, 10.0, 0.1)
    picture_scale: float = param(1.0, "Weight of the picture; above 1 keeps nearer to it, at one more pass a step.", 0.0, 10.0, 0.1, advanced=True)
    rounds: int = param(1, "Times that a line is drawn; before each further time it is read again, where the recogniser reads.", 1, 8, 1)
    blend: float = param(0.25, "Width of the blur, as a share of the line's height, below which colours are the given picture's; 0: all is as drawn.", 0.0, 2.0, 0.05, advanced=True)
    seed: int = param(0, "Of the noise.", 0, 2**32 - 1, 1)

    def lines(self, count):
        """The given text of each mask, "" where none is given."""
        found = [line.strip() for line in self.text.splitlines()] if self.text.strip() else []
        if len(found) > count:
            raise BadInput(self.title, "text", self.text, f"It has {len(found)} lines, there are {count} masks: a line for each.")
        return found + [""] * (count - len(found))

    def restored(self, pictures, check=lambda: None):
        """(pictures [n, 3, h, w] in [0, 1] with their lines drawn anew, [[the text that was used for each line] for each picture]); [n, 3, h, w] in [0, 1] come in; check() is called before each step."""
        if not isinstance(self.mask, torch.Tensor) or self.mask.ndim not in (2, 3):
            raise BadInput(self.title, "mask", type(self.mask).__name__, "A mask for each line of text is wanted.")
        boxes = boxes_of(self.mask.reshape(-1, *self.mask.shape[-2:]), pictures.shape[-2:])
        lines, out, used = self.lines(len(boxes)), pictures.clone(), []
        with torch.no_grad():
            for n in range(len(pictures)):
                used.append([])
                for k, box in enumerate(boxes):
                    if box is None:
                        used[n].append("")
                        continue
                    top, bottom, left, right = box
                    part = pictures[n:n + 1, :, top:bottom, left:right].float()
                    generator = torch.Generator().manual_seed((int(self.seed) + 1009 * k + n) % 2**63)      # a picture's noise does not depend on the batch
                    made, said = self._line(part, lines[k], generator, check)
                    used[n].append(said)
                    out[n, :, top:bottom, left:right] = made[0].to(out)
        return out, used

    def _line(self, part, said, generator, check):
        """(a line [1, 3, h, w] drawn anew, the text that was used)."""
        size, network = self.network.size, self.network.to(part.device)
        low = 2 * F.interpolate(part, size, mode="bilinear", antialias=True) - 1
        noise = torch.randn(1, 3, *size, generator=generator).to(low)
        reads = not said and self.recogniser is not None and self.text_scale != 0
        drawn = part
        for _ in range(self.rounds if reads else 1):
            said = self.recogniser.read(drawn)[0] if reads else said
            x = sample(network, low, [said], noise, self.steps, self.text_scale if said else 0.0, self.picture_scale, check)
            drawn = F.interpolate((x.clamp(-1, 1) + 1) / 2, part.shape[-2:], mode="bicubic", antialias=True).clamp(0, 1)
        sigma = self.blend * part.shape[-2]
        return (drawn if sigma == 0 else (low_pass(part, sigma) + drawn - low_pass(drawn, sigma)).clamp(0, 1)), said
