"""The bundled network of Exposure Diffusion."""
from .weights_file import read

NAME, UNIT = "exposure", 500.0      # electrons that its second input counts as one


def network():
    """The ExposureNetwork of the weight file; its errors name the file."""
    from ..guidance.inverse.exposure_network import parse
    return parse(read(NAME), {"unit": str(UNIT)})
