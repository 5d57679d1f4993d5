"""The clean estimate as a picture, with gradient: the VAE's decoder without the copies, clamps and tiles of VAE.decode."""
import torch

from ..gradients import plain_context
from ..method import BadInput
from .gradients import make_normal


class Decoder:
    """decode(denoised) -> pictures [n, 3, height, width] in about [0, 1] (not clamped: a clamp has no gradient). Loads the VAE when first used."""

    def __init__(self, vae, latent_format):
        self.vae, self.latent_format = vae, latent_format

    def __deepcopy__(self, memo):
        return self

    @property
    def key(self):
        """Equal for decoders of the same pictures."""
        return id(self.vae), id(self.latent_format)

    def __call__(self, denoised):
        import comfy.model_management as management
        network = self.vae.first_stage_model
        weight = next(network.parameters())
        if weight.device != denoised.device:
            management.load_models_gpu([self.vae.patcher])
        with plain_context():
            make_normal(network)
            latent = self.latent_format.process_out(denoised).to(self.vae.vae_dtype)
            picture = network.decode(latent)
        if picture.ndim == 5:       # video decoders: frames as pictures of one row
            picture = picture.movedim(2, 1).flatten(0, 1)
        return (picture.to(torch.float32) + 1) / 2


class SoundDecoder:
    """decode(denoised) -> waveforms [n, channels, values] of sound latents, with gradient. Loads the VAE when first used."""

    def __init__(self, vae, latent_format):
        self.vae, self.latent_format = vae, latent_format

    def __deepcopy__(self, memo):
        return self

    def __call__(self, denoised):
        import comfy.model_management as management
        network = self.vae.first_stage_model
        weight = next(network.parameters(), None)
        if weight is not None and weight.device != denoised.device:
            management.load_models_gpu([self.vae.patcher])
        with plain_context():
            make_normal(network)
            return network.decode(self.latent_format.process_out(denoised).to(self.vae.vae_dtype)).to(torch.float32)


class RoughPicture:
    """The clean estimate as a rough picture [n, 3, height, width] of the latent's own size, by the latent format's linear map to colours: no network, a gradient for nothing."""

    def __init__(self, latent_format, node):
        factors, bias = getattr(latent_format, "latent_rgb_factors", None), getattr(latent_format, "latent_rgb_factors_bias", None)
        if factors is None:
            raise BadInput(node, "space", "small", f"Latents of the kind {type(latent_format).__name__} have no map to colours; choose rgb or latent.")
        with torch.inference_mode(False):      # nodes run in it, and gradients go through these
            self.factors, self.bias = torch.tensor(factors), torch.zeros(3) if bias is None else torch.tensor(bias)
        self.key = id(latent_format), "small"

    def __deepcopy__(self, memo):
        return self

    def __call__(self, denoised):
        picture = torch.einsum("nc...,ck->nk...", denoised.float(), self.factors.to(denoised.device)) + self.bias.to(denoised.device).view(1, 3, *[1] * (denoised.ndim - 2))
        picture = picture.movedim(2, 1).flatten(0, 1) if picture.ndim == 5 else picture
        return (picture + 1) / 2
