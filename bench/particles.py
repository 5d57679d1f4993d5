"""How the particle samplers converge as particles grow, on Gaussians and mixtures whose tilted distributions are known. Writes docs/effects/particles.md and particles.json. Needs no host."""
from __future__ import annotations

import json
import math
from pathlib import Path

import torch

from ..guidance.frozen import frozen
from ..guidance.loss.base import Loss
from ..guidance.particles.fkc import FeynmanKacCorrector
from ..guidance.particles.steering import ParticleSteering
from ..guidance.particles.svdd import SVDD
from ..guidance.particles.swarm import Swarm
from .exactness import Gaussians, schedule

COUNTS, CANDIDATES = (4, 8, 16, 32, 64, 128, 256), (1, 2, 4, 8, 16, 32)
STEPS, RUNS, SAMPLES, MANY = 50, 100, 10_000, 100_000
TOP, LOW, REFINED = 20.0, 0.02, (25, 50, 100, 200)


@frozen(eq=False)
class Direction(Loss):
    """-direction . x."""

    direction: torch.Tensor = None
    title, differentiable = "direction", False

    def value(self, denoised, context):
        return -denoised.flatten(1) @ self.direction


@frozen(eq=False)
class Near(Loss):
    """|x - place|^2."""

    place: torch.Tensor = None
    title, differentiable = "near a place", False

    def value(self, denoised, context):
        return (denoised.flatten(1) - self.place).square().sum(1)


def gaussian():
    return Gaussians([[0.3, -0.2]], [[[0.5, 0.2], [0.2, 0.4]]])


def three():
    return Gaussians([[0.8, 0.0], [-0.6, 0.7], [-0.4, -0.9]], torch.eye(2, dtype=torch.float64).expand(3, 2, 2) * torch.tensor([0.1, 0.2, 0.05]).view(3, 1, 1), [0.4, 0.35, 0.25])


def line(means, variances, weights=None):
    """A mixture on the line."""
    return Gaussians([[m] for m in means], [[[v]] for v in variances], weights, (1, 1, 1))


def runner(batch, shape, flow, steps, seed):
    """(sigmas, swarm(predict)) of so many independent runs; noise of one generator."""
    g = torch.Generator().manual_seed(seed)
    sigmas = schedule(flow, steps, TOP, LOW)
    noise = lambda count: torch.randn(count * batch, *shape, generator=g, dtype=torch.float64)
    x = float(sigmas[0]) * noise(1)
    return sigmas, lambda predict: Swarm(predict, x, sigmas, flow, seed, lambda n, factor=1.0: factor * (x if n is None else float(sigmas[0]) * n), noise=noise)


def plain(prior, flow, steps, count, seed=90):
    """[count, d] of the ancestral sampler alone."""
    _, make = runner(count, prior.shape, flow, steps, seed)
    return ParticleSteering(loss=None, particles=1).run(make(lambda x, s: prior.denoise(x, s, flow)), None).flatten(1)


def estimates(method, prior, flow, steps, runs, seed, predict=None):
    """[runs, d]: the weighted mean of each run's particles."""
    sigmas, make = runner(runs, prior.shape, flow, steps, seed)
    swarm = make(predict or (lambda x, s: prior.denoise(x, s, flow)))
    out = method.run(swarm, method.problem(sigmas, flow)).view(runs, method.particles, -1)
    return (swarm.final.softmax(0).T[..., None] * out).sum(1)


def rms(found, truth):
    return float((found - truth).square().sum(1).mean().sqrt())


def slope(errors):
    """(slope, standard error) of log rms error over log particles, from errors {count: [runs] squared}; the error by drawing runs anew."""
    counts = sorted(errors)
    at = torch.tensor([math.log(c) for c in counts], dtype=torch.float64)
    at = at - at.mean()
    fit = lambda pick: float((at * torch.stack([0.5 * errors[c][pick(len(errors[c]))].mean().log() for c in counts])).sum() / at.square().sum())
    g = torch.Generator().manual_seed(0)
    again = torch.tensor([fit(lambda n: torch.randint(n, (n,), generator=g)) for _ in range(200)])
    return fit(lambda n: torch.arange(n)), float(again.std())


def steering(flow, quick):
    """Rows of FK steering: its weighted mean against the chain's own samples, tilted."""
    rows = []
    for name, prior, loss in (("Gaussian, linear loss", gaussian(), Direction(torch.tensor([1.0, 0.5], dtype=torch.float64))),
                              ("three Gaussians, distance to a place", three(), Near(torch.tensor([-0.3, 0.6], dtype=torch.float64)))):
        chain = plain(prior, flow, STEPS, MANY // quick)
        w = (-loss.value(chain, None)).softmax(0)
        truth = w @ chain
        for potential in ("difference", "max", "sum"):
            errors = {k: (estimates(ParticleSteering(loss=loss, particles=k, strength=1.0, every=5, potential=potential, give="all"), prior, flow, STEPS, RUNS // quick, 7 + k) - truth).square().sum(1)
                      for k in COUNTS}
            rows.append((f"{name}; {potential}", {k: float(e.mean().sqrt()) for k, e in errors.items()}, *slope(errors)))
    return rows


def decoding(flow, quick):
    """Rows of SVDD: how far the mean of many pictures is from the tilted mean, by candidates, with its standard error."""
    rows = []
    for name, prior, loss in (("Gaussian, linear loss", gaussian(), Direction(torch.tensor([1.0, 0.5], dtype=torch.float64))),
                              ("three Gaussians, distance to a place", three(), Near(torch.tensor([-0.3, 0.6], dtype=torch.float64)))):
        chain = plain(prior, flow, STEPS, MANY // quick)
        truth = (-loss.value(chain, None)).softmax(0) @ chain
        far = {}
        for m in CANDIDATES:
            sigmas, make = runner(SAMPLES // quick, prior.shape, flow, STEPS, 11 + m)
            method = SVDD(loss=loss, candidates=m, temperature=1.0)
            swarm = make(lambda x, s: prior.denoise(x, s, flow))
            swarm.choices.uniform = lambda g=torch.Generator().manual_seed(m), n=len(swarm.x): torch.rand(n, generator=g, dtype=torch.float64)      # of one generator
            out = method.run(swarm, method.problem(sigmas, flow)).flatten(1)
            far[m] = float((out.mean(0) - truth).norm()), float((out.var(0).sum() / len(out)).sqrt())
        rows.append((name, far))
    return rows


def log_density(prior, z):
    """log p of a mixture on the line at points z [n]."""
    variances, means = prior.covariances.flatten(), prior.means.flatten()
    return torch.logsumexp(prior.weights.log() - 0.5 * ((z[:, None] - means).square() / variances + variances.log() + math.log(2 * math.pi)), 1)


def correctors():
    """[(name, corrector's values, {part: mixture})]."""
    c, u = line([0.7, -0.2], [0.15, 0.1], [0.7, 0.3]), line([0.7, -0.2, -1.0], [0.15, 0.1, 0.3], [0.3, 0.2, 0.5])
    other = line([0.2, 1.2], [0.2, 0.1])
    return (("guidance 2", {"guidance": 2.0}, {"positive": c, "negative": u}), ("power 2", {"guidance": 1.0, "power": 2.0}, {"positive": c}),
            ("product of two", {"guidance": 1.0, "second": "another"}, {"positive": c, "second": other}))


def correcting(flow, quick):
    """Rows of the correctors: slope towards their own limit, and how far that limit is from the distribution that is meant, by steps; without weights beside it."""
    rows = []
    for name, values, parts in correctors():
        predict = lambda x, s: {k: p.denoise(x, s, flow) for k, p in parts.items()}
        prior = parts["positive"]
        made = lambda k, **more: FeynmanKacCorrector(particles=k, limit=0.0, give="all", **values, **more)
        z = torch.linspace(-4, 4, 8001, dtype=torch.float64)
        w = sum(b * log_density(parts[k], z) for k, b in made(2).exponents.items()).softmax(0)
        truth = float(w @ z)
        limits, without = {}, {}
        for steps in REFINED:
            found = estimates(made(256), prior, flow, steps, MANY // 256 // quick, 5 + steps, predict)
            limits[steps] = float(found.mean()) - truth, float(found.std()) / math.sqrt(len(found))
            one = estimates(made(1), prior, flow, steps, MANY // 10 // quick, 5 + steps, predict)
            without[steps] = float(one.mean()) - truth, float(one.std()) / math.sqrt(len(one))
        limit = truth + limits[STEPS][0]
        errors = {k: (estimates(made(k), prior, flow, STEPS, RUNS // quick, 9 + k, predict) - limit).square().sum(1) for k in COUNTS}
        rows.append((name, {k: float(e.mean().sqrt()) for k, e in errors.items()}, *slope(errors), limits, without))
    return rows


def measure(quick=1):
    found = {}
    for flow in (False, True):
        kind = "flow" if flow else "k-units"
        print(kind, flush=True)
        found[kind] = {"steering": steering(flow, quick), "decoding": decoding(flow, quick), "correcting": correcting(flow, quick)}
    return found


def table(head, rows):
    return ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head), *("| " + " | ".join(row) + " |" for row in rows), ""]


def page(found):
    """docs/effects/particles.md."""
    lines = ["# Convergence of the particle samplers", "",
             f"Written by `./scripts/bench particles`: {STEPS} steps, eta 1, float64, closed-form denoisers of Gaussians and mixtures of Gaussians; k-units: Karras' levels from {TOP:g} to {LOW:g}; flow: evenly spread.",
             "slope: of the logarithm of the error over the logarithm of the number of particles, with its standard error; -0.5 is that of independent samples.",
             "With few runs one that lost a mode lifts its cell, and the slope is flatter than its standard error tells.", ""]
    for kind, by in found.items():
        lines += [f"## FK steering, {kind}", "", f"Root mean square error of the weighted mean of the particles over {RUNS} runs, against the plain sampler's own samples weighed by exp(-loss) ({MANY:,} of them). Strength 1, weighed every 5 steps.", ""]
        lines += table(("task; potential", *(f"{k} particles" for k in COUNTS), "slope"), [(n, *(f"{e[k]:.3f}" for k in COUNTS), f"{b:.2f} ± {se:.2f}") for n, e, b, se in by["steering"]])
        lines += [f"## SVDD, {kind}", "", f"Distance of the mean of {SAMPLES:,} pictures from that of exp(-loss) times the plain sampler's distribution, temperature 1; in brackets the standard error. With a linear loss of a Gaussian the",
                  "clean estimate is the soft value up to a constant, and the distance goes to zero; with other losses what is left is the error of taking the loss of the mean for the mean of the loss.", ""]
        lines += table(("task", *(f"{m} candidates" for m in CANDIDATES)), [(n, *(f"{f[m][0]:.3f} ({f[m][1]:.3f})" for m in CANDIDATES)) for n, f in by["decoding"]])
        lines += [f"## Feynman-Kac correctors, {kind}", "", f"Root mean square error of the weighted mean over {RUNS} runs, against 256 particles over {MANY // 256} runs; no limit of the weights.", ""]
        lines += table(("what", *(f"{k} particles" for k in COUNTS), "slope"), [(n, *(f"{e[k]:.3f}" for k in COUNTS), f"{b:.2f} ± {se:.2f}") for n, e, b, se, *_ in by["correcting"]])
        lines += ["Error of the mean against the distribution that is meant (by quadrature), by steps; in brackets the standard error:", ""]
        lines += table(("what", *(f"{s} steps" for s in REFINED)), [row for n, _, _, _, limits, without in by["correcting"] for row in (
            (f"{n}, 256 particles", *(f"{limits[s][0]:+.3f} ({limits[s][1]:.3f})" for s in REFINED)), (f"{n}, without weights", *(f"{without[s][0]:+.3f} ({without[s][1]:.3f})" for s in REFINED)))])
    return "\n".join(lines)


def run(out, quick=1):
    found = measure(quick)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "particles.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (out / "particles.md").write_text(page(found), encoding="utf-8")
