"""Run a module of this checkout: `python scripts/_module.py lodestar.demo.runner ARGS`.

Unlike `python -m`, neither the current folder nor this checkout comes first on the path: their `nodes` and `tests`
folders would hide modules of the host. With --host-first, the host named by LODESTAR_HOST_PATH does come first and
this checkout last (for `bench`)."""

from __future__ import annotations

import os
import runpy
import sys

here = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [p for p in sys.path if p not in ("", here, os.getcwd())]
sys.path.append(here)
import _alias  # noqa: E402

sys.path.remove(here)
_alias.install()
arguments = sys.argv[1:]
if arguments and arguments[0] == "--host-first":
    arguments = arguments[1:]
    host = os.environ.get("LODESTAR_HOST_PATH")
    if host:
        sys.path.insert(0, host)
    sys.path.append(_alias.ROOT)
sys.argv = arguments
runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
