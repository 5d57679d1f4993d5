"""ControlNorm (Cocktail): what a ControlNet says scales and shifts the features, in place of being added."""
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from ..frozen import frozen
from ..method import BadInput, Edit, param, socket, window
from .edits import AttentionEdit

_start, _end = window("control scales and shifts")
LAYOUT = ("keys: middle.0.weight [2C, C], middle.0.bias [2C], output.<i>.weight, output.<i>.bias for the skip connection of output block i, C its channels; the first C "
          "rows give gamma, the last C beta")


@frozen(eq=False)
class ControlWeights:
    """{(place, number): (weight [2C, C], bias [2C])} of trained projections from a control's residual to gamma and beta."""

    projections: dict
    name: str = ""

    def __deepcopy__(self, memo):
        return self


def parse(state, name="the file"):
    """The ControlWeights of a safetensors' tensors; BadInput that names what is wrong."""
    wrong = lambda what, value: BadInput("Load ControlNorm", "file", value, f"{what} It needs {LAYOUT}.")
    found = {}
    for key in sorted(k for k in state if k.endswith(".weight")):
        parts = key.split(".")
        if len(parts) != 3 or parts[0] not in ("middle", "output") or not parts[1].isdigit():
            raise wrong(f"{name} has a key that is not known.", key)
        weight, bias = state[key].float().flatten(1), state.get(key[:-6] + "bias")
        if weight.shape[0] != 2 * weight.shape[1]:
            raise wrong(f"{key} has the shape {list(state[key].shape)}.", name)
        if bias is not None and bias.shape != weight.shape[:1]:
            raise wrong(f"{key[:-6]}bias has the shape {list(bias.shape)}.", name)
        found[parts[0], int(parts[1])] = weight, torch.zeros(weight.shape[0]) if bias is None else bias.float()
    left = [k for k in state if not k.endswith((".weight", ".bias")) or (k.endswith(".bias") and k[:-4] + "weight" not in state)]
    if left or not found:
        raise wrong(f"{name} has {'a key that is not known' if left else 'no projections'}.", left[0] if left else name)
    return ControlWeights(found, name)


def injected(h, residual, projection, scale):
    """h + scale (h gamma + beta) where (gamma, beta) is a residual of twice the channels, or the projection of one with h's; without a projection gamma is 0 and beta the residual.

    h [rows, channels, height, width].
    """
    if residual.shape[1] == 2 * h.shape[1]:
        both = residual
    elif projection is None:
        return h + scale * residual.to(h.dtype)
    else:
        weight, bias = (t.to(device=residual.device, dtype=residual.dtype) for t in projection)
        both = F.conv2d(residual, weight[:, :, None, None], bias)
    gamma, beta = both.to(h.dtype).chunk(2, 1)
    return h + scale * (h * gamma + beta)


@frozen
class ControlEdit(AttentionEdit):
    """Takes the place of the addition of a control's residuals in a U-Net."""

    weights: ControlWeights | None = None
    scale: float = 1.0

    kinds = ()
    reach = "all"

    def default_layers(self, geometry):
        return "none"

    def inject(self, place, number, h, residual):
        """h with the residual of the `number`-th place of "middle" or "output"."""
        projection = None if self.weights is None else self.weights.projections.get((place, number))
        if projection is not None and residual.shape[1] == h.shape[1] != projection[0].shape[1]:
            raise BadInput("ControlNorm", "weights", f"{place}.{number} for {projection[0].shape[1]} channels", f"This model has {h.shape[1]} there: these weights are for another one.")
        return injected(h, residual, projection, self.scale)


@frozen
class ControlNorm(Edit):
    """Lets ControlNets scale and shift the features of a U-Net where they otherwise add to them, with trained projections.

        h <- h + strength (gamma h + beta),    (gamma, beta) = W r + b          r: the residual of any ControlNet, or of several added up, at the middle block and at every skip connection

    A network that makes gamma and beta itself (Cocktail's gControlNet) gives residuals of twice the channels, which are taken as they are. Places without a projection add as always; without
    weights the node is the strength of usual ControlNets and no more. W = (0, 1), b = 0 is the addition.
    Weights: safetensors with middle.0.weight [2C, C] (or [2C, C, 1, 1]), middle.0.bias [2C], output.i.weight, output.i.bias for the skip connection of output block i; the first C rows are
    gamma's. Loaded by Load ControlNorm.
    Defaults: strength 1.
    Limits: U-Nets; residuals for the way down (T2I adapters) are added as always. Paper: Hu et al., arXiv 2306.00964; its gControlNet is trained with it, no trained weights for other
    ControlNets are known. Cost: a product with a small matrix at each place.
    """

    node_id = "LodestarControlNorm"
    title = "ControlNorm"
    family = "control"
    paper = "Cocktail"
    aliases = ("Cocktail", "control scale and shift", "gControlNet")
    evaluations = "0"

    strength: float = param(1.0, "How far the features are scaled and shifted; 0 leaves control out.", 0.0, 10.0, 0.05)
    start_percent: float = _start
    end_percent: float = _end
    weights: Any = socket("LODESTAR_CONTROL_NORM", "Trained projections, from Load ControlNorm.", optional=True)

    def fitted(self, facts):
        if facts.geometry.family != "unet":
            raise BadInput(self.title, "model", facts.network, "ControlNorm acts on the skip connections of a U-Net.")
        return self

    def edits(self, step):
        return (ControlEdit("none", self.weights, self.strength),)
