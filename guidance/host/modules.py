"""Module edits on the host (guidance.attention.module_edits): the forward of single modules of a U-Net is exchanged for the time of one network call."""
from __future__ import annotations

import contextlib

import torch

from ..attention.module_edits import ModuleEdit, ModuleSite, diffusers_names, host_name
from .compiled import eager
from .geometry import checkpoint_modules
from .gradients import recomputing


def shapes(network, geometry):
    """lookup(diffusers' name) -> (out, in) of a linear layer, (out, in, height, width) of a convolution, () of another module, None where there is none; None for networks that are no U-Nets of pictures."""
    if geometry.family != "unet" or geometry.temporal:
        return None
    table, modules = diffusers_names(network), dict(network.named_modules())

    def lookup(name):
        module = modules.get(host_name(table, name))
        if module is None:
            return None
        if hasattr(module, "in_features"):
            return module.out_features, module.in_features
        return (module.out_channels, module.in_channels, *module.kernel_size) if hasattr(module, "kernel_size") else ()
    return lookup


def heads(network, width):
    """The number of heads that a U-Net's attention has where it is so wide."""
    own = getattr(network, "num_heads", -1)
    if own not in (-1, None):
        return own
    each = getattr(network, "num_head_channels", -1)
    return max(1, width // (each if each not in (-1, None) else 64))


@contextlib.contextmanager
def placed(call, options, network, control=None):
    """Within it, the modules that this call's module edits name give what the edits make of it, in the rows that carry them."""
    edits = tuple(e for e in call.edited if isinstance(e, ModuleEdit))
    carried = [tuple(e for e in call.edits_of(r) if isinstance(e, ModuleEdit)) for r in call.roles(options)] if edits else []
    if not any(carried):
        yield
        return
    touched, control = [], _kept_control(call, control)
    try:
        for holder, inside in _holders(call, edits, network):
            forwards = [(module, _forward(call, name, module, wanted, carried, control)) for module, name, wanted in inside]
            if holder is None:
                for module, make in forwards:
                    _exchange(touched, module, eager(make(module.forward), inner=True))
            else:
                _exchange(touched, holder, _around(holder, holder.forward, forwards))
        yield
    finally:
        _restore(touched)


def _kept_control(call, control):
    """The residuals of the call's ControlNets as they are before the network takes them from their lists; {} where they give none now, None where no prompt has a ControlNet."""
    if isinstance(control, dict):
        return {place: list(found) for place, found in control.items() if found is not None}
    return {} if any("control" in entry for entry in call.session.entries.values()) else None


def _exchange(touched, module, forward):
    touched.append((module, module.__dict__.get("forward")))
    module.forward = forward


def _restore(touched):
    for module, earlier in reversed(touched):
        if earlier is None:
            module.__dict__.pop("forward", None)
        else:
            module.forward = earlier


def _around(holder, inner, forwards):
    """The forward of one of the network's blocks with the modules in it exchanged; where it is computed again for a gradient they are exchanged too."""
    again = getattr(inner, "recomputes", None)

    def run(*args, **kwargs):
        touched = []
        try:
            last = again or inner
            for module, make in forwards:
                if module is holder:
                    last = make(last)
                else:
                    _exchange(touched, module, make(module.forward))
            return last(*args, **kwargs)
        finally:
            _restore(touched)
    return eager(recomputing(run, inner.contexts) if again is not None else run, inner=True)


def _holders(call, edits, network):
    """[(block of the network or None, [(module, diffusers' name, edits)])], kept for the run."""
    key = ("modules", id(network), edits)
    kept = call.session.references
    if key not in kept:
        table, modules = diffusers_names(network), dict(network.named_modules())
        names = {m: n for n, m in modules.items()}
        blocks = {names[m]: m for m in checkpoint_modules(network)}
        found = {}
        for edit in edits:
            for name in edit.names():
                path = host_name(table, name)
                head = next((b for b in blocks if path == b or path.startswith(b + ".")), None)
                found.setdefault(head, {}).setdefault((path, name), []).append(edit)
        kept[key] = [(blocks.get(head), [(modules[path], name, tuple(wanted)) for (path, name), wanted in inside.items()]) for head, inside in found.items()]
    return kept[key]


def _forward(call, name, module, wanted, carried, control):
    """make(inner) -> the forward of a module with its edits."""
    chunks = len(carried)

    def through(function, x, *more):
        """x with function(edit, site, x, ...) of each edit in the rows that carry it."""
        for edit in wanted:
            rows = [i for i in range(chunks) if edit in carried[i]]
            if not rows:
                continue
            size = x.shape[0] // chunks
            index = None if len(rows) == chunks else torch.cat([torch.arange(i * size, (i + 1) * size, device=x.device) for i in rows])
            site = ModuleSite(torch.arange(size, device=x.device).repeat(len(rows)), _keeper(call.session, x), call.step, control, index)
            if index is None:
                x = function(edit, site, x, *more)
            else:
                x = torch.index_copy(x, 0, index, function(edit, site, x[index], *(t[index] for t in more)).to(x.dtype))
        return x

    def make(inner):
        def run(given, *args, **kwargs):
            if given.shape[0] % chunks:
                raise ValueError(f"{wanted[0].title}: {given.shape[0]} rows in {name} are not those of {chunks} prompts.")
            given = through(lambda edit, site, x: edit.enter(site, name, module, x), given)
            out = inner(given, *args, **kwargs)
            return through(lambda edit, site, x, before: edit.result(site, name, module, x, before), out, given)
        return run
    return make


def _keeper(session, like):
    """keep(key, make): what make() gives, floating tensors on the device and in the dtype of `like`, as ordinary tensors that live for the run."""
    def moved(value):
        if isinstance(value, torch.Tensor):
            return value.detach().to(device=like.device, dtype=like.dtype if value.is_floating_point() else value.dtype).clone()
        return {k: moved(v) for k, v in value.items()} if isinstance(value, dict) else type(value)(map(moved, value)) if isinstance(value, (tuple, list)) else value

    def keep(key, make):
        full = ("module edit", *key, str(like.device), like.dtype)
        if full not in session.references:
            with torch.inference_mode(False), torch.no_grad():
                session.references[full] = moved(make())
        return session.references[full]
    return keep
