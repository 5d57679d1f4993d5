"""Control edits on the host: residuals that say themselves how they enter the features."""
from __future__ import annotations

import torch

from ..attention.control_norm import ControlEdit

PLACES = ("middle", "output")


class Injected:
    """Stands for a residual in a ControlNet's result: the host's `h += residual` is answered by the edits. What they raise is kept, since the host swallows it."""

    def __init__(self, residual, edits, place, number, errors):
        self.residual, self.edits, self.place, self.number, self.errors = residual, edits, place, number, errors

    @property
    def shape(self):
        return self.residual.shape

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        h, self = args[:2]
        if function not in (torch.Tensor.__iadd__, torch.Tensor.add_, torch.Tensor.add, torch.Tensor.__add__, torch.add) or not isinstance(self, cls):
            return NotImplemented
        return self.into(h)

    def __radd__(self, h):
        return self.into(h)

    def into(self, h):
        try:
            residual = self.residual.to(h.device)
            for edit in self.edits:
                h = edit.inject(self.place, self.number, h, residual)
            return h
        except Exception as e:
            self.errors.append(e)
            raise


def wrapped(call, control):
    """(control, errors): a ControlNet's result whose residuals go through the control edits of this call; what they raised is found in `errors` afterwards."""
    edits = tuple(e for e in call.edited if isinstance(e, ControlEdit))
    errors = []
    if not edits or not isinstance(control, dict):
        return control, errors
    control = dict(control)
    for place in PLACES:
        found = control.get(place) or []      # the host takes them from the end
        control[place] = [None if r is None else Injected(r, edits, place, len(found) - 1 - i, errors) for i, r in enumerate(found)]
    return control, errors
