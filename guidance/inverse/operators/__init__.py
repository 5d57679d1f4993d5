"""Measurement operators: what is known of a picture. One frozen dataclass each; nodes/operators.py makes a node of each."""
from .base import Operator
from .colour import Colourisation
from .convolved import KernelBlur, MotionBlur
from .curved import Jpeg, LowLight, Quantisation
from .exposed import SensorExposure
from .masked import Inpainting, MissingTraces
from .separable import GaussianBlur, SuperResolution
from .transformed import RandomProjection, Wavelet

OPERATORS = (Inpainting, SuperResolution, GaussianBlur, MotionBlur, KernelBlur, Colourisation, RandomProjection, Wavelet, MissingTraces, Jpeg, Quantisation, LowLight, SensorExposure)

__all__ = ["OPERATORS", "Operator", *(c.__name__ for c in OPERATORS)]
