"""The linear autoencoder: 4x4 pixel blocks of a 64 px picture, reduced to 16 channels by principal components.

encode: [n, 3, 64, 64] in [0, 1] -> [n, 16, 16, 16] with overall unit variance; decode is the transpose.
One factor scales all channels (whitening each would blow noise up in the weak ones).
"""
import torch
import torch.nn.functional as F

CHANNELS = 16
PATCH = 4


def fit(images):
    """Principal components of the pictures' blocks: {mean [48], basis [16, 48], scale []}."""
    blocks = F.pixel_unshuffle(images * 2 - 1, PATCH).permute(0, 2, 3, 1).reshape(-1, 3 * PATCH * PATCH).double()
    mean = blocks.mean(0)
    centred = blocks - mean
    _, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    basis = vectors.flip(1)[:, :CHANNELS].T
    scale = 1 / (centred @ basis.T).square().mean().sqrt()
    return {"mean": mean.float(), "basis": basis.float().contiguous(), "scale": scale.float()}


def encode(images, code):
    """Pictures in [0, 1] to unit-variance latents."""
    x = F.pixel_unshuffle(images * 2 - 1, PATCH) - code["mean"][:, None, None]
    return torch.einsum("kc,nchw->nkhw", code["basis"], x) * code["scale"]


def decode(latents, code):
    """Latents to pictures; values can leave [0, 1]."""
    x = torch.einsum("kc,nkhw->nchw", code["basis"], latents / code["scale"]) + code["mean"][:, None, None]
    return (F.pixel_shuffle(x, PATCH) + 1) / 2
