"""Networks that restore a degraded picture: the host's upscale models, or the pack's small upscaler."""
from __future__ import annotations

import torch

from ..method import BadInput

TILE = 512


class Restorer:
    """restorer(pictures [n, 3, h, w] in [0, 1], size) -> larger pictures [n, 3, ., .]: applied until it reaches at least half of `size`, or does not enlarge. `model`: an UPSCALE_MODEL, or None for the bundled network."""

    def __init__(self, model=None):
        self.model = model
        if model is not None and not callable(model):
            raise BadInput("Degradation-Aware Sampler", "restorer", type(model).__name__, "Connect an upscale model, of Load Upscale Model.")
        self.network = None if model is not None else _bundled()

    def __deepcopy__(self, memo):
        return self

    def __call__(self, pictures, size):
        out = self.once(pictures, size)
        while out.shape[-2] > pictures.shape[-2] and 2 * out.shape[-2] <= size[0] and 2 * out.shape[-1] <= size[1]:
            pictures, out = out, self.once(out, size)
        return out

    def once(self, y, size):
        if self.network is not None:
            if y.shape[-2] >= size[0] and y.shape[-1] >= size[1]:
                return y      # it has nothing to enlarge
            even = torch.nn.functional.pad(y, (0, y.shape[-1] % 2, 0, y.shape[-2] % 2), mode="replicate")
            out = (self.network.to(y.device)(2 * even - 1) + 1) / 2
            return out[..., :2 * y.shape[-2], :2 * y.shape[-1]]
        import comfy.utils
        self.model.to(y.device)
        if max(y.shape[-2:]) <= TILE:
            return self.model(y)
        return comfy.utils.tiled_scale(y, lambda part: self.model(part.float()), tile_x=TILE, tile_y=TILE, overlap=32, upscale_amount=getattr(self.model, "scale", 1)).to(y)


def _bundled():
    from ...demo.upsampler import Upsampler
    from ...demo.weights_file import fill, read
    with torch.inference_mode(False):
        network = Upsampler()
        fill(network, read("upsampler"), "upsampler")
    return network.eval().requires_grad_(False)
