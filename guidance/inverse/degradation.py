"""How much a picture is degraded: a number for its blur and one for its noise, each in [0, 1], given or estimated by a small network."""
from __future__ import annotations

import re
from typing import Any

import torch
import torch.nn.functional as F

from ..frozen import frozen
from ..method import BadInput

KINDS = ("blur", "noise")
_KEY = re.compile(r"^(?:module\.)?(conv_first|body|fc_degree)\.(\d+)\.(?:.+\.)?(weight|bias)$")
EXAMPLE = "conv_first.0.weight, body.0.0.conv1.weight, fc_degree.0.0.weight"


@frozen
class Degradation:
    """scores: ((blur, noise), ...), one pair for each picture."""

    scores: tuple

    def __deepcopy__(self, memo):
        return self


@frozen(eq=False)
class Estimator:
    """A degradation estimator in the layout of MM-RealSR's, which S3Diff uses. weights: {key: tensor}; kinds: how many numbers it gives; steps: {kind: ((number, "block" or "conv"), ...)}.

        h = conv_first(u);   h <- h + conv2(relu(conv1(h))) per block, h <- conv(h) with stride 2 where the body holds a convolution;   score = sigmoid(fc2(relu(fc1(mean h))))

    each kind of degradation with weights of its own; u [n, 3, height, width] in [0, 1].
    """

    weights: Any
    kinds: int
    steps: Any
    name: str = "degradation estimator"

    def __deepcopy__(self, memo):
        return self

    def __call__(self, pictures):
        """Scores [n, kinds] in [0, 1]."""
        return torch.stack([self._score(pictures, i) for i in range(self.kinds)], 1)

    def _score(self, u, i):
        w = lambda name: self.weights[name].to(u)
        conv = lambda x, name, stride=1: F.conv2d(x, w(f"{name}.weight"), w(f"{name}.bias"), stride=stride, padding=1)
        h = conv(u, f"conv_first.{i}")
        for number, kind in self.steps[i]:
            name = f"body.{i}.{number}"
            h = conv(h, name, 2) if kind == "conv" else h + conv(F.relu(conv(h, f"{name}.conv1")), f"{name}.conv2")
        h = F.linear(h.mean((2, 3)), w(f"fc_degree.{i}.0.weight"), w(f"fc_degree.{i}.0.bias"))
        return torch.sigmoid(F.linear(F.relu(h), w(f"fc_degree.{i}.2.weight"), w(f"fc_degree.{i}.2.bias"))[:, 0])


def parse_estimator(weights, node, field, name="degradation estimator"):
    """An Estimator of a file's tensors; BadInput that says what is missing."""
    wrong = lambda what: BadInput(node, field, name, f"{what} Keys like {EXAMPLE} are expected (the released de_net.pth, brought to safetensors with its keys as they are).")
    strange = [k for k in weights if not _KEY.match(k)]
    if strange or not weights:
        raise wrong(f"{len(strange)} of its keys are not those of a degradation estimator ({', '.join(strange[:3]) or 'it has none'}).")
    weights = {k.removeprefix("module."): v for k, v in weights.items()}
    kinds = 1 + max(int(_KEY.match(k)[2]) for k in weights)
    steps = {}
    for i in range(kinds):
        numbers = sorted({int(k.split(".")[2]) for k in weights if k.startswith(f"body.{i}.")})
        steps[i] = tuple((n, "block" if f"body.{i}.{n}.conv1.weight" in weights else "conv") for n in numbers)
        needed = [f"conv_first.{i}", *(f"body.{i}.{n}{part}" for n, kind in steps[i] for part in ((".conv1", ".conv2") if kind == "block" else ("",))), f"fc_degree.{i}.0", f"fc_degree.{i}.2"]
        missing = [f"{n}.{end}" for n in needed for end in ("weight", "bias") if f"{n}.{end}" not in weights]
        if missing:
            raise wrong(f"{', '.join(missing[:3])} missing.")
    if kinds != len(KINDS):
        raise wrong(f"It gives {kinds} numbers; two are wanted, blur and noise.")
    return Estimator(weights, kinds, steps, name)
