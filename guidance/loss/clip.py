"""Pictures that an image-text encoder finds like a text or like another picture."""
from __future__ import annotations

from typing import Any

import torch

from ..frozen import frozen
from ..method import BadInput, param, socket
from .encoder import SeveralLoss, embedding_of, unit

MODES = ("cosine", "spherical", "cross-entropy")
INVERSE_TEMPERATURE = 100.0      # of CLIP's softmax


def distance(e, t, mode="cosine"):
    """[...] from unit vectors e, t [..., d]: 1 - e t, or 2 arcsin(|e - t| / 2)^2, half the squared angle over 2."""
    like = (e * t).sum(-1)
    if mode == "cosine":
        return 1 - like
    return 2 * ((2 - 2 * like).clamp(1e-12, 4 - 1e-5).sqrt() / 2).asin().square()


def lines_of(text):
    """The lines of a text, without empty ones."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def fitting(texts, width, node):
    """Texts [p, width] for embeddings of that width: of CLIP-L and CLIP-G together (768 + 1280) the part that fits."""
    parts = {768: slice(0, 768), 1280: slice(768, 2048)}
    if texts.shape[1] == 2048 and width in parts:
        return texts[:, parts[width]]
    if texts.shape[1] != width:
        raise BadInput(node, "clip", f"texts of width {texts.shape[1]}", f"The image encoder's embeddings have width {width}: text and image encoder must be of one CLIP. (clip_l with ViT-L: 768; clip_g with ViT-bigG: 1280.)")
    return texts


@frozen(eq=False)
class CLIPText(SeveralLoss):
    """How far the picture is from a text, by an encoder of pictures and texts: CLIP guidance.

        e = E(u) / |E(u)|,   t_k = T(text_k) / |T(text_k)|
        cosine:         1 - e t                                     GLIDE's guidance on a clean picture (its gradient is that of e t)
        spherical:      2 arcsin(|e - t| / 2)^2
        cross-entropy:  -log sum_{k wanted} exp(100 e t_k) / sum_{k wanted or other} exp(100 e t_k)

    E: the image encoder on the whole picture squeezed to its size, on the box around the mask, or on random cutouts whose values are averaged. Text and image encoder must be of one CLIP: clip_l with ViT-L,
    clip_g with ViT-bigG. The text encoder of an SD 1.5 checkpoint has lost its projection and is refused.
    Paper: Nichol et al., "GLIDE", arXiv 2112.10741, section 2.3; there with a CLIP trained on noisy pictures, here the clean CLIP sees the clean estimate. Spherical loss, cutouts and their sizes: the community's
    CLIP-guided pipelines and DOODL's released code (16 cutouts, power 0.3). Their blend of estimate and noisy state is left out: a gradient through the network serves the same end.
    Limits: encoders are easily fooled; small scales, cutouts and gradients through the network (route network) keep the picture natural.
    Cost: decoding and encoding with their backward passes; cutouts: times their number for the encoder.
    """

    node_id = "LodestarCLIPTextLoss"
    title = "CLIP Text Loss"
    paper = "GLIDE (CLIP guidance, CFG)"
    aliases = ("CLIP guidance", "text similarity")

    clip_vision: Any = socket("CLIP_VISION", "The image encoder.")
    mode: str = param("cosine", "cosine: by the angle's cosine; spherical: by the squared angle, which pulls harder from far away; cross-entropy: more like this text than like the others.", choices=MODES)
    texts: Any = None       # [p, d]
    others: Any = None      # [q, d]

    def check(self):
        super().check()
        if self.mode == "cross-entropy" and (self.others is None or not len(self.others)):
            raise BadInput(self.title, "other_text", "", "Cross-entropy needs texts that the picture is not to look like, one a line.")
        return self

    def measure(self, u, m, context):
        e = self.embeddings(self.clip_vision, u, m, context)
        return self.compared(e, u).mean(0)

    def compared(self, e, u):
        """[views, n] of unit embeddings [views, n, d]."""
        t = unit(fitting(self.texts, e.shape[-1], self.title)).to(e)
        wanted = self.among(t, u, "text")
        if self.mode != "cross-entropy":
            return distance(e[:, :, None], wanted, self.mode).mean(-1)
        others = unit(fitting(self.others, e.shape[-1], self.title)).to(e)
        good, bad = (INVERSE_TEMPERATURE * (e[:, :, None] * k).sum(-1) for k in (wanted, others))
        return torch.cat((good, bad), -1).logsumexp(-1) - good.logsumexp(-1)


IMAGE_MODES = ("picture", "direction")


@frozen(eq=False)
class CLIPImage(SeveralLoss):
    """How far the picture is from given ones, or how far its change from a source is from the change between two texts, by an image encoder.

        e = E(u) / |E(u)|
        picture:    mean over the given pictures y_k of  1 - e E(y_k) / |E(y_k)|
        direction:  1 - cos( e - e_source,  t - t_source )         e_source: of the picture before, t and t_source: of the texts after and before

    direction is the directional loss of StyleGAN-NADA (Gal et al., arXiv 2108.00946): what differs from the source is to be what differs between the texts, so everything else may stay; with one source for
    all, or one for each picture of the batch. Where the picture still is the source it has no gradient: begin a little away from it, from noise for example.
    The image term of Semantic Diffusion Guidance (arXiv 2112.05744) is `picture` with a clean encoder; there the given picture is noised to the step's level.
    Cost: decoding and encoding with their backward passes.
    """

    node_id = "LodestarCLIPImageLoss"
    title = "CLIP Image Loss"
    paper = "More Control for Free: Semantic Diffusion Guidance (SDG)"
    aliases = ("image similarity", "directional CLIP loss", "StyleGAN-NADA")

    clip_vision: Any = socket("CLIP_VISION", "The image encoder.")
    image: Any = socket("IMAGE", "picture: what is to be come close to, one or several. direction: the picture before the change, one or one for each picture of the batch.")
    mode: str = param("picture", "picture: like the given one; direction: changed from the given one as the text changed.", choices=IMAGE_MODES)
    image_mask: Any = socket("MASK", "The part of the given picture that counts: the box around it is what the encoder sees.", optional=True)
    texts: Any = None       # [2, d]: after and before

    def check(self):
        super().check()
        if self.mode == "direction" and (self.texts is None or len(self.texts) != 2):
            raise BadInput(self.title, "text", "", "A direction needs a CLIP and two texts: what the picture is to become, and what it was.")
        return self

    def measure(self, u, m, context):
        e = self.embeddings(self.clip_vision, u, m, context)
        y = unit(embedding_of(self.reference("image", self.clip_vision, self.target, u, mask=self.image_mask), self.title)).to(e)
        if self.mode == "picture":
            return distance(e[:, :, None], self.among(y, u, "image")).mean((0, 2))
        t = unit(fitting(self.texts, e.shape[-1], self.title)).to(e)
        along = unit(t[:1] - t[1:])
        moved = e - self._each(y, u, "image")[None]
        size = moved.square().sum(-1).clamp(min=1e-12).sqrt()
        return (1 - (moved * along).sum(-1) / size).mean(0)
