"""Our hooks inside compiled networks: they run as they are, and are not traced."""
from __future__ import annotations

import sys


def eager(hook, inner=False, session=None):
    """The hook, left out of what torch.compile traces; `inner`: what it calls may be compiled again (a network's own block).

    As it is where nothing was compiled: leaving it out costs a step of a small network several tenths of a per cent for each layer. session: the run, for networks that surely are not.
    """
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is None or (session is not None and not _may_be_compiled(session)):
        return hook
    return dynamo.disable(hook, recursive=not inner)


def _may_be_compiled(session):
    """Whether any part of a run's network is compiled, or may be by another's wrapper around it (as the host's own node does); looked up once for a run."""
    kept = vars(session)
    if "may_be_compiled" not in kept:
        kept["may_be_compiled"] = _wrapped(session) or any(map(_compiled, session.model.diffusion_model.modules()))
    return kept["may_be_compiled"]


def _wrapped(session):
    from .attach import KEY
    if not hasattr(session.guider, "model_options"):      # older hosts: what stands around the network cannot be seen
        return True
    options = session.guider.model_options.get("transformer_options", {})
    sources = options.get("wrappers", {}), getattr(session.guider.model_patcher, "wrappers", {})
    return any(found and key != KEY for wrappers in sources for kind in ("apply_model", "diffusion_model") for key, found in wrappers.get(kind, {}).items())


def _compiled(module):
    forward = module.__dict__.get("forward")
    return getattr(module, "_compiled_call_impl", None) is not None or hasattr(module, "_orig_mod") or hasattr(forward, "_torchdynamo_orig_callable")
