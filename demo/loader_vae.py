"""The bundled autoencoder as the host's VAE: pictures of 8 h x 8 w pixels for latents of h x w."""
import logging

import comfy.model_management as management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import torch
import torch.nn.functional as F
from torch import nn

from .latents import CHANNELS, PATCH
from .upsampler import Upsampler
from .weights_file import FOLDER, fill, read

_BYTES_PER_PIXEL = 640      # of working memory, per byte of the dtype's size / 4


class Autoencoder(nn.Module):
    """encode: pictures [n, 3, 8h, 8w] in [-1, 1] -> latents [n, 16, h, w]; decode is its inverse. Both are differentiable."""

    def __init__(self, layers=comfy.ops.manual_cast, dtype=None, device=None):
        super().__init__()
        options = {"dtype": dtype, "device": device}
        self.to_latent = layers.Conv2d(3, CHANNELS, PATCH, stride=PATCH, **options)
        self.from_latent = layers.Conv2d(CHANNELS, 3 * PATCH * PATCH, 1, **options)
        self.upsampler = Upsampler(layers, **options)

    def encode(self, x):
        return self.to_latent(F.avg_pool2d(x, 2))

    def decode(self, z, **_):
        return self.upsampler(F.pixel_shuffle(self.from_latent(z), PATCH))


def _weights(folder):
    """The linear code as two convolutions, and the upsampler."""
    code = read("latents", folder)
    missing = {"mean", "basis", "scale"} - set(code)
    if missing:
        raise ValueError(f"latents.safetensors in {folder} lacks {', '.join(sorted(missing))}. Restore the file from the repository.")
    basis, scale = code["basis"], code["scale"]
    weights = {f"upsampler.{k}": v for k, v in read("upsampler", folder).items()}
    return weights | {
        "to_latent.weight": (basis * scale).reshape(CHANNELS, 3, PATCH, PATCH).contiguous(),
        "to_latent.bias": -(basis @ code["mean"]) * scale,
        "from_latent.weight": (basis.T / scale).reshape(3 * PATCH * PATCH, CHANNELS, 1, 1).contiguous(),
        "from_latent.bias": code["mean"].clone(),
    }


def _memory(pixels, dtype):
    return pixels * _BYTES_PER_PIXEL * management.dtype_size(dtype) / 4


class _NoWarning(logging.Filter):
    def filter(self, record):
        return "No VAE weights detected" not in record.getMessage()


class DemoVAE(comfy.sd.VAE):
    """The host's VAE around `Autoencoder`."""

    def __init__(self, folder=FOLDER, disable_dynamic=False):
        weights = _weights(folder)
        quiet, root = _NoWarning(), logging.getLogger()
        root.addFilter(quiet)       # without weights the host's constructor only sets its defaults, and says so
        try:
            super().__init__(sd={})
        finally:
            root.removeFilter(quiet)
        self.latent_channels = CHANNELS
        self.working_dtypes = [torch.float32]
        self.memory_used_encode = lambda shape, dtype: _memory(shape[-2] * shape[-1], dtype)
        self.memory_used_decode = lambda shape, dtype: _memory(shape[-2] * shape[-1] * 64, dtype)
        self.device = management.vae_device()
        self.output_device = management.intermediate_device()
        self.vae_dtype = self._choose_dtype()
        self.first_stage_model = Autoencoder(dtype=self.vae_dtype).eval().requires_grad_(False)
        make = comfy.model_patcher.ModelPatcher
        if not disable_dynamic:
            make = getattr(comfy.model_patcher, "CoreModelPatcher", make)
        archive = getattr(management, "archive_model_dtypes", None)
        if archive is not None:
            archive(self.first_stage_model)
        self.patcher = make(self.first_stage_model, load_device=self.device, offload_device=management.vae_offload_device())
        dynamic = bool(getattr(self.patcher, "is_dynamic", bool)())
        fill(self.first_stage_model, {k: v.to(self.vae_dtype) for k, v in weights.items()}, "upsampler", folder, dynamic)
        self.patcher.cached_patcher_init = (load_vae_patcher, (folder,))
        if hasattr(self, "model_size"):
            self.model_size()

    def _choose_dtype(self):
        """float32 (it is small) unless the user asked the host for another dtype of VAEs."""
        try:
            return management.vae_dtype(self.device, self.working_dtypes)
        except TypeError:       # mid-2024 engine
            return torch.float32


def make_vae(folder=FOLDER):
    """The host's VAE object of the bundled autoencoder. Raises FileNotFoundError or ValueError that names the weight file."""
    return DemoVAE(folder)


def load_vae_patcher(folder=FOLDER, disable_dynamic=False):
    """The ModelPatcher of a fresh VAE, as newer hosts ask for it."""
    return DemoVAE(folder, disable_dynamic).patcher
