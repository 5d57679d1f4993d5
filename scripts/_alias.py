"""Make this checkout importable as the package `lodestar`, whatever its folder is called and without running its
__init__.py (which registers nodes and therefore needs a host). Standard library only."""

from __future__ import annotations

import os
import sys
import types

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def install(*light: str) -> None:
    """Register `lodestar` (and the sub-packages named, e.g. "demo") as bare packages: no __init__.py of theirs runs."""
    for name in ("", *light):
        full = "lodestar" + ("." + name if name else "")
        if full not in sys.modules:
            module = types.ModuleType(full)
            module.__path__ = [os.path.join(ROOT, *name.split(".")) if name else ROOT]
            sys.modules[full] = module
            if name:
                setattr(sys.modules["lodestar"], name, module)
