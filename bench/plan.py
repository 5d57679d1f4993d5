"""How a measurement is written down: setups to sample, comparisons of two of them, and what a paper claims of the difference.

Everything is plain data, so that finished results can be found again by a setup's text. A value may be another Use, a loss for example: "$decoder" is the VAE's for it, further names are those of
bench.given. Values that only a run can make are named by a
string: "$weak" (a weakened copy of the generator), "$other" (the other generator of pictures), "$target" (a target loss per picture), "$forbidden" (the conditioning of the colour not wanted), "$regions"
(wanted boxes with the words and prompts of two objects; "$words" without the prompts), "$first", "$second" (the words of one object; "$first_place", "$second_place" its box as a mask), "$named" (both objects' words alone), "$relation" (the words of their relation), "$places" (terms of Self-Guidance that put them into their boxes), "$graph" (the boxes that a scene graph of their relation gives), "$structured" (the structured
embedding of each caption), "$outlines" (the outlines of each caption's scene as a latent; "$outlines_lora": the bundled
LoRA for them), "$letters" (what the bundled reader is to read; "$reader": that reader; "$vae"), "$pair" (the tokens of an edit that changes words in their places),
"$reference", "$appearance" (LATENTs of the scenes that pictures look at; "$reference_words", "$appearance_words" their prompts), "$empty" (the prompt without text),
"$subjects" (both objects as subjects of the bundled image adapter), "$camera" (the warp of bench.references.camera), "$depth_pair" (the bundled weights of pictures and their depth), "$caption" (the whole captions as a conditioning), and those of bench.motion, bench.restored and bench.picture_losses.
"""
from __future__ import annotations

import importlib
import inspect
import pkgutil
from dataclasses import dataclass, field
from pathlib import Path

from .stats import Estimate

CAPTION_METRICS = ("accuracy", "binding_errors", "frechet", "clipped", "std_ratio", "diversity", "evaluations")
PLACED_METRICS = ("iou", "in_box", "objects", "frechet", "clipped", "std_ratio", "evaluations")
FREE_METRICS = ("frechet", "clipped", "std_ratio", "evaluations")
DIRECTIONS = ("lower", "higher", "not lower", "not higher", "at least", "at most", "ratio at most")


@dataclass(frozen=True)
class Use:
    """A method or loss of guidance/ with its parameters: path "rules.apg:AdaptiveProjectedGuidance". A parameter may be a Use itself: a loss for example."""

    path: str
    values: tuple = ()

    @property
    def cls(self):
        module, name = self.path.split(":")
        return getattr(importlib.import_module(f"..guidance.{module}", __package__), name)

    @property
    def source(self):
        """The text of the method's file, and of those in it: a result is good as long as it does not change."""
        return Path(inspect.getsourcefile(self.cls)).read_text(encoding="utf-8") + "".join(v.source for _, v in self.values if isinstance(v, Use))


def use(path, **values):
    return Use(path, tuple(sorted(values.items())))


@dataclass(frozen=True)
class Setup:
    """One way to sample. prompts: "captions", "empty", "colourless" or "placed" (two objects, no place), "regional" (the
    objects are in the regions' prompts alone), "pictured" (the prompt names their shapes alone), "graph" (like "placed", with the scenes' relations for a layout), "related" (both objects and their relation), "edit" (captions with another colour
    for the first object, each sampled beside its own caption with the same noise), "styled", "together", "moved", "crossed", "hole", "viewed", "shifted" (bench.references: pictures
    that look at another one); task: "sample", "inversion", "inpaint" (the rest of the wanted picture is known), "beside" (painted on one canvas with the reference), "distil", "pictures" or "composite" (bench.distilled: optimised in place of sampled, `steps` iterations), one of bench.pairs (a picture and its depth), of bench.restored (a blurred and noisy picture), "damaged" (bench.damage: a damaged picture twice as large), or one of bench.synthesis (a clean picture that is degraded); steps: None takes the bench's;
    size: side of the latent where it is not the trained one."""

    label: str
    cfg: float = 4.0
    methods: tuple = ()
    sampler: Use | str | None = None      # a str: one of the host's samplers, in place of Euler
    prompts: str = "captions"
    task: str = "sample"
    steps: int | None = None
    size: int | None = field(default=None, repr=False)      # not in the text that finished results are found by, where it is None

    @property
    def sources(self):
        return "".join(u.source for u in (*self.methods, self.sampler) if isinstance(u, Use))


@dataclass(frozen=True)
class Claim:
    """What the paper says of one metric. direction: see DIRECTIONS; bound: the margin of "not lower"/"not higher" (absolute), or the figure of
    "at least", "at most" (of the value) and "ratio at most" (of value / base)."""

    metric: str
    direction: str
    bound: float = 0.0

    def __str__(self):
        if self.direction in ("at least", "at most"):
            return f"{self.direction} {self.bound:g}"
        if self.direction == "ratio at most":
            return f"at most {self.bound:g} x base"
        return f"{self.direction} (margin {self.bound:g})" if self.bound else self.direction


@dataclass(frozen=True)
class Comparison:
    """A method's setup against its base. `name` tells several comparisons of one method apart; generators: where it is possible."""

    setup: Setup
    base: Setup
    claims: tuple
    metrics: tuple = CAPTION_METRICS
    name: str = ""
    generators: tuple = ("unet", "dit")

    def metric_name(self, metric):
        return f"{metric} ({self.name})" if self.name else metric


@dataclass(frozen=True)
class Verdict:
    """reached: the interval of the difference lies on the claimed side; opposite: on the other; else not resolved by this many pictures."""

    reached: bool | None
    words: str


def verdict(claim, value, base, difference):
    """Judges a Claim by Estimates of the value, the base's, and the paired difference value - base."""
    if claim is None:
        return Verdict(None, "")
    low, high = difference.low, difference.high
    if claim.direction in ("at least", "at most", "ratio at most"):
        bound = claim.bound * base.value if claim.direction == "ratio at most" else claim.bound
        good = value.value >= bound if claim.direction == "at least" else value.value <= bound + 1e-9
        return Verdict(good, "reached" if good else "not reached")
    if claim.direction == "lower":
        low, high = -high, -low
    elif claim.direction == "not higher":
        low, high = -high + claim.bound, -low + claim.bound
    elif claim.direction == "not lower":
        low, high = low + claim.bound, high + claim.bound
    good = low >= 0 if claim.direction.startswith("not") else low > 0
    return Verdict(good, "reached" if good else "opposite" if high < 0 else "not resolved")


def to_be_higher(value, difference, base, setup, base_setup, pictures):
    """The figures of a claim "higher" in the form of effects.json, of [value, low, high] each: the method's, the paired difference, the base's."""
    judged, names = verdict(Claim("", "higher"), None, None, Estimate(*difference)), ("value", "low", "high")
    return {**dict(zip(names, value)), "claimed": "higher", "reached": judged.reached, "verdict": judged.words, "base": {"value": base[0]}, "difference": dict(zip(names, difference)),
            "setup": setup, "base_setup": base_setup, "pictures": pictures}


@dataclass(frozen=True)
class Cost:
    """What to time for a method. host: (node name, inputs) of the host's own node; peer: pattern of the names of other packs' nodes for it;
    heavy: also on networks of the size of SD1.5 and SDXL; limit: what is promised, as a ratio to CFG."""

    label: str
    cfg: float = 4.0
    methods: tuple = ()
    sampler: Use | None = None
    host: tuple | None = None
    peer: str = ""
    heavy: bool = True
    limit: float | None = None
    task: str = "sample"


@dataclass(frozen=True)
class Entry:
    """All that is measured for one method."""

    node_id: str
    comparisons: tuple = ()
    costs: tuple = field(default=())


def table():
    """{node id: Entry} of bench/methods.py and of every bench/methods_<family>.py."""
    found = {}
    for info in sorted(pkgutil.iter_modules([str(Path(__file__).parent)]), key=lambda i: i.name):
        if info.name == "methods" or info.name.startswith("methods_"):
            for entry in importlib.import_module(f".{info.name}", __package__).ENTRIES:
                if entry.node_id in found:
                    raise ValueError(f"{entry.node_id} is measured in two places; the second is bench/{info.name}.py")
                found[entry.node_id] = entry
    return found
