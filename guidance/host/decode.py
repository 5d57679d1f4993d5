"""The clean estimate as a picture, with gradient: the VAE's decoder without the copies, clamps and tiles of VAE.decode."""
import torch

from ..gradients import plain_context
from .gradients import make_normal


class Decoder:
    """decode(denoised) -> pictures [n, 3, height, width] in about [0, 1] (not clamped: a clamp has no gradient). Loads the VAE when first used."""

    def __init__(self, vae, latent_format):
        self.vae, self.latent_format = vae, latent_format

    def __deepcopy__(self, memo):
        return self

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
