"""What a method is: one frozen dataclass whose fields are its parameters.

The dataclass's class variables say what it is (node id, title, family, paper, cost); its docstring gives the formula. The node, its help page,
its catalogue record and its generic tests are made from it. The kinds (Gate, Rule, Term, Steer, Edit) are the stages of guidance.engine.
"""
from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from .frozen import frozen


def param(default, tip, low=None, high=None, step=None, choices=None, advanced=False, label=None):
    """A parameter of a method: default, tooltip, range. `choices` makes a menu; a bool default a switch; a str default a text field."""
    meta = {"tip": tip, "low": low, "high": high, "step": step, "choices": choices, "advanced": advanced, "label": label}
    return field(default=default, metadata=meta)


def socket(kind, tip, optional=False):
    """An input that comes over a wire: `kind` is the host's type name (MODEL, CONDITIONING, IMAGE, LATENT, LODESTAR_LOSS ...)."""
    meta = {"socket": kind, "tip": tip, "optional": optional}
    return field(default=None, metadata=meta)


def window(stage="the method acts"):
    """The two fields of a window in percent of the sampling schedule."""
    return (param(0.0, f"Start of the window in which {stage}, as a fraction of the sampling schedule (0 = first step).", 0.0, 1.0, 0.001),
            param(1.0, f"End of that window (1 = last step).", 0.0, 1.0, 0.001))


class BadInput(ValueError):
    """An error of the user's input: names the node, the field, the value, and what would be right."""

    def __init__(self, node, field_name, value, right):
        super().__init__(f"{node}: {field_name} = {value!r} is not possible. {right}")


@frozen
class Method:
    """Base of all methods. Immutable, so that the host may share it between clones of a model."""

    node_id: ClassVar[str] = ""
    title: ClassVar[str] = ""
    family: ClassVar[str] = ""
    paper: ClassVar[str | tuple] = ""
    aliases: ClassVar[tuple] = ()
    planar: ClassVar[bool] = False        # whether it works on the height and width of pictures; not for models of sound or shapes then
    stateful: ClassVar[bool] = False      # whether `edits` is given the method's state of the run beside the step
    evaluations: ClassVar[str] = "0"      # network evaluations added per active step, in words or as a number

    def __deepcopy__(self, memo):
        return self

    def validate(self):
        """Raises BadInput for a parameter outside its declared range or menu."""
        for f in dataclasses.fields(self):
            m, value = f.metadata, getattr(self, f.name)
            if not m or "socket" in m:
                continue
            if m["choices"] is not None and value not in m["choices"]:
                raise BadInput(self.title, f.name, value, f"Choose one of: {', '.join(map(str, m['choices']))}.")
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                if value != value or (m["low"] is not None and value < m["low"]) or (m["high"] is not None and value > m["high"]):
                    raise BadInput(self.title, f.name, value, f"It must lie between {m['low']} and {m['high']}.")
        return self

    def neutral(self):
        """True where the parameters switch the method off; the engine then drops it and the model is bit-equal to the one without."""
        return False

    def fitted(self, facts):
        """The method with what only the MODEL can tell filled in; BadInput where this model cannot have it. `facts` is guidance.host.facts.Facts."""
        return self

    def active(self, step: "Step"):
        """Whether the method acts at this step; the default reads the fields start_percent and end_percent."""
        start, end = getattr(self, "start_percent", 0.0), getattr(self, "end_percent", 1.0)
        return step.inside(start, end)


@dataclass
class Step:
    """One call of the sampler. Tensors are on the sampling device.

    x [batch, channel, (frame,) height, width] is the noisy latent; sigma [batch] its noise level; flow whether x = (1-s) x0 + s n
    (else x = x0 + s n); sigmas the run's schedule or None; index the entry of sigmas that this call belongs to;
    percent_to_sigma converts windows; call counts the calls at this index (0 first, samplers of higher order come again).
    """

    x: torch.Tensor
    sigma: torch.Tensor
    flow: bool = False
    sigmas: torch.Tensor | None = None
    index: int = 0
    call: int = 0
    percent_to_sigma: Any = None
    seed: int | None = None
    w: float | None = None      # the guidance scale of this call after the gates (1: the negative prompt is not evaluated for CFG), None before it is known
    host: Any = None      # the context of differentiable evaluations (guidance.host.gradients), None without a host
    free: Any = None      # 1 where the host denoises and 0 where it keeps the picture, broadcast against x; None where it denoises everywhere
    maps: dict = field(default_factory=dict)      # {observer: [what it saw]} of this call; every Step made from this one shares it

    @property
    def s(self):
        """sigma as a tensor that broadcasts against x."""
        return self.sigma.view(-1, *[1] * (self.x.ndim - 1)).to(self.x)

    @property
    def a(self):
        """Signal coefficient, broadcast against x: 1 in k-units, 1 - sigma on flow models."""
        return 1 - self.s if self.flow else torch.ones_like(self.s)

    def inside(self, start, end):
        """Whether this call lies in a window given as fractions of the schedule; compares in float32 as the host's own nodes do."""
        if start <= 0.0 and end >= 1.0:
            return True
        if self.percent_to_sigma is None:
            raise RuntimeError("a window in percent needs the model's percent_to_sigma")
        high = torch.tensor(self.percent_to_sigma(start), dtype=torch.float32)
        low = torch.tensor(self.percent_to_sigma(end), dtype=torch.float32)
        sigma = self.sigma.flatten()[0].detach().to("cpu", torch.float32)
        return bool(start < end and sigma <= high and sigma >= low)


def progress(step):
    """Place of a step in its schedule, 0 for the first and 1 for the last."""
    return step.index / max(1, len(step.sigmas) - 2) if step.sigmas is not None and len(step.sigmas) > 2 else 0.0


def noise_of(step, denoised):
    """Predicted noise n = (x - a x0) / s."""
    return (step.x - step.a * denoised) / step.s


def dot(a, b):
    """Inner product per sample in float32 over all non-batch axes, shaped to broadcast."""
    out = (a.float() * b.float()).flatten(1).sum(1)
    return out.view(-1, *[1] * (a.ndim - 1))


def norm(a):
    """Euclidean norm per sample in float32, shaped to broadcast."""
    return dot(a, a).sqrt()


@frozen
class Prompt:
    """A conditioning of the graph as a hashable value: two wires with the same list are the same prompt."""

    cond: Any
    name: str = "prompt"

    def __hash__(self):
        return id(self.cond)

    def __eq__(self, other):
        return isinstance(other, Prompt) and self.cond is other.cond

    def __deepcopy__(self, memo):
        return self


@frozen
class ModelRef:
    """Another MODEL as a hashable value; compared by identity."""

    model: Any

    def __hash__(self):
        return id(self.model)

    def __eq__(self, other):
        return isinstance(other, ModelRef) and self.model is other.model

    def __deepcopy__(self, memo):
        return self


@frozen
class Branch:
    """One prediction that a method asks for; equal branches of several methods are evaluated once.

    prompt: "positive", "negative" or a Prompt. edits: attention edits of this branch alone (guidance.attention.edits).
    model: another MODEL. sigma_factor: the network is told sigma * factor. transform: what the network is given in place of x: a Transform, or a frozen
    callable (step, x) -> x'.
    blocks: block edits of this branch alone (guidance.attention.blocks). windows: the prediction is made of crops, averaged where they overlap (Windows).
    source: what the rows hold in place of x (guidance.attention.sources.Source): a branch that is evaluated for what attention sees of it, not for its prediction.
    """

    prompt: Any = "positive"
    edits: tuple = ()
    model: ModelRef | None = None
    sigma_factor: float = 1.0
    transform: Any = None
    blocks: tuple = ()
    windows: Any = None
    source: Any = None


POSITIVE, NEGATIVE = Branch(), Branch("negative")


@frozen
class Windows:
    """A grid of overlapping crops: `count` along each axis, each `share` of the axis long, evenly spread from border to border."""

    share: float = 0.625
    count: int = 2

    def axis(self, size):
        """[(start, length)] along an axis of so many cells."""
        length = min(size, max(1, round(self.share * size)))
        if self.count == 1 or length == size:
            return [((size - length) // 2, length)]
        return [(round(i * (size - length) / (self.count - 1)), length) for i in range(self.count)]

    def of(self, shape):
        """[(height, width, y, x)] of the crops of a latent of this shape, in cells."""
        return [(h, w, y, x) for y, h in self.axis(shape[-2]) for x, w in self.axis(shape[-1])]

    def overlaps(self, shape):
        """How many crops hold each cell: [height, width]."""
        count = torch.zeros(shape[-2:])
        for h, w, y, x in self.of(shape):
            count[y:y + h, x:x + w] += 1
        return count


@frozen
class Reading:
    """Something measured inside the network in the rows of "positive" or "negative" while they are evaluated.

    edit: an attention edit that hands tensors to `site.note` and makes one value of them in `gather(parts, shape)`: parts are (area or None, layer, tensor) for
    each chunk of the prompt's rows, shape is that of x.
    """

    prompt: str
    edit: Any


@frozen
class Transform:
    """Base of what gives a branch's network another input, at its own noise level; it may look at other predictions, which are then evaluated first.

    `seen` is {Branch: denoised, Reading: value} of what `needs` names.
    """

    def __deepcopy__(self, memo):
        return self

    def needs(self):
        """The Branches and Readings that must be known first."""
        return ()

    def enter(self, step, x, seen):
        """The network's input in place of x; it may have another height and width."""
        return x

    def level(self, step, sigma):
        """The noise level [batch] of that input."""
        return sigma

    def leave(self, step, x, denoised, seen):
        """The branch's prediction from what the network returned."""
        return denoised


class Gate(Method):
    """Changes how strongly CFG acts. Several gates apply one after the other."""

    def scale(self, step, w, state):
        """The guidance scale (float) to use at this call in place of w; 1 spares the negative prompt's evaluation."""
        return w

    def settled(self, step, state):
        """Bool [batch] of the samples that take the conditional prediction although others do not, or None."""
        return None

    def observe(self, step, predictions, state):
        """Called after the evaluation with {Branch: denoised}; may update `state`."""


class Rule(Method):
    """Replaces CFG. One per model."""

    def combine(self, step, c, u, w, state):
        """Denoised from the conditional c and unconditional u, all [batch, ...]; w is the guidance scale."""
        raise NotImplementedError


class Term(Method):
    """Adds to the guided prediction."""

    def branches(self, step):
        """The Branches needed at this step, POSITIVE and NEGATIVE included where they are used."""
        return ()

    def delta(self, step, base, predictions, state):
        """What to add to `base`, the guided prediction; `predictions` is {Branch: denoised}."""
        raise NotImplementedError


class Finish(Method):
    """Changes the finished prediction (rescale, thresholding) or looks at it (inspection)."""

    def edits(self, step):
        """The attention observers that it needs at this step."""
        return ()

    def finish(self, step, denoised, predictions, state):
        return denoised


class Steer(Method):
    """Steers by the gradient of a loss. `route` is "network", "checkpoint" or "none" (the network's Jacobian left out)."""

    def edits(self, step):
        """The attention observers that it needs at this step."""
        return ()

    def steer(self, step, evaluate, state):
        """`evaluate(x)` is the guided prediction at x (differentiable inside guidance.gradients). Returns denoised."""
        raise NotImplementedError


class Edit(Method):
    """Edits attention of the positive prompt's rows, in every prediction that uses them, or the blocks of a prompt's rows."""

    def edits(self, step):
        """The attention edits (guidance.attention.edits) active at this step."""
        return ()

    def blocks(self, step):
        """{"positive" or "negative": block edits (guidance.attention.blocks) of that prompt's rows} active at this step."""
        return {}
