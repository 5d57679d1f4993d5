"""Degradations with parameters that are estimated while the picture is: a blur's kernel, a Gaussian's width, an exposure."""
from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from .operators import GaussianBlur, KernelBlur, LowLight
from .operators.convolved import Convolution
from .operators.curved import exposed
from .problem import Problem


def kernels(theta, size):
    """[n, size, size] of sum 1, from logits [n, size * size]."""
    return theta.softmax(1).view(-1, size, size)


def gaussians(theta, size):
    """[n, size, size]: isotropic Gaussians of width exp(theta) [n, 1]."""
    at = torch.arange(size, device=theta.device, dtype=theta.dtype) - size // 2
    line = torch.exp(-0.5 * (at[None] / theta.exp()).square())
    line = line / line.sum(1, keepdim=True)
    return line[:, :, None] * line[:, None, :]


def blurred(u, k):
    """Pictures u [n, ...] convolved with their own kernels k [n, size, size], continued at the opposite border."""
    height, width = u.shape[-2:]
    half = k.shape[-1] // 2
    rows, columns = ((torch.arange(k.shape[-1], device=u.device) - half) % n for n in (height, width))
    sheet = torch.zeros(k.shape[0], height * width, dtype=k.dtype, device=k.device)
    sheet = sheet.index_add(1, (rows[:, None] * width + columns[None]).flatten(), k.flatten(1)).view(-1, *[1] * (u.ndim - 3), height, width)
    return torch.fft.irfft2(torch.fft.rfft2(u) * torch.fft.rfft2(sheet.to(u)), s=(height, width))


@dataclass
class Estimate:
    """The parameters theta [batch, m] of a run, and how they act. kind: "kernel", "gaussian" or "exposure"."""

    kind: str
    theta: torch.Tensor
    size: int = 0

    @classmethod
    def begun(cls, operator, batch, size, like):
        """From the operator that is given as the first guess; None where it is of no kind that can be estimated."""
        if isinstance(operator, LowLight):
            start = torch.tensor([[math.log(operator.gain), math.log(operator.gamma)]])
            return cls("exposure", start.repeat(batch, 1).to(like))
        if isinstance(operator, GaussianBlur):
            return cls("gaussian", torch.full((batch, 1), math.log(operator.sigma)).to(like), size)
        if isinstance(operator, Convolution):
            sheet = torch.zeros(size, size)
            k = operator.kernel().float()
            h, w = min(size, k.shape[0]), min(size, k.shape[1])
            top, left = size // 2 - h // 2, size // 2 - w // 2
            y, x = k.shape[0] // 2 - h // 2, k.shape[1] // 2 - w // 2
            sheet[top:top + h, left:left + w] = k[y:y + h, x:x + w]
            sheet = sheet.clamp(min=0) + 0.1 / size**2      # so that every place may become part of it
            return cls("kernel", (sheet / sheet.sum()).log().view(1, -1).repeat(batch, 1).to(like), size)
        return None

    def measure(self, u, theta=None):
        """A u of pictures u [rows, ...]; rows of one sample (frames) share its parameters."""
        theta = self.theta if theta is None else theta
        theta = theta.repeat_interleave(u.shape[0] // theta.shape[0], 0).to(u)
        if self.kind == "exposure":
            gain, gamma = theta.exp().T.reshape(2, -1, *[1] * (u.ndim - 1))
            return exposed(u, gain, gamma)
        return blurred(u, self.kernels(theta))

    def kernels(self, theta):
        return kernels(theta, self.size) if self.kind == "kernel" else gaussians(theta, self.size)

    def sparsity(self, theta):
        """sum sqrt(kernel), per sample: least where the kernel is a single point. (The sum of a kernel itself is always 1.)"""
        return kernels(theta, self.size).flatten(1).clamp(min=1e-12).sqrt().sum(1) / self.size if self.kind == "kernel" else theta.sum(1) * 0

    def operator(self, i=0):
        """The estimate of one sample as an operator."""
        t = self.theta[i].detach().float().cpu()
        if self.kind == "exposure":
            return LowLight(float(t[0].exp().clamp(0.01, 16)), float(t[1].exp().clamp(0.2, 5)))
        if self.kind == "gaussian":
            return GaussianBlur(float(t.exp().clamp(0.1, 64)))
        return KernelBlur(self.kernels(t[None])[0][None, :, :, None].expand(1, -1, -1, 3).contiguous())


@dataclass
class Found:
    """What a run estimated; filled while it samples."""

    estimate: Any = None

    def __deepcopy__(self, memo):
        return self


class Guess:
    """The operator of a Problem whose parameters are those of an Estimate."""

    linear, title = False, "Estimated Degradation"

    def __init__(self, estimate, given):
        self.estimate, self.given = estimate, given

    def measure(self, u):
        return self.estimate.measure(u if u.dtype == torch.float64 else u.float()).to(u.dtype)

    def settle(self, y):
        return self.given.settle(y)


def with_estimate(problem, estimate):
    """The problem with its operator's parameters free."""
    return Problem(Guess(estimate, problem.operator), problem.y, problem.noise, problem.decode, problem.encode, problem.unit, problem.title)


@dataclass
class Rule:
    """Adam on the parameters [batch, m] of an Estimate."""

    rate: float
    first: Any = 0.0
    second: Any = 0.0
    count: int = field(default=0)

    def move(self, theta, g):
        self.count += 1
        self.first, self.second = 0.9 * self.first + 0.1 * g, 0.99 * self.second + 0.01 * g.square()
        return theta - self.rate * (self.first / (1 - 0.9**self.count)) / ((self.second / (1 - 0.99**self.count)).sqrt() + 1e-10)
