"""Training what module edits add to a bundled network: the edits in place for one forward, differentiable with respect to their weights."""
import contextlib

import torch

from ..guidance.attention.module_edits import ModuleSite, diffusers_names, host_name


@contextlib.contextmanager
def placed(network, *edits, control=None):
    """Within it, the network runs with the edits, its rows being the pictures of one batch."""
    table, modules, kept, touched = diffusers_names(network), dict(network.named_modules()), {}, []

    def keep(key, make):
        if key not in kept:
            kept[key] = make()
        return kept[key]

    def forward(edit, name, module, inner):
        def run(given, *args, **kwargs):
            site = ModuleSite(torch.arange(given.shape[0]), keep, None, control)
            given = edit.enter(site, name, module, given)
            return edit.result(site, name, module, inner(given, *args, **kwargs), given)
        return run
    try:
        for edit in edits:
            for name in edit.names():
                module = modules[host_name(table, name)]
                touched.append((module, module.__dict__.get("forward")))
                module.forward = forward(edit, name, module, module.forward)
        yield
    finally:
        for module, earlier in reversed(touched):
            if earlier is None:
                module.__dict__.pop("forward", None)
            else:
                module.forward = earlier
