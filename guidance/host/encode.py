"""Pictures as latents of the model, with gradient: the VAE's encoder without the copies and tiles of VAE.encode, and without its random draw on older hosts."""
import contextlib

import torch

from ..gradients import plain_context
from .gradients import make_normal


@contextlib.contextmanager
def _certain(network):
    """Older hosts' autoencoders draw the latent from its distribution: within it, they give its middle."""
    regulariser = getattr(network, "regularization", None)
    draws = getattr(regulariser, "sample", None) is True
    try:
        if draws:
            regulariser.sample = False
        yield
    finally:
        if draws:
            regulariser.sample = True


class Encoder:
    """encode(pictures [n, 3, height, width] in [0, 1]) -> latents as the model has them. `batch`: of videos, whose frames come as rows. Loads the VAE when first used."""

    def __init__(self, vae, latent_format, batch=None):
        self.vae, self.latent_format, self.batch = vae, latent_format, batch

    def __deepcopy__(self, memo):
        return self

    def __call__(self, picture):
        import comfy.model_management as management
        network = self.vae.first_stage_model
        if next(network.parameters()).device != picture.device:
            management.load_models_gpu([self.vae.patcher])
        with plain_context() if torch.is_grad_enabled() else contextlib.nullcontext(), _certain(network):
            make_normal(network)
            picture = (2 * picture - 1).to(self.vae.vae_dtype)
            if getattr(self.vae, "latent_dim", 2) == 3:
                picture = picture.unflatten(0, (self.batch or picture.shape[0], -1)).movedim(1, 2)
            latent = network.encode(picture)
        return self.latent_format.process_in(latent.float())
