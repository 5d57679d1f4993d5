"""Residual and input edits on U-Nets: residual blocks run through a forward of our own for the time of one network call, inputs through the host's list of patches."""
from __future__ import annotations

import contextlib

import torch

from ..attention.edits import Site, merge_groups, titled
from ..attention.features import InputEdit, ResidualEdit
from . import references
from .compiled import eager
from .geometry import block_modules
from .places import unet_grid


def _of(call, kind):
    return [e for e in call.edited if isinstance(e, kind)]


def install(call, transformer):
    """Adds the patch that this call's input edits need to `transformer` (options that belong to the call)."""
    if _of(call, InputEdit):
        patches = {name: list(functions) for name, functions in transformer.get("patches", {}).items()}
        patches.setdefault("attn1_patch", []).append(_input_patch(call))
        transformer["patches"] = patches


def refuse(call):
    """ValueError for these edits on a network that is no U-Net."""
    for edit in (*_of(call, ResidualEdit), *_of(call, InputEdit)):
        raise ValueError(f"{titled(edit)} changes features of a U-Net; {type(call.session.model.diffusion_model).__name__} is none.")


def _through(call, options, edits, layer, h, place, run, extra=None):
    """h with the edits of each row's role; the references' rows are shown to them."""
    roles = call.roles(options)
    size = h.shape[0] // len(roles)
    wanted = tuple(dict.fromkeys(b for e in edits for b in e.references))
    net = options["lodestar_net"] if wanted else {}
    seen = references.shared(call, net, (layer.key[:2] if place == "residual" else layer.key, place), wanted, lambda rows: h[rows].clone()) if wanted else {}
    groups = merge_groups([tuple(e for e in call.edits_of(r) if e in edits) for r in roles], size)
    if all(not found for _, _, found in groups):
        return h
    height, width, window = (*h.shape[-2:], (0.0, 0.0, 1.0, 1.0)) if h.ndim == 4 else unet_grid(options, h.shape[1])
    site = Site("feature", layer, height, width, extra=extra, step=call.step, batch=size, shared={b: t.to(h.device) for b, t in seen.items()}, window=window)
    parts = []
    for start, stop, found in groups:
        part = h[start:stop]
        for edit in found:
            part = run(edit, site, part)
        parts.append(part)
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _input_patch(call):
    layers = {layer.key: layer for layer in call.session.geometry.layers}

    def patch(n, context, value, options):
        block = options.get("block")
        layer = layers.get((*block, options.get("block_index", 0))) if block else None
        edits = [e for e in _of(call, InputEdit) if layer in call.session.selected(e)]
        if not edits or "lodestar_net" not in options or n.shape[0] != options["lodestar_net"]["rows"]:
            return n, context, value       # another layer, or attention over the frames of a video
        extra = {"attention": block_modules(call.network, layer)["space"].attn1, "heads": options["n_heads"]}
        new = _through(call, options, edits, layer, n, "input", lambda e, site, h: e.entering(site, h), extra)
        return new, new if context is n else context, new if value is n else value
    return eager(patch)


@contextlib.contextmanager
def placed(call, options, network):
    """Within it, the residual blocks of the layers that this network call's residual edits name run through them."""
    edits, touched = _of(call, ResidualEdit), []
    call.network = network if edits or _of(call, InputEdit) else None
    places = {}
    for edit in edits:
        for layer in sorted(call.session.selected(edit), key=str):
            places.setdefault(layer.key[:2], (layer, []))[1].append(edit)
    try:
        for layer, found in places.values():
            module = _residual(network, layer)
            touched.append((module, module.__dict__.get("forward")))
            module.forward = _forward(call, options, list(dict.fromkeys(found)), layer, module.forward)
        yield
    finally:
        for module, earlier in reversed(touched):
            if earlier is None:
                module.__dict__.pop("forward", None)
            else:
                module.forward = earlier


def _forward(call, options, edits, layer, inner):
    def run(*args, **kwargs):
        return _through(call, options, edits, layer, inner(*args, **kwargs), "residual", lambda e, site, h: e.residual(site, h))
    return eager(run, inner=True)


def _residual(network, layer):
    """The residual block in front of a layer's transformer."""
    sequence = network.middle_block if layer.stage == "middle" else getattr(network, f"{layer.stage}_blocks")[layer.index]
    return next(module for module in sequence if hasattr(module, "in_layers") and hasattr(module, "out_layers"))
