"""From a picture to the noise that gives it, and back."""
from .ddim import DDIMInversion

__all__ = ["DDIMInversion"]
