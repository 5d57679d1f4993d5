"""What is measured on: a bundled generator with its prompts, and how a setup is sampled with it."""
from __future__ import annotations

import hashlib
import random
import re
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..demo import latents as code_of
from ..demo import measure
from ..demo.scenes import COLOURS, RELATIONS, SHAPES, random_scene, render, two_object_prompts
from ..demo.weights_file import FOLDER, read
from . import damage, distilled, layout, motion, pairs, picture_losses, references, restored, searched, synthesis, videos

SCHEDULER = "normal"
WEAKENING = 0.1        # noise of the weak copy, as a share of each tensor's standard deviation
HELD_OUT = 1024        # renders that Frechet distances are taken to
PROMPT_SEED, HELD_OUT_SEED = 20_001, 30_001     # neither is a seed of the training
SHAPE = (16, 16, 16)


@dataclass(frozen=True)
class Case:
    """One picture to make. `extra`: only for diversity. `forbidden`: the colour that is not wanted, where prompts name none. `layout`: number of the wanted
    boxes (bench.layout), where prompts name no place. `source`: the caption before an edit, whose picture is sampled beside it. `reference`, `appearance`: scenes
    that the picture looks at, `group`: the number of those that are sampled together (bench.references), `frame`: the number within its video (bench.videos)."""

    scene: object
    prompt: int
    seed: int
    extra: bool = False
    forbidden: str = ""
    layout: int = -1
    source: str = ""
    reference: object = None
    appearance: object = None
    group: int = -1
    frame: int = 0

    def noise(self, size=None):
        shape = SHAPE if size is None else (SHAPE[0], size, size)
        return torch.randn(1, *shape, generator=torch.Generator().manual_seed(self.seed * 1_000_003 + self.prompt + 104_729 * self.frame))


def cases(prompts, seeds, kind="captions", task="sample"):
    """The pictures of one setup. With one seed a quarter of the prompts comes a second time where pictures are sampled from captions, for diversity."""
    scenes = two_object_prompts(prompts, PROMPT_SEED)
    found = [Case(s, i, k) for k in range(seeds) for i, s in enumerate(scenes)]
    if seeds == 1 and kind == "captions" and task == "sample":
        found += [Case(s, i, 1, True) for i, s in enumerate(scenes[:max(2, prompts // 4)])]
    if kind == "colourless":
        names = tuple(COLOURS)
        found = [replace(c, forbidden=names[c.prompt % len(names)]) for c in found]
    if kind in ("placed", "regional", "pictured"):
        found = [replace(c, layout=c.prompt % len(layout.LAYOUTS), group=c.prompt if kind == "pictured" else -1) for c in found]
    if kind == "edit":
        found = [replace(c, scene=s, source=before) for c in found for s, before in (layout.edited(c.scene),)]
    if kind == "related":
        found = [distilled.by_relation(c) for c in found]
    if kind == "graph":
        found = [replace(c, layout=RELATIONS.index(c.scene.relation)) for c in found]
    if kind == videos.KIND:
        return videos.cases(found)
    return references.cases(found, kind) if kind in references.KINDS else found


def text_of(case, kind):
    """The prompt of a case."""
    if kind in ("empty", "regional", "hole"):
        return ""
    if kind in ("placed", "graph"):
        return layout.caption(case.scene)
    if kind == "pictured":
        return layout.shapes(case.scene)
    if kind == "related":
        return distilled.related(case.scene)
    if kind == "colourless":
        words = re.sub(rf"\b({'|'.join(COLOURS)}) ", "", case.scene.caption)
        return re.sub(r"\ban (?=[^aeiou])", "a ", words)
    return case.scene.caption


def groups_of(found, size):
    """Batches of at most `size` cases that share their forbidden colour, their layout and their group."""
    by = {}
    for c in found:
        by.setdefault((c.extra, c.forbidden, c.layout, c.group, c.seed if c.group >= 0 else 0), []).append(c)
    return [b[i:i + size] for b in by.values() for i in range(0, len(b), size)]


def weights_mark(generator):
    """A short text that changes when the weights that a generator's pictures come from do."""
    digest = hashlib.sha256()
    for path in sorted(Path(FOLDER) / f"{name}.safetensors" for name in {"video": ("video", "unet")}.get(generator, (generator,)) + ("text", "latents")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]


class Subject:
    """A bundled generator, loaded once."""

    def __init__(self, generator):
        from ..demo.loader import load_demo_model
        self.generator = generator
        self.model, self.clip, self.vae = load_demo_model(generator)
        self.code = read("latents")
        self._weak, self._other, self._encoded, self.weak_network = None, None, {}, None

    @property
    def weak(self):
        """The generator with seeded noise on every weight."""
        if self._weak is None:
            from ..demo.loader import load_demo_patcher
            self._weak = load_demo_patcher(self.generator, disable_dynamic=True)
            generator = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for p in self._weak.model.diffusion_model.parameters():
                    if p.ndim > 1:
                        p.add_((torch.randn(p.shape, generator=generator) * WEAKENING * p.float().std()).to(p))
        return self._weak

    @property
    def other(self):
        """The other of the two generators of pictures, with the same latents and text encoder."""
        if self._other is None:
            from ..demo.loader import load_demo_patcher
            self._other = load_demo_patcher("dit" if self.generator == "unet" else "unet")
        return self._other

    def encode(self, texts):
        """A conditioning whose rows are the texts."""
        for t in texts:
            if t not in self._encoded:
                self._encoded[t] = self.clip.encode_from_tokens(self.clip.tokenize(t), return_pooled=True)
        found = [self._encoded[t] for t in texts]
        return [[torch.cat([f[0] for f in found]), {"pooled_output": torch.cat([f[1] for f in found])}]]

    def rendered(self, scenes):
        """Latents [n, 16, 16, 16] of scenes."""
        return code_of.encode(torch.stack([render(s) for s in scenes]), self.code)

    def target(self, batch):
        """Latents [n, 16, 16, 16] of the pictures that the captions of a batch describe."""
        return self.rendered([c.scene for c in batch])

    def value(self, text, batch):
        """What a "$name" in a Use stands for."""
        if text == "$weak":
            return self.weak
        if text == "$other":
            return self.other
        if text == "$target":
            from ..guidance.loss.target import TargetImage
            return TargetImage(target=self.model.get_model_object("latent_format").process_in(self.target(batch)), reduction="mean")
        if text == "$forbidden":
            return self.encode([" ".join(f"a {batch[0].forbidden or 'red'} {shape}" for shape in SHAPES)])
        if text in ("$regions", "$words"):
            return layout.regions_of(self, batch, prompts=text == "$regions")
        if text in ("$first", "$second"):
            return layout.thing_of(self, batch, text == "$second")
        if text in ("$first_place", "$second_place"):
            return layout.place_of(batch, text == "$second_place")
        if text == "$subjects":
            return layout.subjects_of(self, batch)
        if text == "$named":
            return layout.named_of(self, batch)
        if text == "$relation":
            return distilled.relation_words(self, batch)
        if text == "$places":
            return layout.places_of(self, batch)
        from . import heads
        if text in heads.NAMES:
            return heads.value(text, self, batch)
        if text == "$pair":
            from ..guidance.attention.prompt_to_prompt import Pair
            size = self.encode([""])[0][0].shape[1]
            return Pair(torch.eye(size), torch.ones(size), torch.ones(size))      # the edits change words in their places
        if text in ("$reference", "$appearance"):
            return {"samples": self.rendered([references.reference_of(c, text == "$appearance") for c in batch])}
        if text in ("$reference_words", "$appearance_words"):
            return self.encode([references.reference_of(c, text == "$appearance_words").caption for c in batch])
        if text == "$camera":
            return references.camera()
        if text in restored.VALUES:
            return restored.value(text, self, batch)
        if text in searched.VALUES:
            return searched.VALUES[text](self, batch)
        if text in videos.VALUES:
            return videos.moving(self, batch)
        if text in motion.VALUES:
            return motion.value(text, self, batch)
        if text in picture_losses.VALUES:
            return picture_losses.value(text, self, batch)
        if text == "$caption":
            return self.encode([c.scene.caption for c in batch])
        if text == "$empty":
            return self.encode([""])
        if text == "$structured":
            return layout.structured_of(self, [text_of(c, "captions") for c in batch])
        if text == "$graph":
            return layout.graph_of(self, batch)
        if text == "$outlines":
            from ..demo.condition import outlines
            return {"samples": code_of.encode(torch.stack([outlines(c.scene) for c in batch]), self.code)}
        if text == "$vae":
            return self.vae
        if text == "$letters":
            from ..demo.reader import letters
            return "\n".join(letters(c.scene) for c in batch)
        if text == "$reader":
            from ..demo.reader import ShapeScore
            return ShapeScore()
        if text == "$outlines_lora":
            from ..guidance.attention.condition_lora import parse
            return parse(read("condition_outlines"), "bench", "lora")
        if text == "$depth_pair":
            from ..demo.unicon import NAME
            from ..guidance.attention.joint_lora import parse
            return parse(read(NAME), "bench", "weights")
        if text == "$record":
            from ..guidance.inspection.inspector import Record
            return Record()
        if text == "$decoder":
            from ..guidance.host.decode import Decoder
            return Decoder(self.vae, self.model.get_model_object("latent_format"))
        from . import given
        if text in given.VALUES:
            return given.VALUES[text](self, batch)
        raise ValueError(f"unknown value {text!r} in the table of methods")

    def build(self, use, batch):
        from .plan import Use

        def made(v):
            if isinstance(v, Use):
                loss = self.build(v, batch)
                return loss.check() if hasattr(loss, "check") else loss
            return self.value(v, batch) if isinstance(v, str) and v.startswith("$") else v
        return use.cls(**{k: made(v) for k, v in use.values})

    def guided(self, setup, batch):
        """The MODEL with the setup's methods."""
        from ..guidance.host.attach import attach
        model = self.model
        for u in setup.methods:
            model = attach(model, self.build(u, batch))
        return model

    def led(self, setup, batch):
        """(MODEL with the setup's methods, sampler); a corrector has a part in either."""
        model = self.guided(setup, batch)
        if getattr(getattr(setup.sampler, "cls", None), "node_id", None) != "LodestarFeynmanKacCorrector":
            return model, self.sampler(setup, batch)
        from ..guidance.host import sampler_particles
        from ..guidance.host.attach import attach
        from ..guidance.particles.swarm import Record
        method = replace(self.build(setup.sampler, batch), store={})
        return attach(model, method.ingredients), sampler_particles.sampler(method.recording(Record()))

    def sampler(self, setup, batch):
        import comfy.samplers
        if setup.sampler is None or isinstance(setup.sampler, str):
            return comfy.samplers.sampler_object(setup.sampler or "euler")
        from ..guidance.host import sampler_cfgpp, sampler_edict, sampler_inverse, sampler_start
        from ..guidance.inverse.solver import Solver
        method = self.build(setup.sampler, batch)
        if method.family == "particles":
            from ..guidance.host import sampler_particles
            from ..guidance.particles.swarm import Record
            return sampler_particles.sampler(method.recording(Record()))
        if method.node_id == "LodestarRestorationStart":
            return sampler_start.sampler(method)
        return (sampler_inverse if isinstance(method, Solver) else sampler_edict if "edict" in setup.sampler.path else sampler_cfgpp).sampler(method)

    def sigmas(self, steps):
        import comfy.samplers
        return comfy.samplers.calculate_sigmas(self.model.get_model_object("model_sampling"), SCHEDULER, steps)

    @contextmanager
    def counting(self):
        """[rows]: how many rows of network batches were evaluated inside, in this generator, its weak copy and the other generator."""
        rows = [0]

        def count(module, args, kwargs=None):
            rows[0] += (args[0] if args else kwargs["x"]).shape[0]
        networks = [m.model.diffusion_model for m in (self.model, self._weak, self._other) if m is not None]
        handles = [n.register_forward_pre_hook(count, with_kwargs=True) for n in networks]
        try:
            yield rows
        finally:
            for h in handles:
                h.remove()

    def run(self, setup, batch, steps, callback=None):
        """(latents [n, 16, 16, 16], network evaluations per picture, seconds) of one batch."""
        import comfy.samplers
        steps = setup.steps or steps
        positive = self.encode([t for c in batch for t in ([c.source] if c.source else []) + [text_of(c, setup.prompts)]])
        negative = self.encode([""])
        from . import heads
        for name in {v for u in setup.methods for _, v in u.values if isinstance(v, str)} & {"$weak", "$other", *heads.TRAINED, *motion.SAMPLED}:
            self.value(name, batch)      # before anything is counted
        with torch.inference_mode(), self.counting() as rows:
            begin = time.perf_counter()
            if setup.task == "inversion":
                out = self._round_trip(setup, batch, positive, negative, steps)
            elif setup.task in searched.TASKS:
                out = searched.sampled(self, setup, batch, positive, negative, steps)
            elif setup.task in pairs.TASKS:
                out = pairs.sampled(self, setup, batch, [text_of(c, setup.prompts) for c in batch], steps)
            elif setup.task in damage.TASKS:
                out = damage.sampled(self, setup, batch, [text_of(c, setup.prompts) for c in batch], steps)
            elif setup.task in synthesis.TASKS:
                out = synthesis.sampled(self, setup, batch, [text_of(c, setup.prompts) for c in batch], steps)
            elif setup.task in restored.TASKS:
                out = restored.sampled(self, setup, batch, [text_of(c, setup.prompts) for c in batch], steps)
            elif setup.task in ("distil", "pictures", "composite"):
                out = getattr(distilled, setup.task)(self, setup, batch, positive, negative, steps)
            elif setup.task == "beside":
                out = self._beside(setup, batch, positive, negative, steps)
            else:
                noise = torch.cat([c.noise(setup.size) for c in batch for _ in range(2 if c.source else 1)])
                model, sampler = self.led(setup, batch)
                guider = comfy.samplers.CFGGuider(model)
                guider.set_conds(positive, negative)
                guider.set_cfg(setup.cfg)
                latent, hole = torch.zeros_like(noise), None
                if setup.task == "inpaint":
                    latent, hole = self.target(batch), references.holes(batch, SHAPE[-1])
                out = guider.sample(noise, latent, sampler, self.sigmas(steps), denoise_mask=hole, callback=callback, disable_pbar=True, seed=batch[0].seed)
            seconds = time.perf_counter() - begin
        if batch[0].source:      # the edited pictures, and behind their channels those that they were made from
            out = torch.cat((out[1::2], out[0::2]), 1)
        return out.float().cpu(), rows[0] / len(batch), seconds

    def _beside(self, setup, batch, positive, negative, steps):
        """Latents of the pictures that were painted beside their references on one canvas (Side-by-Side Canvas)."""
        import comfy.samplers

        from ..guidance.attention.side_by_side import target_part
        known = self.rendered([references.reference_of(c, True) for c in batch])
        target = torch.cat([c.noise() for c in batch])
        canvas, noise = torch.cat((known, torch.zeros_like(known)), -1), torch.cat((torch.cat([replace(c, seed=c.seed + 500).noise() for c in batch]), target), -1)
        painted = torch.cat((torch.zeros_like(known[:, :1]), torch.ones_like(known[:, :1])), -1)
        guider = comfy.samplers.CFGGuider(self.guided(setup, batch))
        guider.set_conds(positive, negative)
        guider.set_cfg(setup.cfg)
        out = guider.sample(noise, canvas, self.sampler(setup, batch), self.sigmas(steps), denoise_mask=painted, disable_pbar=True, seed=batch[0].seed)
        rows, columns = target_part("left", *out.shape[-2:])
        return out[..., rows, columns]

    def _round_trip(self, setup, batch, positive, negative, steps):
        """The pictures' latents after inversion and replay."""
        if "EDICT" in setup.methods[0].path:
            return searched.returned(self, setup, batch, positive, negative, steps)
        import comfy.samplers

        from ..guidance.host.inversion import invert
        method = replace(self.build(setup.methods[0], batch), steps=steps, scheduler=SCHEDULER, cfg=setup.cfg)
        with searched.quiet():
            _, noise, sigmas = invert(method, self.model, positive, None if setup.cfg == 1.0 else negative, {"samples": self.target(batch)})
        empty = torch.zeros(len(batch), *SHAPE)
        guider = comfy.samplers.CFGGuider(self.model)
        guider.set_conds(positive, negative)
        guider.set_cfg(setup.cfg)
        return guider.sample(noise.generate_noise({"samples": empty}), empty, comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True, seed=0)

    def pictures(self, latents):
        """Unclamped pictures [n, 3, 64, 64] by the linear autoencoder."""
        return code_of.decode(latents, self.code)


class Judge:
    """The measuring network and the held-out renders."""

    def __init__(self):
        self.network, self.code = measure.load(), read("latents")
        self._sets = {}

    def held_out(self, kind):
        """(Reference, mean contrast) of renders that went through the autoencoder: of two-object scenes, or of all scenes for the empty prompt."""
        from .stats import Reference, contrast
        kind = "empty" if kind == "empty" else "captions"
        if kind not in self._sets:
            rng = random.Random(HELD_OUT_SEED)
            scenes = [random_scene(rng) for _ in range(HELD_OUT)] if kind == "empty" else two_object_prompts(HELD_OUT, HELD_OUT_SEED)
            pictures = code_of.decode(code_of.encode(torch.stack([render(s) for s in scenes]), self.code), self.code)
            self._sets[kind] = Reference(self.network.features(pictures)), float(contrast(pictures).mean())
        return self._sets[kind]
