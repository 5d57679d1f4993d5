"""Reading attention in single predictions of a given picture."""
from __future__ import annotations

from typing import Any

from ..frozen import frozen
from ..method import Finish


@frozen(eq=False)
class Look(Finish):
    """Carries observers into the predictions of a MODEL and gives what they saw to `take(observer, found)`. Has no node."""

    title = "Look"
    observers: tuple = ()
    take: Any = None

    def edits(self, step):
        return self.observers

    def finish(self, step, denoised, predictions, state):
        for observer in self.observers:
            found = step.maps.pop(observer, None)
            if found:
                self.take(observer, found)
        return denoised
