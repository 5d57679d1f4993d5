"""Diffusion Classifier on Gaussian classes with exact denoisers, and its schedule."""
import math

import pytest
import torch

from lodestar.guidance.method import BadInput
from lodestar.guidance.reading.classifier import DiffusionClassifier, classify, parse_stages, picked, report
from lodestar.guidance.reading.noising import levels, noise_of, noised, weight
from lodestar.tests.toys import mixture, percent_to_sigma

FLOWS = pytest.mark.parametrize("flow", (False, True))


def run(method, x0, classes, flow, order=None):
    model = mixture(flow, components=5, dtype=torch.float32)
    order = order or list(range(classes))
    convert = percent_to_sigma(flow)

    def predict(x, sigma, prompts):
        return [model(x, sigma, (order[p],)) for p in prompts]
    return method.scores(x0, classes, predict, lambda level: max(0.03, convert(1 - level)), flow), model


@FLOWS
@pytest.mark.parametrize("weight", ("noise", "velocity", "data"))
def test_it_finds_the_class_of_gaussian_data(flow, weight):
    method, model = DiffusionClassifier(samples=32, stages="", weight=weight), mixture(flow, components=5, dtype=torch.float32)
    g = torch.Generator().manual_seed(3)
    right = 0
    for i in range(20):
        k = i % 5
        x0 = model.means[k:k + 1] + model.variances[k].sqrt() * torch.randn(1, *model.means.shape[1:], generator=g)
        right += run(method, x0, 5, flow)[0].order[0] == k
    assert right >= 17


@FLOWS
def test_order_of_the_prompts_and_batch_do_not_matter(flow):
    x0 = mixture(flow, components=5, dtype=torch.float32).means[2:3]
    first, _ = run(DiffusionClassifier(samples=24, stages="8:3"), x0, 5, flow)
    order = [3, 1, 4, 0, 2]
    second, _ = run(DiffusionClassifier(samples=24, stages="8:3", batch=5), x0, 5, flow, order)
    assert [order[p] for p in second.order] == list(first.order) and first.order[0] == 2
    for p in range(5):
        assert second.errors[p] == pytest.approx(first.errors[order[p]], rel=1e-4)


def test_equal_prompts_tie():
    x0 = mixture(components=5, dtype=torch.float32).means[:1]
    scores, _ = run(DiffusionClassifier(samples=8, stages=""), x0, 2, False, [1, 1])
    assert scores.errors[0] == scores.errors[1]


def test_more_samples_deviate_less():
    """Stratified levels: the deviation of the difference of two errors falls at least as fast as with independent samples."""
    x0 = mixture(components=5, dtype=torch.float32).means[:1]

    def deviation(samples):
        found = [run(DiffusionClassifier(samples=samples, stages="", seed=seed), x0, 2, False)[0] for seed in range(16)]
        return float(torch.tensor([f.mean(0) - f.mean(1) for f in found]).std())
    assert deviation(64) < 0.5 * deviation(8)


def test_losses():
    x0, away = torch.zeros(1, 1, 2, 2), torch.tensor([[[[2.0, 0.5], [0.0, -1.0]]]])
    sigma = torch.tensor([0.5])
    losses = {name: float(DiffusionClassifier(loss=name).losses(away, x0, sigma, False)) for name in ("l2", "l1", "huber")}
    scaled = (away / 0.5).flatten()
    assert losses["l2"] == pytest.approx(float(scaled.square().mean())) and losses["l1"] == pytest.approx(float(scaled.abs().mean()))
    assert losses["huber"] == pytest.approx(float(torch.nn.functional.huber_loss(scaled, torch.zeros(4))))
    assert float(weight(sigma, True, "noise")) == 1.0 and float(weight(sigma, True, "velocity")) == 2.0
    assert float(weight(sigma, False, "velocity")) == pytest.approx(math.sqrt(1.25) / 0.5)


def test_the_error_of_the_noise_is_the_weighted_one_of_the_data():
    for flow in (False, True):
        x0, n, d = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
        sigma = torch.tensor([0.2, 0.5, 0.9])
        x = noised(x0, n, sigma, flow)
        s = sigma.view(-1, 1, 1, 1)
        a = 1 - s if flow else 1.0
        expected = ((x - a * d) / s - n).square().flatten(1).mean(1)
        torch.testing.assert_close(DiffusionClassifier().losses(d, x0, sigma, flow), expected, rtol=1e-4, atol=1e-5)


def test_the_adaptive_schedule():
    assert parse_stages("16:4, 32:2", 64) == ((16, 4), (32, 2), (64, 1)) and parse_stages("", 8) == ((8, 1),) and parse_stages("16:4", 16) == ((16, 1),)
    for bad in ("16", "a:b", "0:1", "16:4, 8:2", "16:4:2"):
        with pytest.raises(BadInput, match="Diffusion Classifier: stages"):
            parse_stages(bad, 64)
    assert picked(8, 8) == list(range(8)) and picked(64, 16) == list(range(2, 64, 4)) and len(picked(10, 3)) == 3
    calls = []

    def error(samples, prompts):
        calls.append((tuple(samples), tuple(sorted(prompts))))
        return torch.tensor([[float(p) for p in prompts]] * len(samples))
    scores = classify(error, 5, ((4, 2), (16, 1)))
    assert calls[0] == (tuple(picked(16, 4)), (0, 1, 2, 3, 4)) and calls[1][1] == (0, 1) and not set(calls[1][0]) & set(calls[0][0])
    assert scores.order == (0, 1, 2, 3, 4) and len(scores.errors[0]) == 16 and len(scores.errors[4]) == 4
    text = report(["a", "b", "c", "d", "e"], scores)
    assert text.splitlines()[0].endswith("a") and "(4 samples)  e" in text


def test_the_noises_belong_to_their_place():
    assert torch.equal(noise_of((2, 3), 5, 7), noise_of((2, 3), 5, 7)) and not torch.equal(noise_of((2, 3), 5, 7), noise_of((2, 3), 5, 8))
    assert levels(4) == [0.125, 0.375, 0.625, 0.875]
