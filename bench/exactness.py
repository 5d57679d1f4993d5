"""How exact the measurement solvers are: linear-Gaussian problems whose posterior is known in closed form. Writes docs/effects/exactness.md and exactness.json."""
from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from ..guidance.inverse import blind, copaint, daps, dda, ddnm, ddrm, degradation_aware, dps, lgd, masked_sampler, mpgd, pigdm, psld, reddiff, repaint, resample, steered
from ..guidance.inverse.levels import signal
from ..guidance.inverse.operators import GaussianBlur, Inpainting, RandomProjection, SuperResolution
from ..guidance.inverse.problem import Problem, misfit
from ..guidance.inverse.solver import Solver
from ..guidance.loss.solvers import freedom, semantic
from ..guidance.loss.solvers.base import LossProblem

STEPS, SAMPLES = 200, 1000


class Gaussians:
    """A mixture of Gaussians over [channel, height, width] with any covariances, whose clean estimate and posterior are exact. Everything in float64."""

    def __init__(self, means, covariances, weights=None, shape=None):
        self.means = torch.as_tensor(means, dtype=torch.float64)
        self.covariances = torch.as_tensor(covariances, dtype=torch.float64)
        k = len(self.means)
        self.weights = torch.full((k,), 1.0 / k, dtype=torch.float64) if weights is None else torch.as_tensor(weights, dtype=torch.float64)
        self.shape = shape or (1, 1, self.means.shape[1])
        self.values, self.vectors = torch.linalg.eigh(self.covariances)

    def denoise(self, x, s, flow=False):
        """E[x0 | x] at noise level s (a number, or one for the batch)."""
        s = float(torch.as_tensor(s).flatten()[0])
        a = signal(s, flow)
        away = x.flatten(1)[:, None] - a * self.means                                                     # [batch, k, d]
        turned = torch.einsum("kde,bkd->bke", self.vectors, away)
        spread = a * a * self.values + s * s                                                             # [k, d]
        logits = self.weights.log() - 0.5 * (turned.square() / spread + spread.log()).sum(2)
        each = self.means + torch.einsum("kde,bke->bkd", self.vectors, a * self.values / spread * turned)
        return (logits.softmax(1)[..., None] * each).sum(1).view_as(x)

    def moments(self):
        """(mean, covariance) of the whole mixture."""
        mean = self.weights @ self.means
        away = self.means - mean
        return mean, torch.einsum("k,kde->de", self.weights, self.covariances) + torch.einsum("k,kd,ke->de", self.weights, away, away)

    def posterior(self, matrix, y, noise):
        """The Gaussians of x0 given y = matrix x0 + noise: again a mixture."""
        means, covariances, logs = [], [], []
        for mean, covariance, weight in zip(self.means, self.covariances, self.weights):
            inner = matrix @ covariance @ matrix.T + noise**2 * torch.eye(len(y), dtype=torch.float64)
            gain = covariance @ matrix.T @ torch.linalg.inv(inner)
            away = y - matrix @ mean
            means.append(mean + gain @ away)
            found = covariance - gain @ matrix @ covariance
            covariances.append((found + found.T) / 2)
            logs.append(weight.log() - 0.5 * (away @ torch.linalg.solve(inner, away) + torch.linalg.slogdet(inner)[1]))
        return Gaussians(torch.stack(means), torch.stack(covariances), torch.stack(logs).softmax(0), self.shape)


def matrix_of(operator, shape):
    """A as a matrix whose rows are the values that are measured."""
    d = math.prod(shape)
    columns = operator.measure(torch.eye(d, dtype=torch.float64).view(d, *shape)).flatten(1).T
    kept = operator.settle(torch.ones(1, *operator.measure(torch.zeros(1, *shape, dtype=torch.float64)).shape[1:], dtype=torch.float64)).flatten() > 0
    return columns[kept], kept


def schedule(flow, steps, top=80.0, low=0.002):
    """Karras' levels (rho 7), or evenly spread ones of a flow model."""
    if flow:
        return torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64)
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    return torch.cat([(top ** (1 / 7) + ramp * (low ** (1 / 7) - top ** (1 / 7))) ** 7, torch.zeros(1, dtype=torch.float64)])


@dataclass(frozen=True)
class Task:
    """A prior, an operator, a noise level, and the measurement that was made."""

    name: str
    prior: Gaussians
    operator: object
    noise: float
    y: torch.Tensor      # [1, ...], as the operator gives it

    def problem(self):
        return Problem(self.operator, self.y, self.noise)

    def posterior(self):
        matrix, kept = matrix_of(self.operator, self.prior.shape)
        return self.prior.posterior(matrix, self.y.flatten()[kept], self.noise)


def one_value():
    """The smallest task: a standard Gaussian number, measured as 1 with noise 0.5. Posterior: mean 0.8, deviation 0.447."""
    prior = Gaussians(torch.zeros(1, 1), torch.ones(1, 1, 1), shape=(1, 1, 1))
    return Task("one number", prior, Inpainting(torch.zeros(1, 1, 1)), 0.5, torch.ones(1, 1, 1, 1, dtype=torch.float64))


def smooth(size, reach=1.5):
    """A covariance of pictures whose near pixels are alike, of variance one."""
    at = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij"), -1).view(-1, 2).double()
    return torch.exp(-torch.cdist(at, at) / reach)


def tasks(seed=0):
    g = torch.Generator().manual_seed(seed)
    shape, d = (1, 4, 4), 16
    hole = torch.zeros(1, 4, 4)
    hole[:, 1:3, 1:4] = 1
    eye = torch.eye(d, dtype=torch.float64)
    plain = Gaussians(torch.zeros(1, d), eye[None], shape=shape)
    alike = Gaussians(0.3 * torch.ones(1, d), smooth(4)[None], shape=shape)
    mixed = Gaussians(1.2 * torch.randn(3, d, generator=g, dtype=torch.float64), 0.25 * smooth(4).expand(3, d, d), shape=shape)
    found = [one_value()]
    for name, prior, operator, noise in (("standard Gaussian, inpainting", plain, Inpainting(hole), 0.3), ("smooth Gaussian, averages of 2 x 2", alike, SuperResolution(2), 0.1),
                                         ("smooth Gaussian, blur", alike, GaussianBlur(0.8), 0.3), ("three Gaussians, inpainting", mixed, Inpainting(hole), 0.3),
                                         ("three Gaussians, random projections", mixed, RandomProjection(0.5, 1), 0.3)):
        k = int(torch.randint(len(prior.means), (1,), generator=g))
        x0 = (prior.means[k] + prior.vectors[k] @ (prior.values[k].clamp(min=0).sqrt() * torch.randn(d, generator=g, dtype=torch.float64))).view(1, *shape)
        y = operator.measure(x0)
        found.append(Task(name, prior, operator, noise, operator.settle(y + noise * torch.randn(y.shape, generator=g, dtype=torch.float64))))
    return found


class Oracle(Solver):
    """The sampler that is given the exact posterior: what is left is the error of its steps and of counting."""

    title, eta = "exact score", 0.0

    def advance(self, point):
        denoised = point.problem.exact.denoise(point.x, point.s, point.flow)
        point.seen = denoised
        return point.go(denoised, None, self.eta)


SOLVERS = {
    "exact score": Oracle(),
    "PiGDM, score": pigdm.PseudoinverseGuidance(eta=0.0),
    "PiGDM, published": pigdm.PseudoinverseGuidance(eta=0.0, form="published"),
    "DPS, published, scale 1": dps.DiffusionPosteriorSampling(scale=1.0),
    "DPS, likelihood": dps.DiffusionPosteriorSampling(scale=1.0, eta=0.0, form="likelihood"),
    "LGD-MC, published, scale 1": lgd.LossGuidedDiffusion(scale=1.0, samples=8),
    "LGD-MC, likelihood, 16 samples": lgd.LossGuidedDiffusion(scale=1.0, samples=16, eta=0.0, form="likelihood"),
    "DDNM+": ddnm.NullSpaceSampler(),
    "MPGD, scale 0.05": mpgd.ManifoldPreservingGuidance(scale=0.05),
    "PSLD, scale 1, gluing 0.1": psld.LatentPosteriorSampling(scale=1.0, gluing=0.1, eta=0.0),
    "ReSample": resample.ReSample(every=10, scale=0.5),
    "RED-diff": reddiff.REDdiff(inner=2),
    "RePaint, 5 rounds": repaint.RePaint(jump=10, rounds=5),
    "DDRM": ddrm.SpectralSampler(),
    "DAPS, unit prior, full draws": daps.DecoupledPosteriorSampling(width="unit prior", spread=1.0, ahead=3),
    "DAPS": daps.DecoupledPosteriorSampling(ahead=3),
    "Steered Diffusion": steered.SteeredDiffusion(measurement=0),
    "CoPaint, 1 round": copaint.TractableSteering(rounds=1, rate=0.2, tries=2),
}


def _masked(task):
    return masked_sampler.MaskedSampler(source={}, mask=task.operator.mask, form="blended", eta=1.0)


def _restoring(task):
    return degradation_aware.DegradationAwareSampler(restorer=lambda y, size: task.operator.pseudo_inverse(y, torch.zeros(len(y), *task.prior.shape, dtype=y.dtype)), scale=1.0)


# what needs the task to be made, and what loss solvers are given: the negative log likelihood of the measurement
MADE = {
    "Masked Sampler, blended": _masked,
    "ILVR (DDA, replace)": lambda task: dda.DiffusionDrivenAdaptation(form="replace"),
    "DDA, gradient, scale 6": lambda task: dda.DiffusionDrivenAdaptation(scale=6.0, factor=2),
    "DADiff, R = A+, scale 1": _restoring,
    "Blind, rate 0, scale 1": lambda task: blind.BlindPosteriorSampling(scale=1.0, rate=0.0),
    "FreeDoM, signal, scale 0.005": lambda task: freedom.FreeDoM(loss=Likelihood(task.problem()), scale=0.005, form="signal", start=0.0, end=1.0, repeats=1),
    "SGG, one region, strength 1": lambda task: semantic.SemanticGradientGuidance(loss=Likelihood(task.problem()), strength=1.0, local=False),
}
ONLY = {"Masked Sampler, blended": Inpainting, "ILVR (DDA, replace)": SuperResolution, "DDA, gradient, scale 6": SuperResolution, "Blind, rate 0, scale 1": GaussianBlur, "RePaint, 5 rounds": Inpainting}
OUTSIDE = (
    ("Blind Posterior Sampling with an operator that is estimated", "the posterior of picture and operator together is no mixture of Gaussians"),
    ("Degradation-Aware Sampler with a trained upscaler", "the network is no function in closed form; R = A+ is its limit"),
    ("Semantic Gradient Guidance by regions", "the sum of masked gradients is not the gradient of any likelihood, unless there is one region"),
    ("FreeDoM in the form guidance", "its moves are as long as those of CFG, whatever the likelihood"),
    ("Masked Sampler with a change map or a shrinking mask", "what they sample is no posterior: a place is kept at some levels and not at others"),
    ("Diffusion-Driven Adaptation from a noised source", "it starts half way; here it starts from noise, with the measured means in place of the source's"),
)


@dataclass(frozen=True, eq=False)
class Likelihood:
    """misfit of a measurement, as a loss."""

    problem: object
    mask: object = None
    title, differentiable = "likelihood", True

    def active(self, step):
        return True

    def value(self, denoised, context):
        return misfit(self.problem, denoised)


SLOW = (reddiff.REDdiff, repaint.RePaint, resample.ReSample, daps.DecoupledPosteriorSampling, copaint.TractableSteering, dda.DiffusionDrivenAdaptation, blind.BlindPosteriorSampling, freedom.FreeDoM, semantic.SemanticGradientGuidance)


def sampled(solver, task, flow=False, steps=STEPS, samples=SAMPLES, seed=0, sigmas=None):
    """[samples, d] of one solver on one task."""
    sigmas = schedule(flow, steps) if sigmas is None else sigmas
    x = float(sigmas[0]) * torch.randn(samples, *task.prior.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    problem = LossProblem(solver.loss, sigmas, flow, title=solver.title) if isinstance(getattr(solver, "loss", None), Likelihood) else task.problem()
    problem.exact = task.posterior()
    generator = torch.Generator().manual_seed(seed + 1)
    draw = lambda: torch.randn(x.shape, generator=generator, dtype=torch.float64)
    return solver.run(lambda x, s: task.prior.denoise(x, s, flow), x, sigmas, problem, flow, draw, context=lambda checkpoint=False: torch.enable_grad()).flatten(1)


def errors(found, task):
    """How far the samples' mean and covariance are from the posterior's, and what an exact sampler of so many samples would show by chance (`_bar`, twice its expected size).

    mean: root mean square over the values, in standard deviations of the prior; covariance: Frobenius norm relative to the posterior's; spread: its trace relative to the posterior's.
    """
    n, d = found.shape
    mean, covariance = task.posterior().moments()
    prior = math.sqrt(float(task.prior.moments()[1].diagonal().mean()))
    away = found.mean(0) - mean
    centred = found - found.mean(0)
    seen = centred.T @ centred / (n - 1)
    size, trace = float(covariance.norm()), float(covariance.trace())
    return {"mean": float(away.square().mean().sqrt()) / prior, "mean_bar": 2 * math.sqrt(trace / n / d) / prior,
            "covariance": float((seen - covariance).norm()) / size, "covariance_bar": 2 * math.sqrt((size**2 + trace**2) / n) / size,
            "spread": float(seen.trace()) / trace, "spread_bar": 2 * math.sqrt(2 * size**2 / n) / trace}


def measure(steps=STEPS, samples=SAMPLES, only=(), found=None):
    """{parametrisation: {task: {solver: errors}}}; only: parts of names, the others keep what is in `found`."""
    found = found or {}
    for flow in (False, True):
        for task in tasks():
            print(f"{task.name}, {'flow' if flow else 'k-units'}", flush=True)
            for name in (*SOLVERS, *MADE):
                if not isinstance(task.operator, ONLY.get(name, object)) or only and not any(n.lower() in name.lower() for n in only):
                    continue
                solver = SOLVERS[name] if name in SOLVERS else MADE[name](task)
                count = min(samples, 200) if isinstance(solver, SLOW) else samples
                result = errors(sampled(solver, task, flow, steps, count), task)
                found.setdefault("flow" if flow else "k-units", {}).setdefault(task.name, {})[name] = {k: round(v, 5) for k, v in result.items()}
    return found


def page(found, steps, samples):
    """docs/effects/exactness.md."""
    lines = ["# Exactness of the measurement solvers", "",
             f"Written by `./scripts/bench exactness`: {samples} samples (RED-diff, RePaint, ReSample, DAPS, CoPaint, DDA, ILVR, Blind, FreeDoM and SGG 200), {steps} steps, float64. Priors are Gaussians and mixtures of Gaussians over 4 x 4 values, whose clean estimate and",
             "posterior are known in closed form; the measurement is one noisy draw. k-units: Karras' levels from 80 to 0.002; flow: evenly spread levels.", "",
             "- mean: root mean square error of the samples' mean, in standard deviations of the prior.",
             "- covariance: error of the samples' covariance (Frobenius norm), relative to the posterior's. spread: its trace over the posterior's: 1 is right, 0 is a single picture.",
             "- in brackets: twice the error that an exact sampler of so many samples shows by chance. \"exact score\" is the sampler that is given the posterior's own score.", ""]
    for kind, by_task in found.items():
        for task, by_solver in by_task.items():
            lines += [f"## {task}, {kind}", "", "| solver | mean | covariance | spread |", "| --- | --- | --- | --- |"]
            lines += [f"| {name} | {r['mean']:.3f} ({r['mean_bar']:.3f}) | {r['covariance']:.3f} ({r['covariance_bar']:.3f}) | {r['spread']:.3f} ({r['spread_bar']:.3f}) |"
                      for name, r in by_solver.items()]
            lines.append("")
    lines += ["## What has no row, and why", "", *(f"- {name}: {why}." for name, why in OUTSIDE), ""]
    return "\n".join(lines)


def run(out, steps=STEPS, samples=SAMPLES, only=()):
    out = Path(out)
    found = measure(steps, samples, only, json.loads((out / "exactness.json").read_text(encoding="utf-8"))["errors"] if only else None)
    out.mkdir(parents=True, exist_ok=True)
    (out / "exactness.json").write_text(json.dumps({"steps": steps, "samples": samples, "errors": found}, indent=1) + "\n", encoding="utf-8")
    (out / "exactness.md").write_text(page(found, steps, samples), encoding="utf-8")
