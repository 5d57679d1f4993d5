"""GuideSR: a branch of its own sees the degraded picture at full resolution, where the VAE cannot blur it, and corrects what one step of diffusion made of it."""
from __future__ import annotations

import re
from typing import Any

import torch
import torch.nn.functional as F

from ..frozen import frozen
from ..method import BadInput, Method, param, socket

_KEY = re.compile(r"^(?:enter|tail|guide\.(?:attend\.[01]|project)|fuse\.enter|leave|(?:body|fuse\.body)\.\d+\.(?:blocks\.\d+\.(?:conv1|gate|conv2)|tail))\.(?:weight|bias)$")
EXAMPLE = "enter.weight, body.0.blocks.0.conv1.weight, guide.project.weight, leave.weight"


@frozen(eq=False)
class GuidanceBranch:
    """weights: {key: tensor}; blocks: {"body" or "fuse.body": channel-attention blocks of each full-resolution block, in order}. Compared by identity."""

    weights: Any
    blocks: Any
    name: str = "guidance branch"

    def __deepcopy__(self, memo):
        return self

    @property
    def width(self):
        return self.weights["enter.weight"].shape[0]

    def to(self, device):
        """The branch in float32 on a device."""
        return GuidanceBranch({k: v.to(device, torch.float32) for k, v in self.weights.items()}, self.blocks, self.name)

    def conv(self, x, name):
        weight = self.weights[f"{name}.weight"]
        return F.conv2d(x, weight, self.weights[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def channel_attention(self, x, name):
        """x + conv2 (t sigmoid(gate mean t)), t = gelu(conv1 x): each channel by what the whole picture has of it."""
        t = F.gelu(self.conv(x, f"{name}.conv1"))
        return x + self.conv(t * torch.sigmoid(self.conv(t.mean((2, 3), keepdim=True), f"{name}.gate")), f"{name}.conv2")

    def full_resolution(self, x, place):
        """The full-resolution blocks of a place, one after the other: residual connections around blocks of residual connections."""
        for i, count in enumerate(self.blocks[place]):
            h = x
            for j in range(count):
                h = self.channel_attention(h, f"{place}.{i}.blocks.{j}")
            x = x + self.conv(h, f"{place}.{i}.tail")
        return x

    def features(self, degraded):
        """F_d [n, width, height, width] of degraded pictures [n, 3, height, width] in [0, 1]."""
        first = self.conv(degraded, "enter")
        return first + self.conv(self.full_resolution(first, "body"), "tail")

    def attention(self, degraded, drawn):
        """A [n, width, height, width] in (0, 1): where which feature of the degraded picture is to be trusted, told by both pictures."""
        return torch.sigmoid(self.conv(F.gelu(self.conv(torch.cat((drawn, degraded), 1), "guide.attend.0")), "guide.attend.1"))

    def residual(self, degraded, drawn):
        """What is to be added to the drawn pictures [n, 3, height, width], not clamped."""
        f = self.features(degraded)
        f = f + self.attention(degraded, drawn) * self.conv(f, "guide.project")
        return self.conv(self.full_resolution(self.conv(torch.cat((f, drawn), 1), "fuse.enter"), "fuse.body"), "leave")


def parse(weights, node, field, name="guidance branch"):
    """A GuidanceBranch of a file's tensors (as they are); BadInput that names the key and what would be right."""
    wrong = lambda what: BadInput(node, field, name, f"{what} Keys like {EXAMPLE} are expected.")
    strange = [k for k in weights if not _KEY.match(k)]
    if strange or not weights:
        raise wrong(f"{len(strange)} of its keys are not those of a guidance branch ({', '.join(strange[:3]) or 'it has none'}).")
    blocks, names = {}, ["enter", "tail", "guide.attend.0", "guide.attend.1", "guide.project", "fuse.enter", "leave"]
    for place in ("body", "fuse.body"):
        found = {}
        for key in weights:
            at = re.match(rf"^{re.escape(place)}\.(\d+)\.(?:blocks\.(\d+))?", key)
            if at:
                found[int(at[1])] = max(found.get(int(at[1]), 0), int(at[2]) + 1 if at[2] else 0)
        blocks[place] = tuple(found.get(i, 0) for i in range(1 + max(found, default=-1)))
        names += [f"{place}.{i}.{part}" for i, count in enumerate(blocks[place]) for part in (*(f"blocks.{j}.{e}" for j in range(count) for e in ("conv1", "gate", "conv2")), "tail")]
    missing = [f"{n}.{e}" for n in names for e in ("weight", "bias") if f"{n}.{e}" not in weights]
    if missing:
        raise wrong(f"{', '.join(missing[:3])} missing.")
    width = weights["enter.weight"].shape[0]
    entering = {"enter": 3, "guide.attend.0": 6, "fuse.enter": width + 3}
    for n in names:
        shape, wanted = tuple(weights[f"{n}.weight"].shape), (3 if n == "leave" else width, entering.get(n, width))
        if len(shape) != 4 or shape[:2] != wanted or shape[2] != shape[3] or shape[2] % 2 == 0 or weights[f"{n}.bias"].shape != wanted[:1]:
            raise wrong(f"{n}.weight has the shape {list(shape)}: a convolution of {wanted[1]} to {wanted[0]} channels with an odd kernel and its bias would be right.")
    return GuidanceBranch(dict(weights), blocks, name)


def fitting(degraded, n, size):
    """Degraded pictures [b, height, width, 3 or more channels] as [n, 3, *size] in float32: enlarged or reduced bicubically, repeated in order where there are fewer than n."""
    found = degraded[..., :3].movedim(-1, 1).float()
    if found.shape[-2:] != tuple(size):
        found = F.interpolate(found, tuple(size), mode="bicubic", align_corners=False, antialias=size[0] < found.shape[-2] or size[1] < found.shape[-1]).clamp(0, 1)
    return found[torch.arange(n) % found.shape[0]]


def guided(branch, degraded, drawn, strength):
    """Pictures [n, 3, height, width] in [0, 1]: the drawn ones corrected by what the branch sees in the degraded ones. Strength 0 leaves every bit."""
    return drawn if strength == 0 else (drawn + strength * branch.residual(degraded, drawn)).clamp(0, 1)


@frozen
class GuidedDecode(Method):
    """Decodes a restored latent and corrects the picture by a second look at the degraded one, at full resolution: what the VAE loses comes from there.

        R = D(z)                                                     the diffusion branch: the VAE's picture of the restored latent
        F = enter I,    F_d = F + tail FRB_n(... FRB_1(F))           the guidance branch on the degraded picture I, at R's size, no layer of it coarser
        F_g = F_d + A (project F_d),    A = sigmoid(attend [R, I])   guided attention: for each feature and pixel, how much of it is to be used
        y = R + strength leave FRB'(fuse [F_g, R])                   the residual that is added

        FRB(x) = x + conv(FCA_m(... FCA_1(x)))                       full-resolution block: residuals in a residual
        FCA(x) = x + conv2 (t sigmoid(gate mean t)), t = gelu(conv1 x)      feature channel attention; the mean is over the picture

    Products of two maps are by element, of a name and a map convolutions. z comes of a one-step restorer: Degradation-Guided LoRA with Restoration Start at noise 0, or any other sampling; the node stands in
    VAE Decode's place. Weights: Load Guidance Branch. Degraded pictures of another size are brought to R's (the low-resolution picture itself may be connected); fewer of them than latents are repeated.

    Deviations: the authors released neither code nor weights, and the text at hand (abstract, summaries) says of which parts the branch is, not how wide they are nor where it meets the diffusion branch: the
    blocks follow it, with the gelu's map as what the channel attention multiplies; that both meet at the decoded picture, and how, is a choice made here, so that it works with every VAE. The authors train both
    branches at once (a LoRA in the U-Net, the VAE along with it); here the branch is trained behind a restorer that stays as it is. Default: strength 1.
    Identities: strength 0 is VAE Decode, bit by bit; a batch is its pictures. Limits: memory goes with the picture's size (some 6 maps of 4 bytes for each channel and pixel are alive at once; no tiles,
    since the channel attention sees the whole picture); what it was trained on, it corrects. Paper: Arora et al., "GuideSR: Rethinking Guidance for One-Step High-Fidelity Diffusion-Based Super-Resolution",
    arXiv 2505.00687. Cost: a small convolutional network, once.
    """

    node_id = "LodestarGuidedDecode"
    title = "Guided Decode"
    family = "inverse"
    paper = "GuideSR: Rethinking Guidance for One-Step High-Fidelity Diffusion-Based Super-Resolution, arXiv 2505.00687"
    aliases = ("GuideSR", "super-resolution", "one-step", "restoration", "upscale", "guidance branch")
    evaluations = "0"

    latent: Any = socket("LATENT", "The restored latent, from the sampler.")
    vae: Any = socket("VAE", "Decodes it.")
    image: Any = socket("IMAGE", "The degraded picture; at its own size, or enlarged already.")
    branch: Any = socket("LODESTAR_GUIDANCE_BRANCH", "From Load Guidance Branch.")
    strength: float = param(1.0, "Factor on what the branch adds; 0 decodes only.", 0.0, 2.0, 0.05)
