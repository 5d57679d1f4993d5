"""Where the rows of a reference branch come from: a clean latent noised to the step's level, or a recorded trajectory."""
from __future__ import annotations

from typing import Any

import torch

from ..frozen import frozen
from ..method import BadInput

NOISES = ("shared", "own")


@frozen
class Held:
    """A value of the graph (a LATENT, a mask) as a hashable one; compared by identity."""

    value: Any

    def __hash__(self):
        return id(self.value)

    def __eq__(self, other):
        return isinstance(other, Held) and self.value is other.value

    def __deepcopy__(self, memo):
        return self


@frozen(eq=False)
class Trajectory:
    """States of one picture on its way from clean to noise, as an inversion passed them: sigmas [n] rising, states [n, batch, ...] as the model sees them."""

    sigmas: torch.Tensor
    states: torch.Tensor

    def __deepcopy__(self, memo):
        return self

    def at(self, sigma):
        """The state [batch, ...] at a level: between two recorded ones on the straight line, which is the Euler sampler's own way; outside them the nearest."""
        s = self.sigmas
        above = int((s < sigma - 1e-6 * max(1.0, sigma)).sum())
        if above == 0 or above == len(s):
            return self.states[min(above, len(s) - 1)]
        low, high = float(s[above - 1]), float(s[above])
        share = min(1.0, (sigma - low) / (high - low))
        return torch.lerp(self.states[above - 1], self.states[above], share)


class Recorder:
    """Collects a Trajectory: called as the callback of an inversion."""

    def __init__(self):
        self.sigmas, self.states = [], []

    def add(self, x, sigma):
        self.sigmas.append(float(sigma))
        self.states.append(x.detach().to("cpu", torch.float32).clone())

    def finish(self):
        return Trajectory(torch.tensor(self.sigmas, dtype=torch.float64), torch.stack(self.states))


@frozen
class Source:
    """What a reference branch's rows hold: `trajectory` where there is one, else `latent` (a graph's LATENT, held) with noise of the step's level.

    noise "shared" takes the noise of the picture that is sampled, "own" that noise in an order of its own at every step: independent of the picture's, and still
    the same for an entry alone and in a batch. salt tells several sources of one run apart. control: whether the reference's prompt keeps its ControlNet, which is then the
    reference's own; else it is the target's.
    """

    latent: Held | None = None
    trajectory: Held | None = None
    noise: str = "shared"
    salt: int = 0
    control: bool = False

    def __deepcopy__(self, memo):
        return self


def source_of(node, latent, trajectory, noise="shared", salt=0, field="reference"):
    """A Source of what a node was given, None where it was given nothing; BadInput where both are connected."""
    if latent is not None and trajectory is not None:
        raise BadInput(node, field, "a latent and a trajectory", "Connect one of them: the latent is noised to each step's level, the trajectory is followed.")
    if latent is None and trajectory is None:
        return None
    held = lambda value: None if value is None else Held(value)
    return Source(held(latent), held(trajectory), noise if trajectory is None else "shared", salt)


def own_noise(noise, index, salt=0):
    """White noise [batch, ...] rearranged and with other signs, each entry in the same way: independent of the original for all that pixels can tell."""
    generator = torch.Generator().manual_seed(0x5EED + 1009 * int(index) + int(salt))
    count = noise[0].numel()
    order = torch.randperm(count, generator=generator).to(noise.device)
    signs = (torch.randint(0, 2, (count,), generator=generator) * 2 - 1).to(noise)       # the noise's mean would be the same in every arrangement
    return (noise.flatten(1)[:, order] * signs).view(noise.shape)


def entries(values, batch, node, field):
    """values [n, ...] for a batch: the single one for all, or one each; BadInput for any other number."""
    if values.shape[0] == 1:
        return values.expand(batch, *values.shape[1:])
    if values.shape[0] != batch:
        raise BadInput(node, field, f"{values.shape[0]} pictures", f"The batch has {batch}: give one picture for all, or one for each.")
    return values
