"""The example of each node on the bundled models: a function by node id, or `guided` for any node that takes a MODEL and gives one."""

from __future__ import annotations

import importlib
import os
import pkgutil

from ._graph import Graph

PROMPT, OTHER = "a small blue square above a yellow triangle", "a large red circle"
SIZE, SEED, STEPS, CFG = 128, 16, 20, 4.0


class Scene:
    """The nodes that nearly every example has."""

    def __init__(self, definitions, note, prompt=PROMPT, negative="", model="unet", size=SIZE, batch=1):
        self.graph = g = Graph(definitions, note)
        self.load = g.add("LodestarLoadDemoModel", model=model)
        self.model, self.clip, self.vae = self.load[0], self.load[1], self.load[2]
        self.positive = g.add("CLIPTextEncode", "Positive prompt", text=prompt, clip=self.clip)[0] if prompt is not None else None
        self.negative = g.add("CLIPTextEncode", "Negative prompt", text=negative, clip=self.clip)[0]
        self.latent = g.add("EmptyLatentImage", width=size, height=size, **({"batch_size": batch} if batch > 1 else {}))[0]

    def sample(self, model=None, positive=None, seed=SEED, cfg=CFG, title=None):
        return self.graph.add("KSampler", title, model=model or self.model, seed=seed, steps=STEPS, cfg=cfg, sampler_name="euler", scheduler="normal",
                              positive=positive or self.positive, negative=self.negative, latent_image=self.latent)[0]

    def decode(self, samples):
        return self.graph.add("VAEDecode", samples=samples, vae=self.vae)[0]

    def save(self, samples, name, title=None):
        return self.graph.add("SaveImage", title, images=self.decode(samples), filename_prefix=f"lodestar/{name}")

    def custom(self, sampler, sigmas, noise, model=None, positive=None, cfg=CFG):
        guider = self.graph.add("CFGGuider", model=model or self.model, positive=positive or self.positive, negative=self.negative, cfg=cfg)[0]
        return self.graph.add("SamplerCustomAdvanced", noise=noise, guider=guider, sampler=sampler, sigmas=sigmas, latent_image=self.latent)[0]


def _fill(scene, definition, extra):
    """Something for each required socket of a node beside its model; `extra` is the text of further prompts."""
    g, wires = scene.graph, {}
    for i in definition.inputs:
        if i.widget or i.optional or i.name == "model":
            continue
        if i.type == "CONDITIONING":
            wires[i.name] = g.add("CLIPTextEncode", f"Prompt for {i.name}", text=extra, clip=scene.clip)[0]
        elif i.type == "MODEL":
            wires[i.name] = g.add("UNetSelfAttentionMultiply", "A weaker model", model=scene.model, out=0.8)[0]
        elif i.type == "LODESTAR_LOSS":
            wires[i.name] = _loss(scene)
        else:
            raise ValueError(f"{definition.node_id}: no example for a {i.type} input ({i.name}); write one in scripts/_examples.py")
    return wires


def _loss(scene):
    other = scene.graph.add("CLIPTextEncode", "Prompt of the target", text=OTHER, clip=scene.clip)[0]
    target = scene.decode(scene.sample(positive=other, seed=SEED + 1, title="Makes the target"))
    return scene.graph.add("LodestarTargetImageLoss", model=scene.model, image=target, vae=scene.vae, factor=4)[0]


def guided(definitions, definition, name, cfg=CFG, prompt=PROMPT, extra="yellow", seed=SEED, size=SIZE, **values):
    """Load, guide, sample, save; with the same picture without the node beside it."""
    scene = Scene(definitions, f"{definition.title}: {definition.description} Above with the node, below without.", prompt, size=size)
    model = scene.graph.add(definition.node_id, model=scene.model, **_fill(scene, definition, extra), **values)[0]
    scene.save(scene.sample(model, seed=seed, cfg=cfg, title="With the node"), name, "With the node")
    scene.save(scene.sample(seed=seed, cfg=cfg, title="Without it"), f"{name}_without", "Without it")
    return scene.graph


def _guided(**values):
    return lambda definitions, definition, name: guided(definitions, definition, name, **values)


def _cfgpp(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: {definition.description} The sampler's own scale stands in for the guider's cfg.")
    g = scene.graph
    sigmas = g.add("BasicScheduler", model=scene.model, scheduler="normal", steps=STEPS)[0]
    scene.save(scene.custom(g.add(definition.node_id)[0], sigmas, g.add("RandomNoise", noise_seed=SEED)[0]), name)
    return g


def _inversion(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: a picture is made, encoded, inverted; from its noise come the picture again, and one with another prompt.")
    g = scene.graph
    picture = scene.decode(scene.sample(title="Makes a picture"))
    g.add("SaveImage", "The picture", images=picture, filename_prefix=f"lodestar/{name}_picture")
    encoded = g.add("VAEEncode", pixels=picture, vae=scene.vae)[0]
    found = g.add(definition.node_id, model=scene.model, positive=scene.positive, latent_image=encoded, steps=STEPS)
    euler = g.add("KSamplerSelect", sampler_name="euler")[0]
    scene.save(scene.custom(euler, found[2], found[1], cfg=1.0), name, "The picture again")
    other = g.add("CLIPTextEncode", "Another prompt", text=PROMPT.replace("blue", "red"), clip=scene.clip)[0]
    scene.save(scene.custom(euler, found[2], found[1], positive=other, cfg=CFG), f"{name}_edited", "Edited")
    return g


def _inspector(definitions, definition, name):
    scene = Scene(definitions, "Guidance Inspector: curves and previews of a guided run. Put it behind the guidance nodes, and its plot behind the sampler.")
    g = scene.graph
    guided_model = g.add("LodestarPerturbedAttentionGuidance", model=scene.model)[0]
    inspector = g.add("LodestarGuidanceInspector", model=guided_model)
    samples = scene.sample(inspector[0])
    scene.save(samples, name)
    plot = g.add("LodestarInspectorPlot", record=inspector[1], latent=samples, vae=scene.vae)[0]
    g.add("SaveImage", "What guidance did", images=plot, filename_prefix=f"lodestar/{name}_plot")
    return g


def _layers(definitions, definition, name):
    g = Graph(definitions, f"{definition.title}: {definition.description} Run it to see them.")
    g.add(definition.node_id, model=g.add("LodestarLoadDemoModel", model="unet")[0])
    return g


def _demo(definitions, definition, name):
    scene = Scene(definitions, "The bundled model, without any guidance node: type a caption such as \"a large red circle left of a small green square\".")
    scene.save(scene.sample(), name)
    return scene.graph


OWN = {
    "LodestarAdaptiveProjectedGuidance": _guided(cfg=8.0),
    "LodestarModelPairGuidance": _guided(cfg=2.0, scale=0.5),
    "LodestarNormalizedAttentionGuidance": _guided(cfg=1.0, prompt="a large triangle", extra="a red triangle", seed=8),
    "LodestarPerturbedAttentionGuidance": _guided(cfg=2.0, scale=2.0),
    "LodestarUniversalGuidance": _guided(prompt="a red circle", scale=0.3),
    "LodestarCFGPlusPlusSampler": _cfgpp,
    "LodestarDDIMInversion": _inversion,
    "LodestarGuidanceInspector": _inspector,
    "LodestarListLayers": _layers,
    "LodestarLoadDemoModel": _demo,
    "LodestarSmoothedEnergyGuidance": _guided(cfg=2.0, scale=0.5, layers="all"),
    "LodestarSkipLayerGuidance": _guided(cfg=2.0, scale=2.0, start_percent=0.0, end_percent=1.0),
    "LodestarSpatiotemporalSkipGuidance": _guided(cfg=2.0, scale=2.0, mode="attention"),
    "LodestarTokenPerturbationGuidance": _guided(cfg=2.0, scale=1.0),
    "LodestarUpsampleGuidance": _guided(size=2 * SIZE),
}


def all_graphs(definitions, slug):
    """{file stem: Graph}; nodes that are part of another one's method are in its example, or have one of their own. MORE of a module: {title: (node id, function)} of methods made of several nodes."""
    graphs, own, more = {}, dict(OWN), {}
    for info in pkgutil.iter_modules([os.path.dirname(__file__)]):
        if info.name.startswith("_examples_"):
            module = importlib.import_module(f".{info.name}", __package__)
            own, more = own | module.OWN, more | getattr(module, "MORE", {})
    for node_id, definition in definitions.items():
        if not definition.part_of or node_id in own:
            name = slug(definition.title)
            graphs[name] = own.get(node_id, guided)(definitions, definition, name)
    for title, (node_id, make) in more.items():
        graphs[slug(title)] = make(definitions, definitions[node_id], slug(title))
    return graphs
