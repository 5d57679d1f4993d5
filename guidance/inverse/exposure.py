"""Exposure Diffusion: a picture that was exposed too briefly is exposed on, step by step, by a network."""
from __future__ import annotations

from typing import Any

import torch

from ..frozen import frozen
from ..method import BadInput, Method, param, socket
from .operators.exposed import SensorExposure

FORMS = ("first picture", "last state")


def draw(mean, generator=None):
    """Counts of this mean; their gradient is that of the mean."""
    counts = torch.poisson(mean.detach(), generator=generator)
    return counts if not mean.requires_grad else (counts - mean).detach() + mean


def through(network, y, operator, ratios, generator, form=FORMS[0]):
    """[(estimate, what else the network gave)] of every exposure. y [n, 3, h, w]: the measured picture; ratios: times of the exposures, in units of the first one's, rising from 1 to operator.ratio.

    network(brightened state, its photons, brightened first state) -> (estimate, anything). Numbers of electrons: states are sums of counts, `y photons` and what was drawn.
    """
    first = (y * operator.photons).clamp(min=0)
    bright = lambda counts, times: counts / operator.photons * (operator.ratio / times)      # as if the exposure had been long enough
    counts, found = first, []
    for i, times in enumerate(ratios[:-1]):
        estimate, more = network(bright(counts, times), counts, bright(first, 1.0))
        found.append((estimate, more))
        if i + 2 < len(ratios):
            since, base = (1.0, first) if form == FORMS[0] else (times, counts)
            counts = base + draw(operator.photons / operator.ratio * (ratios[i + 1] - since) * estimate.clamp(0, 1), generator)
    return found


@frozen(eq=False)
class ExposureDiffusion(Method):
    """A picture of a sensor that was exposed too briefly is exposed on: a network estimates the well-exposed picture, the sensor counts further photons of that estimate, and the longer exposure is estimated anew.

    Paper: Wang et al., "ExposureDiffusion: Learning to Expose for Low-light Image Enhancement", arXiv 2307.07710.

        t_i evenly spread from 1 (the time of the given picture) to ratio;   c_1 = photons y
        u_i     = F(c_i / photons * ratio / t_i, c_i)                                      the estimate
        c_{i+1} = c_1 + Poisson(photons / ratio (t_{i+1} - 1) u_i)                         first picture: as released
                  c_i + Poisson(photons / ratio (t_{i+1} - t_i) u_i)                       last state
        the result is u_steps

    y: the measured picture, c: counts of electrons, whose sum over times is again a count: a diffusion that begins with the given picture in place of noise, and whose steps are what a sensor does. F: a U-Net that
    sees the brightened picture and its counts; each pixel is mixed of the picture that it draws and of the given one with something added, by a mask of its own (adaptive residual). steps 1 is that network alone.

    Where F is the posterior mean, its mean over the draws is kept at every step, in both forms; with `last state` and many short steps the counts follow the true distribution of a longer exposure given the first
    one, and the result that of the picture given the measurement; with few steps, or `first picture`, it is less varied, nearer to the mean.

    Deviations: colours in linear light in place of raw mosaics (the authors' files of four colours are refused); a state is not cut off at white before photons are added to it, which would darken the lights.
    Defaults: 3 steps, first picture, as the authors'. Cost: `steps` passes of the small network, none of a diffusion model. Limits: the sensor's numbers must be known; fixed patterns and colour casts stay.
    The photons are counted on the processor, so that a seed gives the same picture on every device; the network runs where the host's models do.
    The bundled network was trained on the demo scenes (demo/train_exposure.py), 1665 steps of four crops. On scenes of their own, brightened, one step, three steps, in dB: 21.3, 31.1, 31.1 at 1000 electrons and a 20th
    of the time; 16.7, 26.9, 28.4 at a 50th; 28.6, 36.4, 32.8 at 5000 electrons and a 20th. Three steps are better than one in dark pictures alone: in brighter ones the network's own errors are exposed too.
    """

    node_id = "LodestarExposureDiffusion"
    title = "Exposure Diffusion"
    family = "inverse"
    paper = "ExposureDiffusion, arXiv 2307.07710"
    aliases = ("low light", "denoise raw", "exposure-aware sampler", "photon counts")
    planar = True

    operator: Any = socket("LODESTAR_OPERATOR", "A Sensor Exposure Operator: how long, how bright, how noisy.")
    network: Any = socket("LODESTAR_EXPOSURE_NETWORK", "From Load Exposure Network; without one the small one that comes with the pack.", optional=True)
    steps: int = param(3, "Exposures that are estimated, the given one among them; 1 is the network alone.", 1, 100, 1)
    form: str = param(FORMS[0], "What new photons are added to: the given picture (as released), or the state before (exact for many steps).", choices=FORMS)
    seed: int = param(0, "Of the photons.", 0, 2**32 - 1, 1)

    def validate(self):
        super().validate()
        if not isinstance(self.operator, SensorExposure):
            raise BadInput(self.title, "operator", getattr(self.operator, "title", self.operator), "Its steps are those of a sensor that counts: connect a Sensor Exposure Operator.")
        return self

    def ratios(self):
        return torch.linspace(1.0, self.operator.ratio, self.steps + 1, dtype=torch.float64).tolist()

    def restored(self, y, network=None):
        """The estimates of every exposure [n, 3, h, w], the last one first; y as the operator made it. network: stands in for the method's own."""
        network = self.network if network is None else network
        generators = [torch.Generator().manual_seed((int(self.seed) + i) % 2**63) for i in range(len(y))]
        rows = []
        for row, generator in zip(y.split(1), generators):      # a picture's draws do not depend on the batch
            with torch.no_grad():
                rows.append([u for u, _ in through(lambda *given: (network(*given), None), row.cpu(), self.operator, self.ratios(), generator, self.form)])
        return [torch.cat(parts).to(y) for parts in zip(*(r[::-1] for r in rows))]
