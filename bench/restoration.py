"""How well each solver restores each kind of measurement on the bundled U-Net. Writes docs/effects/restoration.md and restoration.json."""
from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field

import torch

from . import text_lines
from .plan import to_be_higher
from .stats import difference, mean
from .store import Store, cache_folder, read_json, table, write_json

SIDE, STEPS, SEED = 128, 20, 50_001      # pixels; the seed is none of the training
NAIVE, PLAIN = "A+ y", "plain sampler"
MASKS = ("inpainting", "missing traces")
SENSOR = "brief exposure of a sensor"
LINEAR = (*MASKS, "super-resolution x4", "Gaussian blur", "motion blur", "given kernel", "colourisation", "random projection", "wavelet", SENSOR)
ALONE, LONGER = "Exposure Diffusion, its network alone", "Exposure Diffusion, 3 steps"
EXPOSED = {ALONE: 1, LONGER: 3}      # steps; on SENSOR alone
SHOWN = ("inpainting", "super-resolution x4", "Gaussian blur", "JPEG", "low light")      # on the help pages of the solvers
BLURS = ("Gaussian blur", "motion blur", "given kernel", "low light")      # what blind solvers are measured on


@dataclass(frozen=True)
class Task:
    """reach: about 1 / |A|, by which the gradient of a measurement is smaller than that of the picture: what solvers with a scale multiply it by. told: the noise that solvers are told of, where the operator
    has its own (None: `noise`)."""

    operator: object
    noise: float = 0.02
    reach: float = 1.0
    told: float | None = None


@dataclass(frozen=True)
class Entry:
    """A solver of the table: `cls` with `values`; the field `scale` is multiplied by the task's reach. Solvers that take a LOSS get the measurement as one (`reduction`)."""

    name: str
    cls: type
    values: dict = field(default_factory=dict)
    scale: str = ""
    reduction: str = "norm"
    steps: int = STEPS
    only: tuple = ()      # names of tasks, where it is for some alone
    shown: bool = True      # whether its figures stand for its node
    guess: bool = False      # whether it is told GUESSES, not the true operator: a blind solver's first guess

    def chosen(self, task):
        return {self.scale: self.values[self.scale] * task.reach} if self.scale else {}

    def method(self, given, task):
        from ..guidance.host.restorers import Restorer
        more = {"restorer": Restorer()} if any(f.name == "restorer" for f in dataclasses.fields(self.cls)) else {}
        return self.cls(**more, **{("loss" if _led(self.cls) else "measurement"): given}, **{**self.values, **self.chosen(task)}).validate()


def _led(cls):
    names = {f.name for f in dataclasses.fields(cls)}
    return "loss" in names and "measurement" not in names


def tasks():
    """{name: Task}."""
    from ..guidance.inverse import operators as of
    hole = torch.zeros(1, SIDE, SIDE)
    hole[:, 32:96, 40:104] = 1
    cross = torch.zeros(1, 9, 9, 3)
    cross[:, 4], cross[:, :, 4] = 1, 1
    return {"inpainting": Task(of.Inpainting(hole)), "super-resolution x4": Task(of.SuperResolution(4), reach=4.0), "Gaussian blur": Task(of.GaussianBlur(5.0), reach=2.0),
            "motion blur": Task(of.MotionBlur(25.0, 30.0), reach=2.0), "given kernel": Task(of.KernelBlur(cross), reach=2.0), "colourisation": Task(of.Colourisation(), reach=2.0),
            "random projection": Task(of.RandomProjection(0.1)), "wavelet": Task(of.Wavelet(3)), "missing traces": Task(of.MissingTraces(0.7)), "JPEG": Task(of.Jpeg(5), 0.0),
            "quantisation": Task(of.Quantisation(2), 0.0), "low light": Task(of.LowLight(0.2), reach=4.0),
            SENSOR: Task(of.SensorExposure(16.0, 1000.0, 2.0), 0.0, 16.0, told=0.006)}


def guesses():
    """{name: operator} that a blind solver starts from: of the right kind, with other parameters."""
    from ..guidance.inverse import operators as of
    return {"Gaussian blur": of.GaussianBlur(3.0), "motion blur": of.MotionBlur(13.0, 0.0), "given kernel": of.MotionBlur(9.0, 0.0), "low light": of.LowLight(0.5)}


def entries():
    """The solvers, in the order of the table."""
    from ..guidance.inverse import blind, copaint, daps, ddnm, ddrm, degradation_aware, dps, lgd, mpgd, pigdm, psld, reddiff, repaint, resample, steered
    from ..guidance.loss.solvers import dreamguider, tfg
    from ..guidance.particles import enkg
    return (
        Entry("Null-Space Sampler (DDNM+)", ddnm.NullSpaceSampler),
        Entry("Spectral Restoration Sampler (DDRM)", ddrm.SpectralSampler, only=LINEAR),
        Entry("Steered Diffusion", steered.SteeredDiffusion, {"scale": 1.0, "repeats": 1}),
        Entry("Degradation-Aware Sampler (DADiff), the pack's upscaler", degradation_aware.DegradationAwareSampler, {"scale": 0.5}, only=("super-resolution x4",)),
        Entry("Pseudoinverse-Guided Diffusion", pigdm.PseudoinverseGuidance),
        Entry("Diffusion Posterior Sampling", dps.DiffusionPosteriorSampling, {"scale": 2.0}, "scale"),
        Entry("Manifold Preserving Guidance", mpgd.ManifoldPreservingGuidance, {"scale": 1.0}, "scale"),
        Entry("RED-diff, 4 inner steps", reddiff.REDdiff, {"inner": 4, "rate": 0.05}),
        Entry("ReSample", resample.ReSample, {"rate": 0.05}),
        Entry("Latent Posterior Sampling (PSLD)", psld.LatentPosteriorSampling, {"scale": 2.0}, "scale"),
        Entry("Decoupled Posterior Sampling (DAPS), 2 ahead, 6 rounds", daps.DecoupledPosteriorSampling, {"ahead": 2, "rounds": 6}),
        Entry("Tractable Steering (CoPaint), 1 round", copaint.TractableSteering, {"rounds": 1, "rate": 0.1, "tries": 2}, only=("inpainting", "missing traces", "super-resolution x4")),
        Entry("Blind Posterior Sampling, first guess kept", blind.BlindPosteriorSampling, {"rate": 0.0, "scale": 1.0}, "scale", only=BLURS, shown=False, guess=True),
        Entry("Blind Posterior Sampling", blind.BlindPosteriorSampling, {"rate": 0.2, "inner": 20, "scale": 1.0}, "scale", only=BLURS, guess=True),
        Entry("Blind Posterior Sampling, frequency-aware", blind.BlindPosteriorSampling, {"rate": 0.2, "inner": 20, "scale": 0.5, "frequency": 1.0}, "scale", only=BLURS, shown=False, guess=True),
        Entry("RePaint, 3 rounds", repaint.RePaint, {"rounds": 3}, only=MASKS),
        Entry("Loss-Guided Diffusion, 2 samples", lgd.LossGuidedDiffusion, {"samples": 2, "scale": 4.0}, "scale"),
        Entry("Training-Free Guidance, mu alone", tfg.TrainingFreeGuidance, {"rho": 0.0, "mu": 1.0, "smoothing": 0.0}, "mu"),
        Entry("Dreamguider", dreamguider.Dreamguider, reduction="mean"),
        Entry("Ensemble Kalman Guidance, 16 particles", enkg.EnsembleKalmanGuidance, only=("super-resolution x4", "JPEG", "quantisation")),
    )


@dataclass(frozen=True)
class Picture:
    """A scene to restore and the number of its noise."""

    scene: object
    number: int

    def noise(self):
        return torch.randn(1, 16, SIDE // 8, SIDE // 8, generator=torch.Generator().manual_seed(SEED + self.number))


class Lab:
    """The model, the judge, and the runs, finished ones in the cache."""

    def __init__(self, args):
        from .subject import Judge, Subject, weights_mark
        self.subject, self.judge, self.mark = Subject("unet"), Judge(), weights_mark("unet")
        self.store, self.batch = Store(cache_folder(), args.fresh), args.batch

    def truth(self, pictures):
        """[n, 3, 128, 128] of the scenes as the autoencoder draws them, and so in reach of the model."""
        return self.subject.vae.decode(self.subject.rendered([p.scene for p in pictures])).movedim(-1, 1).clamp(0, 1)

    def measured(self, task, pictures):
        y = self.truth(pictures)
        y = torch.cat([task.operator.drawn(y[i:i + 1], torch.Generator().manual_seed(SEED + 7 * p.number + 2)) for i, p in enumerate(pictures)])
        each = [torch.randn(y[:1].shape, generator=torch.Generator().manual_seed(SEED + 7 * p.number + 3)) for p in pictures]
        return task.operator.settle(y + task.noise * torch.cat(each)) if task.noise else y

    def sample(self, sampler, pictures, steps):
        import comfy.samplers
        guider = comfy.samplers.CFGGuider(self.subject.model)
        guider.set_conds(self.subject.encode([p.scene.caption for p in pictures]), self.subject.encode([""]))
        guider.set_cfg(1.0)
        noise = torch.cat([p.noise() for p in pictures])
        out = guider.sample(noise, torch.zeros_like(noise), sampler, self.subject.sigmas(steps), disable_pbar=True, seed=pictures[0].number)
        return self.subject.vae.decode(out).movedim(-1, 1)

    def restored(self, name, entry, pictures):
        """Pictures [n, 3, 128, 128] of one solver; `entry` may be NAIVE or PLAIN."""
        import comfy.samplers

        from ..guidance.host.measurements import bind
        from ..guidance.host import sampler_inverse, sampler_particles
        from ..guidance.inverse.problem import Measurement
        from ..guidance.loss.measurement import MeasurementLoss
        from ..guidance.particles.swarm import Record
        task = tasks()[name]
        if entry == PLAIN:
            return self.sample(comfy.samplers.sampler_object("euler"), pictures, STEPS)
        y, operator = self.measured(task, pictures), task.operator
        if entry == NAIVE:
            return operator.pseudo_inverse(y, torch.zeros(len(pictures), 3, SIDE, SIDE))
        if isinstance(entry, str) and entry in EXPOSED:
            from ..demo.exposure import network
            from ..guidance.inverse.exposure import ExposureDiffusion
            return ExposureDiffusion(operator, network(), EXPOSED[entry], seed=SEED).restored(y)[0]
        told = guesses()[name] if getattr(entry, "guess", False) else operator
        given = Measurement(told, operator.show(y).movedim(1, -1).contiguous(), task.noise if task.told is None else task.told, self.subject.vae)
        if _led(entry.cls):
            latent_format, kept = self.subject.model.get_model_object("latent_format"), given
            given = MeasurementLoss(bind=lambda like: bind(kept, latent_format, like), reduction=entry.reduction)
        method = entry.method(given, task)
        sampler = sampler_particles.sampler(method.recording(Record())) if method.family == "particles" else sampler_inverse.sampler(method)
        return self.sample(sampler, pictures, entry.steps)

    def figures(self, name, entry, pictures):
        """{psnr, feature, correct [n], seconds per picture} of a run, from the cache where it is there."""
        from .subject import weights_mark
        task = tasks()[name]
        if isinstance(entry, str):
            key = (entry, name if entry != PLAIN else "", *((weights_mark("exposure"),) if isinstance(entry, str) and entry in EXPOSED else ()))
        else:
            key = (entry.cls.__name__, sorted(entry.values.items()), entry.reduction, entry.steps, sorted(entry.chosen(task).items()), *(("guess",) if entry.guess else ()), name)
        found = []
        for i in range(0, len(pictures), self.batch):
            some = pictures[i:i + self.batch]
            whole = ("restoration", 2, self.mark, *map(str, key), [p.number for p in some])
            made = self.store.get(*whole)
            if made is None:
                begin = time.process_time()
                with torch.inference_mode():
                    out = self.restored(name, entry, some).float()
                    made = score(out, self.truth(some).float(), [p.scene for p in some], self.judge)
                made["seconds"] = torch.full((len(some),), (time.process_time() - begin) / len(some), dtype=torch.float64)
                self.store.put(made, *whole)
            found.append(made)
        return {k: torch.cat([f[k] for f in found]) for k in found[0]}


def psnr(out, truth):
    """[n]: peak signal-to-noise ratio in dB of pictures in [0, 1]."""
    return -10 * torch.log10((out - truth).square().mean((1, 2, 3)).clamp(min=1e-10))


def feature_distance(out, truth, network):
    """[n]: distance of the measuring network's maps of two batches of pictures, as a share of the truth's size."""
    from ..demo.measure import fit_size
    a, b = (network.trunk(fit_size(t))[1].flatten(1) for t in (out, truth))
    return (a - b).norm(dim=1) / b.norm(dim=1)


def score(out, truth, scenes, judge):
    """{psnr in dB, feature: distance of the measuring network's maps as a share of the truth's size, correct: whether it shows what the scene has}, one per picture; not finite counts as gray."""
    from ..demo.measure import prompt_accuracy
    out = torch.where(torch.isfinite(out), out, torch.full_like(out, 0.5)).clamp(0, 1)
    return {"psnr": psnr(out, truth).double(), "feature": feature_distance(out, truth, judge.network).double(), "correct": torch.tensor([float(v["all"]) for v in prompt_accuracy(scenes, out, judge.network)], dtype=torch.float64)}


def pictures_of(count):
    from ..demo.scenes import two_object_prompts
    return [Picture(s, i) for i, s in enumerate(two_object_prompts(count, SEED))]


def run(args, version):
    """Every solver on every task; a table, written after each solver. Figures of other solvers and of more pictures are kept."""
    lab = Lab(args)
    pictures = pictures_of(args.pictures)
    groups = list(range(len(pictures)))
    path = args.out / "restoration.json"
    wanted = [e for e in (PLAIN, NAIVE, *EXPOSED, *entries()) if not args.solvers or any(n.lower() in (e if isinstance(e, str) else e.name).lower() for n in args.solvers)]
    for entry in wanted:
        name = entry if isinstance(entry, str) else entry.name
        data = read_json(path)
        rows = data.get("tasks", {})
        for task, given in tasks().items():
            where = entry.only if not isinstance(entry, str) else (SENSOR,) if entry in EXPOSED else ()
            if where and task not in where or args.tasks and task not in args.tasks:
                continue
            found, plain = (lab.figures(task, e, pictures) for e in (entry, PLAIN))
            row = {k: [round(v, 4) for v in mean(found[k], groups)] for k in ("psnr", "feature", "correct")}
            row |= {"gain": [round(v, 3) for v in difference(found["psnr"], plain["psnr"], groups)], "seconds": round(float(found["seconds"].mean()), 2),
                    "chosen": {} if isinstance(entry, str) else entry.chosen(given)}
            if name == LONGER:
                row["above"] = {b: [round(v, 3) for v in difference(found["psnr"], lab.figures(task, b, pictures)["psnr"], groups)] for b in (NAIVE, ALONE)}
            rows.setdefault(task, {})[name] = row
            print(f"{task}, {name}: {row['psnr'][0]:.2f} dB, features {row['feature'][0]:.3f}, correct {row['correct'][0]:.0%}", flush=True)
        save(args.out, {**data, "host": version, "pictures": len(pictures), "steps": STEPS, "tasks": rows})
    if not args.tasks and (not args.solvers or any(n.lower() in text_lines.NAME.lower() for n in args.solvers)):
        save(args.out, {**read_json(path), "lines": text_lines.measured()})


def save(out, data):
    write_json(out / "restoration.json", data)
    write_json(out / "restored.json", {"methods": effects(data)})
    (out / "restoration.md").write_text(page(data), encoding="utf-8")


def effects(data):
    """What stands for each solver's node, in the form of effects.json: PSNR with the plain sampler's beside it; of Exposure Diffusion with the brightened picture's, and that of its network alone."""
    found = {}

    def put(node_id, metric, row, gain, setup, base, base_setup):
        found.setdefault(node_id, {}).setdefault("unet", {})[f"PSNR in dB, {metric}"] = to_be_higher(row["psnr"], gain, base["psnr"], setup, base_setup, data["pictures"])
    for e in entries():
        for task in SHOWN:
            row, plain = (data["tasks"].get(task, {}).get(name) for name in (e.name, PLAIN))
            if not e.shown or row is None or plain is None:
                continue
            put(e.cls.node_id, task, row, row["gain"], e.name, plain, PLAIN)
    exposed = data["tasks"].get(SENSOR, {})
    for base, metric in ((NAIVE, "a brief exposure, against it brightened"), (ALONE, "a brief exposure, against the network alone")):
        if LONGER in exposed:
            put("LodestarExposureDiffusion", metric, exposed[LONGER], exposed[LONGER]["above"][base], LONGER, exposed[base], base)
    if "lines" in data:
        found["LodestarTextSuperResolution"] = {"unet": text_lines.effects(data["lines"])}
    return found


def page(data):
    """docs/effects/restoration.md."""
    kinds = [k for k in tasks() if k in data["tasks"]]
    names = [n for n in _order() if any(n in data["tasks"][k] for k in kinds)]
    spread = lambda e, digits: f"{e[0]:.{digits}f} [{e[1]:.{digits}f}, {e[2]:.{digits}f}]"

    def grid(what, digits):
        return table(["solver", *kinds], [[n, *(f"{data['tasks'][k][n][what][0]:.{digits}f}" if n in data["tasks"][k] else "" for k in kinds)] for n in names])
    lines = ["# Restoration on the bundled U-Net", "",
             f"Written by `./scripts/bench restoration`: {data['pictures']} scenes of two objects at {SIDE} x {SIDE}, as the autoencoder draws them, measured as pictures in [0, 1] and restored through the VAE in "
             f"{data['steps']} steps (CFG 1, the scene's caption as the prompt). Measurements have noise of 0.02, but for JPEG, quantisation and the sensor, whose noise is its own (16 times too short, 1000 electrons at white in the full time, read noise of 2; solvers are told a noise of 0.006). Scales and rates were tried on other scenes, mostly four. In brackets 95 % intervals over scenes.", "",
             f"`{PLAIN}`: the same noise and caption without the measurement. `{NAIVE}`: the pseudo-inverse alone, without the model. Nothing is tuned for a task: solvers with a scale have one, times 2 to 4 for operators that "
             "average or darken (`scale` in the tables). Blind Posterior Sampling is not told the operator, but one of its kind with other parameters: a Gaussian of 3 in place of 5 pixels, a movement of 13 pixels along "
             "the rows for 25 at 30 degrees, one of 9 for a cross, a gain of 0.5 for 0.2. Exposure Diffusion has a network of its own and no model.", "",
             "- PSNR in dB, of all pixels: it favours blurred pictures where much is lost.",
             "- features: distance of the measuring network's maps from the truth's, as a share of their size. A picture that is not finite counts as gray: here 6.57 dB, features of 1.00.",
             "- correct: the measuring network reads the scene's objects and their relation in the picture. s: CPU seconds per picture.", "", "## PSNR", "", grid("psnr", 1), "## Features", "", grid("feature", 2)]
    for k in kinds:
        rows = []
        for n in (n for n in names if n in data["tasks"][k]):
            r = data["tasks"][k][n]
            rows.append([n, spread(r["psnr"], 2), spread(r["gain"], 2), spread(r["feature"], 3), f"{r['correct'][0]:.0%} [{r['correct'][1]:.0%}, {r['correct'][2]:.0%}]",
                         ", ".join(f"{v:g}" for v in r["chosen"].values()), f"{r['seconds']:.1f}"])
        lines += [f"## {k[:1].upper()}{k[1:]}", "", table(["solver", "PSNR", "PSNR above the plain sampler", "features", "correct", "scale", "s"], rows)]
    return "\n".join(lines + (text_lines.page(data["lines"]) if "lines" in data else []))


def _order():
    """Names of the rows."""
    return [PLAIN, NAIVE, *EXPOSED, *(e.name for e in entries())]
