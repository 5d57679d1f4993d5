"""Steps of AdamW for small networks, in plain operations: the library's optimisers import its compiler when they are first used, which takes longer than many a training here."""
from __future__ import annotations

import torch


class AdamW:
    """p <- p (1 - rate decay) - rate m / (sqrt(v) + 1e-8), m and v the running means of the gradient and its square (0.9, 0.999), freed of their start at 0."""

    def __init__(self, parameters, decay=0.01):
        self.parameters, self.decay, self.count = list(parameters), decay, 0
        self.means, self.squares = [torch.zeros_like(p) for p in self.parameters], [torch.zeros_like(p) for p in self.parameters]

    def step(self, loss, rate):
        """One step downhill on a loss at a learning rate."""
        slopes = torch.autograd.grad(loss, self.parameters)
        self.count += 1
        with torch.no_grad():
            for p, g, m, v in zip(self.parameters, slopes, self.means, self.squares):
                m.lerp_(g, 0.1)
                v.lerp_(g * g, 0.001)
                p.mul_(1 - rate * self.decay).addcdiv_(m / (1 - 0.9 ** self.count), (v / (1 - 0.999 ** self.count)).sqrt() + 1e-8, value=-rate)
