"""The nodes: one for every method, and those written by hand in the modules of this folder (their NODES)."""
from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import pkgutil

from ..guidance import catalogue
from . import _define

_log = logging.getLogger(__name__)


def _isolated(what, make):
    """make(), or None with a line in the log: one faulty node does not take the pack with it."""
    try:
        return make()
    except Exception:
        _log.error("Lodestar: %s is left out, because it could not be defined.", what, exc_info=True)
        return None


@contextlib.contextmanager
def _uncollected():
    """No garbage collection within it: a full one looks at all that PyTorch has loaded, which takes longer than the pack's own import."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def definitions():
    """{node id: NodeDef} of the whole pack."""
    with _uncollected():
        return _definitions()


def _definitions():
    found = {}
    for info in pkgutil.iter_modules(__path__):
        if info.name.startswith("_"):
            continue
        module = _isolated(f"nodes/{info.name}.py", lambda name=info.name: importlib.import_module(f"{__name__}.{name}"))
        found |= {d.node_id: d for d in getattr(module, "NODES", ())}
    for node_id, cls in catalogue.methods(_isolated).items():
        if node_id not in found and _define.attachable(cls):
            definition = _isolated(node_id, lambda cls=cls: _define.node_of(cls))
            if definition is not None:
                found[node_id] = definition
    return dict(sorted(found.items()))


def v3_classes(io):
    made = (_isolated(name, lambda d=d: _define.v3_class(d, io)) for name, d in definitions().items())
    return [c for c in made if c is not None]


def v1_classes():
    made = ((name, _isolated(name, lambda d=d: _define.v1_class(d))) for name, d in definitions().items())
    return {name: c for name, c in made if c is not None}
