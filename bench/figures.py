"""From sampled latents to figures with intervals, and to a comparison of two setups."""
from __future__ import annotations

import torch

from ..demo.measure import judge
from . import damage, layout, motion, pairs, picture_losses, references, restored, searched, stats, synthesis, videos
from .subject import SHAPE

SHARES = ("accuracy", "binding_errors", "forbidden", "count", "objects")
PLACED = ("iou", "in_box")


class Measured:
    """The figures of one setup. Each metric is a value per picture (`values`), a set of features (frechet), or a value per prompt (diversity)."""

    def __init__(self, subject, bench_judge, setup, cases, latents, evaluations):
        self.subject, self.judge, self.setup, self.cases = subject, bench_judge, setup, cases
        self.latents, self.evaluations = latents[:, :SHAPE[0]], evaluations
        self.before = latents[:, SHAPE[0]:]      # of the pictures that were edited; of pairs, the depth
        self.pictures = subject.pictures(self.latents)
        self.main = [i for i, c in enumerate(cases) if not c.extra]
        self.groups = [cases[i].prompt if cases[i].group < 0 else -1 - cases[i].group for i in self.main]
        self.features = bench_judge.network.features(self.pictures)
        self.reference, self.mean_contrast = bench_judge.held_out(setup.prompts)
        self._judged = self._readings = None

    def readings(self):
        """What the measuring network sees in each picture."""
        if self._readings is None:
            self._readings = self.judge.network.decode(self.pictures[self.main])
        return self._readings

    def judged(self, name):
        if self._judged is None:
            self._judged = [judge(self.cases[i].scene, r) | {"forbidden": any(t.colour == self.cases[i].forbidden for t in r.things)}
                            | (layout.placed(self.cases[i], r) if self.cases[i].layout >= 0 else {}) for i, r in zip(self.main, self.readings())]
        return torch.tensor([float(j[name]) for j in self._judged])

    def values(self, metric, base=None):
        """One value per picture."""
        pictures = self.pictures[self.main]
        if metric in SHARES or metric in PLACED:
            return self.judged({"accuracy": "all", "binding_errors": "binding_error"}.get(metric, metric))
        if metric == "clipped":
            return stats.clipped(pictures)
        if metric == "std_ratio":
            return stats.contrast(pictures) / self.mean_contrast
        if metric == "evaluations":
            return torch.tensor([self.evaluations[i] for i in self.main])
        if metric == "rarity":
            from . import heads
            return heads.rarity(self.subject, self.latents[self.main])
        if metric == "ssim_before":
            return stats.ssim(pictures, self.subject.pictures(self.before)[self.main])
        if metric == "ssim":
            return stats.ssim(pictures, base.pictures[base.main])
        from . import given
        if metric in given.METRICS:
            return given.METRICS[metric](self.readings())
        found = [self.cases[i] for i in self.main]
        if metric in references.METRICS:
            return references.values(metric, pictures, found, self.readings(), lambda scenes: self.subject.pictures(self.subject.rendered(scenes)))
        if metric in pairs.METRICS:
            return pairs.values(metric, pictures, self.subject.pictures(self.before)[self.main], self.subject.pictures(pairs.depths(self.subject, found)))
        if metric in damage.METRICS:
            return damage.values(metric, pictures, found, self.judge, self.subject)
        if metric in synthesis.METRICS:
            return synthesis.values(metric, pictures, found, self.subject)
        if metric in restored.METRICS:
            return restored.values(metric, pictures, found, self.judge, self.subject)
        if metric in restored.WHOLE:
            return restored.whole(metric, self)
        if metric in motion.METRICS:
            return motion.values(metric, self)
        if metric in searched.METRICS:
            return searched.outside(self)
        if metric in videos.METRICS:
            return videos.values(metric, self)
        if metric in picture_losses.METRICS:
            return picture_losses.values(metric, self)
        source = self.subject.target(found)
        if metric in ("target_distance", "round_trip"):
            return (self.latents[self.main] - source).square().mean((1, 2, 3)).sqrt()
        if metric == "ssim_source":
            return stats.ssim(pictures, self.subject.pictures(source))
        raise ValueError(f"unknown metric {metric!r}")

    def prompt_diversity(self):
        return stats.diversity(self.features, [c.prompt for c in self.cases])

    def figure(self, metric, base=None):
        """The metric's Estimate."""
        if metric == "frechet":
            return stats.frechet(self.reference, self.features[self.main], self.groups)
        if metric == "diversity":
            values, labels = self.prompt_diversity()
            return stats.mean(values, labels)
        return stats.mean(self.values(metric, base), self.groups)


def compare(metric, setup, base):
    """(value, base, difference) as Estimates, of two Measured with the same cases."""
    value, before = setup.figure(metric, base), base.figure(metric, base)
    if metric == "frechet":
        difference = stats.frechet_difference(setup.reference, setup.features[setup.main], base.features[base.main], setup.groups)
    elif metric == "diversity":
        (a, labels), (b, _) = setup.prompt_diversity(), base.prompt_diversity()
        difference = stats.difference(a, b, labels)
    else:
        difference = stats.difference(setup.values(metric, base), base.values(metric, base), setup.groups)
    return value, before, difference
