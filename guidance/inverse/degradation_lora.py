"""S3Diff: a LoRA whose middle is made of the picture's degradation, so that one step restores what was blurred or noisy, by as much as it was."""
from __future__ import annotations

import math
import re
from dataclasses import field, replace
from typing import Any

import torch
import torch.nn.functional as F

from ..attention.module_edits import ModuleEdit
from ..frozen import frozen
from ..method import BadInput, Edit, param, socket
from .degradation import Degradation

ALPHA = 8      # peft's default, which the authors leave: the LoRA is scaled by ALPHA / rank
_LORA = re.compile(r"^state_dict_unet\.(.+)\.lora_([AB])(?:\.\w+)?\.weight$")
_WHOLE = re.compile(r"^state_dict_unet\.(conv_in)\.(weight|bias)$")
_VAE = re.compile(r"^(?:state_dict_vae|state_embeddings\.state_dict_vae)")
_ENCODER = re.compile(r"^state_dict_vae\.encoder\.(.+)\.lora_([AB])(?:\.\w+)?\.weight$")
NETWORKS = ("w", "state_embeddings.state_dict_unet_block.weight", "state_dict_unet_de_mlp.0.weight", "state_dict_unet_de_mlp.0.bias", "state_dict_unet_block_mlp.0.weight",
            "state_dict_unet_block_mlp.0.bias", "state_dict_unet_fuse_mlp.weight", "state_dict_unet_fuse_mlp.bias")
VAE_NETWORKS = tuple(k.replace("_unet", "_vae") for k in NETWORKS[1:])
EXAMPLE = "state_dict_unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.default.weight"


@frozen(eq=False)
class DegradationLora:
    """layers: {diffusers' name: (A, B)}; whole: {"weight", "bias"} of an input convolution of its own, or {}; nets: {key of NETWORKS: tensor}; encoder, encoder_rank: the same layers of the VAE's encoder, {} where the
    file has none, whose keys of VAE_NETWORKS are then among the nets. Compared by identity."""

    layers: Any
    whole: Any
    nets: Any
    rank: int
    name: str = "degradation LoRA"
    encoder: Any = field(default_factory=dict)
    encoder_rank: int = 0

    def __deepcopy__(self, memo):
        return self

    @property
    def levels(self):
        """Resolutions of the U-Net it is for: its blocks are as many down, one in the middle, as many up, and one for the rest."""
        return (self.nets["state_embeddings.state_dict_unet_block.weight"].shape[0] - 2) // 2

    def block(self, name):
        """The number of the block that a layer belongs to."""
        place, _, rest = name.partition(".")
        number = int(rest.split(".")[0]) if place in ("down_blocks", "up_blocks") else 0
        return {"down_blocks": number, "mid_block": self.levels, "up_blocks": self.levels + 1 + number}.get(place, 2 * self.levels + 1)

    def encoder_block(self, name):
        """The number of the block that a layer of the VAE's encoder belongs to: its resolutions, the middle, the rest."""
        last = self.nets[VAE_NETWORKS[0]].shape[0] - 1
        place, _, rest = name.partition(".")
        return int(rest.split(".")[0]) if place == "down_blocks" else last - 1 if place == "mid_block" else last

    def cores(self, scores, part="unet"):
        """The middle matrices [n, blocks, rank, rank] of scores [n, 2]; part: "unet" or "vae"."""
        rank = self.rank if part == "unet" else self.encoder_rank
        w = {k: v.float() for k, v in self.nets.items()}
        angle = scores.float()[..., None] * w["w"] * 2 * math.pi
        seen = torch.cat((angle.sin(), angle.cos()), -1).flatten(1)
        layer = lambda x, name: F.linear(x, w[f"state_dict_{part}_{name}.weight"], w[f"state_dict_{part}_{name}.bias"])
        seen = F.relu(layer(seen, "de_mlp.0"))
        block = F.relu(layer(w[f"state_embeddings.state_dict_{part}_block.weight"], "block_mlp.0"))
        both = torch.cat((seen[:, None].expand(-1, len(block), -1), block.expand(len(seen), -1, -1)), -1)
        return layer(both, "fuse_mlp").unflatten(-1, (rank, rank))


def parse(weights, node, field, name="degradation LoRA"):
    """A DegradationLora of a file's tensors (as they are); BadInput that names the key and what would be right."""
    wrong = lambda what: BadInput(node, field, name, f"{what} Keys like {EXAMPLE} and {NETWORKS[1]} are expected.")
    layers, encoder, whole, unknown = {}, {}, {}, []
    for key, value in weights.items():
        lora, alone, seeing = _LORA.match(key), _WHOLE.match(key), _ENCODER.match(key)
        if lora:
            layers.setdefault(lora[1], {})[lora[2]] = value
        elif seeing:
            encoder.setdefault(seeing[1], {})[seeing[2]] = value
        elif alone:
            whole[alone[2]] = value
        elif key not in NETWORKS and not _VAE.match(key) and not key.startswith("state_dict_unet.conv_in"):
            unknown.append(key)
    if not layers:
        raise wrong(f"It holds no degradation-guided LoRA; it has {', '.join(list(weights)[:3]) or 'no keys'}.")
    if unknown:
        raise wrong(f"{len(unknown)} of its keys are not known ({', '.join(sorted(unknown)[:3])}).")
    needed = NETWORKS + (VAE_NETWORKS if encoder else ())
    missing = [k for k in needed if k not in weights] + [f"{n}.lora_{s}" for n, pair in (*layers.items(), *encoder.items()) for s in "AB" if s not in pair]
    if missing or len(whole) == 1:
        raise wrong(f"{', '.join(missing[:3]) or 'the weight or the bias of conv_in'} missing.")
    nets = {k: weights[k] for k in needed}
    rank = math.isqrt(nets["state_dict_unet_fuse_mlp.weight"].shape[0])
    inner = math.isqrt(nets["state_dict_vae_fuse_mlp.weight"].shape[0]) if encoder else 0
    odd = next((n for n, p in encoder.items() if p["A"].shape[0] != inner or p["B"].shape[1] != inner or p["A"].ndim != p["B"].ndim), None)
    if odd is not None or (encoder and inner * inner != nets["state_dict_vae_fuse_mlp.weight"].shape[0]):
        raise wrong(f"encoder.{odd or '...'} does not fit state_dict_vae_fuse_mlp, which gives {nets['state_dict_vae_fuse_mlp.weight'].shape[0]} numbers for the middle matrix, which is rank x rank.")
    odd = next((n for n, p in layers.items() if p["A"].shape[0] != rank or p["B"].shape[1] != rank or p["A"].ndim != p["B"].ndim), None)
    if rank * rank != nets["state_dict_unet_fuse_mlp.weight"].shape[0] or odd is not None:
        pair = layers[odd or next(iter(layers))]
        raise wrong(f"{odd or 'state_dict_unet_fuse_mlp'} does not fit: A {list(pair['A'].shape)}, B {list(pair['B'].shape)}, and {nets['state_dict_unet_fuse_mlp.weight'].shape[0]} numbers for the middle "
                    "matrix, which is rank x rank.")
    if 4 * nets["w"].numel() != nets["state_dict_unet_de_mlp.0.weight"].shape[1]:
        raise wrong(f"w has {nets['w'].numel()} frequencies, state_dict_unet_de_mlp.0 takes {nets['state_dict_unet_de_mlp.0.weight'].shape[1]}; four times as many would be right.")
    return DegradationLora({n: (p["A"], p["B"]) for n, p in sorted(layers.items())}, whole, nets, rank, name, {n: (p["A"], p["B"]) for n, p in sorted(encoder.items())}, inner)


def through(pair, core, module, given):
    """B C A of a layer's input, each row with its core [rows, rank, rank]; `module` tells a convolution's stride and padding."""
    down, up = (t.to(given) for t in pair)
    if down.ndim == 4:
        t = F.conv2d(given, down, stride=module.stride, padding=module.padding)
        return F.conv2d(torch.einsum("bkhw,bkr->brhw", t, core), up)
    t = given @ down.T
    return torch.einsum("b...k,bkr->b...r", t, core) @ up.T


def encoder_name(name):
    """The host's name, within the VAE's encoder, of a layer that diffusers calls `name`; None where it has none."""
    found = re.fullmatch(r"(conv_in|conv_out)|down_blocks\.(\d+)\.(?:resnets\.(\d+)\.(conv1|conv2|conv_shortcut)|downsamplers\.0\.(conv))|mid_block\.(?:resnets\.([01])\.(conv1|conv2|conv_shortcut)|attentions\.0\.(to_q|to_k|to_v|to_out\.0))", name)
    if found is None:
        return None
    own = {"conv_shortcut": "nin_shortcut", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    end, level, block, conv, halving, middle, inner, attention = found.groups()
    if end:
        return end
    if level:
        return f"down.{level}.downsample.conv" if halving else f"down.{level}.block.{block}.{own.get(conv, conv)}"
    return f"mid.attn_1.{own[attention]}" if attention else f"mid.block_{int(middle) + 1}.{own.get(inner, inner)}"


def as_convolution(pair):
    """A and B of a linear layer as 1 x 1 convolutions: the host's VAE has these where diffusers has linear layers."""
    return tuple(t[:, :, None, None] if t.ndim == 2 else t for t in pair)


@frozen
class ModulatedLayers(ModuleEdit):
    """The edit: every layer of the LoRA, with the middle matrices of each row's picture."""

    lora: Any = None
    degradation: Any = None
    strength: float = 1.0
    title: str = "Degradation-Guided LoRA"

    def names(self):
        return (*self.lora.layers, *(("conv_in",) if self.lora.whole else ()))

    def result(self, site, name, module, out, given):
        if name == "conv_in" and self.lora.whole:
            own = site.keep((self.lora, name), lambda: self.lora.whole)
            return out + self.strength * (F.conv2d(given, own["weight"], own["bias"], stride=module.stride, padding=module.padding) - out)
        cores = site.keep((self.lora, self.degradation), lambda: self.lora.cores(torch.tensor(self.degradation.scores)))
        core = cores[site.entry % cores.shape[0], self.lora.block(name)]
        pair = site.keep((self.lora, name), lambda: self.lora.layers[name])
        return out + (self.strength * ALPHA / self.lora.rank * through(pair, core, module, given)).to(out.dtype)


@frozen
class DegradationGuidedLora(Edit):
    """A LoRA that knows how degraded the picture is restores it in one step: little blur is sharpened a little, much noise is taken away wholly.

        out = W h + strength (8 / rank) B C A h              in the linear layers and convolutions of the U-Net
        C_i = fuse(relu(mlp(f)), relu(mlp'(e_i)))            for block i (each resolution down and up, the middle, the rest), [rank, rank]
        f = sin, cos of 2 pi w (blur, noise)                 each score in [0, 1], w 64 fixed random frequencies; e_i: an embedding of the block

    A, B: the LoRA; C: the middle matrix, made anew for each picture. Where C is the identity it is an ordinary LoRA. The degraded picture, brought to the wanted size and encoded, stands itself
    where the noise would be: use Restoration Start with noise 0 as the sampler and one step from the schedule's first level:

        z0 = (z - sqrt(1 - abar) eps(z, T)) / sqrt(abar),    z the encoded degraded picture, T the last timestep

    Online negative prompting is in the weights: in training now and then a prompt of bad quality is given the degraded picture as its target, so that CFG with that prompt as the negative one leads away
    from it (the authors sample at cfg 1.07, "oil painting, cartoon, blur, dirty, messy, low quality, deformation, low resolution, oversmooth"; bundled weights: the word "degraded").
    Weights: Load Degradation LoRA. Scores: the two numbers below, or Estimate Degradation, one pair for each picture of the batch.

    The authors' file has a second LoRA of this kind for the encoder of the VAE: Degradation-Guided Encode in place of VAE Encode applies it.

    Defaults: strength 1. Deviations: none in the layers; the latent is the middle of the encoder's distribution where the host takes that (the authors draw from it). Identities: B = 0 leaves every bit; a batch is its pictures.
    Limits: U-Nets (the file names their layers). Paper: Zhang et al., "Degradation-Guided One-Step Image Super-Resolution with Diffusion Priors" (S3Diff), arXiv 2409.17058. Cost: one evaluation in all, two with
    a negative prompt.
    """

    node_id = "LodestarDegradationGuidedLora"
    title = "Degradation-Guided LoRA"
    family = "inverse"
    paper = "Degradation-Guided One-Step SR (S3Diff), arXiv 2409.17058"
    aliases = ("S3Diff", "super-resolution", "one-step", "restoration", "upscale")
    evaluations = "0"
    planar = True

    lora: Any = socket("LODESTAR_DEGRADATION_LORA", "The LoRA, from Load Degradation LoRA.")
    blur: float = param(0.5, "How blurred the picture is, 0 to 1. Without effect where degradation is connected.", 0.0, 1.0, 0.01)
    noise: float = param(0.5, "How noisy it is, 0 to 1. Without effect where degradation is connected.", 0.0, 1.0, 0.01)
    strength: float = param(1.0, "Factor on the LoRA; 0 switches it off.", 0.0, 2.0, 0.05)
    degradation: Any = socket("LODESTAR_DEGRADATION", "Both numbers for each picture of the batch, from Estimate Degradation.", optional=True)

    def neutral(self):
        return self.strength == 0

    def fitted(self, facts):
        if not isinstance(self.lora, DegradationLora):
            raise BadInput(self.title, "lora", None, "Connect Load Degradation LoRA.")
        if self.degradation is not None and not isinstance(self.degradation, Degradation):
            raise BadInput(self.title, "degradation", type(self.degradation).__name__, "Connect Estimate Degradation.")
        check_shapes(self.title, "lora", self.lora.name, facts, {n: (p[1].shape[0], *p[0].shape[1:]) for n, p in self.lora.layers.items()}
                     | ({"conv_in": tuple(self.lora.whole["weight"].shape)} if self.lora.whole else {}))
        return self if self.degradation is not None else replace(self, degradation=Degradation(((self.blur, self.noise),)))

    def edits(self, step):
        return (ModulatedLayers("", self.lora, self.degradation, self.strength, self.title),)


def check_shapes(node, field, name, facts, wanted):
    """BadInput where the model is no U-Net of pictures, or its modules are not of the shapes {diffusers' name: shape} that a file was made for."""
    lookup = facts.module_shapes
    if lookup is None:
        raise BadInput(node, "model", facts.network, "The weights name the layers of a U-Net of pictures (SD1.5, SD2, SDXL); none are published for other networks. Use a U-Net.")
    for key, shape in wanted.items():
        found = lookup(key)
        if found is None or tuple(found) != tuple(shape):
            raise BadInput(node, field, name, f"It was made for another model: {key} has {list(shape)} there, "
                           + (f"{list(found)} in this one ({facts.network})." if found is not None else f"and does not exist in this one ({facts.network})."))
