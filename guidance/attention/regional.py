"""Regional prompts: a prompt for each part of the picture."""
from __future__ import annotations

from typing import Any

import torch

from ..frozen import frozen
from ..method import Edit, param, socket, window
from .edits import AttentionEdit
from .regions import Regions

_start, _end = window()


def shares(regions, base_ratio, maps):
    """[1 + regions, tokens]: how much each token of the picture takes from the base prompt and from each region's; sums to 1.

    w_r = (1 - base_ratio) m_r / max(1, sum m), m_r the region's coverage of the cell (maps [regions, tokens]) times its weight; the base prompt takes the rest.
    """
    m = maps * torch.tensor([r.weight for r in regions], dtype=torch.float32, device=maps.device)[:, None]
    own = (1 - base_ratio) * m / m.sum(0, keepdim=True).clamp(min=1.0)
    return torch.cat((1 - own.sum(0, keepdim=True), own)).clamp(min=0)


@frozen
class RegionalAttention(AttentionEdit):
    """The edit: the picture's tokens attend to the texts of their regions, in shares.

    Cross attention: the outputs of one attention for each text are mixed. Joint attention: one softmax over all texts and the picture, in which a text
    whose share is w counts w times (log w on its logits); a region's own text sees itself and its region, the base prompt everything but the regions' texts.
    """

    regions: Any = None
    base_ratio: float = 0.2
    texts: tuple = ()

    kinds = ("cross", "joint")
    title = "Regional Prompts"

    def default_layers(self, geometry):
        return "all"

    def mixture(self, site, device, tokens):
        """Shares [1 + texts, tokens] of the base prompt and each text of `texts`, and for each whether anybody takes from it."""
        def make():
            w = shares(self.regions, self.base_ratio, self.regions.at(site, tokens=tokens))
            by_text = torch.zeros(len(self.texts), w.shape[1])
            by_text.index_add_(0, torch.tensor([self.texts.index(p) for p in self.regions.prompts]), w[1:])
            w = torch.cat((w[:1], by_text))
            return w.to(device), tuple((w > 0).any(1).tolist())
        return self.regions.cached(("shares", self.base_ratio, self.texts, site.height, site.width, site.frames, site.window, tokens, str(device)), make)

    def apply(self, site, q, k, v, attend):
        pairs = site.extra["texts"].get(self) if site.extra else None
        if pairs is None:
            return attend(q, k, v)
        w, used = self.mixture(site, q.device, q.shape[2])
        out = None
        for i, share in enumerate(w):
            if not used[i]:
                continue            # nobody takes from this text here
            part = share[:, None] * (site.extra["plain"](q, *pairs[i - 1]) if i else attend(q, k, v)).float()
            out = part if out is None else out + part
        return out.to(q.dtype)

    def bias(self, site, places, tokens, dtype, device):
        """What is added to the logits of a joint call of `tokens` tokens, [1, 1, tokens, tokens]; `places` are the slices of the texts among them."""
        image = site.image
        w, _ = self.mixture(site, device, image.stop - image.start)
        out = torch.zeros(tokens, tokens, device=device)
        for place in places:
            out[:, place] = -torch.inf
        registers = [i for i in range(site.text.start, site.text.stop) if not any(p.start <= i < p.stop for p in (site.prompt, *places))]
        out[image, site.prompt] = w[0].log()[:, None]
        out[registers, site.prompt] = w[0].mean().log()
        for place, share in zip(places, w[1:]):
            out[image, place] = share.log()[:, None]
            out[registers, place] = share.mean().log()      # tokens of the network's own read every text in its mean share
            out[place, site.prompt] = -torch.inf
            out[place, place] = 0.0
            out[place, image] = torch.where(share > 0, 0.0, -torch.inf)[None]
        return out.to(dtype)[None, None]


@frozen
class Separation(AttentionEdit):
    """The edit: parts of the picture that belong to different regions do not see each other; what lies in no region sees and is seen by all."""

    regions: Any = None

    def apply(self, site, q, k, v, attend):
        count = (site.image.stop if site.image.stop is not None else q.shape[2]) - (site.image.start or 0)
        m = self.regions.at(site, q.device, hard=True, tokens=count)
        together = (m.float().T @ m.float()) > 0
        free = ~m.any(0)
        closed = ~(together | free[:, None] | free[None, :])
        bias = torch.zeros(q.shape[2], k.shape[2], dtype=q.dtype, device=q.device)
        bias[site.image, site.image] = bias[site.image, site.image].masked_fill(closed, -torch.inf)
        return attend(q, k, v, bias[None, None])


@frozen
class RegionalPrompts(Edit):
    """Gives parts of the picture prompts of their own, inside attention: one evaluation, no seams between separate pictures.

    O = base_ratio O_b + (1 - base_ratio) sum_r w_r O_r,  w_r = m_r / max(1, sum m)
    O_r = attn(q, K_r, V_r) with the text of region r, O_b with the sampler's prompt; m_r = the region's share of the cell times its weight

    U-Nets, Wan, LTX, Cosmos: every text cross-attention (attention couple). Flux, Chroma, SD3, AuraFlow, Qwen-Image: the regions' texts stand behind the prompt in joint attention;
    a token of the picture counts each text as often as its share says, a region's text sees only itself and its region. Pixels in no region follow the
    sampler's prompt alone. The pooled text stays the sampler's. Only the positive prompt's rows are edited.
    `separate` names layers whose self-attention is closed between different regions until `separate_end`, which keeps things from leaking and makes harder borders.
    SpaText describes a scene in the same way, a free text for each mask, and shows it to a network that was trained for it (no weights are published); this is what a network without that
    training can be given. For a strength of its own for each text see Multi-Conditional CFG.
    Defaults: base_ratio 0.2 (attention couple packs), no separation.
    Limits: not on Lumina 2, Z-Image, Hunyuan Video and HiDream. With an area on the positive prompt, regions stay in place in the whole picture.
    Cost: one more cross-attention a region and layer; joint attention grows by the regions' texts and takes a mask (no flash kernel).
    """

    node_id = "LodestarRegionalPrompts"
    title = "Regional Prompts"
    family = "attention"
    paper = ("Dense Text-to-Image Generation with Attention Modulation, and attention couple / regional prompting as in public packs", "SpaText: Spatio-Textual Representation")
    aliases = ("attention couple", "regional prompting", "latent couple")
    evaluations = "0 (cross-attention: one more a region and layer; joint attention: longer text)"
    planar = True
    selectors = ("layers", "separate")

    regions: Any = socket("LODESTAR_REGIONS", "The regions, each with a prompt: from the node Prompt with Regions, or with conditionings of their own.")
    base_ratio: float = param(0.2, "How much of the sampler's prompt is mixed in inside the regions; 1 switches the node off.", 0.0, 1.0, 0.01)
    start_percent: float = _start
    end_percent: float = _end
    layers: str = param("all", "Layers whose attention to the text is edited, e.g. all, output, double.*.", advanced=True)
    separate: str = param("none", "Layers in which parts of the picture in different regions do not see each other, e.g. none, all, double.25%-75%.", advanced=True)
    separate_end: float = param(0.3, "End of that separation, as a fraction of the sampling schedule.", 0.0, 1.0, 0.01, advanced=True)

    def validate(self):
        super().validate()
        if isinstance(self.regions, Regions):
            self.regions.need(self.title, prompts=True)
        return self

    def neutral(self):
        return self.base_ratio == 1 and self.separate.strip() in ("", "none")

    @property
    def prompts(self):
        """The Prompts that the host has to make ready."""
        return tuple(dict.fromkeys(self.regions.prompts))

    def edits(self, step):
        found = ()
        if self.base_ratio < 1:
            found += (RegionalAttention(self.layers, self.regions, self.base_ratio, self.prompts),)
        if self.separate.strip() not in ("", "none") and step.inside(self.start_percent, self.separate_end):
            found += (Separation(self.separate, self.regions),)
        return found
