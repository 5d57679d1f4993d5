"""The nodes of measurements: what they hand on, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from lodestar import nodes
from lodestar.guidance.inverse.operators import OPERATORS, Colourisation, Inpainting, SuperResolution, Wavelet
from lodestar.guidance.inverse.problem import Problem
from lodestar.guidance.loss.base import LossContext
from lodestar.guidance.loss.measurement import MeasurementLoss
from lodestar.guidance.method import BadInput

DEFINITIONS = nodes.definitions()


def call(node_id, **given):
    d = DEFINITIONS[node_id]
    return d.call({**{i.name: i.default for i in d.inputs if i.widget or i.optional}, **given})[0]


@pytest.mark.parametrize("cls", OPERATORS, ids=lambda c: c.__name__)
def test_each_operator_measures_a_picture(cls):
    given = {"mask": torch.zeros(1, 16, 16), "picture": torch.ones(1, 3, 3, 3)}
    sockets = {i.name: given[i.name] for i in DEFINITIONS[cls.node_id].inputs if not i.widget}
    operator, = call(cls.node_id, **sockets)
    assert type(operator) is cls
    image = torch.rand(2, 16, 24, 3, generator=torch.Generator().manual_seed(0))
    degraded, = call("LodestarApplyOperator", operator=operator, image=image)
    assert degraded.ndim == 4 and degraded.shape[0] == 2 and degraded.shape[3] == 3
    torch.testing.assert_close(operator.read(degraded.movedim(-1, 1)), operator.settle(operator.drawn(image.movedim(-1, 1), torch.Generator().manual_seed(1))))      # the seed's noise, where the operator has its own


@pytest.mark.parametrize("cls", [c for c in OPERATORS if any(i.type in ("INT", "FLOAT") for i in DEFINITIONS[c.node_id].inputs)], ids=lambda c: c.__name__)
def test_values_out_of_range_are_named(cls):
    number = next(i for i in DEFINITIONS[cls.node_id].inputs if i.type in ("INT", "FLOAT"))
    with pytest.raises(BadInput, match=f"{cls.title}: {number.name} = "):
        call(cls.node_id, **{i.name: torch.ones(1, 3, 3, 3) for i in DEFINITIONS[cls.node_id].inputs if not i.widget}, **{number.name: number.max + 1})


def test_noise_is_seeded_and_stays_out_of_what_is_not_measured():
    mask = torch.zeros(1, 64, 64)
    mask[:, :32] = 1
    operator = Inpainting(mask)
    image = torch.full((1, 64, 64, 3), 0.5)
    a, b, c = (call("LodestarApplyOperator", operator=operator, image=image, noise=0.1, seed=s)[0] for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c) and not a[:, :32].any()
    assert abs(float((a[:, 32:] - 0.5).std()) - 0.1) < 0.005


def test_wrong_wires_are_named():
    operator = SuperResolution(2)
    image, latent = torch.zeros(1, 8, 8, 3), {"samples": torch.zeros(1, 4, 8, 8), "noise_mask": torch.zeros(1, 8, 8)}
    with pytest.raises(BadInput, match="Measurement: picture = None"):
        call("LodestarMeasurement", operator=operator)
    with pytest.raises(BadInput, match="Measurement: picture = 'both'"):
        call("LodestarMeasurement", operator=operator, image=image, latent=latent)
    with pytest.raises(BadInput, match="Measurement: vae = None"):
        call("LodestarMeasurement", operator=operator, image=image)
    with pytest.raises(BadInput, match="Measurement: operator = 'Colourisation Operator'"):
        call("LodestarMeasurement", operator=Colourisation(), latent=latent)
    with pytest.raises(BadInput, match="Apply Operator to Latent: operator"):
        call("LodestarApplyOperatorToLatent", operator=Colourisation(), latent=latent)
    small, = call("LodestarApplyOperatorToLatent", operator=operator, latent=latent)
    assert small["samples"].shape == (1, 4, 4, 4) and "noise_mask" not in small
    made, = call("LodestarMeasurement", operator=operator, latent=small, noise=0.2)
    assert made.space == "latent" and made.noise == 0.2


def test_measurement_loss():
    operator = Wavelet(1, "coarse")
    z = torch.rand(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    y = operator.measure(z[:1])
    asked = []

    def bind(like):
        asked.append(like.shape)
        return Problem(operator, y)
    away = (y - operator.measure(z)).flatten(1).square().sum(1)
    for reduction, expected in (("sum", away), ("norm", away.sqrt()), ("mean", away / 64)):
        loss = MeasurementLoss(bind=bind, reduction=reduction, weight=0.5)
        torch.testing.assert_close(loss.value(z, LossContext(None)), 0.5 * expected)
        loss.value(z, LossContext(None))
    assert len(asked) == 3
    assert float((loss + loss).value(z, LossContext(None))[1]) == pytest.approx(float(away[1]) / 64)
