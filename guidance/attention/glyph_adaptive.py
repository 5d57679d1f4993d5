"""Glyph-adaptive mutual self-attention (TextCtrl)."""
from __future__ import annotations

from typing import Any

import torch

from ..frozen import frozen
from ..method import BadInput, Edit, Finish, param, socket, window
from . import sharing
from .mutual import MutualKeys
from .sources import NOISES

_, _end = window("the source is seen")


def cropped(pictures, mask):
    """The part of pictures [n, 3, h, w] around what a MASK marks; all of it without one."""
    if mask is None:
        return pictures
    marked = mask.reshape(-1, *mask.shape[-2:]).amax(0) >= 0.5
    rows, columns = marked.any(1).nonzero().flatten(), marked.any(0).nonzero().flatten()
    if not len(rows):
        return pictures
    (h, w), (high, wide) = marked.shape, pictures.shape[-2:]
    top, bottom, left, right = int(rows[0]) * high // h, -(-(int(rows[-1]) + 1) * high // h), int(columns[0]) * wide // w, -(-(int(columns[-1]) + 1) * wide // w)
    return pictures[:, :, top:bottom, left:right]


@frozen
class GlyphAdaptiveAttention(Edit, Finish):
    """Mutual self-attention whose strength follows how legible the wanted text already is: the style of a source picture, the letters of the prompt.

        K <- alpha K_s + (1 - alpha) K,  V <- alpha V_s + (1 - alpha) V        from start_percent on, in the decoder's second half
        alpha = mean over positions of cos(p, t)                               p: the recogniser's class probabilities of the clean estimate, t: the wanted character, one-hot

    alpha is measured every `every` steps, for each picture of the batch alone; before the first measurement nothing is mixed. Positions behind the text's end count too,
    as in the paper. The mask says where the text is; that part is read as one line. The source is the trajectory of an inversion or a latent.
    The authors read the decoded noisy latent; here the clean estimate is read.

    Needs a text recogniser (Load Text Recogniser: ABINet's vision weights) and the VAE.
    Defaults: from 48 % (step 24 of 50) on, every 5 steps, the paper's layers (SD1.5 output.6-11; others as Mutual Self-Attention); CFG 2.
    Limits: letters a to z and digits, one line; the paper's glyph and style encoders are trained and not part of this. Paper: Zeng et al., arXiv 2410.10133.
    Cost: as Mutual Self-Attention; every 5 steps a decoding and a reading.
    """

    node_id = "LodestarGlyphAdaptiveAttention"
    title = "Glyph-Adaptive Attention"
    family = "attention"
    paper = "TextCtrl"
    aliases = ("scene text editing", "GaMuSA", "mutual self-attention")
    evaluations = "2 (1 with negative_rows same or off)"
    planar = True
    stateful = True

    recogniser: Any = socket("LODESTAR_RECOGNISER", "Reads the text: from Load Text Recogniser.")
    vae: Any = socket("VAE", "Decodes the estimate that is read.")
    text: str = param("", "The text that is to appear; one line for each picture of the batch, or one for all.")
    scale: float = param(1.0, "Factor on the measured alpha; 0 switches the node off.", 0.0, 2.0, 0.05)
    layers: str = param("", "Layers whose keys and values are mixed; empty: the second half of the decoder.")
    start_percent: float = param(0.48, "Start of the window in which the source is seen.", 0.0, 1.0, 0.001)
    end_percent: float = _end
    reference: Any = socket("LATENT", "The source as an encoded picture of the size that is sampled.", optional=True)
    trajectory: Any = socket("LODESTAR_TRAJECTORY", "The source as the trajectory of an inversion, in place of a latent.", optional=True)
    reference_prompt: Any = socket("CONDITIONING", "Describes the source; without it the positive prompt is used for it.", optional=True)
    mask: Any = socket("MASK", "Where the text is; without it the whole picture is read.", optional=True)
    every: int = param(5, "Steps between two readings.", 1, 100, 1, advanced=True)
    noise: str = param("shared", "Noise of the latent: shared with the picture's, or own.", choices=NOISES, advanced=True)
    negative_rows: str = param("own", "The negative prompt's rows: own: look at the source under the negative prompt (paper); same: at the same one; off: left alone.",
                               choices=sharing.NEGATIVE_ROWS, advanced=True)

    decoder = None

    def neutral(self):
        return self.scale == 0

    def validate(self):
        super().validate()
        if self.neutral():
            return self
        if sharing.source(self) is None:
            raise BadInput(self.title, "reference", None, "Connect a latent or a trajectory.")
        if not self.lines:
            raise BadInput(self.title, "text", self.text, "Write the text that is to appear.")
        for line in self.lines:
            try:
                self.recogniser.labels(line)
            except ValueError as error:
                raise BadInput(self.title, "text", line, f"This recogniser has {self.recogniser.reader.characters!r}: {error}.") from error
        return self

    @property
    def lines(self):
        return [line.strip() for line in self.text.splitlines() if line.strip()]

    def fitted(self, facts):
        import dataclasses
        made = dataclasses.replace(self)
        object.__setattr__(made, "decoder", facts.decoder(self.vae))
        return made

    def active(self, step):
        return step.inside(0.0, self.end_percent)      # it is read before the window too

    def edits(self, step, state):
        alpha = state.get("alpha")
        if alpha is None or not step.inside(self.start_percent, self.end_percent):
            return ()
        return sharing.edits_of(self, lambda branch, reach: MutualKeys(self.layers, branch, reach, alpha), sharing.source(self))

    def finish(self, step, denoised, predictions, state):
        if step.call == 0 and (step.index + 1) % self.every == 0:
            lines = self.lines
            if len(lines) not in (1, denoised.shape[0]):
                raise BadInput(self.title, "text", f"{len(lines)} lines", f"The batch has {denoised.shape[0]} pictures: write one line for all, or one for each.")
            with torch.no_grad():
                pictures = cropped(self.decoder(denoised.detach()), self.mask)
            frames = pictures.shape[0] // denoised.shape[0]      # of a video, each is read
            texts = [line for line in lines * (denoised.shape[0] // len(lines)) for _ in range(frames)]
            score = self.recogniser(pictures, texts).view(denoised.shape[0], frames).mean(1)
            state["alpha"] = tuple(round(min(1.0, self.scale * max(0.0, float(a))), 6) for a in score)
        return denoised
