"""Feature edits on the host's hook in front of a U-Net's output blocks, behind what others have put there."""
from __future__ import annotations

import torch

from ..attention.edits import FeatureEdit, Site, merge_groups
from .compiled import eager


def install(call, transformer):
    """Adds the output block patch that this call's feature edits need to `transformer` (options that belong to the call)."""
    if any(isinstance(e, FeatureEdit) for e in call.edited):
        patches = {kind: list(functions) for kind, functions in transformer.get("patches", {}).items()}
        patches.setdefault("output_block_patch", []).append(_output_patch(call))
        transformer["patches"] = patches


def _output_patch(call):
    def patch(h, skip, options):
        roles = call.roles(options)
        groups = merge_groups([tuple(e for e in call.edits_of(r) if isinstance(e, FeatureEdit)) for r in roles], h.shape[0] // len(roles))
        block = options.get("block") or ("output", None)
        site = Site("feature", block[1], h.shape[-2], h.shape[-1], None, slice(None), None, call.step)
        parts = []
        for start, stop, edits in groups:
            a, b = h[start:stop], None if skip is None else skip[start:stop]
            for edit in edits:
                a, b = edit.feature(site, a, b)
            parts.append((a, b))
        return parts[0] if len(parts) == 1 else tuple(torch.cat(t) if t[0] is not None else None for t in zip(*parts))
    return eager(patch)
