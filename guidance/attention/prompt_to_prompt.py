"""Prompt-to-Prompt: two prompts sampled side by side, the second with the attention of the first."""
from __future__ import annotations

import difflib
import re
from dataclasses import field, replace
from typing import Any

import torch
import torch.nn.functional as F

from ..frozen import frozen
from ..method import BadInput, Edit, Finish, param
from .dense import picture_part
from .edits import AttentionEdit
from .matrix import MatrixEdit
from .tokens import content

MODES = ("replace", "refine")
_LINE = re.compile(r"^(.*?)\s*[:=]\s*(-?\d+(?:\.\d+)?)\s*$")


def alignment(source, target, mode, node="Prompt-to-Prompt"):
    """(mapping [L, L], share [L]) of two prompts' tokens (guidance.attention.tokens.Words): the target's map of token j is sum_i A_source,i mapping_ij, as far as share_j says.

    Equal tokens belong together. replace: what differs is replaced one by one, or by equal parts where the numbers of tokens differ; tokens that come or go are an error. refine:
    tokens that the source has not keep the target's own map.
    """
    size = source.length
    mapping, share = torch.zeros(size, size), torch.zeros(size)
    for name, shift in source.places:
        a, b = source.streams[name], target.streams[name]
        (a0, a1), (b0, b1) = content(a, source.empties[name]), content(b, target.empties[name])
        pairs = [(i, i, 1.0) for i in range(min(a0, b0))]
        for kind, i1, i2, j1, j2 in difflib.SequenceMatcher(None, a[a0:a1], b[b0:b1], autojunk=False).get_opcodes():
            i1, i2, j1, j2 = a0 + i1, a0 + i2, b0 + j1, b0 + j2
            if kind == "equal" or (kind == "replace" and mode == "replace" and i2 - i1 == j2 - j1):
                pairs += [(i1 + n, j1 + n, 1.0) for n in range(i2 - i1)]
            elif mode == "replace":
                if kind != "replace":
                    raise BadInput(node, "mode", mode, "It exchanges words one by one, and here words come or go. Choose refine, or prompts with as many words.")
                pairs += [(i, j, 1.0 / (i2 - i1)) for i in range(i1, i2) for j in range(j1, j2)]
        end = len(b)
        pairs += [(min(a1 + n, len(a) - 1), b1 + n, 1.0) for n in range(end - b1)]      # end and padding
        for i, j, weight in pairs:
            if 0 <= i + shift < size and 0 <= j + shift < size:
                mapping[i + shift, j + shift] += weight
                share[j + shift] = 1.0
    total = mapping.sum(0, keepdim=True)
    return mapping / torch.where(total > 0, total, torch.ones_like(total)), share


def factors(text, words, node="Prompt-to-Prompt"):
    """[L] factors of the target's tokens from lines "phrase: factor"."""
    out = torch.ones(words.length)
    for line in text.replace(";", "\n").splitlines():
        if not line.strip():
            continue
        found = _LINE.match(line.strip())
        if found is None or not found.group(1):
            raise BadInput(node, "weights", line.strip(), "Write a phrase of the target and its factor, for example: red ball: 2.")
        out[list(words.find(found.group(1), "weights"))] = float(found.group(2))
    return out


@frozen(eq=False)
class Pair:
    """What two prompts have to do with each other. blend: the positions of the blended phrase in the source and in the target, or None."""

    mapping: Any
    share: Any
    factor: Any
    blend: tuple | None = None
    _cache: dict = field(default_factory=dict, repr=False)

    def __deepcopy__(self, memo):
        return self

    def on(self, device):
        if str(device) not in self._cache:
            self._cache[str(device)] = tuple(t.to(device) for t in (self.mapping, self.share, self.factor))
        return self._cache[str(device)]


def check_pairs(rows, node="Prompt-to-Prompt"):
    if rows % 2:
        raise ValueError(f"{node}: the batch has {rows} pictures. It samples source and target in pairs: connect its outputs `positive` and `latent` to the sampler.")


def mapped(source, target, pair):
    """The target's weights [..., L] with those of the source in their places, times the factors."""
    mapping, share, factor = pair.on(source.device)
    return (source @ mapping * share + target * (1 - share)) * factor


@frozen
class WordMaps(MatrixEdit):
    """The edit of attention to the text. swap: whether maps are taken over at this step; note: whether the blended phrase's maps are kept."""

    pair: Any = None
    swap: bool = True
    note: bool = False
    detail: int = 4
    mark: Any = None

    kinds = ("cross", "joint")

    def default_layers(self, geometry):
        return "all"

    def weights(self, site, a, part):
        check_pairs(site.batch)
        prompt, size = site.prompt, self.pair.mapping.shape[0]
        if prompt is None or (prompt.stop - prompt.start) % size:
            raise ValueError(f"Prompt-to-Prompt: the positive prompt does not have the {size} tokens of its two prompts. Connect its output `positive` to the sampler.")
        if self.note and self.pair.blend is not None and coarse(site, self.detail):
            self._keep(site, a, part)
        if not self.swap:
            return a
        if site.kind == "joint":
            rows, _ = picture_part(site, part, part.stop)
            if rows.stop == rows.start:
                return a
        else:
            rows = slice(0, a.shape[2])
        out = a.clone()
        words = a[:, :, rows, prompt].unflatten(-1, (-1, size))
        local = out[1::2, :, rows]
        local[..., prompt] = mapped(words[0::2], words[1::2], self.pair).flatten(-2)
        if site.kind == "joint":      # one softmax over words and picture: its sum stays
            local = local / local.sum(-1, keepdim=True).clamp(min=1e-12)
        out[1::2, :, rows] = local
        return out

    def _keep(self, site, a, part):
        """Adds this part's maps of the phrase to {layer: [rows, tokens]} of the step."""
        maps = site.step.maps.setdefault(self.pair, {})
        first = site.image.start or 0
        rows, which = picture_part(site, part, site.frames * site.height * site.width + first if site.kind == "joint" else part.stop)
        if rows.stop == rows.start:
            return
        grid = maps.setdefault((site.layer, site.height, site.width, site.frames), {"map": torch.zeros(a.shape[0], site.frames * site.height * site.width, device=a.device)})["map"]
        if grid.shape[0] != a.shape[0]:
            return      # another group of rows of the same prompt (a degraded branch)
        for turn, at in enumerate(self.pair.blend):
            at = [site.prompt.start + t for t in at]
            grid[turn::2, which] = a[turn::2][:, :, rows][..., at].sum(-1).mean(1)


def coarse(site, detail):
    """Whether a layer is `detail` times coarser than the latent; networks with one grid alone always are."""
    if site.layer is None or site.layer.stage not in ("input", "middle", "output") or site.step is None:
        return True
    high, wide = site.step.x.shape[-2:]
    return site.height * site.width * detail * detail <= high * wide * 1.01


@frozen
class PictureMaps(AttentionEdit):
    """The edit of the picture's attention to itself: the target's queries and keys are the source's, its values its own."""

    detail: int = 4

    kinds = ("self", "joint")

    def default_layers(self, geometry):
        return "all"

    def apply(self, site, q, k, v, attend):
        check_pairs(site.batch)
        if not coarse(site, self.detail):
            return attend(q, k, v)
        q, k = q.clone(), k.clone()
        q[1::2, :, site.image], k[1::2, :, site.image] = q[0::2, :, site.image], k[0::2, :, site.image]
        return attend(q, k, v)


@frozen
class PromptToPrompt(Edit, Finish):
    """Edits a picture by editing its prompt: source and target share their noise, and the target takes over the source's attention maps.

    attention to words, the first `cross_steps` of the schedule: A_t <- (A_s M) share + A_t (1 - share), times the factors of `weights`
    attention to itself, the first `self_steps`, layers at least `detail` times coarser than the latent: A_t <- A_s
    M maps source tokens to target tokens. replace: words exchanged one by one, in equal parts where their numbers of tokens differ; refine: common words keep their map, new ones
    have their own (share 0). Reweighting: the same prompt twice and `weights` such as "fluffy: 2".
    blend: D_t <- D_s + m (D_t - D_s) from `blend_start` on, m = the 3 x 3 largest of the phrase's mean map over steps and layers, divided by its maximum, above `blend_threshold`,
    of source and target together

    The latent's pictures come in pairs, source first; sampler nodes draw the same noise for both. D are clean estimates: outside m the last step gives the source's picture.
    Joint attention: the words' columns of the picture's rows are mapped and the rows brought back to a sum of 1 (own form, no published one); all layers count as coarse.
    Defaults: replace 0.8, self 0.4, blend threshold 0.3 from a fifth of the steps on (paper's code); detail 4 are its 16 x 16 grids of a 64 x 64 latent.
    Limits: samplers that add noise of their own (ancestral, SDE) draw it differently for the two; both prompts need the same number of encoded tokens.
    Cost: two pictures for one result; attention to words written out while it acts.
    """

    node_id = "LodestarPromptToPrompt"
    title = "Prompt-to-Prompt"
    family = "attention"
    paper = "Prompt-to-Prompt Image Editing with Cross Attention Control"
    aliases = ("P2P", "prompt editing", "attention replace", "reweight")
    evaluations = "as many again (source and target are sampled together)"

    source: str = param("", "The prompt of the picture that is edited.")
    target: str = param("", "The prompt of the edited picture.")
    mode: str = param("refine", "replace: words exchanged one by one. refine: words added or taken away, the common ones keep their places.", choices=MODES)
    cross_steps: float = param(0.8, "Share of the schedule in which the words' maps are taken over.", 0.0, 1.0, 0.01)
    self_steps: float = param(0.4, "Share of the schedule in which the picture's attention to itself is taken over; more keeps more of the shape.", 0.0, 1.0, 0.01)
    weights: str = param("", "Factors of words of the target, one per line: \"fluffy: 2\". Negative ones push away.")
    blend: str = param("", "A phrase that both prompts have, or \"cat | dog\" for source and target: only where it is does the picture change. Empty: everywhere.")
    blend_threshold: float = param(0.3, "From which share of its largest value on a cell belongs to the blended phrase.", 0.0, 1.0, 0.01, advanced=True)
    blend_start: float = param(0.2, "Start of the blending, as a share of the schedule.", 0.0, 1.0, 0.01, advanced=True)
    detail: int = param(4, "How much coarser than the latent a U-Net's layer is whose attention to itself is taken over, and whose maps are blended by.", 1, 64, 1, advanced=True)
    layers: str = param("all", "Layers whose attention is taken over, e.g. all, output, double.*.", advanced=True)
    pair: Any = None
    mark: Any = None

    def with_words(self, source, target, mark):
        """The method with the mapping of its prompts' tokens (guidance.attention.tokens.Words of each)."""
        if source.length != target.length:
            raise BadInput(self.title, "target", self.target, f"The prompts are encoded to {source.length} and {target.length} tokens; make them alike in length.")
        mapping, share = alignment(source, target, self.mode, self.title)
        blend = None
        if self.blend.strip():
            parts = [p.strip() for p in self.blend.split("|")]
            if len(parts) > 2 or not all(parts):
                raise BadInput(self.title, "blend", self.blend, "Write one phrase, or two with a | between: for the source and for the target.")
            blend = source.find(parts[0], "blend"), target.find(parts[-1], "blend")
        return replace(self, pair=Pair(mapping, share, factors(self.weights, target, self.title), blend), mark=mark)

    def neutral(self):
        return self.pair is None or (self.cross_steps == 0 and self.self_steps == 0 and self.pair.blend is None)

    def edits(self, step):
        swap = self.cross_steps > 0 and step.inside(0.0, self.cross_steps)
        note = self.pair.blend is not None
        found = (WordMaps(self.layers, self.pair, swap, note, self.detail, self.mark),) if swap or note else ()
        if self.self_steps > 0 and step.inside(0.0, self.self_steps):
            found += (PictureMaps(self.layers, self.detail),)
        return found

    def finish(self, step, denoised, predictions, state):
        if self.pair.blend is None:
            return denoised
        maps = step.maps.get(self.pair)
        if maps:
            self._collect(maps, denoised, state)
        if "sum" not in state or not step.inside(self.blend_start, 1.0):
            return denoised
        mask = self.mask(state["sum"] / state["count"]).to(denoised)
        out = denoised.clone()
        out[1::2] = denoised[0::2] + mask * (denoised[1::2] - denoised[0::2])
        return out

    def _collect(self, maps, denoised, state):
        """Adds the mean over layers of this call's maps, at the latent's size, [rows, 1, (frames,) height, width]."""
        sheets = []
        for (_, height, width, frames), found in maps.items():
            grid = F.max_pool2d(found["map"].view(-1, 1, height, width).float(), 3, 1, 1)
            sheets.append(F.interpolate(grid, denoised.shape[-2:], mode="nearest").view(-1, frames, 1, *denoised.shape[-2:]).transpose(1, 2))
        mean = torch.stack([s if denoised.ndim == 5 else s[:, :, 0] for s in sheets]).mean(0)[:denoised.shape[0]]
        state["sum"] = state.get("sum", 0) + mean
        state["count"] = state.get("count", 0) + 1

    def mask(self, mean):
        """Bool [pairs, 1, ...] of mean maps [rows, 1, ...]: where the phrase is, in the source or in the target."""
        axes = tuple(range(1, mean.ndim))
        share = mean / mean.amax(axes, keepdim=True).clamp(min=1e-12) > self.blend_threshold
        return share[0::2] | share[1::2]
