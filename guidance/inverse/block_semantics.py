"""Block-wise semantics and guidance (MegaSR): each block of the network looks at the degraded picture with the text's own attention, and maps of its edges, depth and segments enter the decoder."""
from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from ..attention.edits import AttentionEdit
from ..attention.module_edits import ModuleEdit
from ..frozen import frozen
from ..method import BadInput, Edit, Prompt, param, socket, window
from .degradation_lora import check_shapes
from .pixel_aware import decoder_layers, encoded

CELL = 8      # pixels of a cell of the encoders' finest maps
MAPS = {"edges": 1, "depth": 1, "segmentation": 3}      # channels
PARTS = ("semantics", "structure", "edges", "extract")
EXAMPLE = "blocks.input.1.gate"
_BLOCK = re.compile(r"^blocks\.(.+)\.(gate|levels)$")
_start, _end = window("the network looks at the picture")


@frozen(eq=False)
class BlockSemantics:
    """A file's tensors. blocks: {layer's name: {"gate": [1], "levels": [levels]}}; semantics, structure, edges: {key: tensor} of the three encoders; extract: of the network that makes the maps, or {}.
    Compared by identity."""

    blocks: Any
    semantics: Any
    structure: Any
    edges: Any
    extract: Any
    name: str = "block-wise semantics"

    def __deepcopy__(self, memo):
        return self

    @property
    def levels(self):
        return sum(k.startswith("leave.") and k.endswith(".weight") for k in self.semantics)

    @property
    def width(self):
        """Of the text's tokens."""
        return self.semantics["leave.0.weight"].shape[0]

    def shares(self, layer):
        """What a block adds of each level: its gate times the softmax of its own weights. [levels]"""
        w = self.blocks[layer]
        return w["gate"] * w["levels"].softmax(0)

    def tokens(self, pictures):
        """[tokens [n, cells, width]] of pictures [n, 3, h, w] in [0, 1] for each level, the coarsest first."""
        found = [f.flatten(2).transpose(1, 2) for f in encoded(self.semantics, F.pixel_unshuffle(pictures, CELL))]
        return [F.layer_norm(t, t.shape[-1:], self.semantics["norm.weight"], self.semantics["norm.bias"]) for t in found]

    def maps(self, pictures):
        """{name: [n, channels, h, w] in [0, 1]} that the file's own network finds in pictures."""
        w, z = self.extract, F.pixel_unshuffle(pictures, 4)
        z, i = F.conv2d(z, w["enter.weight"], w["enter.bias"], padding=1), 0
        while f"inner.{i}.weight" in w:
            z, i = z + F.conv2d(F.silu(z), w[f"inner.{i}.weight"], w[f"inner.{i}.bias"], padding=2 ** i, dilation=2 ** i), i + 1
        z = F.pixel_shuffle(F.conv2d(F.silu(z), w["leave.weight"], w["leave.bias"], padding=1), 2).sigmoid()
        z = F.interpolate(z, pictures.shape[-2:], mode="bilinear")
        return dict(zip(MAPS, z.split(tuple(MAPS.values()), 1)))

    def guides(self, maps):
        """What is added to each skip connection, in the order of execution: features of depth and segments, modulated by those of the edges."""
        unshuffled = lambda *names: F.pixel_unshuffle(torch.cat([maps[n] for n in names], 1), CELL)
        found = []
        for f, m in zip(encoded(self.structure, unshuffled("depth", "segmentation")), encoded(self.edges, unshuffled("edges"))):
            scale, shift = m.chunk(2, 1)
            found.append(f * (1 + scale) + shift)
        return found


@frozen(eq=False)
class Looked:
    """The weights for a model and pictures. texts: Prompts of the tokens of each level; guides: [[n, c, h, w]] of the skip connections; places: ((residual block, number), ...). Compared by identity."""

    weights: Any
    texts: tuple
    guides: tuple
    places: tuple

    def __deepcopy__(self, memo):
        return self


def parse(weights, node, field, name="block-wise semantics"):
    """A BlockSemantics of a file's tensors (as they are)."""
    def wrong(what):
        return BadInput(node, field, name, what)
    blocks, parts = {}, {p: {} for p in PARTS}
    for key, value in weights.items():
        found, (first, _, rest) = _BLOCK.match(key), key.partition(".")
        if found:
            blocks.setdefault(found[1], {})[found[2]] = value
        elif first in parts:
            parts[first][rest] = value
    if not blocks:
        raise wrong(f"It holds no block-wise semantics: keys like {EXAMPLE} are expected, it has {', '.join(list(weights)[:3]) or 'none'}.")
    for part, extra in (("semantics", ("norm.weight", "norm.bias")), ("structure", ()), ("edges", ())):
        missing = [k for k in ("enter.weight", "enter.bias", "leave.0.weight", *extra) if k not in parts[part]]
        if missing:
            raise wrong(f"It is not complete: {part}.{missing[0]} is missing.")
    if parts["extract"]:
        missing = [k for k in ("enter.weight", "enter.bias", "leave.weight", "leave.bias") if k not in parts["extract"]]
        if missing:
            raise wrong(f"It is not complete: extract.{missing[0]} is missing.")
    made = BlockSemantics(blocks, parts["semantics"], parts["structure"], parts["edges"], parts["extract"], name)
    for layer, w in blocks.items():
        if set(w) != {"gate", "levels"} or w["gate"].shape != (1,) or w["levels"].shape != (made.levels,):
            raise wrong(f"blocks.{layer} needs gate [1] and levels [{made.levels}], one for each level of the picture.")
    return made


@frozen
class SeesPicture(AttentionEdit):
    """The edit of the text's attention: the same queries look at the picture's tokens, through the network's own keys and values. texts: Prompts of each level; weights: a BlockSemantics."""

    texts: tuple = ()
    weights: Any = None
    strength: float = 1.0
    title: str = "Block-Wise Semantics"
    reach: str = "all"

    kinds = ("cross",)

    def default_layers(self, geometry):
        return "all"

    def apply(self, site, q, k, v, attend):
        pairs = site.extra["texts"].get(self) if site.extra else None
        out = attend(q, k, v)
        if pairs is None:
            return out
        shares = self.weights.shares(str(site.layer)).tolist()
        return out + self.strength * sum(share * site.extra["plain"](q, *pair) for share, pair in zip(shares, pairs))


@frozen
class Guided(ModuleEdit):
    """The edit of the skip connections. looked: a Looked."""

    looked: Any = None
    strength: float = 1.0
    title: str = "Block-Wise Semantics"
    reach: str = "all"

    everywhere = False

    def names(self):
        return tuple(skip for skip, _ in self.looked.places)

    def enter(self, site, name, module, given):
        number = dict(self.looked.places)[name]
        found = site.keep((self.looked, number), lambda: self.looked.guides[number])
        found = found[site.entry % found.shape[0]]
        if found.shape[-2:] != given.shape[-2:]:
            found = F.interpolate(found, given.shape[-2:], mode="bilinear")
        kept = given.shape[1] - found.shape[1]
        return torch.cat((given[:, :kept], given[:, kept:] + (self.strength * found).to(given.dtype)), 1)

    def result(self, site, name, module, out, given):
        return out


def pictures_of(node, field, image, size=None, channels=3, count=None):
    """[n, channels, h, w] of an IMAGE, its sides brought to `size` or to multiples of CELL; of one channel: the mean of the colours."""
    if not isinstance(image, torch.Tensor) or image.ndim != 4 or image.shape[-1] < 3 or not len(image):
        raise BadInput(node, field, type(image).__name__ if not isinstance(image, torch.Tensor) else list(image.shape), "A picture with three colours is wanted.")
    found = image[..., :3].movedim(-1, 1).to("cpu", torch.float32)
    size = size or tuple(max(CELL, round(s / CELL) * CELL) for s in found.shape[-2:])
    if tuple(found.shape[-2:]) != size:
        found = F.interpolate(found, size, mode="bilinear", antialias=True)
    if channels == 1:
        found = found.mean(1, keepdim=True)
    return found if count is None else found[torch.arange(count) % len(found)]


@frozen
class BlockWiseSemantics(Edit):
    """Restores a picture while sampling: every block of the U-Net looks at the degraded picture beside the text, at the level of detail that suits the block, and maps of edges, depth and segments
    enter the decoder.

        out_b = attn(Q, K text, V text) + semantics g_b sum_l softmax(a_b)_l attn(Q, K s_l, V s_l)          in block b: its own gate g_b and weights a_b of the levels l
        skip_i <- skip_i + guidance (f_i (1 + c_i) + d_i)                                                    f = structure(depth, segmentation), (c, d) = edges(edges)

    s_l: the degraded picture's features as tokens of the text's width, coarse to fine; Q, K, V are the block's own text attention's (the picture's branch has no projections of its own), the gates begin at 0.
    The maps enter in two stages: what depth and segmentation say is modulated by what the edges say, and that is added to the decoder's skip connections. Maps are pictures (from any preprocessor);
    those that are not connected the file's own network finds in the degraded picture, as in the paper, whose extractors are tuned to degraded pictures.
    Weights: Load Block-Wise Semantics. Prompt and start as for Pixel-Aware Attention: Restoration Start.

    Paper: Li et al., "MegaSR: Mining Customized Semantics and Expressive Guidance for Image Super-Resolution", arXiv 2503.08096. The authors released neither code nor weights. Verified in what could be read of the
    paper (its abstracts): semantics of the picture beside the text's, mixed anew in each block by learned gates; HED edges, depth and segmentation as the guidance, fused in two stages. Unverified: that the
    picture's branch shares the text's projections, and the order of the two stages. Ours: the levels and their softmax, that the encoders are convolutions, all widths, where the guidance enters, the file's layout.
    Default: both strengths 1. Identities: semantics and guidance 0, or a file as before its training, leave every bit; a batch is its pictures. Limits: U-Nets (the file names their layers), pictures.
    Cost: one more attention to the text for each level and layer; the encoders run once.
    """

    node_id = "LodestarBlockWiseSemantics"
    title = "Block-Wise Semantics"
    family = "inverse"
    paper = "MegaSR: Mining Customized Semantics and Expressive Guidance for Image Super-Resolution, arXiv 2503.08096"
    aliases = ("MegaSR", "super-resolution", "restoration", "upscale", "customized semantics", "expressive guidance")
    evaluations = "0"
    planar = True

    weights: Any = socket("LODESTAR_BLOCK_SEMANTICS", "From Load Block-Wise Semantics.")
    image: Any = socket("IMAGE", "The degraded picture, at the size that is sampled.")
    semantics: float = param(1.0, "Factor on what the blocks see of the picture.", 0.0, 2.0, 0.05)
    guidance: float = param(1.0, "Factor on what the maps add to the decoder.", 0.0, 2.0, 0.05)
    edges: Any = socket("IMAGE", "Its edges (HED or the like), white on black; without it the file's own network finds them.", optional=True)
    depth: Any = socket("IMAGE", "Its depth, near bright; without it the file's own network finds it.", optional=True)
    segmentation: Any = socket("IMAGE", "Its segments, in the colours that the file was trained with; without it the file's own network finds them.", optional=True)
    start_percent: float = _start
    end_percent: float = _end
    negative_rows: str = param("same", "The negative prompt's rows: same: they look at the picture too; off: they do not, so that CFG strengthens it.", choices=("same", "off"), advanced=True)

    def neutral(self):
        return self.semantics == 0 and self.guidance == 0

    def fitted(self, facts):
        if not isinstance(self.weights, BlockSemantics):
            raise BadInput(self.title, "weights", None, "Connect Load Block-Wise Semantics.")
        weights, lookup = self.weights, facts.module_shapes
        if lookup is None:
            check_shapes(self.title, "weights", weights.name, facts, {})
        widths = facts.attention_widths
        strange = [layer for layer in weights.blocks if widths.get(layer, (0, None))[1] != weights.width]
        if strange:
            raise BadInput(self.title, "weights", weights.name, f"It was made for another model: block {strange[0]} attends to text of width {weights.width}, {facts.network} has no such block.")
        places, before = [], (lookup("mid_block.resnets.1.conv2") or (0,))[0]
        for _, skip, _, number in decoder_layers(lookup):
            seen = lookup(f"{skip}.conv1")[1] - before
            for part, times in (("structure", 1), ("edges", 2)):
                made = getattr(weights, part).get(f"leave.{number}.weight")
                if made is None or made.shape[0] != times * seen:
                    raise BadInput(self.title, "weights", weights.name, f"It was made for another model: {part}.leave.{number} should make {times * seen} channels for {skip}.")
            places, before = [*places, (skip, number)], lookup(f"{skip}.conv2")[0]
        with torch.inference_mode(False), torch.no_grad():
            return replace(self, weights=self._looked(tuple(places)))

    def _looked(self, places):
        w = as_floats(self.weights)
        pictures = pictures_of(self.title, "image", self.image).clone()
        given = {name: getattr(self, name) for name in MAPS if getattr(self, name) is not None}
        if len(given) < len(MAPS) and not w.extract:
            name = next(n for n in MAPS if n not in given)
            raise BadInput(self.title, name, "nothing", f"This file ({w.name}) has no network that finds it: connect a picture of it.")
        maps = w.maps(pictures) if w.extract else {}
        for name, image in given.items():
            maps[name] = pictures_of(self.title, name, image, tuple(pictures.shape[-2:]), MAPS[name], len(pictures)).clone()
        texts = tuple(Prompt([[t, {}]], f"level {i} of {self.title}") for i, t in enumerate(w.tokens(pictures)))
        return Looked(w, texts, tuple(w.guides(maps)), places)

    def edits(self, step):
        looked, reach = self.weights, "all" if self.negative_rows == "same" else "positive"
        found = (SeesPicture(",".join(looked.weights.blocks), looked.texts, looked.weights, self.semantics, self.title, reach),) if self.semantics else ()
        return (*found, Guided("", looked, self.guidance, self.title, reach)) if self.guidance else found


def as_floats(weights):
    """A BlockSemantics in float32 on the CPU."""
    floats = lambda found: {k: v.to("cpu", torch.float32).clone() for k, v in found.items()}
    return BlockSemantics({layer: floats(w) for layer, w in weights.blocks.items()}, *(floats(getattr(weights, p)) for p in PARTS), weights.name)
