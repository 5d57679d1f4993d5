"""The pipeline of a prediction: plan, evaluate, combine, add, steer, finish.

Pure functions of tensors; guidance.host feeds them from ComfyUI, tests from closed-form models. A Pipeline is the immutable value that
travels with a MODEL; a Run is what one sampling run knows (state of each method, counts) and dies with it.
"""
from __future__ import annotations

import collections
import dataclasses
import threading
from dataclasses import dataclass, field

import torch

from .frozen import frozen
from .method import NEGATIVE, POSITIVE, Branch, Edit, Finish, Gate, Method, Reading, Rule, Steer, Step, Term, Transform

REPORTS = collections.deque(maxlen=16)     # the last runs' Report, newest last (for logs, bench and tests)
_STAGES = (Gate, Rule, Edit, Term, Steer, Finish)


class RuleConflict(ValueError):
    """Two combine rules on one model."""


@frozen
class Pipeline:
    """The methods on a model, in graph order. Immutable: the host may share it between clones and threads."""

    methods: tuple = ()

    def __deepcopy__(self, memo):
        return self

    def add(self, method):
        """The pipeline with one more method; RuleConflict for a second combine rule."""
        if not isinstance(method, _STAGES):
            raise TypeError(f"{type(method).__name__} is not a pipeline method")
        if isinstance(method, Rule):
            for other in self.of(Rule):
                raise RuleConflict(
                    f"{method.title} and {other.title} both replace how the conditional and unconditional predictions are combined, and a model can "
                    f"have only one such rule. Remove one of the two nodes; gates, terms and attention edits can be added freely.")
        return Pipeline(self.methods + (method,))

    def of(self, kind):
        return [m for m in self.methods if isinstance(m, kind)]

    def indexed(self, kind):
        return [(i, m) for i, m in enumerate(self.methods) if isinstance(m, kind)]


@dataclass
class Report:
    """What a run cost: sampler calls, network calls, and evaluations (rows of the batch divided by the batch size) by kind."""

    calls: int = 0
    network_calls: int = 0
    evaluations: float = 0
    by_kind: collections.Counter = field(default_factory=collections.Counter)
    methods: tuple = ()
    finished: bool = False

    def __str__(self):
        kinds = ", ".join(f"{count:g} {kind}" for kind, count in sorted(self.by_kind.items()))
        return f"{self.calls} sampler calls, {self.evaluations:g} network evaluations in {self.network_calls} calls ({kinds})"


class Run:
    """Everything that belongs to one sampling run: the methods' states, the step bookkeeping, the report."""

    def __init__(self, pipeline, sigmas=None, flow=False, percent_to_sigma=None, seed=None):
        self.pipeline, self.sigmas, self.flow = pipeline, sigmas, flow
        self.percent_to_sigma, self.seed = percent_to_sigma, seed
        self.states = {i: {} for i in range(len(pipeline.methods))}
        self.report = Report(methods=tuple(m.title for m in pipeline.methods))
        self._schedule = None if sigmas is None else sigmas.detach().to("cpu", torch.float32)
        self._last = None
        self.lock = threading.Lock()
        self.context = None       # set by the host while methods steer

    def state(self, index):
        return self.states[index]

    def step(self, x, sigma):
        """The Step of a call at x [batch, ...] and sigma [batch]; calls at the same schedule entry are numbered."""
        index = 0
        if self._schedule is not None and len(self._schedule):
            s = float(sigma.flatten()[0])
            tolerance = 1e-6 * max(1.0, s)
            # the schedule entry at or above this level: samplers of second order call between two entries
            index = max(0, int((self._schedule >= s - tolerance).sum()) - 1)
            call = self._last[1] + 1 if self._last is not None and self._last[0] == index else 0
        else:
            index, call = (self._last[0] + 1 if self._last is not None else 0), 0
        self._last = (index, call)
        self.report.calls += 1
        return Step(x, sigma, self.flow, self.sigmas, index, call, self.percent_to_sigma, self.seed)


@dataclass
class Plan:
    """What is active at one step: the scale after the gates, and the branches to evaluate beside positive and negative."""

    w: float
    gates: list
    rule: tuple | None
    terms: list
    steers: list
    finishes: list
    edits: tuple
    branches: tuple
    wants_negative: bool
    blocks: dict = field(default_factory=dict)      # {"positive" or "negative": block edits of that prompt's rows}
    readings: tuple = ()

    @property
    def idle(self):
        """True where nothing is to be done beyond what the host does with scale w."""
        return not (self.rule or self.terms or self.steers or self.finishes or self.edits or self.gates or any(self.blocks.values()))


def plan(run, step, w):
    """Which methods act at this step, at which guidance scale, and which branches they need (each once)."""
    pipe = run.pipeline
    gates = [(i, g) for i, g in pipe.indexed(Gate) if g.active(step)]
    for i, gate in gates:
        w = gate.scale(step, w, run.state(i))
    step.w = w
    rules = [(i, r) for i, r in pipe.indexed(Rule) if r.active(step)]
    terms = [(i, t) for i, t in pipe.indexed(Term) if t.active(step)]
    # additive terms commute; one order makes any order of the nodes give the same bits
    terms.sort(key=lambda pair: (type(pair[1]).__name__, repr(dataclasses.astuple(pair[1])) if _plain(pair[1]) else ""))
    steers = [(i, s) for i, s in pipe.indexed(Steer) if s.active(step)]
    finishes = [(i, f) for i, f in pipe.indexed(Finish) if f.active(step)]
    editors = [(i, m) for i, m in pipe.indexed((Edit, Steer, Finish)) if m.active(step)]
    edits = tuple(e for i, m in editors for e in (m.edits(step, run.state(i)) if m.stateful else m.edits(step)))
    blocks = {}
    for _, method in editors:
        for prompt, found in method.blocks(step).items() if isinstance(method, Edit) else ():
            blocks[prompt] = blocks.get(prompt, ()) + tuple(found)
    wanted = [n for _, t in terms for b in t.branches(step) for n in _with_needs(b)]
    branches = tuple(dict.fromkeys(b for b in wanted if isinstance(b, Branch) and b not in (POSITIVE, NEGATIVE)))
    readings = tuple(dict.fromkeys(r for r in wanted if isinstance(r, Reading)))
    return Plan(w, gates, rules[0] if rules else None, terms, steers, finishes, edits, branches, NEGATIVE in wanted, blocks, readings)


def _with_needs(branch):
    """What a branch's transform needs, in the order of evaluation, and the branch."""
    needs = branch.transform.needs() if isinstance(branch, Branch) and isinstance(branch.transform, Transform) else ()
    return [n for need in needs for n in _with_needs(need)] + [branch]


def transformed(branch, step, x, sigma, seen, evaluate):
    """The prediction of a branch with a transform; `evaluate(branch, x, sigma)` is the network's. `seen`: what is known already."""
    change = branch.transform
    if not isinstance(change, Transform):
        return evaluate(branch, x if change is None else change(step, x), sigma)
    missing = [n for n in change.needs() if n not in seen]
    if missing:
        raise RuntimeError(f"{type(change).__name__} needs {missing[0]}, which was not evaluated")
    out = evaluate(branch, change.enter(step, x, seen), change.level(step, sigma))
    return change.leave(step, x, out, seen)


def _plain(method):
    return all(isinstance(getattr(method, f.name), (int, float, str, bool, type(None))) for f in dataclasses.fields(method))


def combine(run, step, active, c, u, w):
    """The guided prediction of c and u at scale w: the active rule, or CFG; samples that a gate has settled take c."""
    if active.rule is not None and w != 1.0:
        index, rule = active.rule
        out = rule.combine(step, c, u, w, run.state(index)).to(c.dtype)
    else:
        out = u + (c - u) * w if w != 1.0 else c
    return settle(run, step, active, out, c)


def settle(run, step, active, out, c):
    """Puts the conditional prediction in for the samples that a gate has settled."""
    for index, gate in active.gates:
        mask = gate.settled(step, run.state(index))
        if mask is not None and bool(mask.any()):
            mask = mask.to(out.device).clone()      # kept for a backward pass, which takes no tensor of inference mode
            out = torch.where(mask.view(-1, *[1] * (out.ndim - 1)), c, out)
    return out


def add(run, step, active, base, predictions):
    """Adds what the terms say; every term sees the same base."""
    out = base
    for index, term in active.terms:
        out = out + term.delta(step, base, predictions, run.state(index)).to(out.dtype)
    return out


def observe(run, step, active, predictions):
    for index, gate in active.gates:
        gate.observe(step, predictions, run.state(index))


def finish(run, step, active, denoised, predictions):
    for index, method in active.finishes:
        denoised = method.finish(step, denoised, predictions, run.state(index))
    return denoised


def predict(run, x, sigma, w, evaluate):
    """The whole way without a host: `evaluate(branches, x, sigma)` returns {Branch: denoised}; POSITIVE is always asked for, NEGATIVE when used."""
    step = run.step(x, sigma)
    active = plan(run, step, w)
    seen = {}

    def guided(at):
        local = dataclasses.replace(step, x=at)
        later = [b for b in active.branches if isinstance(b.transform, Transform)]
        need = [POSITIVE] + ([NEGATIVE] if active.w != 1.0 or active.wants_negative else []) + [b for b in active.branches if b not in later]
        run.report.evaluations += len(need) + len(later)
        seen.update(evaluate(need, at, sigma))
        for branch in later:
            plain = dataclasses.replace(branch, transform=None)
            seen[branch] = transformed(branch, local, at, sigma, seen, lambda b, x_, sigma_: evaluate([plain], x_, sigma_)[plain])
        base = combine(run, local, active, seen[POSITIVE], seen.get(NEGATIVE), active.w)
        return add(run, local, active, base, seen)

    denoised = guided(x) if not active.steers else steer(run, step, active, guided)
    observe(run, step, active, seen)
    return finish(run, step, active, denoised, seen)


def steer(run, step, active, guided):
    """Runs the steering methods one around the other: each sees the prediction of those before it as its own model."""
    evaluate = guided
    for index, method in active.steers:
        def evaluate(x, inner=evaluate, method=method, index=index):
            return method.steer(dataclasses.replace(step, x=x, host=run.context), inner, run.state(index))
    return evaluate(step.x)
