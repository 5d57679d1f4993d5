"""Exposure Diffusion against what is known in closed form of photon counts, its network's file, and its nodes."""
from __future__ import annotations

import math

import pytest
import torch
from lodestar.demo.exposure import network as bundled
from lodestar.demo.scenes import render, two_object_prompts
from lodestar.guidance.inverse.exposure import FORMS, ExposureDiffusion, draw, through
from lodestar.guidance.inverse.exposure_network import ExposureNetwork, SeeInDark, parse
from lodestar.guidance.inverse.operators import LowLight, SensorExposure
from lodestar.guidance.method import BadInput
from lodestar.nodes.exposure import BUNDLED, NODES

pytestmark = pytest.mark.method("LodestarExposureDiffusion")
SENSOR = SensorExposure(10.0, 200.0, 0.0)      # white makes 20 electrons in the given picture
SHAPE, RATE = 4.0, 10.0      # a Gamma prior of brightness, mean 0.4


def conjugate(x, photons, first):
    """The posterior mean of brightness given the counts of a sensor without read noise, for the Gamma prior; the time follows from the brightened state."""
    white = torch.where(x > 0, photons / x.clamp(min=1e-12), torch.full_like(x, SENSOR.photons / SENSOR.ratio))      # where nothing came, the first picture's
    return (SHAPE + photons) / (RATE + white.amax()), None


def run(count, ratios, form, n=20000, seed=0):
    y = torch.full((1, 1, 1, n), count / SENSOR.photons, dtype=torch.float64)
    return [u for u, _ in through(conjugate, y, SENSOR, ratios, torch.Generator().manual_seed(seed), form)]


@pytest.mark.parametrize("form", FORMS)
def test_the_posterior_mean_is_kept(form):
    """Gamma prior, Poisson counts: the first estimate is the posterior mean in closed form, and every later one has it as its mean."""
    mean = (SHAPE + 7) / (RATE + 20)
    found = run(7, [1, 4, 7, 10], form)
    assert float(found[0].mean()) == pytest.approx(mean, rel=1e-9)
    for u in found[1:]:
        assert abs(float(u.mean()) - mean) < 5 * float(u.std()) / math.sqrt(u.numel()) and float(u.std()) > 0.01


def test_many_short_exposures_follow_the_true_distribution():
    """Last state: the counts of the full time given the first ones are negative binomial; its variance is reached with short steps and not with one long one. First picture stays below."""
    a, b, added = SHAPE + 7, RATE + 20, 180.0      # electrons that white makes in the rest of the time
    expected = added * a / b * (1 + added / b) / (RATE + 200) ** 2      # of the estimate, an affine function of the counts
    fine, coarse, anew = (float(run(7, ratios, form)[-1].var()) for ratios, form in
                          (([*torch.logspace(0, 1, 60).tolist(), 10.0001], FORMS[1]), ([1, 10, 10.0001], FORMS[1]), ([1, 4, 7, 10, 10.0001], FORMS[0])))
    margin = 6 * math.sqrt(2 / 20000)      # of a variance, some more than a Gaussian's
    assert abs(fine / expected - 1) < margin + 2 / 60
    assert coarse < 0.3 * expected and anew < 0.75 * expected


def test_sensor_counts():
    """Mean and variance of what it draws; a shorter exposure and the rest add up to the full one's distribution."""
    u = torch.full((1, 1, 200, 200), 0.6)
    operator = SensorExposure(8.0, 400.0, 3.0)
    y = operator.drawn(u, torch.Generator().manual_seed(0)) * operator.photons
    expected = 0.6 / 8 * 400
    assert abs(float(y.mean()) - expected) < 5 * math.sqrt((expected + 9) / y.numel()) and abs(float(y.var()) / (expected + 9) - 1) < 5 * math.sqrt(2 / y.numel())
    assert torch.equal(y, operator.drawn(u, torch.Generator().manual_seed(0)) * operator.photons)
    total = y + draw((400 - 50) * u, torch.Generator().manual_seed(1))
    assert abs(float(total.var()) / (240 + 9) - 1) < 5 * math.sqrt(2 / y.numel())
    mean = torch.full((4,), 30.0, requires_grad=True)
    counts = draw(mean, torch.Generator().manual_seed(2))
    assert torch.equal(counts, counts.round()) and torch.equal(torch.autograd.grad(counts.sum(), mean)[0], torch.ones(4))


def test_one_step_is_the_network_alone_and_batches_do_not_mix():
    network = bundled()
    y = SENSOR.drawn(torch.rand(2, 3, 20, 24, generator=torch.Generator().manual_seed(3)), torch.Generator().manual_seed(4))
    alone, = ExposureDiffusion(SENSOR, network, 1).restored(y)
    counts = (y * SENSOR.photons).clamp(min=0)
    assert torch.equal(alone[:1], network(counts[:1] / SENSOR.photons * SENSOR.ratio, counts[:1], counts[:1])) and alone.shape == y.shape
    found = ExposureDiffusion(SENSOR, network, 3, seed=5).restored(y)
    assert len(found) == 3 and torch.equal(found[-1], alone) and (found[0] - alone).abs().max() > 1e-3
    torch.testing.assert_close(ExposureDiffusion(SENSOR, network, 3, seed=6).restored(y[1:])[0], found[0][1:])
    assert torch.equal(found[0], ExposureDiffusion(SENSOR, network, 3, seed=5).restored(y)[0])


def test_the_bundled_network_knows_flat_pictures():
    """A flat picture of many pixels: what the counts say of it is known far better than any pixel; the estimate is nearer to it than the brightened picture by a factor."""
    operator = SensorExposure(20.0, 1000.0, 2.0)
    for level in (0.3, 0.6):
        u = torch.full((1, 3, 48, 48), level)
        y = operator.drawn(u, torch.Generator().manual_seed(7))
        found = ExposureDiffusion(operator, bundled(), 3).restored(y)[0]
        noise = math.sqrt(level / 20 / 1000 + 4e-6) * 20      # of a brightened pixel
        assert float((found - level).square().mean().sqrt()) < 0.5 * noise


def test_more_than_the_brightened_picture_on_scenes():
    operator = SensorExposure(20.0, 1000.0, 2.0)
    truth = torch.stack([render(s, 64) for s in two_object_prompts(3, 77)])
    y = operator.drawn(truth, torch.Generator().manual_seed(8))
    error = lambda u: float((u.clamp(0, 1) - truth).square().mean())
    assert error(ExposureDiffusion(operator, bundled(), 3).restored(y)[0]) < 0.2 * error(20 * y)      # 7 dB


def test_files():
    torch.manual_seed(0)
    for times, width in ((2, 4), (3, 2)):
        network = SeeInDark(3, times, width).eval()
        read = parse({f"netG.{k}": v.half() for k, v in network.state_dict().items()})
        assert read.unit == 15583 and parse(network.state_dict(), {"unit": "500"}).unit == 500
        x, photons = torch.rand(1, 3, 19, 33), 50 * torch.rand(1, 3, 19, 33)
        expected = ExposureNetwork(network.requires_grad_(False))(x, photons, 0.5 * x)
        torch.testing.assert_close(read(x, photons, 0.5 * x), expected, atol=2e-2, rtol=0)
        assert 0 <= float(expected.min()) and float(expected.max()) <= 1
    whole = SeeInDark(3, 2, 2).state_dict()
    for changed, said in (({}, "conv1_1"), ({**whole, "conv10_1.weight": torch.zeros(9, 2, 1, 1)}, "mosaics"), ({**whole, "conv1_1.weight": torch.zeros(2, 3, 3, 3)}, "6"),
                          ({k: v for k, v in whole.items() if k != "upv7.bias"}, "upv7")):
        with pytest.raises(ValueError, match=said):
            parse(changed)
    with pytest.raises(ValueError, match="unit"):
        parse(whole, {"unit": "many"})


def test_nodes():
    by_id = {d.node_id: d for d in NODES}
    with torch.inference_mode():
        network, = by_id["LodestarLoadExposureNetwork"].call({"file": BUNDLED})[0]
        image = torch.rand(2, 16, 16, 3) / 10
        given = dict(operator=SENSOR, image=image, steps=2, form=FORMS[1], seed=1)
        assert network.inputs(*(image[:1].movedim(-1, 1),) * 3).shape[1] in (6, 9)
        with pytest.raises(BadInput, match="Sensor Exposure Operator"):
            by_id["LodestarExposureDiffusion"].call({**given, "operator": LowLight()})
        with pytest.raises(BadInput, match="steps"):
            by_id["LodestarExposureDiffusion"].call({**given, "steps": 0})
