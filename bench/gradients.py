"""What a gradient takes: memory and time of its three costs, which samplers go back through the network, and whether memory grows over a run. Writes docs/effects/gradients.md and gradients.json."""
from __future__ import annotations

import gc
import json
import statistics
import sys
from contextlib import contextmanager

import torch

from . import host
from .costs import clock_of_runs
from .store import table

LIMIT = 1.6      # peak of a checkpointed gradient through the network, in peaks of a plain step, weights included
WAYS = (("plain step", None), ("none", "none"), ("checkpoint", "checkpoint"), ("network", "network"))
SAMPLERS = (("Euler", None, {}), ("Manifold Preserving Guidance", "LodestarManifoldPreservingGuidance", {}), ("Dreamguider", "LodestarDreamguider", {}),
            ("Null-Space Sampler", "LodestarNullSpaceSampler", {}), ("GeoGuide, through the estimate", "LodestarGeoGuide", {"through": "estimate"}),
            ("GeoGuide", "LodestarGeoGuide", {}), ("Diffusion Posterior Sampling", "LodestarDiffusionPosteriorSampling", {}),
            ("Training-Free Guidance", "LodestarTrainingFreeGuidance", {"iterations": 1, "samples": 1}))


class Memory:
    """most: bytes allocated at once above what there was before; left: bytes that are still there afterwards."""

    most = left = 0


@contextmanager
def watched():
    """A Memory of what is allocated inside: by the allocator's own numbers on a GPU, by PyTorch's profiler on the CPU (which slows it down)."""
    found = Memory()
    gc.collect()
    if host.on_gpu():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        begin = torch.cuda.memory_allocated()
        yield found
        torch.cuda.synchronize()
        found.most, found.left = torch.cuda.max_memory_allocated() - begin, torch.cuda.memory_allocated() - begin
        return
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        yield found
        gc.collect()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = 0
    for e in sorted(events, key=lambda e: e.start_ns()):
        now += e.nbytes()
        found.most = max(found.most, now)
    found.left = now


class Counter:
    """Forward passes of a network, those of them that kept a graph, and backward passes through it."""

    def __init__(self, network):
        self.network, self.forwards, self.graphs, self.backwards = network, 0, 0, 0

    def _seen(self, module, given, out):
        self.forwards += 1
        if out.requires_grad:
            self.graphs += 1
            out.register_hook(self._back)

    def _back(self, slope):
        self.backwards += 1

    def __enter__(self):
        self.handle = self.network.register_forward_hook(self._seen)
        return self

    def __exit__(self, *_):
        self.handle.remove()


def weights_of(patcher):
    return sum(p.nbytes for p in patcher.model.diffusion_model.parameters())


class Bench:
    """One network with its prompts: sampling runs of Euler with or without a gradient."""

    def __init__(self, name, model, prompt, shape, steps):
        from ..guidance.loss.target import TargetImage
        self.name, self.model, self.shape, self.steps = name, model, shape, steps
        self.positive, self.negative = prompt(1), prompt(2)
        with torch.inference_mode(False):
            self.loss = TargetImage(target=torch.zeros(1, *shape), reduction="mean")

    def run(self, model=None, sampler="euler", steps=None):
        import comfy.samplers
        with torch.inference_mode():
            guider = comfy.samplers.CFGGuider(model or self.model)
            guider.set_conds(self.positive, self.negative)
            guider.set_cfg(4.0)
            sigmas = comfy.samplers.calculate_sigmas(self.model.get_model_object("model_sampling"), "normal", steps or self.steps)
            noise = torch.randn(1, *self.shape, generator=torch.Generator().manual_seed(0))
            sampler = comfy.samplers.sampler_object(sampler) if isinstance(sampler, str) else sampler
            return guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=0)

    def guided(self, route):
        from ..guidance.host.attach import attach
        from ..guidance.loss.universal import UniversalGuidance
        return self.model if route is None else attach(self.model, UniversalGuidance(loss=self.loss, route=route, scale=0.1))

    def costs(self, repeats):
        """Time, memory and passes of the three costs, each beside the plain step; without repeats the time is that of the run whose memory is watched."""
        runs, clock = [(label, self.guided(route)) for label, route in WAYS], clock_of_runs()
        seconds = {label: [] for label, _ in runs}
        for r in range(repeats + 1 if repeats else 0):
            for label, model in runs:
                begin = clock()
                self.run(model)
                if host.on_gpu():
                    torch.cuda.synchronize()
                if r:
                    seconds[label].append((clock() - begin) / self.steps)
        rows, weights = [], weights_of(self.model)
        for label, model in runs:
            with Counter(self.model.model.diffusion_model) as count, watched() as memory:
                begin = clock()
                self.run(model, steps=1)
                took = clock() - begin
            if not repeats:
                seconds[label].append(took)
            ratios = sorted(a / b for a, b in zip(seconds[label], seconds["plain step"]))
            rows.append({"way": label, "time": statistics.median(ratios), "time_low": ratios[0], "time_high": ratios[-1], "seconds": statistics.median(seconds[label]),
                         "activations": memory.most, "peak": memory.most + weights, "left": memory.left, "forwards": count.forwards, "backwards": count.backwards})
            print(f"{self.name}, {label}: {rows[-1]['time']:.2f} x, {memory.most / 2 ** 20:.0f} MiB above the weights", file=sys.stderr, flush=True)
        for row in rows:
            row["peak_ratio"], row["activation_ratio"] = row["peak"] / rows[0]["peak"], row["activations"] / max(1, rows[0]["activations"])
        return {"weights": weights, "shape": list(self.shape), "steps": self.steps, "repeats": repeats, "rows": rows}

    def growth(self, steps=100):
        """The most bytes at once in 10 and in `steps` steps with gradients through the network, and what is left behind."""
        found = {}
        for route in ("network", "checkpoint"):
            model = self.guided(route)
            for count in (10, steps):
                with watched() as memory:
                    self.run(model, steps=count)
                found.setdefault(route, {"steps": steps})[f"most_of_{count}"] = memory.most
            found[route]["left"] = memory.left
        return found


def samplers(bench, repeats):
    """Which samplers go back through the network: passes, memory and time, each beside Euler."""
    from .. import nodes
    from ..guidance.host.sampler_inverse import sampler as made
    definitions, clock = nodes.definitions(), clock_of_runs()
    found, runs = [], []
    for label, node_id, given in SAMPLERS:
        if node_id is None:
            runs.append((label, "euler"))
            continue
        cls = definitions[node_id].method
        names = {f for f in cls.__dataclass_fields__}
        values = {k: v for k, v in given.items() if k in names}
        if "loss" in names:
            values["loss"] = bench.loss
        if "measurement" in names:
            values["measurement"] = measurement(bench)
        runs.append((label, made(cls(**values))))
    seconds = {label: [] for label, _ in runs}
    for r in range(repeats + 1):
        for label, sampler in runs:
            begin = clock()
            bench.run(sampler=sampler)
            if r:
                seconds[label].append(clock() - begin)
    for label, sampler in runs:
        with Counter(bench.model.model.diffusion_model) as count, watched() as memory:
            bench.run(sampler=sampler)
        ratios = sorted(a / b for a, b in zip(seconds[label], seconds["Euler"]))
        found.append({"way": label, "forwards": count.forwards / bench.steps, "graphs": count.graphs / bench.steps, "backwards": count.backwards / bench.steps, "activations": memory.most,
                      "time": statistics.median(ratios), "time_low": ratios[0], "time_high": ratios[-1]})
        print(f"{label}: {found[-1]['backwards']:g} backward passes a step", file=sys.stderr, flush=True)
    return found


def measurement(bench):
    """A masked latent, for the samplers that take a measurement."""
    from ..guidance.inverse.operators.masked import Inpainting
    from ..guidance.inverse.problem import Measurement
    with torch.inference_mode(False):
        mask = torch.ones(1, *bench.shape[-2:])
        mask[:, :, bench.shape[-1] // 2:] = 0
        operator = Inpainting(mask=mask)
        return Measurement(operator, operator.measure(torch.zeros(1, *bench.shape)))


def run(args, version):
    """The whole bench; what is not measured this time stays as it was."""
    from .subject import Subject
    path = args.out / "gradients.json"
    old = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    data = {"about": {"version": version, "device": host.device_name()}, "networks": old.get("networks", {}), "samplers": old.get("samplers", []), "growth": old.get("growth")}

    def save():
        args.out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        (args.out / "gradients.md").write_text(page(data), encoding="utf-8")
    if not args.no_demo:
        for generator in ("unet", "dit") if args.generator == "both" else (args.generator,):
            subject = Subject(generator)
            captions = ("a red circle", "")
            bench = Bench(f"bundled {generator}", subject.model, lambda i, s=subject: s.encode([captions[i - 1]]), (16, 16, 16), args.steps)
            data["networks"][bench.name] = bench.costs(args.repeats)
            save()
            if generator == "unet":
                data["samplers"] = samplers(bench, args.repeats)
                save()
                data["growth"] = bench.growth(args.growth) if args.growth else data["growth"]
                save()
    if args.sd15 or host.on_gpu():
        from . import large
        patcher, prompt, shape = large.sd15()
        bench = Bench(f"SD1.5 size, {str(patcher.model.get_dtype()).removeprefix('torch.')}, latent {shape[1]} x {shape[2]}", patcher, prompt, shape, args.steps)
        data["networks"][bench.name] = bench.costs(args.repeats if host.on_gpu() else 0)
    save()


def page(data):
    """The measurements as Markdown."""
    mib = lambda n: f"{n / 2 ** 20:.1f} MiB" if n < 2 ** 30 else f"{n / 2 ** 30:.2f} GiB"
    lines = ["# Gradients", "", "Written by `./scripts/bench gradients` on {device}, host ComfyUI {version}. Universal Guidance with a loss of the latent itself (no decoder), CFG, one picture. "
             "Times: medians of the ratios to the plain step within interleaved repeats (on one CPU thread the process's own time), in brackets the extremes (on the CPU the large network is run once). Memory: what is allocated at once in a step, beside the weights, and with them.".format(**data["about"]), ""]
    for name, network in data["networks"].items():
        rows = []
        for r in network["rows"]:
            promise = f"at most {LIMIT:g}: {'kept' if r['peak_ratio'] <= LIMIT else 'not kept'}" if r["way"] == "checkpoint" else ""
            rows.append((r["way"], f"{r['time']:.2f} [{r['time_low']:.2f}, {r['time_high']:.2f}]", f"{r['activations'] / 2 ** 20:.1f} MiB", f"{r['activation_ratio']:.2f}",
                         f"{mib(r['peak'])}", f"{r['peak_ratio']:.2f}", f"{r['backwards']}", promise))
        lines += [f"## {name}", "", f"Weights {mib(network['weights'])}; latent {' x '.join(map(str, network['shape']))}.", "",
                  table(("gradient", "time, in plain steps", "beside the weights", "in plain steps", "with the weights", "in plain steps", "backward passes a step", ""), rows), ""]
    if data["samplers"]:
        rows = [(s["way"], f"{s['forwards']:g}", f"{s['graphs']:g}", f"{s['backwards']:g}", mib(s["activations"]), f"{s['time']:.2f} [{s['time_low']:.2f}, {s['time_high']:.2f}]") for s in data["samplers"]]
        lines += ["## Samplers on the bundled U-Net", "", "Counted in the network itself, per step: forward passes, those that kept a graph, backward passes. Measurements and losses are of the latent.", "",
                  table(("sampler", "forward passes", "with a graph", "backward passes", "memory beside the weights", "time, in steps of Euler"), rows), ""]
    if data["growth"]:
        g = data["growth"]
        rows = [(route, mib(r["most_of_10"]), mib(r[f"most_of_{r['steps']}"]), f"{r['left'] / 1024:.1f} KiB") for route, r in g.items()]
        lines += ["## Growth over a run", "", "The most that is allocated at once beside the weights, in short and long runs of the bundled U-Net, and what is left behind after the long one.", "",
                  table(("gradient", "10 steps", f"{g['network']['steps']} steps", "left behind"), rows), ""]
    return "\n".join(lines)
