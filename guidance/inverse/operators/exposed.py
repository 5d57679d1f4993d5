"""A sensor that was exposed too briefly."""
from __future__ import annotations

import torch

from ...frozen import frozen
from ...method import param
from .base import Operator


@frozen
class SensorExposure(Operator):
    """A sensor exposed for 1 / ratio of the time that the picture needs: few photons, counted one by one, and the noise of reading them out.

    c = Poisson(photons u / ratio) + read_noise z,   y = c / photons,   A u = u / ratio the mean of y

    u: linear light, 1 is white; photons: electrons that white makes in the full time; read_noise: standard deviation of the read noise in electrons; z: standard normal. `measure` is the mean, which is
    linear; Apply Operator draws the counts, and its own noise comes on top. A+ y = ratio y, the brightened picture.

    Times add up: the counts of two exposures of 1 / ratio and of the rest of the time are those of the full time, in distribution and exactly. Pictures for screens are not linear; as they are, they
    stand for a scene of these brightnesses. Neither saturation nor fixed patterns nor rounding to the sensor's numbers. Files of 8 bits cut most of y off: connect it directly.
    """

    node_id = "LodestarSensorExposureOperator"
    title = "Sensor Exposure Operator"
    spaces = ("rgb",)
    aliases = ("shot noise", "Poisson", "photon noise", "raw", "low light")

    ratio: float = param(20.0, "How many times longer the exposure should have been.", 1.0, 1000.0, 0.5)
    photons: float = param(1000.0, "Electrons that white makes in the full time; fewer are noisier. The authors' cameras: 500 to 150000.", 1.0, 1e6, 1.0)
    read_noise: float = param(2.0, "Standard deviation of the read noise, in electrons.", 0.0, 1000.0, 0.1)

    def forward(self, u):
        return u / self.ratio

    def transposed(self, y, like):
        return y / self.ratio

    def inverted(self, y, like):
        return self.ratio * y

    def gram(self, like):
        return 1 / self.ratio**2

    def drawn(self, u, generator):
        """A noisy measurement of u."""
        mean = self.forward(u.float().cpu().clamp(min=0)) * self.photons
        counts = torch.poisson(mean, generator=generator) + self.read_noise * torch.randn(mean.shape, generator=generator)
        return (counts / self.photons).to(u)
