"""Weight files of methods that need some: found in the host's model folders, read from safetensors."""
from __future__ import annotations

import os

from ..method import BadInput

OWN = "lodestar"               # models/lodestar
ADAPTERS = "ipadapter"         # models/ipadapter, where the packs for image adapters look
FLOWS = "optical_flow"         # models/optical_flow, the newest hosts' own folder


def _folders():
    try:
        import folder_paths
    except ImportError:      # the host from PyPI keeps it in its package
        from comfy.cmd import folder_paths
    return folder_paths


def names(folder=OWN):
    """The files in a model folder of the host, sorted; none without a host."""
    try:
        folders = _folders()
    except ImportError:
        return []
    if folder in (OWN, ADAPTERS, FLOWS) and folder not in folders.folder_names_and_paths:
        folders.add_model_folder_path(folder, os.path.join(folders.models_dir, folder))
    try:
        return sorted(n for n in folders.get_filename_list(folder) if n.endswith(".safetensors"))
    except (KeyError, FileNotFoundError):
        return []


def load(node, field, name, folder=OWN, wanted=None):
    """The tensors of a file, by its name in the folder, of `wanted` keys alone where these are given and there; BadInput where there is none or it is no safetensors file."""
    known = names(folder)
    path = _folders().get_full_path(folder, name) if known else None
    if path is None:
        raise BadInput(node, field, name, f"Put a safetensors file into models/{folder}; there are: {', '.join(known) or 'none'}.")
    from safetensors import safe_open
    from safetensors.torch import load_file
    try:
        if wanted is None:
            return load_file(path)
        with safe_open(path, "pt") as file:
            return {k: file.get_tensor(k) for k in wanted if k in file.keys()}
    except Exception as error:
        raise BadInput(node, field, name, f"It is not a complete safetensors file ({error}). Files of other formats have to be converted.") from error


def notes_of(name, folder=OWN):
    """The metadata of a file that `load` could read, {name: text}."""
    from safetensors import safe_open
    with safe_open(_folders().get_full_path(folder, name), "pt") as file:
        return dict(file.metadata() or {})


def save(node, field, prefix, tensors, metadata):
    """Writes tensors as safetensors into the host's output folder under a number of their own; the path. BadInput for a prefix that leaves the folder."""
    from safetensors.torch import save_file
    folders = _folders()
    base = os.path.abspath(folders.get_output_directory())
    stem = os.path.abspath(os.path.join(base, prefix))
    if not prefix.strip() or os.path.commonpath((base, stem)) != base or stem == base:
        raise BadInput(node, field, prefix, "Name a file, with folders of the output folder before it if you like: lodestar/classifier.")
    os.makedirs(os.path.dirname(stem), exist_ok=True)
    number = next(n for n in range(1, 100000) if not os.path.exists(f"{stem}_{n:05}.safetensors"))
    path = f"{stem}_{number:05}.safetensors"
    save_file(tensors, path, metadata)
    return path
