"""Trains the network of Exposure Diffusion on the scenes: three quarters of the batches through one exposure, the others through two more in between, as the authors train all of them.

    python -m demo.train_exposure [--out demo/weights] [--minutes 4] [--steps 0] [--seed 0]
"""
import random
import time

import torch
from torch import nn

from ..guidance.inverse.exposure import ExposureDiffusion, through
from ..guidance.inverse.exposure_network import ExposureNetwork, SeeInDark
from ..guidance.inverse.operators import SensorExposure
from .exposure import NAME, UNIT
from .scenes import random_scene, render
from .train_loop import train_whole

WIDTH = 8
LONGER = 0.25      # of the batches


def fresh():
    """A network whose activations keep their size, and which begins with the given picture: little is added, and the mask hardly takes the picture that it draws."""
    network = SeeInDark(3, 2, WIDTH)
    for name, module in network.named_modules():
        if isinstance(module, nn.ConvTranspose2d):
            nn.init.normal_(module.weight, std=module.in_channels ** -0.5)      # each output pixel has one weight a channel
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, a=0.2)
        else:
            continue
        nn.init.zeros_(module.bias)
    with torch.no_grad():
        network.conv10_1.weight.mul_(0.05)
        network.conv10_1.bias[0] = -3.0
    return network


def pictures(rng, n, side=64):
    """[n, 3, side, side] in [0, 1]: whole scenes, and parts of larger ones."""
    out = []
    for _ in range(n):
        if rng.random() < 0.5:
            out.append(render(random_scene(rng), side))
        else:
            x, y = rng.randrange(side + 1), rng.randrange(side + 1)
            out.append(render(random_scene(rng), 2 * side)[:, y:y + side, x:x + side])
    return torch.stack(out)


def sensor(rng):
    """A sensor and an exposure: photons from 400 to 6000, and times from a fifth to a sixtieth of what is needed."""
    return SensorExposure(5 * 12 ** rng.random(), 400 * 15 ** rng.random(), rng.uniform(0.5, 4))


def training_loss(network, true, operator, generator, between):
    """Mean absolute errors of the estimates of all exposures, and of the two that the mask mixes, by the share that each has."""
    y = operator.drawn(true, generator)
    estimator = ExposureNetwork(network, UNIT)
    ratios = [1.0, *sorted(1 + (operator.ratio - 1) * v for v in torch.rand(between, generator=generator).tolist()), operator.ratio]
    total = 0.0
    for estimate, parts in through(lambda x, photons, first: network(estimator.inputs(x, photons, first)), y, operator, ratios, generator):
        mask = parts["mask"]
        loss = (estimate - true).abs().mean() + ((parts["out"] - true).abs() * mask + (parts["by_residual"] - true).abs() * (1 - mask)).mean()
        total = total + loss / (between + 1)
    return total


def psnr(a, b):
    return (-10 * torch.log10((a.clamp(0, 1) - b).square().mean((1, 2, 3)))).mean().item()


@torch.no_grad()
def figures(network, code, seed, count=24):
    """Mean PSNR in dB over scenes of their own, for each number of steps and for the brightened picture."""
    rng, result = random.Random(seed), {}
    true = torch.stack([render(random_scene(rng), 128) for _ in range(count)])
    for ratio, photons in ((20, 1000), (20, 5000), (50, 1000)):
        operator = SensorExposure(ratio, photons, 2.0)
        y = operator.drawn(true, torch.Generator().manual_seed(1))
        found = {"brightened": round(psnr(operator.ratio * y, true), 2)}
        for steps in (1, 2, 3, 5):
            found[f"{steps} steps"] = round(psnr(ExposureDiffusion(operator, ExposureNetwork(network, UNIT), steps, seed=2).restored(y)[0], true), 2)
        result[f"ratio {ratio}, {photons} photons"] = found
    return result


def main():
    def loss(network, rng, n, code, generator):
        return training_loss(network, pictures(rng, n), sensor(rng), generator, 2 if rng.random() < LONGER else 0)
    train_whole(__doc__.splitlines()[0], NAME, fresh, loss, figures, minutes=4, batch=4, out="demo/weights", clock=time.process_time)


if __name__ == "__main__":
    main()
