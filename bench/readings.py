"""`bench readings`: how right the readings of a given picture are, against the truth of rendered scenes."""
from __future__ import annotations

import ast
import inspect
import random
import sys
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm.auto import tqdm

from ..demo import latents as code_of
from ..demo.scenes import COLOURS, SHAPES, SIZE, SIZES, Thing, mask_of, random_scene, render
from ..guidance.inspection.attention_maps import CaptureAttention
from ..guidance.reading.classifier import DiffusionClassifier
from ..guidance.reading.correspondence import DenseCorrespondence
from ..guidance.reading.information import PromptInformation
from ..guidance.reading.segmentation import CrossAttentionSegmentation
from . import stats, store
from .layout import caption, noun
from .plan import Claim, verdict
from .subject import Judge, Subject, weights_mark

SCENE_SEED = 40_001     # no seed of the training or of the other measurements
CHUNK = 4
STEPS, CFG = 20, 4.0
INTRO = """Written by `./scripts/bench readings` (host: ComfyUI {host}): readings of rendered scenes, against what is known of them. Pictures are renders that went through
the autoencoder; for the heat maps they are sampled ({steps} Euler steps, w = {cfg:g}) and the objects are those that the measuring network finds where the caption's are. In brackets
95% intervals; a claim is reached where the interval of the difference from the base lies on the claimed side ("at least": where the value does).

- Diffusion Classifier: share of scenes with one object whose colour, shape or size is named right, out of {colours} colours, {shapes} shapes, {sizes} sizes ("a red circle", ...; for the size
  "a large red circle"); {classifier}. Base: guessing.
- Cross-Attention Segmentation: mean over two objects of the intersection over union of mask and truth, at 64 x 64 px; the prompt names both and nothing else. Base: the whole picture as mask.
  swapped: the same with the other object's truth.
- Dense Correspondence: the same two objects in two pictures at other places and sizes; mean distance in px (of 64) between where the cells of the objects are found and where they are,
  and the share that is found within 6.4 px. Base: every cell stays where it is.
- Prompt Information: of "a red circle", "a blue square" and both, against the empty prompt; 12 levels. unique: share of a prompt's uniqueness (form "standard", its positive part) that lies
  in its object; base: the object's share of the picture. other: the share in the other object. information: share of what both say together (form "orthogonal") in both objects; base: their
  share of the picture.
- Capture Attention: share of a phrase's heat (the map less its least value) that lies in its object's box; base: the box's share of the picture. pointing: the map's largest value is in the box.
"""


@dataclass(frozen=True)
class Metric:
    """One figure of a reading: `values` [n], one per scene (or object), under `name`; `base` is the name of those it is compared with."""

    name: str
    claim: Claim | None = None
    base: str = ""


@dataclass(frozen=True)
class Reading:
    """method: its class, with the values that are measured; run(subject, judge, method, scenes) -> {name: values per scene}; things: objects of a scene."""

    method: object
    run: object
    metrics: tuple
    things: int = 2

    @property
    def source(self):
        """What a finished result depends on: the code of the method's file and of this function."""
        return _code(Path(inspect.getsourcefile(type(self.method))).read_text(encoding="utf-8")) + _code(textwrap.dedent(inspect.getsource(self.run)))


def _code(text):
    """A source without its docstrings and comments: their wording changes no result."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            node.value.value = ""
    return ast.unparse(tree)


def scenes_of(count, things):
    rng = random.Random(SCENE_SEED + things)
    return [random_scene(rng, things) for _ in range(count)]


def coded(subject, scenes):
    """Latents [n, 16, 16, 16] of the renders."""
    return code_of.encode(torch.stack([render(s) for s in scenes]), subject.code)


def truth(thing):
    return mask_of(thing) > 0.5


# Diffusion Classifier

def _captions(thing, attribute):
    names = {"colour": tuple(COLOURS), "shape": SHAPES, "size": tuple(SIZES)}[attribute]
    things = [replace(thing, **{attribute: n}) for n in names]
    texts = [f"{t.size} {noun(t)}" if attribute == "size" else noun(t) for t in things]
    return names, [("an " if t[0] in "aeiou" else "a ") + t for t in texts]


def classified(subject, judge, method, scenes):
    from ..guidance.host.probe import probe
    found = {}
    for attribute in ("colour", "shape", "size"):
        for scene, x in zip(scenes, coded(subject, scenes).split(1)):
            names, texts = _captions(scene.things[0], attribute)
            scores = probe(subject.model, {i: subject.encode([t]) for i, t in enumerate(texts)}, {"samples": x},
                           lambda p: method.scores(p.x0, len(texts), p.each, p.sigma, p.flow))
            found.setdefault(attribute, []).append(float(names[scores.order[0]] == getattr(scene.things[0], attribute)))
            found.setdefault(f"{attribute} guess", []).append(1 / len(names))
    return found


# Cross-Attention Segmentation

def words_of(subject, scene, title):
    from ..guidance.attention.tokens import Words
    from ..guidance.attention.words import found
    text = caption(scene)
    cond = subject.encode([text])
    return cond, found(Words(subject.clip, text, cond[0][0].shape[1], title), tuple(noun(t) for t in scene.things[:2]))


def overlap(a, b):
    return float((a & b).sum() / (a | b).sum().clamp(min=1))


def segmented(subject, judge, method, scenes):
    from ..guidance.host.geometry import of_model
    from ..guidance.host.probe import probe
    from ..guidance.reading.segmentation import Seen, labelled
    found = {"iou": [], "swapped": [], "whole": []}
    for scene, x in zip(scenes, coded(subject, scenes).split(1)):
        cond, words = words_of(subject, scene, method.title)
        observers, seen = method.observers(words, of_model(subject.model)), Seen()
        probe(subject.model, {"positive": cond}, {"samples": x}, lambda p: method.look(p.x0, p.observed, p.sigma, p.flow), observers=observers, take=seen.take)
        maps = method.maps(*(seen[o] for o in observers), *((None,) if len(observers) == 1 else ()), words, SIZE, SIZE)
        masks, _ = labelled(maps, method.threshold)
        true = [truth(t) for t in scene.things]
        found["iou"].append(sum(overlap(m, t) for m, t in zip(masks[0], true)) / 2)
        found["swapped"].append(sum(overlap(m, t) for m, t in zip(masks[0], true[::-1])) / 2)
        found["whole"].append(sum(float(t.float().mean()) for t in true) / 2)
    return found


# Dense Correspondence

def moved(scene, rng):
    """A scene with the same objects at other places and in other sizes."""
    other = random_scene(rng, len(scene.things))
    things = tuple(replace(t, x=o.x, y=o.y, radius=o.radius, size=o.size) for t, o in zip(scene.things, other.things))
    return replace(scene, things=things)


def matched(subject, judge, method, scenes):
    from ..guidance.host.geometry import of_model
    from ..guidance.host.probe import probe
    from ..guidance.reading.correspondence import Summed
    found = {"error": [], "within": [], "error still": [], "within still": []}
    observer = method.observer(of_model(subject.model))
    for scene in scenes:
        other = moved(scene, random.Random(scene.caption + str(scene.things[0].x)))
        summed = Summed()
        probe(subject.model, {"positive": subject.encode([""])}, {"samples": coded(subject, [scene, other])}, lambda p: method.look(p.x0, p.observed, p.sigma, p.flow),
              observers=(observer,), take=summed.take)
        matches = method.matches(summed.found)
        height, width = matches.score.shape
        y, x = torch.meshgrid((torch.arange(height) + 0.5) * SIZE / height, (torch.arange(width) + 0.5) * SIZE / width, indexing="ij")
        away, still = [], []
        for a, b in zip(scene.things, other.things):
            inside = truth(a)[y.long(), x.long()]
            where = torch.stack(((x - a.x) * b.radius / a.radius + b.x, (y - a.y) * b.radius / a.radius + b.y), -1)[inside]
            away.append((matches.places[inside].cpu() * SIZE - where).norm(dim=-1))
            still.append((torch.stack((x, y), -1)[inside] - where).norm(dim=-1))
        away, still = torch.cat(away), torch.cat(still)
        for name, d in (("", away), (" still", still)):
            found["error" + name].append(float(d.mean()))
            found["within" + name].append(float((d <= SIZE / 10).float().mean()))
    return found


# Prompt Information

def _share(map_, mask):
    """Share of a map's positive part that lies in a mask [SIZE, SIZE]; 0 where it has none."""
    large = torch.nn.functional.interpolate(map_.clamp(min=0)[None, None], (SIZE, SIZE), mode="nearest")[0, 0]
    return float((large * mask).sum() / large.sum().clamp(min=1e-12))


def informed(subject, judge, method, scenes):
    from ..guidance.host.probe import probe
    found = {name: [] for name in ("unique", "other", "area", "information", "both area")}
    for scene, x in zip(scenes, coded(subject, scenes).split(1)):
        texts = {"base": "", "first": f"a {noun(scene.things[0])}", "second": f"a {noun(scene.things[1])}", "both": caption(scene)}

        def work(p):
            span = method.span(p.sigma, p.flow)
            return method.decomposition(p.x0, p.each, *span, p.flow), replace(method, form="orthogonal").maps(p.x0, p.each, *span, p.flow, ("base", "both"))[0]
        parts, whole = probe(subject.model, {k: subject.encode([t]) for k, t in texts.items()}, {"samples": x}, work)
        true = [truth(t).float() for t in scene.things]
        unique = (parts.unique_first[0].cpu(), parts.unique_second[0].cpu())
        found["unique"].append(sum(_share(u, t) for u, t in zip(unique, true)) / 2)
        found["other"].append(sum(_share(u, t) for u, t in zip(unique, true[::-1])) / 2)
        found["area"].append(sum(float(t.mean()) for t in true) / 2)
        found["information"].append(_share(whole[0].cpu(), sum(true)))
        found["both area"].append(float(sum(true).mean()))
    return found


# Capture Attention

def captured(subject, judge, method, scenes):
    import comfy.samplers

    from ..guidance.attention.capture import MapRecord
    from ..guidance.host.attach import attach
    from ..guidance.inspection.heat_maps import phrase_maps
    found = {"share": [], "area": [], "pointing": []}
    for i, scene in enumerate(scenes):
        record, (cond, words) = MapRecord(), words_of(subject, scene, method.title)
        noise = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(SCENE_SEED + round(1000 * scene.things[0].x)))
        with torch.inference_mode():
            guider = comfy.samplers.CFGGuider(attach(subject.model, replace(method, record=record)))
            guider.set_conds(cond, subject.encode([""]))
            guider.set_cfg(CFG)
            out = guider.sample(noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), subject.sigmas(STEPS), disable_pbar=True, seed=0)
        seen = {(t.colour, t.shape): t for t in reversed(judge.network.decode(subject.pictures(out.float().cpu()))[0].things)}
        maps = phrase_maps(record, words.tokens)[0, :, 0]
        values = {name: [] for name in found}
        for map_, thing in zip(maps, scene.things):
            there = seen.get((thing.colour, thing.shape))
            if there is None:      # the model did not paint it
                continue
            large = torch.nn.functional.interpolate((map_ - map_.min())[None, None], (SIZE, SIZE), mode="bilinear", align_corners=False)[0, 0]
            box = mask_of(Thing("red", "square", "small", there.x, there.y, there.radius / 0.88)) > 0.5
            values["share"].append(float((large * box).sum() / large.sum()))
            values["area"].append(float(box.float().mean()))
            values["pointing"].append(float(box.flatten()[large.argmax()]))
        for name, v in values.items():
            found[name].append(sum(v) / len(v) if v else float("nan"))
    return found


READINGS = (
    Reading(DiffusionClassifier(samples=12, stages="6:2"), classified, (
        Metric("colour", Claim("colour", "at least", 0.9), "colour guess"), Metric("shape", Claim("shape", "at least", 0.9), "shape guess"), Metric("size", None, "size guess")), things=1),
    Reading(CrossAttentionSegmentation(), segmented, (Metric("iou", Claim("iou", "higher"), "whole"), Metric("swapped", None, "whole"))),
    Reading(DenseCorrespondence(), matched, (Metric("error", Claim("error", "lower"), "error still"), Metric("within", Claim("within", "higher"), "within still"))),
    Reading(PromptInformation(samples=12, form="standard"), informed, (
        Metric("unique", Claim("unique", "higher"), "area"), Metric("other", None, "area"), Metric("information", Claim("information", "higher"), "both area"))),
    Reading(CaptureAttention(), captured, (Metric("share", Claim("share", "higher"), "area"), Metric("pointing", Claim("pointing", "higher"), "area"))),
)


def figures(metric, values):
    """One metric as plain data, in the form of effects.json; scenes without a value are left out."""
    mine, before = (torch.tensor(values[n], dtype=torch.float64) for n in (metric.name, metric.base))
    kept = mine.isfinite() & before.isfinite()
    mine, before = mine[kept], before[kept]
    groups = list(range(len(mine)))
    value, base, difference = stats.mean(mine, groups), stats.mean(before, groups), stats.difference(mine, before, groups)
    judged = verdict(metric.claim, value, base, difference)
    return store.figure(value) | {"claimed": str(metric.claim.direction + (f" {metric.claim.bound:g}" if metric.claim.bound else "")) if metric.claim else None,
                                  "reached": judged.reached, "verdict": judged.words, "base": store.figure(base), "difference": store.figure(difference), "scenes": len(mine)}


def measure(reading, subject, judge, count, kept, bar=None):
    """{name: values} of `count` scenes; finished chunks come from the Store `kept`."""
    scenes, found = scenes_of(count, reading.things), {}
    for i in range(0, count, CHUNK):
        part = scenes[i:i + CHUNK]
        key = ("readings 1", subject.generator, weights_mark(subject.generator), repr(reading.method), reading.source, [repr(s) for s in part])
        result = kept.get(*key)
        if result is None:
            with torch.inference_mode():
                result = kept.put({k: torch.tensor(v, dtype=torch.float64) for k, v in reading.run(subject, judge, reading.method, part).items()}, *key)
        for name, values in result.items():
            found.setdefault(name, []).extend(values.flatten().tolist())
        if bar is not None:
            bar.update(len(part))
    return found


def run(options, version):
    """Measures and writes readings.json after each reading, readings.md at the end."""
    wanted = [r for r in READINGS if not options.methods or any(w.lower() in r.method.node_id.lower() for w in options.methods)]
    if not wanted:
        raise SystemExit(f"error: nothing is read by {', '.join(options.methods)}. There are: {', '.join(r.method.node_id for r in READINGS)}.")
    judge, kept, path = Judge(), store.Store(store.cache_folder(), options.fresh), options.out / "readings.json"
    for generator in ("unet", "dit") if options.generator == "both" else (options.generator,):
        try:
            subject = Subject(generator)
        except RuntimeError as e:
            print(f"{generator}: left out. {e}", file=sys.stderr)
            continue
        for reading in wanted:
            with tqdm(total=options.scenes, desc=f"{generator}: {reading.method.title}"[:44].ljust(44), unit="scene", file=sys.stderr, mininterval=1.0) as bar:
                values = measure(reading, subject, judge, options.scenes, kept, bar)
            about = {"host": version, "scenes": options.scenes, "weights": weights_mark(generator)}
            store.write_json(path, store.merge(store.read_json(path), reading.method.node_id, generator, {m.name: figures(m, values) for m in reading.metrics}, about))
    write_page(options.out)


def write_page(out):
    """readings.md from readings.json."""
    data = store.read_json(out / "readings.json")
    classifier = READINGS[0].method
    lines = ["# Readings", ""]
    lines += dict.fromkeys(INTRO.format(host=a["host"], steps=STEPS, cfg=CFG, colours=len(COLOURS), shapes=len(SHAPES), sizes=len(SIZES),
                                        classifier=f"{classifier.samples} samples, stages {classifier.stages}") for a in data.get("about", {}).values())
    for node_id, generators in sorted(data.get("methods", {}).items()):
        rows = [(g, name, store.shown(**f["base"]), store.shown(f["value"], f["low"], f["high"]), store.shown(**f["difference"]), f["scenes"], f["claimed"] or "", f["verdict"])
                for g, metrics in generators.items() for name, f in metrics.items()]
        lines += [f"## {node_id.removeprefix('Lodestar')}", "", store.table(("model", "metric", "base", "value", "difference", "scenes", "claimed", ""), rows)]
    (out / "readings.md").write_text("\n".join(lines), encoding="utf-8")
