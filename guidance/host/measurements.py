"""The measurement of a graph as the solvers' Problem, for the model that samples."""
from __future__ import annotations

import torch

from ..inverse.problem import Problem
from ..method import BadInput
from .decode import Decoder
from .encode import Encoder


def bind(measurement, latent_format, like):
    """The Problem of a Measurement; `like`: a latent of the run [batch, channel, (frame,) height, width]."""
    operator, noise = measurement.operator, float(measurement.noise)
    if measurement.picture is None:      # nothing was measured: the operator alone is wanted
        rgb = measurement.vae is not None
        return Problem(operator, like[:1], noise, Decoder(measurement.vae, latent_format) if rgb else None, Encoder(measurement.vae, latent_format, like.shape[0]) if rgb else None, 2.0 if rgb else 1.0)
    given = torch.as_tensor(measurement.picture)
    if measurement.space == "rgb":
        y = operator.read(given[..., :3].movedim(-1, 1)).to(device=like.device, dtype=torch.float32)
        return Problem(operator, y, noise, Decoder(measurement.vae, latent_format), Encoder(measurement.vae, latent_format, like.shape[0]), 2.0)
    # the model's latents are z -> scale z + shift of the VAE's, channel by channel: A of them is scale A z + A shift
    shift = latent_format.process_in(torch.zeros_like(like[:1], dtype=torch.float32))
    y, around = given.to(device=like.device, dtype=torch.float32), operator.measure(shift)
    if y.shape[1:] != around.shape[1:]:
        raise BadInput("Measurement", "size of the degraded latent", list(y.shape[1:]), f"The operator makes {list(around.shape[1:])} of what is sampled; "
                       "measure a latent of the size and model that is sampled.")
    scaled = latent_format.process_in(y) - latent_format.process_in(torch.zeros_like(y))
    unit = latent_format.process_in(torch.ones_like(shift)) - shift
    return Problem(operator, operator.settle(scaled + around), noise * float(unit.abs().mean()))
