"""Masked subject attention: pictures of subjects enter the attention of the places where they are to be (MS-Diffusion, LOTS, regional IP-Adapter)."""
from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from ..frozen import frozen
from ..method import BadInput, Edit, Finish, param, socket, window
from .capture import text_weights
from .edits import AttentionEdit
from .image_adapter import Subjects

OUTSIDE = ("nothing", "background tokens")
_start, _end = window("the subjects are seen")


def stretched(maps):
    """Maps [rows, subjects, cells] from their least value (0) to their largest (1) over the cells."""
    low, high = maps.amin(-1, keepdim=True), maps.amax(-1, keepdim=True)
    return (maps - low) / (high - low + 1e-5)


def opened(places, lengths, background=0):
    """Bool [rows, cells, background + tokens]: which tokens a cell sees, of places bool [rows, subjects, cells]; cells of no subject see the background's, and without these everything (what
    they get is taken away again)."""
    subject = torch.repeat_interleave(places, torch.tensor(lengths, device=places.device), 1).transpose(1, 2)
    outside = ~places.any(1)[..., None]
    if background:
        return torch.cat((outside.expand(-1, -1, background), subject), -1)
    return subject | outside


@frozen(eq=False)
class Found:
    """What the text's attention says of the subjects' places: {(layer, height, width, frames): bool [batch, subjects, cells]}."""

    places: Any

    def __deepcopy__(self, memo):
        return self


@frozen
class SubjectKeys(AttentionEdit):
    """The edit: beside the text a place sees the tokens of the subjects that are to be there. found: places from the text's attention (None: those of the regions); listen: the maps are
    noted under the subjects in the step's maps; quiet: nothing is added (the first steps of a layout that is still to be found)."""

    subjects: Any = None
    scale: float = 0.6
    reach: str = "positive"
    outside: str = OUTSIDE[0]
    words: tuple = ()
    length: int = 0
    found: Any = None
    listen: bool = False
    quiet: bool = False

    kinds = ("cross",)

    def default_layers(self, geometry):
        return "all"

    def apply(self, site, q, k, v, attend):
        out = attend(q, k, v)
        if self.listen:
            self._listen(site, q, k)
        if self.quiet:
            return out
        empty = self.reach == "negative"
        background = self.outside == OUTSIDE[1] and not empty
        keys, values = self.subjects.pair(site.layer, q, empty, background)
        rows = q.shape[0]
        places = self._places(site, q)
        bias, keep = None, None
        if places is not None:
            count = len(self.subjects.adapter.background) if background else 0
            shown = opened(places, self.subjects.lengths, count)
            bias = torch.zeros(shown.shape, dtype=q.dtype, device=q.device).masked_fill(~shown, -torch.inf)[:, None]
            bias = bias if len(bias) == 1 else bias.repeat(rows // len(bias), 1, 1, 1)
            if not background:
                keep = places.any(1)[:, None, :, None].to(q.dtype)
                keep = keep if len(keep) == 1 else keep.repeat(rows // len(keep), 1, 1, 1)
        seen = F.scaled_dot_product_attention(q, keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), attn_mask=bias)
        return out + self.scale * (seen if keep is None else seen * keep)

    def _places(self, site, q):
        """Bool [1 or batch, subjects, cells] of a call, None where every place sees every subject."""
        if self.found is not None:
            key = str(site.layer), site.height, site.width, site.frames
            if key in self.found.places:
                return self.found.places[key].to(q.device)
        if all(s.region is None for s in self.subjects.items):
            return None
        regions = self.subjects.regions
        def make():
            soft, hard = regions.at(site, tokens=q.shape[2]), regions.at(site, hard=True, tokens=q.shape[2])
            boxes = torch.tensor([bool(r.boxes) for r in regions])[:, None]
            return torch.where(boxes, soft > 1e-6, hard)[None].to(q.device)      # a box takes every cell that it touches, as in the authors' code
        return regions.cached(("touched", site.height, site.width, site.frames, site.window, q.shape[2], str(q.device)), make)

    def _listen(self, site, q, k):
        """Adds this call's maps of the subjects' words, averaged over heads and tokens: {(layer, grid): [batch, subjects, cells]}."""
        if site.window != (0.0, 0.0, 1.0, 1.0) or q.shape[0] != site.batch or site.height is None:
            return      # several rows of a prompt (areas, frames): their places are those of the regions
        maps = site.step.maps.setdefault(self.subjects, {})
        with torch.no_grad():
            a = text_weights(site, q, k, (), self.length)
            found = torch.stack([a[..., list(tokens)].mean(-1) if tokens else a.new_zeros(a.shape[:-1]) for tokens in self.words], 1)
        maps[str(site.layer), site.height, site.width, site.frames] = found


@frozen
class MaskedSubjectAttention(Edit, Finish):
    """Shows the model pictures of things, each in its place: an image adapter's tokens are seen only by the cells where their subject is to be.

        out = attn(q, K, V) + scale m attn(q, K_s, V_s + mask)          in every attention to the text
        K_s, V_s = to_k_ip z, to_v_ip z          z: the tokens that the adapter's file makes of each subject's picture (and of its box and phrase), times its weight in V_s
        mask: a cell of subject r sees the tokens of r; of several, all of theirs;      m = 0 in cells of no subject

    One system for adapters with an attention of their own: IP-Adapter ("plus", "full") with a region for each picture, MS-Diffusion (a resampler that knows box and phrase), and LOTS, whose pairs of
    sketch and description each become compression tokens that the picture attends to in one softmax (several pairs are not averaged). Without regions every place sees every subject.
    The negative prompt's rows see the tokens of an empty picture, as in training (MS-Diffusion: nothing).
    Layout from the prompt: for the first `layout_steps` nothing is added; then a subject's place is where the text's attention to its words, averaged over steps, brought to [0, 1] in each
    layer, is above `layout_threshold`. It takes regions with words, through Prompt with Regions.

    Defaults: scale 0.6 (MS-Diffusion; 1 is IP-Adapter's and LOTS'), layout threshold 0.5 after 5 steps (paper's code). A box takes every cell that it touches. Places outside all boxes get nothing, as
    in the released code; "background tokens" gives them those that MS-Diffusion's files hold.
    Identities: scale 0; one subject everywhere is the ordinary adapter; changing one subject's picture changes nothing of what cells of other subjects see; the order of subjects does not matter.
    Limits: U-Nets, whose layers the files name. FaceID files (with a LoRA) are refused. Papers: Wang et al., arXiv 2406.07209; Girella et al., arXiv 2507.22627; Ye et al., arXiv 2308.06721.
    Cost: one more cross-attention a layer, with as many keys as the subjects have tokens; keys and values are made once a run.
    """

    node_id = "LodestarMaskedSubjectAttention"
    title = "Masked Subject Attention"
    family = "attention"
    paper = ("MS-Diffusion", "LOTS of Fashion")
    aliases = ("MS-Diffusion", "LOTS", "IP-Adapter", "regional IP-Adapter", "image prompt", "multi subject")
    evaluations = "0 (one more cross-attention a layer)"
    planar = True
    stateful = True

    subjects: Any = socket("LODESTAR_SUBJECTS", "The subjects, from Adapter Subject.")
    scale: float = param(0.6, "Strength of the subjects' pictures; 0 switches the node off.", 0.0, 5.0, 0.05)
    layout: str = param("regions", "Where the subjects are: in their regions, or where the prompt's words for them draw attention.", choices=("regions", "prompt"))
    start_percent: float = _start
    end_percent: float = _end
    outside: str = param("nothing", "What places of no subject see beside the text.", choices=OUTSIDE, advanced=True)
    layout_steps: int = param(5, "Layout from the prompt: after so many steps the places are taken.", 1, 1000, 1, advanced=True)
    layout_threshold: float = param(0.5, "Layout from the prompt: which share of the largest attention belongs to a subject.", 0.0, 1.0, 0.01, advanced=True)
    layers: str = param("all", "Layers that see the subjects, e.g. all, output.", advanced=True)

    def neutral(self):
        return self.scale == 0

    def validate(self):
        super().validate()
        if self.neutral() or not isinstance(self.subjects, Subjects):
            return self
        if self.layout == "prompt":
            for i, s in enumerate(self.subjects.items):
                if s.region is None or not s.region.tokens:
                    raise BadInput(self.title, "layout", f"prompt, subject {i + 1} without words", "Give each subject a Region with the words that name it, through Prompt with Regions.")
        if self.outside == OUTSIDE[1] and self.subjects.adapter.background is None:
            raise BadInput(self.title, "outside", self.outside, f"{self.subjects.adapter.name} holds no background tokens; choose {OUTSIDE[0]}.")
        return self

    def fitted(self, facts):
        if not isinstance(self.subjects, Subjects) or not self.subjects.items:
            raise BadInput(self.title, "subjects", None, "Connect Adapter Subject.")
        return replace(self, subjects=self.subjects.fitted(facts.geometry, self.title, facts.network))

    def edits(self, step, state):
        quiet = self.layout == "prompt" and state.get("steps", 0) < self.layout_steps
        if self.layout == "prompt" and not quiet and "found" not in state:
            state["found"] = Found({key: stretched(total) > self.layout_threshold for key, total in state.pop("maps", {}).items()})
        items, found = self.subjects.items, state.get("found")
        words = tuple(tuple(s.region.tokens) for s in items) if quiet else ()
        made = [SubjectKeys(self.layers, self.subjects, self.scale, "positive", self.outside, words, items[0].length, found, quiet, quiet)]
        if not quiet and self.subjects.tokens(empty=True) is not None:
            made.append(SubjectKeys(self.layers, self.subjects, self.scale, "negative", found=found))
        return tuple(made)

    def finish(self, step, denoised, predictions, state):
        if self.layout == "prompt" and "found" not in state:
            total = state.setdefault("maps", {})
            for key, value in step.maps.get(self.subjects, {}).items():
                total[key] = total[key] + value if key in total else value
            state["steps"] = state.get("steps", 0) + 1
        return denoised
