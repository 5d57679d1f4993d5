"""The host in this process, and calling other people's nodes."""
from __future__ import annotations

import asyncio
import importlib
import importlib.util
import logging
import os
import re
import sys
from pathlib import Path

import torch


class NoHost(RuntimeError):
    """There is no ComfyUI to measure with."""


def start(cpu=None):
    """Imports the host that scripts/bench put on the path; uses the CPU where there is no GPU or `cpu` asks for it. Returns its version."""
    if importlib.util.find_spec("comfy") is None:
        raise NoHost("No ComfyUI is on the path. Run ./scripts/bench, which finds or fetches one.")
    logging.getLogger().setLevel(logging.WARNING)
    hidden = {k: os.environ.pop(k) for k in list(os.environ) if k.startswith("COMFYUI_")}
    argv, sys.argv = sys.argv, ["main"]
    try:
        args = importlib.import_module("comfy.cli_args").args
        args.cpu = not torch.cuda.is_available() if cpu is None else cpu
        if os.environ.get("LODESTAR_HOST_KIND") == "pypi":
            args.disable_known_models = True
            importlib.import_module("comfy.cmd.main_pre")
        for name in ("model_management", "samplers", "sample", "sd", "utils", "model_patcher"):
            importlib.import_module("comfy." + name)
    finally:
        sys.argv = argv
        os.environ.update(hidden)
    logging.getLogger().setLevel(logging.WARNING)
    return os.environ.get("LODESTAR_HOST_VERSION", "unknown")


def device():
    import comfy.model_management
    return comfy.model_management.get_torch_device()


def device_name():
    d = device()
    return torch.cuda.get_device_name(d) if d.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def on_gpu():
    return device().type == "cuda"


_nodes = {}


def nodes():
    """{name: class} of the host's own nodes, extras included."""
    if not _nodes:
        if os.environ.get("LODESTAR_HOST_KIND") == "pypi":
            from comfy.nodes.package import import_all_nodes_in_workspace
            _nodes.update(import_all_nodes_in_workspace(vanilla_custom_nodes=False).NODE_CLASS_MAPPINGS)
        else:
            module = importlib.import_module("nodes")
            asyncio.run(module.init_builtin_extra_nodes())
            _nodes.update(module.NODE_CLASS_MAPPINGS)
    return _nodes


def peer_nodes(path):
    """{name: class} of another pack's checkout. Raises RuntimeError that says why it can't be loaded."""
    path = Path(path).resolve()
    entry = path / "__init__.py"
    if not entry.is_file():
        raise RuntimeError(f"{path.name} is no node pack: it has no __init__.py")
    nodes()
    name = "peer_" + re.sub(r"\W", "_", path.name)
    spec = importlib.util.spec_from_file_location(name, entry, submodule_search_locations=[str(path)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        found = dict(getattr(module, "NODE_CLASS_MAPPINGS", None) or {})
        if not found and hasattr(module, "comfy_entrypoint"):
            found = asyncio.run(_v3_nodes(module.comfy_entrypoint))
    except Exception as e:
        raise RuntimeError(f"{path.name} can't be loaded on this host: {type(e).__name__}: {e}") from e
    return found


async def _v3_nodes(entrypoint):
    extension = entrypoint()
    extension = await extension if asyncio.iscoroutine(extension) else extension
    return {c.define_schema().node_id: c for c in await extension.get_node_list()}


def call(cls, **inputs):
    """The outputs of a node (either kind of definition) as a tuple."""
    if hasattr(cls, "define_schema"):
        cls.GET_SCHEMA() if hasattr(cls, "GET_SCHEMA") else None
        out = cls.execute(**inputs)
    else:
        out = getattr(cls(), cls.FUNCTION)(**inputs)
    return tuple(getattr(out, "result", None) or getattr(out, "args", None) or out)


def defaults(cls, model, conditioning):
    """Inputs for a node of another pack: the MODEL, a conditioning wherever one is asked for, else its own defaults."""
    values = {}
    for name, spec in cls.INPUT_TYPES().get("required", {}).items():
        kind, options = spec[0], spec[1] if len(spec) > 1 else {}
        if kind == "MODEL":
            values[name] = model
        elif kind == "CONDITIONING":
            values[name] = conditioning
        elif "default" in options:
            values[name] = options["default"]
        elif isinstance(kind, (list, tuple)):
            values[name] = kind[0]
        else:
            raise RuntimeError(f"its input {name} ({kind}) has no default")
    return values
