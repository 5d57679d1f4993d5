"""The weight files beside this package, read with errors that say what to do."""
import os

import torch
from safetensors.torch import load_file

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "weights")


def read(name, folder=FOLDER):
    """The tensors of `folder/name.safetensors`, in float32.

    Raises FileNotFoundError or ValueError; both name the file and what would be right."""
    path = os.path.join(folder, name + ".safetensors")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"The demo model's weight file is missing: {path}. It belongs to the repository: restore it (git checkout, "
                                "or a complete download of the pack).")
    try:
        tensors = load_file(path)
    except Exception as e:
        raise ValueError(f"The demo model's weight file is damaged: {path} is not a complete safetensors file ({e}). Restore it from the "
                         "repository; a few hundred bytes of text in it mean that Git LFS or a proxy replaced it.") from e
    return {k: v.to(torch.float32) for k, v in tensors.items()}


def fill(module, weights, name, folder=FOLDER, assign=False):
    """Loads tensors into a module; raises ValueError that names the file where they don't fit it exactly."""
    try:
        module.load_state_dict(weights, strict=True, **({"assign": True} if assign else {}))
    except RuntimeError as e:
        path = os.path.join(folder, name + ".safetensors")
        raise ValueError(f"{path} does not hold the weights it should: {e}. Restore the file from the repository.") from e
