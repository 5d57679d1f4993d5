"""Degradation-Guided Encode: the host's VAE with the LoRA in its encoder's layers, each picture with its own middle matrices."""
from __future__ import annotations

import contextlib

import torch

from ..inverse.degradation import Degradation
from ..inverse.degradation_lora import ALPHA, DegradationLora, as_convolution, encoder_name, through
from ..method import BadInput
from .modules import _exchange, _restore


def encoded(node, image, vae, lora, degradation, strength):
    """A LATENT of pictures [n, height, width, channels]. Without strength, or where the file has nothing for the encoder, VAE Encode's."""
    if not isinstance(lora, DegradationLora):
        raise BadInput(node, "lora", type(lora).__name__, "Connect Load Degradation LoRA.")
    if not isinstance(degradation, Degradation):
        raise BadInput(node, "degradation", type(degradation).__name__, "Connect Estimate Degradation.")
    pixels = image[..., :3]
    if strength == 0 or not lora.encoder:
        return {"samples": vae.encode(pixels)}
    layers = _layers(node, vae, lora)
    cores, made = lora.cores(torch.tensor(degradation.scores), "vae"), []
    for i, one in enumerate(pixels):
        with _placed(layers, cores[i % len(cores)], lora, strength):
            made.append(vae.encode(one[None]))
    return {"samples": torch.cat(made)}


def _layers(node, vae, lora):
    """[(module, number of its block, (A, B))] of the encoder; BadInput where the VAE is another one."""
    encoder, found = getattr(vae.first_stage_model, "encoder", None), []
    modules = dict(encoder.named_modules()) if encoder is not None else {}
    for name, pair in lora.encoder.items():
        module, pair = modules.get(encoder_name(name)), as_convolution(pair)
        wanted = [pair[1].shape[0], *pair[0].shape[1:]]
        shape = list(module.weight.shape) if module is not None else None
        if shape != wanted:
            raise BadInput(node, "vae", type(vae.first_stage_model).__name__, f"{lora.name} is for another VAE: encoder.{name} has {wanted} there, " + (f"{shape} in this one." if shape else "and does not exist in this one. Take the VAE of its model (SD-Turbo's, SD2's)."))
        found.append((module, lora.encoder_block(name), pair))
    return found


@contextlib.contextmanager
def _placed(layers, cores, lora, strength):
    """Within it, the layers give out + strength (ALPHA / rank) B C A h; cores [blocks, rank, rank] of the one picture that is encoded."""
    touched = []
    try:
        for module, block, pair in layers:
            _exchange(touched, module, _forward(module, module.forward, pair, cores[block], strength * ALPHA / lora.encoder_rank))
        yield
    finally:
        _restore(touched)


def _forward(module, inner, pair, core, scale):
    def run(given, *args, **kwargs):
        out = inner(given, *args, **kwargs)
        return out + (scale * through(pair, core.to(given).expand(len(given), -1, -1), module, given)).to(out.dtype)
    return run
