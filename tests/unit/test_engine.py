"""The engine without a host, on closed-form models: plan, evaluate, combine, add, steer, finish."""

import pytest
import torch

from lodestar.guidance import engine
from lodestar.guidance.frozen import frozen
from lodestar.guidance.method import NEGATIVE, POSITIVE, BadInput, Branch, Finish, Gate, Rule, Step, Term, param
from lodestar.tests.toys import Mixture

SHAPE = (2, 3, 3)


@pytest.fixture
def mixture():
    g = torch.Generator().manual_seed(0)
    return Mixture(torch.randn(3, *SHAPE, generator=g, dtype=torch.float64), [0.3, 0.5, 0.2])


def evaluator(mixture, asked=None):
    """evaluate(branches, x, sigma) for engine.predict: positive is component 0, negative the whole mixture, a branch a wider one."""
    def evaluate(branches, x, sigma):
        if asked is not None:
            asked.append(list(branches))
        where = {POSITIVE: (0,), NEGATIVE: None}
        return {b: mixture(x, sigma, where[b]) if b in where else mixture(x, sigma, (0, 1)) for b in branches}
    return evaluate


@frozen
class Away(Term):
    """scale (positive - branch)."""

    title = "away"
    scale: float = 1.0
    name: str = "a"
    start_percent: float = 0.0
    end_percent: float = 1.0

    def branches(self, step):
        return (POSITIVE, Branch("negative", edits=(self.name,)))

    def delta(self, step, base, predictions, state):
        state["seen"] = state.get("seen", 0) + 1
        return self.scale * (predictions[POSITIVE] - predictions[Branch("negative", edits=(self.name,))])


@frozen
class Shut(Gate):
    title = "shut"

    def scale(self, step, w, state):
        return 1.0


@frozen
class Half(Rule):
    title = "half"
    strength: float = param(0.5, "tip", 0.0, 1.0)

    def combine(self, step, c, u, w, state):
        return u + (c - u) * w * self.strength


def run_of(*methods, sigmas=None):
    pipeline = engine.Pipeline()
    for m in methods:
        pipeline = pipeline.add(m)
    return engine.Run(pipeline, sigmas=sigmas, percent_to_sigma=lambda p: 10.0 * (1 - p))


def x_sigma(batch=2, s=1.5):
    x = torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x, torch.full((batch,), s, dtype=torch.float64)


def test_no_method_is_cfg(mixture):
    x, s = x_sigma()
    c, u = mixture(x, s, (0,)), mixture(x, s)
    assert torch.equal(engine.predict(run_of(), x, s, 3.0, evaluator(mixture)), u + (c - u) * 3.0)


def test_scale_one_asks_for_the_positive_alone(mixture):
    asked = []
    x, s = x_sigma()
    out = engine.predict(run_of(), x, s, 1.0, evaluator(mixture, asked))
    assert asked == [[POSITIVE]] and torch.equal(out, mixture(x, s, (0,)))


def test_closed_gate_spares_the_negative_and_counts(mixture):
    asked = []
    run = run_of(Shut())
    x, s = x_sigma()
    engine.predict(run, x, s, 5.0, evaluator(mixture, asked))
    assert asked == [[POSITIVE]] and run.report.evaluations == 1


def test_equal_branches_are_evaluated_once(mixture):
    asked = []
    x, s = x_sigma()
    out = engine.predict(run_of(Away(1.0), Away(2.0)), x, s, 1.0, evaluator(mixture, asked))
    assert len(asked[0]) == 2
    c = mixture(x, s, (0,))
    torch.testing.assert_close(out, c + 3.0 * (c - mixture(x, s, (0, 1))))


def test_terms_commute_bit_for_bit(mixture):
    x, s = x_sigma()
    terms = Away(0.1, "a"), Away(0.7, "b"), Away(1.3, "c")
    first = engine.predict(run_of(*terms), x, s, 2.0, evaluator(mixture))
    assert torch.equal(first, engine.predict(run_of(*reversed(terms)), x, s, 2.0, evaluator(mixture)))


def test_two_rules_name_both():
    @frozen
    class Other(Half):
        title = "other"
    with pytest.raises(engine.RuleConflict, match="other.*half|half.*other"):
        run_of(Half(), Other())


def test_window_outside_costs_nothing(mixture):
    asked = []
    run = run_of(Away(start_percent=0.0, end_percent=0.5))
    x, s = x_sigma(s=1.5)                                   # percent_to_sigma: the window ends at 5
    engine.predict(run, x, s, 1.0, evaluator(mixture, asked))
    assert asked == [[POSITIVE]]
    assert len(engine.predict(run, x, torch.full_like(s, 7.0), 1.0, evaluator(mixture, asked))) == 2 and len(asked[1]) == 2


def test_state_is_the_runs_and_the_methods(mixture):
    run, again = run_of(Away(), Away()), run_of(Away())
    x, s = x_sigma()
    for _ in range(3):
        engine.predict(run, x, s, 1.0, evaluator(mixture))
    assert [run.state(i)["seen"] for i in (0, 1)] == [3, 3] and again.state(0) == {}


def test_steps_and_second_calls_are_numbered():
    sigmas = torch.tensor([8.0, 4.0, 2.0, 0.0])
    run = run_of(sigmas=sigmas)
    places = [(run.step(torch.zeros(1, 1), torch.tensor([s]))) for s in (8.0, 4.0, 4.0, 2.9, 2.0)]
    assert [(p.index, p.call) for p in places] == [(0, 0), (1, 0), (1, 1), (1, 2), (2, 0)]


def test_windows_compare_in_float32():
    value = 0.1 + 0.2
    step = Step(torch.zeros(1, 1), torch.tensor([value], dtype=torch.float32), percent_to_sigma=lambda p: value)
    assert step.inside(0.1, 0.9)


def test_finish_sees_all_predictions(mixture):
    seen = {}

    @frozen
    class Look(Finish):
        title = "look"

        def finish(self, step, denoised, predictions, state):
            seen.update(predictions)
            return denoised
    x, s = x_sigma()
    engine.predict(run_of(Away(), Look()), x, s, 2.0, evaluator(mixture))
    assert {POSITIVE, NEGATIVE} < set(seen) and len(seen) == 3


def test_validation_names_node_field_value_and_range():
    with pytest.raises(BadInput, match=r"half: strength = 2.0 .* between 0.0 and 1.0"):
        Half(strength=2.0).validate()
    with pytest.raises(BadInput):
        Half(strength=float("nan")).validate()
