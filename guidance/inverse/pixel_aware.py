"""Pixel-aware cross attention (PASD): the U-Net's decoder looks at the features of the degraded picture, pixel by pixel, in a transformer of its own behind each of its layers."""
from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from ..attention.module_edits import ModuleEdit
from ..attention.sources import Held
from ..frozen import frozen
from ..method import BadInput, Edit, param, socket, window
from .degradation_lora import check_shapes

_BLOCK = re.compile(r"^(?:unet\.)?up_blocks\.(\d+)\.pixel_attentions\.(\d+)\.(.+)$")
_ENCODER = re.compile(r"^pixel_encoder\.(?:enter|down\.\d+|leave\.\d+)\.(?:weight|bias)$")
_INNER = ("norm1", "norm2", "norm3")
EXAMPLE = "up_blocks.1.pixel_attentions.0.transformer_blocks.0.attn2.to_k.weight"
_start, _end = window("the network looks at the picture")


@frozen(eq=False)
class PixelAttention:
    """layers: {(up block, layer): {key: tensor}} of the transformers; encoder: {key: tensor} of the file's own encoder of the degraded latent, or {}. Compared by identity."""

    layers: Any
    encoder: Any
    name: str = "pixel-aware attention"

    def __deepcopy__(self, memo):
        return self

    def width(self, place):
        return self.layers[place]["norm.weight"].shape[0]

    def seen(self, place):
        """Channels of the features that a layer looks at."""
        return self.layers[place]["transformer_blocks.0.attn2.to_k.weight"].shape[1]


@frozen(eq=False)
class Placed:
    """The weights for a model. latent: the degraded latent as the model sees it, held, or None; places: those of LooksAtPixels. Compared by identity."""

    weights: Any
    latent: Any
    places: tuple

    def __deepcopy__(self, memo):
        return self

    @property
    def encoder(self):
        return self.weights.encoder


def parse(weights, node, field, name="pixel-aware attention"):
    """A PixelAttention of a file's tensors (as they are). A whole U-Net of PASD may be given: what is not pixel-aware attention is left out."""
    layers, encoder = {}, {}
    for key, value in weights.items():
        found = _BLOCK.match(key)
        if found:
            layers.setdefault((int(found[1]), int(found[2])), {})[found[3]] = value
        elif _ENCODER.match(key):
            encoder[key.removeprefix("pixel_encoder.")] = value
    if not layers:
        raise BadInput(node, field, name, f"It holds no pixel-aware attention: keys like {EXAMPLE} are expected, it has {', '.join(list(weights)[:3]) or 'none'}.")
    for (up, layer), w in layers.items():
        depth = 1 + max((int(k.split(".")[1]) for k in w if k.startswith("transformer_blocks.")), default=-1)
        needed = ["norm.weight", "norm.bias", "proj_in.weight", "proj_in.bias", "proj_out.weight", "proj_out.bias"]
        for d in range(max(depth, 1)):
            at = f"transformer_blocks.{d}."
            needed += [f"{at}{n}.{e}" for n in _INNER for e in ("weight", "bias")] + [f"{at}{a}.to_{p}.weight" for a in ("attn1", "attn2") for p in ("q", "k", "v", "out.0")]
            needed += [f"{at}ff.net.{n}.weight" for n in ("0.proj", "2")]
        missing = [k for k in needed if k not in w]
        if missing:
            raise BadInput(node, field, name, f"up_blocks.{up}.pixel_attentions.{layer} is not complete: {', '.join(missing[:3])} missing.")
    if encoder:
        missing = [f"leave.{i}.weight" for i in range(len(layers)) if f"leave.{i}.weight" not in encoder] + [k for k in ("enter.weight", "enter.bias") if k not in encoder]
        if missing:
            raise BadInput(node, field, name, f"Its encoder is not complete: {', '.join('pixel_encoder.' + k for k in missing[:3])} missing.")
    return PixelAttention(dict(sorted(layers.items())), encoder, name)


def _attend(w, at, x, context, heads):
    q, k, v = (F.linear(t, w[f"{at}.to_{p}.weight"]).unflatten(-1, (heads, -1)).transpose(1, 2) for p, t in (("q", x), ("k", context), ("v", context)))
    out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return F.linear(out, w[f"{at}.to_out.0.weight"], w.get(f"{at}.to_out.0.bias"))


def looked(w, h, features, heads):
    """What a layer's transformer adds to the feature map h [n, c, height, width] when it looks at `features` [n, c', ., .]."""
    def project(name, t):
        return F.linear(t, w[f"{name}.weight"].flatten(1), w[f"{name}.bias"])      # a linear layer or a convolution of one pixel
    x = F.group_norm(h, 32 if h.shape[1] % 32 == 0 else 1, w["norm.weight"], w["norm.bias"], 1e-6)
    x = project("proj_in", x.flatten(2).transpose(1, 2))
    context, d = features.flatten(2).transpose(1, 2), 0
    while f"transformer_blocks.{d}.norm1.weight" in w:
        at = f"transformer_blocks.{d}"
        norm = lambda i, t: F.layer_norm(t, t.shape[-1:], w[f"{at}.norm{i}.weight"], w[f"{at}.norm{i}.bias"])
        seen = norm(1, x)
        x = x + _attend(w, f"{at}.attn1", seen, seen, heads)
        x = x + _attend(w, f"{at}.attn2", norm(2, x), context, heads)
        a, gate = F.linear(norm(3, x), w[f"{at}.ff.net.0.proj.weight"], w.get(f"{at}.ff.net.0.proj.bias")).chunk(2, -1)
        x, d = x + F.linear(a * F.gelu(gate), w[f"{at}.ff.net.2.weight"], w.get(f"{at}.ff.net.2.bias")), d + 1
    return project("proj_out", x).transpose(1, 2).unflatten(2, h.shape[2:])


def encoded(w, z):
    """The file's own features of a degraded latent z [n, c, height, width], one for each layer of the decoder, in the order of execution: each of the size of the skip connection that enters there.

    enter: a convolution of z; down.i: convolutions that halve; leave.i: a convolution for layer i, of the coarsest map first, as many layers to a map as there are layers for each.
    """
    maps = [F.silu(F.conv2d(z, w["enter.weight"], w["enter.bias"], padding=1))]
    while f"down.{len(maps) - 1}.weight" in w:
        i = len(maps) - 1
        maps.append(F.silu(F.conv2d(maps[-1], w[f"down.{i}.weight"], w[f"down.{i}.bias"], stride=2, padding=1)))
    count = sum(k.startswith("leave.") and k.endswith(".weight") for k in w)
    each = count // len(maps)
    return [F.conv2d(maps[-1 - i // each], w[f"leave.{i}.weight"], w.get(f"leave.{i}.bias"), padding=1) for i in range(count)]


def decoder_layers(lookup):
    """[(place (up block, layer), name of the residual block that its skip connection enters, of the module behind which a layer ends, number)] of a U-Net's decoder in the order of execution."""
    found, level = [], 0
    while lookup(f"up_blocks.{level}.resnets.0") is not None:
        layer = 0
        while lookup(f"up_blocks.{level}.resnets.{layer}") is not None:
            skip, behind = f"up_blocks.{level}.resnets.{layer}", f"up_blocks.{level}.attentions.{layer}"
            found.append(((level, layer), skip, behind if lookup(behind) is not None else skip, len(found)))
            layer += 1
        level += 1
    return found


@frozen
class LooksAtPixels(ModuleEdit):
    """The edit. names_: ((name of the module behind which a layer's transformer stands, of the residual block that its skip connection enters, place, number, heads), ...)."""

    weights: Any = None
    latent: Any = None
    places: tuple = ()
    strength: float = 1.0
    control: float = 1.0
    title: str = "Pixel-Aware Attention"
    reach: str = "all"

    everywhere = False

    def names(self):
        return tuple(dict.fromkeys(n for behind, skip, *_ in self.places for n in ((behind, skip) if self.weights.encoder and self.control else (behind,))))

    def features(self, site, number, like):
        """The features [rows, c, height, width] of a layer, or None where there are none now."""
        if self.weights.encoder:
            found = site.keep((self.weights, self.latent, "features"), lambda: self._encoded())[number]
            found = found[site.entry % found.shape[0]]
            return found if found.shape[-2:] == like else F.interpolate(found, like, mode="bilinear")
        if site.control is None:
            raise ValueError(f"{self.title}: no prompt has a ControlNet, whose features it looks at. Apply the ControlNet that goes with the weights ({self.weights.name}) to the prompts.")
        found = site.control.get("output") or []
        found = found[len(found) - 1 - number] if number < len(found) else None
        return found if found is None or site.rows is None else found[site.rows]

    def _encoded(self):
        z = self.latent.value.float().cpu()
        return encoded({k: v.float().cpu() for k, v in self.weights.encoder.items()}, z)

    def enter(self, site, name, module, given):
        """The features are added to the skip connection, as a ControlNet's are; those of a ControlNet the host has added itself."""
        for _, skip, _, number, _ in self.places:
            if skip == name and self.weights.encoder and self.control:
                found = self.features(site, number, given.shape[-2:])
                if found is not None:
                    kept = given.shape[1] - found.shape[1]
                    given = torch.cat((given[:, :kept], given[:, kept:] + (self.control * found).to(given.dtype)), 1)
        return given

    def result(self, site, name, module, out, given):
        for behind, _, place, number, heads in self.places:
            if behind == name:
                found = self.features(site, number, out.shape[-2:])
                if found is not None and self.strength:
                    w = site.keep((self.weights, place), lambda: self.weights.layers[place])
                    out = out + (self.strength * looked(w, out, found.to(out.dtype), heads)).to(out.dtype)
        return out


@frozen
class PixelAwareAttention(Edit):
    """Restores a picture while sampling: behind each layer of the U-Net's decoder a transformer looks at the degraded picture's features at every pixel, so that what is drawn stays in its place.

        h_i <- h_i + strength (P_out T_i(P_in norm h_i, f_i))          T: self-attention, cross-attention of h's pixels to those of f, feed-forward
        skip_i <- skip_i + control f_i                                 as a ControlNet

    f_i: the features that belong to skip connection i, of a ControlNet of the degraded picture, applied to the prompts by the host's node; files with an encoder of their own (the bundled one) make them of
    the degraded picture's latent. All that a picture needs besides is a prompt, with words of quality in it and in the negative one ("clean, high-resolution, 8k" and "blurry, dotted, noise, raster lines, unclear,
    lowres, over-smoothed" there), and a start between picture and noise: Restoration Start.
    Weights: Load Pixel-Aware Attention; a whole U-Net of PASD may be given (diffusion_pytorch_model.safetensors), of which the transformers are taken; its other weights are those of Stable Diffusion 1.5.

    Defaults: both strengths 1 and cfg 9 (the released code), Restoration Start 0.9. Deviations: a ControlNet's strength is set at its own node; where it ends, what looks at it ends. The paper's removal of
    degradations (a pyramid of convolutions, trained to give clean small pictures) is part of its ControlNet. Identities: strength and control 0 leave every bit; a batch is its pictures.
    Limits: U-Nets (the file names their layers). Paper: Yang et al., "Pixel-Aware Stable Diffusion for Realistic Image Super-Resolution and Personalized Stylization" (PASD), arXiv 2308.14469. Cost: a
    transformer block for each layer of the decoder, about a third of the U-Net more.
    """

    node_id = "LodestarPixelAwareAttention"
    title = "Pixel-Aware Attention"
    family = "inverse"
    paper = "Pixel-Aware Stable Diffusion (PASD), arXiv 2308.14469"
    aliases = ("PASD", "PACA", "super-resolution", "restoration", "upscale")
    evaluations = "0"
    planar = True

    weights: Any = socket("LODESTAR_PIXEL_ATTENTION", "From Load Pixel-Aware Attention.")
    strength: float = param(1.0, "Factor on what the transformers add.", 0.0, 2.0, 0.05)
    latent: Any = socket("LATENT", "The degraded picture, encoded at the size that is sampled, for files with an encoder of their own. Others take the features of the prompts' ControlNet.", optional=True)
    start_percent: float = _start
    end_percent: float = _end
    control: float = param(1.0, "Files with an encoder of their own: factor on the features that are added to the skip connections.", 0.0, 2.0, 0.05, advanced=True)
    negative_rows: str = param("same", "The negative prompt's rows: same: they look at the picture too; off: they do not, so that CFG strengthens it.", choices=("same", "off"), advanced=True)

    def neutral(self):
        return self.strength == 0 and (self.control == 0 or not getattr(self.weights, "encoder", None))

    def fitted(self, facts):
        if not isinstance(self.weights, PixelAttention):
            raise BadInput(self.title, "weights", None, "Connect Load Pixel-Aware Attention.")
        lookup = facts.module_shapes
        if lookup is None:
            check_shapes(self.title, "weights", self.weights.name, facts, {})
        held, places = None, []
        if self.weights.encoder:
            samples = self.latent.get("samples") if isinstance(self.latent, dict) else None
            channels = self.weights.encoder["enter.weight"].shape[1]
            if not isinstance(samples, torch.Tensor) or getattr(samples, "is_nested", False) or samples.ndim != 4 or samples.shape[1] != channels:
                raise BadInput(self.title, "latent", "nothing" if samples is None else f"a latent of {list(samples.shape)}", f"This file has an encoder of its own: connect the degraded picture's latent, with {channels} channels.")
            held = Held(facts.inward(samples))
        wanted, layers = {}, decoder_layers(lookup)
        for place, skip, behind, number in layers:
            if place in self.weights.layers:
                width = self.weights.width(place)
                wanted[f"{skip}.conv2"] = (width, width, 3, 3)
                places.append((behind, skip, place, number, facts.heads(width)))
        check_shapes(self.title, "weights", self.weights.name, facts, wanted)
        strange = [p for p in self.weights.layers if p not in [place for place, *_ in layers]]
        if strange:
            raise BadInput(self.title, "weights", self.weights.name, f"It was made for another model: it has up_blocks.{strange[0][0]}.pixel_attentions.{strange[0][1]}, and {facts.network} has no such layer.")
        return replace(self, weights=Placed(self.weights, held, tuple(places)))

    def edits(self, step):
        made = self.weights
        return (LooksAtPixels("", made.weights, made.latent, made.places, self.strength, self.control, self.title, "all" if self.negative_rows == "same" else "positive"),)
