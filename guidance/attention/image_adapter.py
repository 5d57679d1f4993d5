"""Image adapters with an attention of their own beside the text's (decoupled cross-attention): their files, and subjects as the keys and values that pictures attend to.

Layout of a file: the projection of the image encoder's output, then keys and values for each cross-attention, N in the order of the attentions of diffusers' U-Nets (those of the encoder, the
decoder, the middle; self-attentions are counted and have no weights):

    image_proj.*                                            IP-Adapter, "plus", "full"; MS-Diffusion's grounded resampler
    ip_adapter.N.to_{k,v}_ip.weight [width, tokens' width]   (ms_adapter.N... in MS-Diffusion's files, cross_attn.N.to_{k,v}_lots.weight in those of LOTS)
    dummy_image_tokens [1, n, tokens' width]                 MS-Diffusion: what places outside all subjects see
    text_proj.*, pair_former.*                               LOTS: the description's projection and the pair former
"""
from __future__ import annotations

import re
from dataclasses import field
from typing import Any

import torch

from ..frozen import frozen
from ..method import BadInput
from . import adapter_tokens
from .regions import Region, Regions

WHOLE = Region(boxes=((0.0, 0.0, 1.0, 1.0),))
STAGES = ("input", "output", "middle")      # the order in which the files count the attentions
PARTS = ("image_proj", "text_proj", "pair_former")
_LAYER = re.compile(r"^(?:ip_adapter|ms_adapter|cross_attn)\.(\d+)\.to_([kv])_(?:ip|lots)\.weight$")
READS = {"embedding": "image_embeds", "full": "penultimate_hidden_states", "resampler": "penultimate_hidden_states", "grounded": "penultimate_hidden_states",
         "pairs": "last_hidden_state"}      # which output of the image encoder each kind takes
NEEDS = ("Files of image adapters have keys image_proj.* and ip_adapter.N.to_k_ip.weight (IP-Adapter), ms_adapter.N.to_k_ip.weight (MS-Diffusion) or "
         "cross_attn.N.to_k_lots.weight with text_proj.* and pair_former.* (LOTS).")


@frozen(eq=False)
class ImageAdapter:
    """kind: one of READS. parts: {"image_proj": {key: tensor}, ...} in float32; layers: ((to_k, to_v), ...) in the file's order; background: tokens [n, width] or None."""

    kind: str
    parts: Any
    layers: tuple
    background: Any = None
    name: str = "image adapter"

    def __deepcopy__(self, memo):
        return self

    @property
    def width(self):
        """Width of the tokens."""
        return self.layers[0][0].shape[1]

    @property
    def features(self):
        """Width of the image encoder's output."""
        w = self.parts["image_proj"]
        return w["proj_in.weight" if "proj_in.weight" in w else "proj.0.weight" if "proj.0.weight" in w else "proj.weight"].shape[1]

    @property
    def phrase(self):
        """Width of the pooled text that a subject may be named by; None where the file takes none."""
        if self.kind == "pairs":
            return self.parts["text_proj"]["proj.weight"].shape[1]
        if self.kind != "grounded":
            return None
        return self.parts["image_proj"]["latent_proj.0.weight"].shape[1] - 8 * adapter_tokens.FREQUENCIES

    def order(self, geometry, node, network):
        """{layer's name: its number in `layers`} of a U-Net; BadInput where the file is for another one."""
        found = [str(x) for stage in STAGES for x in geometry.layers if x.stage == stage and "cross" in x.attentions]
        if geometry.family != "unet":
            raise BadInput(node, "model", network, "Image adapters of this kind name the cross-attentions of U-Nets (SD1.5, SDXL); this network is of another kind.")
        if len(found) != len(self.layers):
            raise BadInput(node, "subjects", self.name, f"The file has weights for {len(self.layers)} cross-attentions, this model ({network}) has {len(found)}: it was made for another model.")
        return {name: i for i, name in enumerate(found)}


def parse(weights, node, name="the file"):
    """An ImageAdapter of a file's tensors; BadInput that names the key and what would be right."""
    wrong = lambda what: BadInput(node, "file", name, f"{what} {NEEDS}")
    parts, layers, unknown = {p: {} for p in PARTS}, {}, []
    for key, value in weights.items():
        first, _, rest = key.partition(".")
        found = _LAYER.match(key)
        if found:
            layers.setdefault(int(found[1]), {})[found[2]] = value
        elif first in parts and rest:
            parts[first][rest] = value.float()
        elif key != "dummy_image_tokens":
            unknown.append(key)
    if any("lora" in k for k in unknown):
        raise wrong("It holds a LoRA beside the adapter (FaceID), which is not read here.")
    if unknown:
        raise wrong(f"{len(unknown)} of its keys are not known ({', '.join(sorted(unknown)[:3])}).")
    if not layers or not parts["image_proj"]:
        raise wrong("It has no projection or no keys and values.")
    for n, pair in layers.items():
        if set(pair) != {"k", "v"} or pair["k"].ndim != 2 or pair["k"].shape != pair["v"].shape:
            raise wrong(f"Layer {n} needs a key and a value matrix of one shape.")
    pairs = tuple((layers[n]["k"], layers[n]["v"]) for n in sorted(layers))
    if len({k.shape[1] for k, _ in pairs}) != 1:
        raise wrong("Its layers take tokens of different widths.")
    image, background = parts["image_proj"], weights.get("dummy_image_tokens")
    kind = ("pairs" if parts["pair_former"] else "grounded" if "grounding_latents" in image else "resampler" if "latents" in image else "full" if "proj.0.weight" in image else "embedding")
    adapter = ImageAdapter(kind, parts, pairs, None if background is None else background.float().flatten(0, -2), name)
    try:
        made = Subjects(adapter, (Subject(torch.zeros(1, 2, adapter.features), phrase=None if adapter.phrase is None else torch.zeros(adapter.phrase)),)).tokens()
    except (KeyError, IndexError, RuntimeError, ValueError) as error:
        raise wrong(f"Its projection is not complete or of another form: {error}.") from error
    if made.shape[-1] != adapter.width:
        raise wrong(f"Its projection makes tokens of width {made.shape[-1]}, its layers take {adapter.width}.")
    return adapter


@frozen(eq=False)
class Subject:
    """One thing to be seen in the picture. features [n, m, c] (or [n, c] for embeddings): the image encoder's output for its pictures, whose tokens are put together;
    empty: that for no picture, zeros without it; region: where (None: everywhere); phrase: pooled text [p] or None; weight: of its values; length: number of
    tokens of the prompt in which the region's words were found."""

    features: Any
    region: Region | None = None
    phrase: Any = None
    weight: float = 1.0
    empty: Any = None
    length: int = 0


@frozen(eq=False)
class Subjects:
    """Several subjects of one adapter, in the order in which they were given. order: {layer's name: number} of the model they are for. Compared by identity."""

    adapter: ImageAdapter
    items: tuple = ()
    order: Any = None
    _cache: dict = field(default_factory=dict, repr=False)

    def __deepcopy__(self, memo):
        return self

    def __len__(self):
        return len(self.items)

    @property
    def regions(self):
        """Their places as one Regions."""
        if "regions" not in self._cache:
            self._cache["regions"] = Regions(tuple(s.region or WHOLE for s in self.items))
        return self._cache["regions"]

    def fitted(self, geometry, node, network):
        """The same for a model's layers."""
        return Subjects(self.adapter, self.items, self.adapter.order(geometry, node, network))

    @property
    def lengths(self):
        """Number of tokens of each subject."""
        self.tokens()
        return self._cache["lengths"]

    def tokens(self, empty=False):
        """Tokens [1, n, width] of all subjects in order; `empty`: those for the negative prompt's rows, None where nothing is to be added there."""
        if empty not in self._cache:
            if empty and self.adapter.kind == "grounded":
                self._cache[empty] = None      # its negative tokens are zeros, whose values are zeros
            else:
                with torch.inference_mode(False), torch.no_grad():
                    made = self._made(empty)
                self._cache[empty] = torch.cat(made)[None]
                self._cache["lengths"] = tuple(map(len, made))
        return self._cache[empty]

    def _made(self, empty):
        kind, parts, image = self.adapter.kind, self.adapter.parts, self.adapter.parts["image_proj"]
        features = [s.features if not empty else torch.zeros_like(s.features) if s.empty is None else s.empty for s in self.items]
        features = [f.detach().to("cpu", torch.float32).clone() for f in features]
        if kind == "pairs":
            width = self.adapter.phrase
            text = torch.stack([torch.zeros(width) if empty or s.phrase is None else s.phrase.float().cpu() for s in self.items])
            return list(adapter_tokens.paired(image, parts["text_proj"], parts["pair_former"], torch.cat(features), text))
        if kind == "embedding":
            found = [adapter_tokens.projected(image, f.flatten(1) if f.ndim == 2 else f.mean(1)) for f in features]
        elif kind == "full":
            found = [adapter_tokens.mapped(image, f) for f in features]
        else:
            found = []
            for f, s in zip(features, self.items):
                queries = None
                if kind == "grounded":
                    x, y, w, h = (s.region or WHOLE).bounds()
                    queries = adapter_tokens.grounded(image, torch.tensor([[x, y, x + w, y + h]]), [s.phrase]).expand(len(f), -1, -1)
                found.append(adapter_tokens.resampled(image, f, queries))
        return [t.flatten(0, 1) for t in found]

    def pair(self, layer, q, empty=False, background=False):
        """(keys, values) [1, heads, n, head_dim] of a layer for queries like q [rows, heads, tokens, head_dim]; with `background` the adapter's own tokens stand first. Made once."""
        key = (str(layer), empty, background, q.device, q.dtype)
        if key not in self._cache:
            tokens = self.tokens(empty)
            if background:
                tokens = torch.cat((self.adapter.background[None], tokens), 1)
            weights = self.adapter.layers[self.order[str(layer)]]
            if weights[0].shape[0] != q.shape[1] * q.shape[3]:
                raise BadInput("Masked Subject Attention", "subjects", self.adapter.name, f"Its weights for layer {layer} have width {weights[0].shape[0]}, this model "
                               f"{q.shape[1] * q.shape[3]}: it was made for another model.")
            scale = torch.cat([torch.full((n,), float(s.weight)) for n, s in zip(self.lengths, self.items)])
            if background:
                scale = torch.cat((torch.ones(len(self.adapter.background)), scale))
            with torch.inference_mode(False), torch.no_grad():
                made = [(tokens.to(q.device) @ w.to(q.device, torch.float32).T).unflatten(-1, (q.shape[1], -1)).transpose(1, 2) for w in weights]
                self._cache[key] = made[0].to(q.dtype), (made[1] * scale.to(q.device)[:, None]).to(q.dtype)
        return self._cache[key]
