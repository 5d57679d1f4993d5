"""Our hooks inside compiled networks: they run as they are, and are not traced."""
from __future__ import annotations

import sys


def eager(hook, inner=False):
    """The hook, left out of what torch.compile traces; `inner`: what it calls may be compiled again (a network's own block). As it is where nothing was compiled."""
    dynamo = sys.modules.get("torch._dynamo")
    return hook if dynamo is None else dynamo.disable(hook, recursive=not inner)
