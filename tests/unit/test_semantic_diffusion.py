"""Semantic Diffusion Guidance and its noise-aware encoder: what the gradient is, and that the encoder learns, repeats itself and is kept in a file."""
import dataclasses

import pytest
import torch

from lodestar.guidance.loss.encoder import unit
from lodestar.guidance.loss.semantic_diffusion import SemanticDiffusionGuidance
from lodestar.guidance.method import BadInput
from lodestar.guidance.training.classifier import noised
from lodestar.guidance.training.noisy_encoder import NoisyEncoder, TrainNoiseAwareEncoder, parse_encoder, whole
from lodestar.guidance.training.predictor import NoisyClassifier, settled
from lodestar.tests.toys import a_step, mixture, percent_to_sigma, state

GUIDANCE, TRAIN = pytest.mark.method("LodestarSemanticDiffusionGuidance"), pytest.mark.method("LodestarTrainNoiseAwareEncoder")
FLOW = pytest.mark.parametrize("flow", (False, True))


class Linear:
    """f = M x / |M x|, whose gradient is known."""

    channels, width = 2, 3

    def __init__(self):
        self.matrix = torch.randn(3, 2 * 4 * 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def logits(self, x, sigma, flow):
        h = x.double().flatten(1) @ self.matrix.T
        return h / h.norm(dim=1, keepdim=True)


def guided(method, m, x, s, flow, index=0):
    return method.steer(a_step(x, s, flow, index), lambda at: m(at, s), {})


@GUIDANCE
@FLOW
def test_the_gradient_is_that_of_the_weighted_cosines(flow):
    """D + (s^2 / a) (w_t (t - (f t) f) + w_i (r - (f r) f)) M / |M x|."""
    m, s, encoder = mixture(flow), 0.6, Linear()
    x = state(m, 3, s)
    t = torch.tensor([[1.0, -2.0, 0.5]])
    y = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    method = SemanticDiffusionGuidance(encoder=encoder, texts=t, reference=y, text_weight=0.7, image_weight=0.4).validate()
    h = x.flatten(1) @ encoder.matrix.T
    f, size = h / h.norm(dim=1, keepdim=True), h.norm(dim=1, keepdim=True)
    r = method.at_level(a_step(x, s, flow))
    slope = lambda v: (v - (f * v).sum(1, keepdim=True) * f) / size
    g = ((0.7 * slope(unit(t).double()) + 0.4 * slope(r)) @ encoder.matrix).view_as(x)
    a = 1 - s if flow else 1.0
    torch.testing.assert_close(guided(method, m, x, s, flow), m(x, s) + s * s / a * g, rtol=1e-6, atol=1e-7)
    fresh = method.at_level(a_step(x, s, flow, index=1))
    assert not torch.equal(fresh, r) and torch.equal(method.at_level(a_step(x, s, flow)), r)      # noise of its own at each step, the same in each run


@GUIDANCE
@FLOW
def test_a_sample_that_is_its_own_reference_is_left_alone(flow):
    m, s = mixture(flow), 0.5
    y = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(2))
    x, _ = noised(y, torch.full((2,), s), flow, torch.Generator().manual_seed(7919))
    method = SemanticDiffusionGuidance(encoder=Linear(), reference=y)
    assert (guided(method, m, x.double(), s, flow) - m(x.double(), s)).abs().max() < 1e-5      # of a float32 state; a cosine at its maximum
    other = guided(method, m, x.flip(0).double(), s, flow) - m(x.flip(0).double(), s)
    assert other.abs().max() > 1e-2


@GUIDANCE
def test_texts_for_each_picture_or_their_mean():
    m, s = mixture(), 0.5
    x, t = state(m, 3, s), torch.eye(3)
    each = guided(SemanticDiffusionGuidance(encoder=Linear(), texts=t), m, x, s, False)
    for i in range(3):
        torch.testing.assert_close(each[i:i + 1], guided(SemanticDiffusionGuidance(encoder=Linear(), texts=t[i:i + 1]), m, x[i:i + 1], s, False))
    plain, two = m(x, s), guided(SemanticDiffusionGuidance(encoder=Linear(), texts=t[:2]), m, x, s, False)
    ones = [guided(SemanticDiffusionGuidance(encoder=Linear(), texts=t[i:i + 1]), m, x, s, False) for i in (0, 1)]
    torch.testing.assert_close(two - plain, sum(o - plain for o in ones) / 2, rtol=1e-5, atol=1e-8)


@GUIDANCE
def test_off_and_what_is_wrong():
    t, y, e = torch.eye(3)[:1], torch.zeros(1, 2, 4, 4), Linear()
    assert SemanticDiffusionGuidance(encoder=e, texts=t, scale=0.0).neutral() and SemanticDiffusionGuidance(encoder=e, texts=t, text_weight=0.0).neutral()
    assert SemanticDiffusionGuidance(encoder=e, reference=y, image_weight=0.0).neutral() and not SemanticDiffusionGuidance(encoder=e, texts=t).neutral()
    with pytest.raises(BadInput, match="4 channels"):
        SemanticDiffusionGuidance(encoder=e, reference=torch.zeros(1, 4, 4, 4)).validate()
    with pytest.raises(BadInput, match="width 5"):
        SemanticDiffusionGuidance(encoder=e, texts=torch.ones(1, 5)).validate()
    m = mixture()
    other = whole(settled(NoisyClassifier(4, 3, 8)))
    with pytest.raises(BadInput, match="encoder = .4 channels"):
        guided(SemanticDiffusionGuidance(encoder=other, texts=t), m, state(m, 1, 0.5), 0.5, False)


@TRAIN
def test_training_tells_pictures_apart_repeats_itself_and_is_kept(tmp_path):
    g = torch.Generator().manual_seed(0)
    kinds = torch.arange(64) % 4
    x0 = torch.eye(4)[kinds].repeat_interleave(1, 0)[:, :, None, None] * 2 - 1 + 0.1 * torch.randn(64, 4, 4, 4, generator=g)
    e = torch.eye(6)[kinds] * 3 + 0.01 * torch.randn(64, 6, generator=g)
    method, ticks = TrainNoiseAwareEncoder(steps=60, batch=8, width=16, rate=0.01).validate(), []
    a, report = method.run(x0, e, percent_to_sigma(), tick=lambda *t: ticks.append(t))
    assert report[0.9] > 0.4 and ticks[-1][:2] == (60, 60) and ticks[-1][2] < ticks[0][2]
    b, _ = method.run(x0, e, percent_to_sigma())
    assert all(torch.equal(u, v) for u, v in zip(a.predictor.experts[0].parameters(), b.predictor.experts[0].parameters()))
    again, s = parse_encoder(a.tensors()), torch.full((8,), 0.3)
    assert isinstance(again, NoisyEncoder) and (again.width, again.channels) == (6, 4)
    torch.testing.assert_close(again.logits(x0[:8], s, False), a.logits(x0[:8], s, False), rtol=0.02, atol=0.02)      # half precision
    torch.testing.assert_close(a.logits(x0[:8], s, False).norm(dim=1), torch.ones(8))
    with torch.inference_mode():      # nodes run in it; the weights can be differentiated through all the same
        c, _ = dataclasses.replace(method, steps=2).run(x0.clone(), e.clone(), percent_to_sigma())
    x = torch.randn(1, 4, 4, 4, requires_grad=True)
    assert torch.autograd.grad(c.logits(x, torch.ones(1), False)[0, 0], x)[0].abs().max() > 0
    with pytest.raises(ValueError, match="no noise-aware encoder"):
        parse_encoder({"experts.0.enter.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="not complete"):
        parse_encoder({k: v for k, v in a.tensors().items() if k != "encoder.time.0.bias"})
    with pytest.raises(BadInput, match="width"):
        dataclasses.replace(method, width=12).validate()


@TRAIN
def test_an_example_drawn_twice_is_no_wrong_answer():
    method = TrainNoiseAwareEncoder(temperature=0.5)
    f, e = unit(torch.randn(3, 4, generator=torch.Generator().manual_seed(0))), unit(torch.randn(3, 4, generator=torch.Generator().manual_seed(1)))
    e[1] = e[0]
    twice = method.loss(f, e, torch.tensor([5, 5, 2]))
    alike = (f @ e.T) / 0.5
    wanted = torch.stack((alike[0, [0, 2]].logsumexp(0) - alike[0, 0], alike[1, [1, 2]].logsumexp(0) - alike[1, 1], alike[2].logsumexp(0) - alike[2, 2])).mean()
    torch.testing.assert_close(twice, wanted)
    assert float(method.loss(f, e, torch.tensor([5, 6, 2]))) > float(twice)
