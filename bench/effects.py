"""`bench effects`: what each method does to the bundled models' pictures, and `bench effects models`: how good those models are."""
from __future__ import annotations

import sys
from dataclasses import replace

import torch
from tqdm.auto import tqdm

from . import restored, sheet, store
from .figures import Measured, compare
from .plan import CAPTION_METRICS, Setup, table, verdict
from .subject import SCHEDULER, SHAPE, Judge, Subject, cases, groups_of, text_of, weights_mark

SCALES = (1.0, 2.0, 3.0, 4.0, 5.0, 7.0)
COLUMNS = 8
WANTED = {"w1": 0.40, "best": 0.85}
MEASURED = """Measured on the bundled models by `./scripts/bench effects` (host: ComfyUI {host}): {what}, {steps} Euler steps, schedule `{scheduler}`."""
INTRO = """Base and method share prompts, seeds and noise. In brackets 95% intervals; a claim counts as reached where the interval of the paired difference lies on the
claimed side (for "not lower" and "not higher": within the margin), as "not resolved" where this many pictures can't tell.

- accuracy: both objects' colour and shape and their relation right, by the measuring network. binding_errors: all colours and shapes there, wrongly paired.
- frechet: Fréchet distance of the measuring network's features to {held_out} held-out renders (through the autoencoder). It is biased upwards for few pictures: compare within a row only.
- clipped: share of values beyond [0, 1]. std_ratio: contrast relative to the renders. diversity: distance between features of one prompt's pictures.
- evaluations: rows of network batches per picture, counted. ssim: to the base's pictures. ssim_before: to the picture of the prompt before its edit. target_distance, round_trip: root mean square distance of the latents.
- rarity: the minority score, 1 - SSIM between a picture and what the model makes of its noisy version.
- iou, in_box: overlap of the objects with the boxes that they were to have, and the share whose centre is inside; the prompts name no place. objects: both objects there.
- background, palette: share of pictures with the background of the reference (of the appearance), and how much of the colour histogram they have in common with it; no prompt names a
  background (of a batch: the first one's alone). structure: overlap with the objects of the structure picture, whatever their colours (shape_overlap: intersection over union of their pixels with what differs from the border's colour). background_together, palette_together: the same between the pictures of a batch.
- hole_error, recovered: root mean square error of the pixels inside the hole, and the share of pictures that have the hidden object's colour and shape again.
- warmth: how warm the objects' colours are, 10 for red and orange to 0 for blue and cyan, by the measuring network.
- view_ssim, view_error: structural similarity and root mean square distance to the reference's picture as the moved camera sees it (the true warp).
- depth_overlap: intersection over union of the things in the picture and those in its depth picture. depth_error: root mean square error of the depth picture to the scene's true depth.
- place_error, kept: distance in pixels (of 64) of what has the first object's colour from where it is to be (32 where nothing has it), and the share of pictures that show the object itself within 8 pixels of that
  place. known_error: root mean square distance of the latents in the left half, which was known. apart: the same to the next picture of those that are sampled together.
- psnr, features: of a blurred and noisy picture that was restored, to the true one: peak signal-to-noise ratio in dB, and distance of the measuring network's maps as a share of the true picture's. whole_psnr, whole_features: the same of the pictures as they are saved, at 128 pixels, to the scene itself.
- damage_psnr, damage_features: the same of a picture of twice the trained size, over its damaged parts alone (all else is the true picture); damage_seam: root mean square error of the steps across the borders of the damage.
- wavelet, edges, spectrum, colours, coloured_shape, label_map, variation, asymmetry, beyond_range, structure_loss, file_size: the loss itself, of the finished picture (file_size in bits per pixel).
- mean_error, deviation_error: of a clean picture that was degraded, distance of the mean (standard deviation) of its difference from the clean one to what was asked for; mean_follows, deviation_follows: correlation of both over the pictures; scene_ssim: structural similarity to the clean picture.
- violations: share of the left half's cells whose rough colour has more red than is allowed.
- forbidden: share of pictures with the colour that the negative prompt names; the positive prompt names none.
"""


class Bench:
    """One run of the effects bench."""

    def __init__(self, options, host):
        self.options, self.host = options, host
        self.store = store.Store(store.cache_folder(), options.fresh)
        self.judge, self.subjects, self.measured = Judge(), {}, {}

    def subject(self, generator):
        if generator not in self.subjects:
            self.subjects[generator] = Subject(generator)
        return self.subjects[generator]

    def _key(self, generator, setup, found):
        return ("effects 1", generator, weights_mark(generator), repr(replace(setup, label="")), setup.sources, self.options.steps, SCHEDULER,
                [(c.prompt, c.seed, c.extra, c.forbidden, *((c.layout,) if c.layout >= 0 else ()), *((c.source,) if c.source else ())) for c in found],
                len({c.prompt for c in found}), *(("size", setup.size) if setup.size else ()), *(("adapter", weights_mark("subject_adapter")) if "$subjects" in repr(setup) else ()),
                *(("pair", weights_mark("unicon_depth")) if "$depth_pair" in repr(setup) else ()), *(("other", *map(weights_mark, ("unet", "dit"))) if "$other" in repr(setup) else ()), *map(weights_mark, restored.files(setup)))

    def sample(self, generator, setup):
        """The setup's Measured; batches that are in the cache are not sampled again."""
        name = (generator, setup)
        if name in self.measured:
            return self.measured[name]
        o = self.options
        found = cases(o.prompts, o.seeds, setup.prompts, setup.task)
        batches = groups_of(found, o.batch)
        subject = self.subject(generator)
        latents, evaluations = {}, {}
        bar = tqdm(total=len(found), desc=f"{generator}: {setup.label}"[:44].ljust(44), unit="pic", file=sys.stderr, leave=True, mininterval=1.0)
        try:
            for batch in batches:
                key = self._key(generator, setup, batch)
                result = self.store.get(*key)
                if result is None:
                    out, count, seconds = subject.run(setup, batch, o.steps)
                    if not bool(torch.isfinite(out).all()):
                        raise ValueError(f"{setup.label} on {generator}: the pictures are not finite")
                    result = self.store.put({"latents": out, "evaluations": count, "seconds": seconds}, *key)
                for i, c in enumerate(batch):
                    latents[c], evaluations[c] = result["latents"][i], result["evaluations"]
                bar.update(len(batch))
        finally:
            bar.close()
        self.measured[name] = Measured(subject, self.judge, setup, found, torch.stack([latents[c] for c in found]), [evaluations[c] for c in found])
        return self.measured[name]

    def about(self, generator):
        o = self.options
        return {"host": self.host, "prompts": o.prompts, "seeds": o.seeds, "steps": o.steps, "scheduler": SCHEDULER, "weights": weights_mark(generator)}

    def generators(self, known=("unet", "dit")):
        """Those of the known ones that are asked for and that this host can run."""
        for generator in known if self.options.generator == "both" else (self.options.generator,):
            try:
                self.subject(generator)
            except RuntimeError as e:
                print(f"{generator}: left out. {e}", file=sys.stderr)
                continue
            yield generator

    # methods

    def method(self, entry, generator):
        """{metric: figures} of one method on one generator; its sheet's rows."""
        metrics, rows, captions = {}, [], None
        for comparison in entry.comparisons:
            if generator not in comparison.generators:
                continue
            base, setup = self.sample(generator, comparison.base), self.sample(generator, comparison.setup)
            claims = {c.metric: c for c in comparison.claims}
            names = [*comparison.metrics, *(m for m in claims if m not in comparison.metrics)]
            for metric in names:
                value, before, difference = compare(metric, setup, base)
                claim = claims.get(metric)
                judged = verdict(claim, value, before, difference)
                metrics[comparison.metric_name(metric)] = store.figure(value) | {
                    "claimed": str(claim) if claim else None, "reached": judged.reached, "verdict": judged.words,
                    "base": store.figure(before), "difference": store.figure(difference), "setup": comparison.setup.label, "base_setup": comparison.base.label,
                    "pictures": len(setup.main)}
            captions = captions or [text_of(c, comparison.setup.prompts) or "(empty)" for c in setup.cases[:COLUMNS]]
            for part in (base, setup):
                label = f"{part.setup.label}" + (f" ({comparison.name})" if comparison.name else "")
                if label not in [r[0] for r in rows]:
                    rows.append((label, part.pictures[:COLUMNS]))
        return metrics, rows, captions

    def methods(self, wanted):
        """Measures the methods and writes effects.json after each, the sheets, and effects.md at the end."""
        entries = select(table(), wanted)
        path = self.options.out / "effects.json"
        generators = list(self.generators(tuple(g for g in ("unet", "dit", "video") if any(g in c.generators for e in entries.values() for c in e.comparisons))))
        for node_id, entry in entries.items():
            sheets, captions = [], None
            for generator in generators:
                metrics, rows, found = self.method(entry, generator)
                if not metrics:
                    continue
                captions = captions or found
                store.write_json(path, store.merge(store.read_json(path), node_id, generator, metrics, self.about(generator)))
                sheets += [(f"{generator}: {label}", pictures) for label, pictures in rows]
            if sheets:
                sheet.save(sheet.sheet(sheets, captions), self.options.out / f"{node_id}.png")
        write_effects_page(self.options.out)

    # models

    def models(self):
        """Accuracy over guidance scales, section by generator: models.json, models.md, models.png."""
        path = self.options.out / "models.json"
        sheets, captions = [], None
        for generator in self.generators():
            scales = {}
            for w in SCALES:
                m = self.sample(generator, Setup(f"CFG, w = {w:g}" if w != 1 else "no guidance, w = 1", w))
                scales[f"{w:g}"] = {name: store.figure(m.figure(name)) for name in CAPTION_METRICS}
                captions = [text_of(c, "captions") for c in m.cases[:COLUMNS]]
                sheets.append((f"{generator}: w = {w:g}", m.pictures[:COLUMNS]))
            best = max(scales, key=lambda w: scales[w]["accuracy"]["value"])
            parameters = sum(p.numel() for p in self.subject(generator).model.model.diffusion_model.parameters())
            result = {"about": self.about(generator), "parameters": parameters, "scales": scales, "best_w": float(best), "accuracy_w1": scales["1"]["accuracy"],
                      "accuracy_best": scales[best]["accuracy"], "wanted": WANTED}
            store.write_json(path, {**store.read_json(path), generator: result})
        sheet.save(sheet.sheet(sheets, captions), self.options.out / "models.png")
        write_models_page(self.options.out)


def select(entries, wanted):
    """The entries asked for, by node id or a part of it. Raises SystemExit that lists them for an unknown name."""
    if not wanted:
        return entries
    found = {}
    for w in wanted:
        hit = {k: v for k, v in entries.items() if w.lower() in k.lower()}
        if not hit:
            raise SystemExit(f"error: no method is called {w!r}. There are: {', '.join(sorted(entries))}; or `models`.")
        found |= hit
    return found


def write_effects_page(out):
    """effects.md from effects.json."""
    data = store.read_json(out / "effects.json")
    alike = {}
    for generator, about in data.get("about", {}).items():
        alike.setdefault(tuple(about[k] for k in ("host", "steps", "scheduler")), []).append(f"{generator} {about['prompts']} two-object prompts x {about['seeds']} seeds")
    lines = ["# Effects", "", *(MEASURED.format(host=host, what=", ".join(what), steps=steps, scheduler=scheduler) for (host, steps, scheduler), what in alike.items()),
             INTRO.format(held_out=1024), *summary(data.get("methods", {}))]
    for node_id, generators in sorted(data.get("methods", {}).items()):
        lines += [f"## {node_id.removeprefix('Lodestar')}", "", f"![]({node_id}.png)", ""]
        rows = []
        for generator, metrics in generators.items():
            for metric, f in metrics.items():
                about, few = data["about"].get(generator, {}), f.get("pictures")
                fewer = f"; {few} pictures" if few and about and few < about["prompts"] * about["seeds"] else ""
                rows.append((generator, metric, f["base_setup"], store.shown(**f["base"]), f["setup"] + fewer, store.shown(f["value"], f["low"], f["high"]),
                             store.shown(**f["difference"]), f["claimed"] or "", f["verdict"]))
        lines += [store.table(("model", "metric", "base", "value", "method", "value", "difference", "the paper claims", ""), rows)]
    (out / "effects.md").write_text("\n".join(lines), encoding="utf-8")


def summary(methods):
    """Lines: what each method is to do, by what came of it."""
    outcomes = {f["verdict"] for generators in methods.values() for metrics in generators.values() for f in metrics.values() if f["claimed"]}
    rows, words = [], [word for word in ("reached", "not resolved", "not reached", "opposite") if word in outcomes]
    for node_id, generators in sorted(methods.items()):
        claims = {word: [f"{generator}: {', '.join(names)}" for generator, metrics in generators.items()
                         if (names := [metric for metric, f in metrics.items() if f["claimed"] and f["verdict"] == word])] for word in words}
        if any(claims.values()):
            name = node_id.removeprefix("Lodestar")
            rows.append((f"[{name}](#{name.lower()})", *("; ".join(claims[word]) for word in words)))
    return ["## At a glance", "", "What each method is to change (its paper's claim, or what its node is for), and whether these pictures show it.", "", store.table(("method", *words), rows)]


def write_models_page(out):
    """models.md from models.json."""
    data = store.read_json(out / "models.json")
    lines = ["# The bundled models", "", "Written by `./scripts/bench effects models`. Accuracy: colour, shape and relation of two objects right, by the measuring network, with 95%", "intervals.", "",
             "![](models.png)", ""]
    for generator, r in sorted(data.items()):
        a = r["about"]
        lines += [f"## {generator}", "", f"{r['parameters'] / 1e6:.1f} M parameters; {a['prompts']} prompts x {a['seeds']} seeds, {a['steps']} Euler steps, schedule `{a['scheduler']}`, host ComfyUI {a['host']}.", "",
                  f"w = 1: {r['accuracy_w1']['value']:.0%} (wanted: at least {WANTED['w1']:.0%}). Best, w = {r['best_w']:g}: {r['accuracy_best']['value']:.0%} "
                  f"(wanted: at least {WANTED['best']:.0%}).", ""]
        metrics = [m for m in CAPTION_METRICS]
        lines += [store.table(("w", *metrics), [(w, *(store.shown(**f[m]) for m in metrics)) for w, f in r["scales"].items()])]
    (out / "models.md").write_text("\n".join(lines), encoding="utf-8")


__all__ = ["Bench", "SHAPE", "select", "write_effects_page", "write_models_page"]
