"""Degradation Synthesis in the host: prompts that carry the level and the clean picture, for a model of InstructPix2Pix's type."""
from __future__ import annotations

import torch

from ..inverse.degradation_synthesis import ImageScale
from ..inverse.guidance_branch import fitting
from ..inverse.structure_correction import StructureNetwork, corrected
from ..method import BadInput
from .attach import attach
from .facts import Facts
from .text import encode


def prepared(method, model):
    """(MODEL, positive, negative, empty LATENT) for a KSampler, of a DegradationSynthesis. BadInput where the model sees no picture."""
    method.checked()
    facts = Facts(model)
    first = facts.module_shapes and facts.module_shapes("conv_in")
    channels = facts.channels or 4
    if not first or first[1] != 2 * channels:
        takes = f"takes {first[1]} channels" if first else facts.network
        raise BadInput(method.title, "model", takes, f"A U-Net that sees a clean picture beside the noisy latent is wanted (InstructPix2Pix's type, {2 * channels} channels): Load Checkpoint with GenDeg's, or the demo model \"degrading\".")
    image = method.image[..., :3]
    height, width = (s // 8 * 8 for s in image.shape[1:3])
    clean = method.vae.encode(image[:, :height, :width])
    if clean.ndim != 4 or clean.shape[1] != channels:
        raise BadInput(method.title, "vae", f"encodes to {list(clean.shape)}", f"The VAE of the model is wanted, with {channels} channels.")
    (text, details), (empty, bare) = (encode(method.clip, t)[0] for t in (method.prompt(), ""))
    with torch.inference_mode(False), torch.no_grad():
        wanted, none = (c.to(text) for c in method.contexts(*(t.float().cpu().clone() for t in (text, empty)), len(clean)))
    unseen = [[none, dict(bare)]]
    positive, negative = [[wanted, {**details, "concat_latent_image": clean}]], [[none, {**bare, "concat_latent_image": clean}]]
    return attach(model, ImageScale(unseen=unseen, scale=method.image_scale)), positive, negative, {"samples": torch.zeros_like(clean)}


def mended(node, clean, degraded, network, strength):
    """Degraded pictures [n, height, width, channels] with the structure of the clean ones, one by one on the device that samples."""
    import comfy.model_management as management
    if not isinstance(network, StructureNetwork):
        raise BadInput(node, "network", type(network).__name__, "Connect Load Structure Correction.")
    if len(clean) not in (1, len(degraded)):
        raise BadInput(node, "clean", f"{len(clean)} pictures", f"Give one, or one for each of the {len(degraded)} degraded pictures.")
    if strength == 0:
        return degraded
    device, done = management.get_torch_device(), []
    network, seen = network.to(device), fitting(clean, len(degraded), degraded.shape[1:3])
    for u, d in zip(seen, degraded):
        management.throw_exception_if_processing_interrupted()
        made = corrected(network, u[None].to(device), d[None, ..., :3].movedim(-1, 1).to(device, torch.float32), strength)
        done.append(torch.cat((made.movedim(1, -1).to(d), d[None, ..., 3:]), -1))
    return torch.cat(done)
