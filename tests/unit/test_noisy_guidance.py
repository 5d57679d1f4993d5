"""Guidance by classifiers of noisy latents: exact ones reach the exact answers; small ones are trained, kept in files and split into experts."""
import dataclasses
import math

import pytest
import torch

from lodestar.guidance.loss.classifier_guidance import ClassifierGuidance
from lodestar.guidance.loss.discriminator_guidance import CLIP, DiscriminatorGuidance
from lodestar.guidance.loss.minority import MinorityGuidance, minority_scores, structure_distance
from lodestar.guidance.loss.noisy import over_ratio
from lodestar.guidance.loss.return_guidance import ReturnGuidance
from lodestar.guidance.method import BadInput
from lodestar.guidance.training.classifier import Examples, TrainNoiseAwareClassifier, binned, numbers
from lodestar.guidance.training.predictor import NoisyClassifier, Predictor, angle, parse, settled
from lodestar.tests.toys import Mixture, a_step, mixture, percent_to_sigma, state

CLASSIFIER, DISCRIMINATOR, RETURNS, MINORITY, TRAIN = (pytest.mark.method(f"Lodestar{n}") for n in (
    "ClassifierGuidance", "DiscriminatorGuidance", "ReturnGuidance", "MinorityGuidance", "TrainNoiseAwareClassifier"))
ALL = pytest.mark.method("LodestarClassifierGuidance", "LodestarDiscriminatorGuidance", "LodestarReturnGuidance", "LodestarMinorityGuidance")
FLOW = pytest.mark.parametrize("flow", (False, True))


class Exact:
    """The exact logits log p_k(x, s) of several densities."""

    channels = 2

    def __init__(self, densities, values=None):
        self.densities, self.values = densities, torch.arange(float(len(densities))) if values is None else torch.tensor(values)

    @property
    def classes(self):
        return len(self.densities)

    def logits(self, x, sigma, flow):
        return torch.stack([d(x, float(sigma[0])) for d in self.densities], 1)


def of_components(m, values=None):
    """Which component of a mixture a noisy state comes from."""
    return Exact([lambda x, s, k=k: m.weights[k].log() + m.log_density(x, s, (k,)) for k in range(len(m.means))], values)


def guided(method, m, x, s, flow):
    return method.steer(a_step(x, s, flow), lambda at: m(at, s), {})


@CLASSIFIER
@FLOW
@pytest.mark.parametrize("s", (0.2, 0.7))
def test_the_exact_classifier_at_scale_one_gives_the_class(flow, s):
    """D + (s^2 / a) grad log p(k | x) is the denoiser of component k alone: Bayes' rule, at every level, so that the samples are those of the class."""
    m = mixture(flow)
    x = state(m, 6, s)
    for k in range(3):
        torch.testing.assert_close(guided(ClassifierGuidance(classifier=of_components(m), label=str(k)), m, x, s, flow), m(x, s, (k,)), rtol=1e-6, atol=1e-7)
    each = guided(ClassifierGuidance(classifier=of_components(m), label="0, 1, 2, 0, 1, 2"), m, x, s, flow)
    torch.testing.assert_close(each, torch.cat([m(x[i:i + 1], s, (i % 3,)) for i in range(6)]), rtol=1e-6, atol=1e-7)
    alone = Mixture(m.means[:1], m.variances[:1], flow=flow)
    assert torch.equal(guided(ClassifierGuidance(classifier=of_components(alone), label="0"), alone, x, s, flow), alone(x, s))


@DISCRIMINATOR
@FLOW
def test_the_exact_density_ratio_gives_the_data(flow):
    data, s = mixture(flow), 0.5
    model = Mixture(data.means, data.variances, [0.8, 0.1, 0.1], flow=flow)
    x = state(data, 6, s)
    exact = Exact([lambda x, s: model.log_density(x, s), lambda x, s: data.log_density(x, s)])
    assert exact.logits(x, torch.full((6,), s), flow).diff(dim=1).abs().max() < CLIP
    torch.testing.assert_close(guided(DiscriminatorGuidance(classifier=exact, scale=1.0), model, x, s, flow), data(x, s), rtol=1e-6, atol=1e-7)
    assert torch.equal(guided(DiscriminatorGuidance(classifier=Exact(exact.densities[:1] * 2), scale=1.0), model, x, s, flow), model(x, s))      # nothing to correct
    made = exact.logits(x, torch.full((6,), s), flow).diff(dim=1)[:, 0] < 0
    assert made.any() and not made.all()
    plain, once = model(x, s), guided(DiscriminatorGuidance(classifier=exact, scale=1.0), model, x, s, flow)
    boosted = guided(DiscriminatorGuidance(classifier=exact, scale=1.0, boost=True), model, x, s, flow)
    torch.testing.assert_close(boosted - plain, (once - plain) * torch.where(made, 2.0, 1.0).view(-1, 1, 1, 1))
    with pytest.raises(BadInput, match="two"):
        DiscriminatorGuidance(classifier=of_components(data)).validate()


@RETURNS
@FLOW
def test_the_exact_distribution_of_returns_gives_the_tilted_data(flow):
    """Components with returns r_k: the best trade against KL is the mixture with weights w_k exp(eta r_k)."""
    m, s, returns, eta = mixture(flow), 0.6, [0.0, 0.3, 1.0], 2.0
    x = state(m, 6, s)
    tilted = Mixture(m.means, m.variances, m.weights * (eta * torch.tensor(returns, dtype=torch.float64)).exp(), flow=flow)
    out = guided(ReturnGuidance(classifier=of_components(m, returns), eta=eta), m, x, s, flow)
    torch.testing.assert_close(out, tilted(x, s), rtol=1e-6, atol=1e-7)
    assert ReturnGuidance(eta=0.0).neutral()
    same = guided(ReturnGuidance(classifier=of_components(m, [0.4] * 3), eta=eta), m, x, s, flow)
    torch.testing.assert_close(same, m(x, s), rtol=1e-9, atol=1e-9)      # all are worth the same


@MINORITY
def test_a_level_is_its_class_and_the_rare_score_higher():
    m, s = mixture(), 0.5
    x = state(m, 4, s)
    for level, k in ((1.0, 2), (0.5, 1), (0.0, 0)):
        torch.testing.assert_close(guided(MinorityGuidance(classifier=of_components(m), level=level), m, x, s, False), m(x, s, (k,)), rtol=1e-6, atol=1e-7)
    rare = Mixture(torch.stack((torch.zeros(2, 8, 8), torch.full((2, 8, 8), 0.7))).double(), [0.02, 0.02], [0.97, 0.03])
    g = torch.Generator().manual_seed(0)
    x0 = rare.means[[0] * 8 + [1] * 8] + 0.02 ** 0.5 * torch.randn(16, 2, 8, 8, generator=g, dtype=torch.float64)
    away = lambda a, b: (a - b).square().flatten(1).mean(1)
    scores = minority_scores(x0, lambda x, sigma: rare(x, sigma), 4.0, False, 5, 0, away)
    assert float(scores[8:].min()) > float(scores[:8].max())
    torch.testing.assert_close(minority_scores(x0[3:5], lambda x, sigma: rare(x, sigma), 4.0, False, 5, 0, away), scores[3:5])
    assert structure_distance(x0, x0).abs().max() < 1e-9 < float(structure_distance(x0, x0.roll(3, -1)).min())


@CLASSIFIER
@FLOW
@pytest.mark.parametrize("how", ("score ratio", "score ratio, each value"))
def test_the_score_ratio_adds_a_score_of_known_length(flow, how):
    m, s = mixture(flow), 0.4
    x, a = state(m, 5, s), 0.6 if flow else 1.0
    method = ClassifierGuidance(classifier=of_components(m), label="2", scale=0.3, normalise=how, decay=0.1)
    out, plain = guided(method, m, x, s, flow), m(x, s)
    own, added = (a * plain - x) / s**2, (out - plain) * a / s**2
    weight = 0.3 * 0.1 ** float(angle(torch.tensor([s]), flow))
    if how == "score ratio":
        torch.testing.assert_close(added.flatten(1).norm(dim=1), weight * own.flatten(1).norm(dim=1), rtol=1e-5, atol=0)
    else:
        torch.testing.assert_close(added.abs(), weight * own.abs(), rtol=1e-5, atol=1e-9)
    g = method.towards(a_step(x, s, flow), {})
    if how == "score ratio":      # how sure the classifier is does not count
        torch.testing.assert_close(over_ratio(7 * g, own, how), over_ratio(g, own, how), rtol=1e-5, atol=1e-6)
    assert over_ratio(0 * g, own, how).abs().max() == 0


@ALL
def test_scale_zero_switches_off_and_what_is_wrong_is_said():
    m = mixture()
    exact = of_components(m)
    for cls in (ClassifierGuidance, DiscriminatorGuidance, ReturnGuidance, MinorityGuidance):
        assert cls(classifier=exact, scale=0.0).neutral() and not cls(classifier=exact).neutral()
    for label in ("3", "-1", "0.5", "red"):
        with pytest.raises(BadInput, match="label"):
            ClassifierGuidance(classifier=exact, label=label).validate()
    with pytest.raises(BadInput, match="label"):
        guided(ClassifierGuidance(classifier=exact, label="0, 1"), m, state(m, 3, 0.5), 0.5, False)
    other = Predictor((settled(NoisyClassifier(4, 2, 8)),), torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0]))
    with pytest.raises(BadInput, match="4 channels"):
        guided(ClassifierGuidance(classifier=other, label="0"), m, state(m, 3, 0.5), 0.5, False)


def predictor(experts=1, channels=2, classes=3, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        networks = tuple(settled(NoisyClassifier(channels, classes, 8)) for _ in range(experts))
    return Predictor(networks, torch.linspace(0, 1, experts + 1), torch.arange(float(classes)))


@TRAIN
def test_experts_cover_all_levels_and_files_keep_them():
    many = predictor(3)
    x, t = torch.randn(40, 2, 4, 4, generator=torch.Generator().manual_seed(0)), torch.linspace(0, 1, 40)
    number = many.expert_of(t)
    assert number.min() == 0 and number.max() == 2 and (number.diff() >= 0).all()
    sigma = torch.tan(t.clamp(max=0.99) * math.pi / 2)
    together = many.logits(x, sigma, False)
    for i in (0, 17, 39):
        torch.testing.assert_close(many.logits(x[i:i + 1], sigma[i:i + 1], False)[0], together[i], rtol=1e-4, atol=1e-5)
        one = Predictor((many.experts[int(number[i])],), torch.tensor([0.0, 1.0]), many.values)
        torch.testing.assert_close(one.logits(x[i:i + 1], sigma[i:i + 1], False)[0], together[i], rtol=1e-4, atol=1e-5)
    assert torch.equal(predictor(1).logits(x, sigma, False), Predictor(predictor(1).experts, torch.tensor([0.0, 1.0]), many.values).logits(x, sigma, False))
    again = parse(many.tensors())
    torch.testing.assert_close(again.logits(x, sigma, False), together, rtol=0.02, atol=0.02)      # half precision
    s = torch.full((2,), 0.4)      # the share of noise is all that it is told: x at level s of a flow model is x / (1 - s) at s / (1 - s) in k-units
    torch.testing.assert_close(many.logits(x[:2], s, True), many.logits(x[:2] / 0.6, s / 0.6, False), rtol=1e-4, atol=1e-5)
    video = x[:6].view(2, 3, 2, 4, 4).movedim(1, 2)
    torch.testing.assert_close(many.logits(video, s, False), many.logits(x[:6], s.repeat_interleave(3), False).view(2, 3, -1).mean(1), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="no noise-aware"):
        parse({"a": torch.zeros(1)})
    with pytest.raises(ValueError, match="edges"):
        parse({**many.tensors(), "edges": torch.zeros(2)})
    with pytest.raises(ValueError, match="Expert 1 is not complete"):
        parse({k: v for k, v in many.tensors().items() if k != "experts.1.time.0.bias"})


@TRAIN
def test_scores_are_cut_into_levels():
    classes, values = binned(torch.tensor([5.0, 1.0, 3.0, 9.0, 2.0, 7.0]), 3)
    assert classes.tolist() == [1, 0, 1, 2, 0, 2] and values.tolist() == [1.5, 4.0, 8.0]
    classes, values = binned(torch.tensor([0.0] * 9 + [1.0]), 5)
    assert classes.tolist() == [0] * 9 + [1] and values.tolist() == [0.0, 1.0]
    assert binned(torch.tensor([0.0, 2.0]), 0)[1].tolist() == [0.0, 1.0, 2.0]
    assert numbers("1, 0 2", 3, "x").tolist() == [1, 0, 2] and numbers("1", 3, "x").tolist() == [1, 1, 1]
    with pytest.raises(BadInput, match="Give one number"):
        numbers("1, 2", 3, "x")


@TRAIN
def test_training_learns_repeats_itself_and_one_expert_is_the_plain_one():
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(64.0) % 2
    x0 = (labels * 2 - 1).view(-1, 1, 1, 1) + 0.2 * torch.randn(64, 2, 4, 4, generator=g)
    base = TrainNoiseAwareClassifier(examples=Examples(((x0[:32], labels[:32]),)) + Examples(((x0[32:], labels[32:]),)), steps=24, batch=8, width=8, rate=0.01)
    latents, ticks = [x0[:32], x0[32:]], []
    a, report = base.validate().run(latents, percent_to_sigma(), tick=lambda *t: ticks.append(t))
    assert report[0.9] > 0.9 and [t[:2] for t in ticks[-2:]] == [(23, 24), (24, 24)] and ticks[-1][2] < ticks[0][2]
    b, _ = dataclasses.replace(base, experts=1).run(latents, percent_to_sigma())
    assert all(torch.equal(u, v) for u, v in zip(a.experts[0].parameters(), b.experts[0].parameters()))
    two, _ = dataclasses.replace(base, experts=2, steps=4).run(latents, percent_to_sigma(), tick=lambda *t: ticks.append(t))
    assert len(two.experts) == 2 and ticks[-1][:2] == (8, 8)
    assert two.edges.tolist() == pytest.approx([0.0, math.atan(percent_to_sigma()(0.5)) * 2 / math.pi, 1.0])
    with torch.inference_mode():      # nodes run in it; the weights can be differentiated through all the same
        c, _ = dataclasses.replace(base, steps=2).run([t.clone() for t in latents], percent_to_sigma())
    x = torch.randn(1, 2, 4, 4, requires_grad=True)
    assert torch.autograd.grad(c.logits(x, torch.ones(1), False)[0, 0], x)[0].abs().max() > 0

    def stop(*_):
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        base.run(latents, percent_to_sigma(), tick=stop)
    for wrong, field in (({"width": 12}, "width"), ({"examples": Examples(((x0, labels + 0.5),))}, "bins"), ({"examples": Examples(((x0, 0 * labels),))}, "examples")):
        with pytest.raises(BadInput, match=field):
            dataclasses.replace(base, **wrong).validate()
