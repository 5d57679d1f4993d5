"""Guidance Inspector: per-step norms, cosines, evaluations and previews of a run."""
from __future__ import annotations

from typing import Any

import torch

from ..frozen import frozen
from ..method import NEGATIVE, POSITIVE, Finish, dot, noise_of, norm, param

PREVIEWS = 6


class Record:
    """What the last run with an inspector saw: `rows`, one dict per sampler call, and `previews`, (sigma, denoised on the CPU) of chosen steps."""

    def __init__(self):
        self.rows, self.previews = [], []

    def begin(self):
        """Starts a new run's lists; the earlier run's stay with whoever holds them."""
        self.rows, self.previews = [], []
        return self.rows, self.previews


@frozen(eq=False)
class GuidanceInspector(Finish):
    """Measures the guided prediction at every sampler call; changes nothing.

    For each call, averaged over the batch: sigma, rms of the guided and the conditional prediction, rms of (cond - uncond), the cosine between
    the noise predictions of cond and uncond (Adaptive Guidance's gamma), rms of what guidance added to cond, the share of values beyond three standard
    deviations, and how many predictions were evaluated. Cost: a few reductions, one read-back per call.
    """

    node_id = "LodestarGuidanceInspector"
    title = "Guidance Inspector"
    family = "inspection"
    paper = "own instrument (no paper)"
    aliases = ("inspect", "debug guidance")

    previews: int = param(PREVIEWS, "How many intermediate predictions are kept as previews; 0 keeps none.", 0, 32, 1)
    record: Any = None

    def finish(self, step, denoised, predictions, state):
        if "rows" not in state:
            state["rows"], state["previews"] = self.record.begin() if self.record is not None else ([], [])
        cond = predictions.get(POSITIVE, denoised)
        uncond = predictions.get(NEGATIVE)
        values = {"guided rms": _rms(denoised), "cond rms": _rms(cond), "added rms": _rms(denoised - cond),
                  "outliers": (denoised.abs() > 3 * cond.std().clamp(min=1e-8)).float().mean()}
        if uncond is not None:
            nc, nu = noise_of(step, cond), noise_of(step, uncond)
            values["cond - uncond rms"] = _rms(cond - uncond)
            values["cosine"] = (dot(nc, nu) / (norm(nc) * norm(nu)).clamp(min=1e-12)).mean()
        for i, (branch, prediction) in enumerate((b, p) for b, p in predictions.items() if b not in (POSITIVE, NEGATIVE)):
            values[f"branch {i + 1} rms"] = _rms(cond - prediction)
        numbers = torch.stack([v.float() for v in values.values()]).tolist()       # the one read-back
        row = {"step": step.index, "call": step.call, "sigma": float(step.sigma.flatten()[0]), "evaluations": len(predictions)}
        state["rows"].append(row | dict(zip(values, numbers)))
        total = max(1, len(step.sigmas) - 1) if step.sigmas is not None else None
        if self.previews and total and step.call == 0 and (step.index + 1) * self.previews // total > step.index * self.previews // total:
            state["previews"].append((row["sigma"], denoised[:1].detach().to("cpu", torch.float32).clone()))
        return denoised


def _rms(t):
    return t.float().square().mean().sqrt()
