"""Exposure Diffusion in the host: its network on the device that samples, with progress, interruptible before every exposure."""
from __future__ import annotations

import comfy.model_management as management
import comfy.utils


def exposed(method, y):
    """ExposureDiffusion.restored of pictures y [n, 3, h, w]."""
    device, bar = management.get_torch_device(), comfy.utils.ProgressBar(len(y) * method.steps)

    def run(*given):
        management.throw_exception_if_processing_interrupted()
        out = method.network(*(t.to(device) for t in given)).cpu()
        bar.update(1)
        return out
    return method.restored(y, run)
