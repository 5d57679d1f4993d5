"""Examples of the losses, by Universal Guidance, and of the samplers that are led by a loss, on the bundled models."""

from __future__ import annotations

from ._examples import CFG, OTHER, SEED, SIZE, STEPS, Scene
from ._examples_weights import _box, _outline

RED = {"colour": "#e61f24", "others": "#808080; #f5f5f5; #0d0d0d; #1f40d9"}


def _target(scene):
    """A picture of another prompt."""
    other = scene.graph.add("CLIPTextEncode", "Prompt of the target", text=OTHER, clip=scene.clip)[0]
    return scene.decode(scene.sample(positive=other, seed=SEED + 1, title="Makes the target"))


def _given(scene, definition, values):
    """The wires of a loss node: the VAE where pictures are decoded, a target, a sketch or a region where it has one."""
    g, names, wires = scene.graph, {i.name for i in definition.inputs}, {}
    if values.get("space", "rgb") != "small":
        wires["vae"] = scene.vae
    if "region" in names:
        black = g.add("SolidMask", "Where it is not", value=0.0, width=SIZE, height=SIZE)[0]
        wires["region"] = _box(g, black, SIZE // 2 + 8, SIZE // 2 - 24, 48, 48, "Where it is to be")
    if values.get("sketch"):
        black = g.add("SolidMask", "An empty sheet", value=0.0, width=SIZE, height=SIZE)[0]
        wires["image"] = g.add("MaskToImage", mask=_outline(g, black, 40, 40, 48))[0]
    elif "image" in names:
        wires["image"] = _target(scene)
        g.add("SaveImage", "The target", images=wires["image"], filename_prefix="lodestar/loss_target")
    return wires


def _loss(scale=0.5, prompt="a red circle and a blue square", cfg=CFG, seed=SEED, **values):
    def make(definitions, definition, name):
        scene = Scene(definitions, f"{definition.title}: {definition.description} Above with the loss, below without.", prompt)
        loss = scene.graph.add(definition.node_id, model=scene.model, **_given(scene, definition, values), **values)[0]
        model = scene.graph.add("LodestarUniversalGuidance", model=scene.model, loss=loss, scale=scale)[0]
        scene.save(scene.sample(model, seed=seed, cfg=cfg, title="With the loss"), name, "With the loss")
        scene.save(scene.sample(seed=seed, cfg=cfg, title="Without it"), f"{name}_without", "Without it")
        return scene.graph
    return make


def _combined(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: colours of another picture, and the same left and right. Above with both losses, below without.", "a circle and a square")
    g = scene.graph
    colours = g.add("LodestarColourLoss", model=scene.model, image=_target(scene), space="small")[0]
    mirror = g.add("LodestarSymmetryLoss", model=scene.model, space="small")[0]
    loss = g.add(definition.node_id, a=colours, b=mirror, weight_b=3.0)[0]
    model = g.add("LodestarUniversalGuidance", model=scene.model, loss=loss, scale=0.5)[0]
    scene.save(scene.sample(model, title="With both"), name, "With both")
    scene.save(scene.sample(title="Without"), f"{name}_without", "Without")
    return g


def _sampler(loss="LodestarColouredShapeLoss", given=None, **values):
    def make(definitions, definition, name):
        scene = Scene(definitions, f"{definition.title}: {definition.description} Here something red is led to a place. Above with the loss, below plain.", "a red circle and a blue square")
        g, chosen = scene.graph, {"space": "small", **RED, **(given or {})}
        made = g.add(loss, model=scene.model, **_given(scene, definitions[loss], chosen), **chosen)[0]
        sigmas = g.add("BasicScheduler", model=scene.model, scheduler="normal", steps=STEPS)[0]
        noise = g.add("RandomNoise", noise_seed=SEED)[0]
        scene.save(scene.custom(g.add(definition.node_id, loss=made, **values)[0], sigmas, noise), name, "With the loss")
        scene.save(scene.custom(g.add("KSamplerSelect", sampler_name="euler")[0], sigmas, noise), f"{name}_without", "Plain")
        return g
    return make


OWN = {
    "LodestarWaveletTargetLoss": _loss(levels=3, high=0.0),
    "LodestarEdgeLoss": _loss(prompt="a large yellow square", sketch=True, elsewhere=0.3),
    "LodestarSpectrumLoss": _loss(lowest=0.0, highest=0.5),
    "LodestarTotalVariationLoss": _loss(scale=0.3),
    "LodestarSymmetryLoss": _loss(space="small"),
    "LodestarRangeLoss": _loss(scale=0.3, cfg=12.0),
    "LodestarColourLoss": _loss(prompt="a circle and a square", space="small"),
    "LodestarColouredShapeLoss": _loss(space="small", **RED),
    "LodestarCombineLosses": _combined,
    "LodestarTrainingFreeGuidance": _sampler(rho=20.0, mu=20.0, iterations=2),
    "LodestarUniversalGuidanceSampler": _sampler(scale=0.5, repeats=2),
    "LodestarGeoGuide": _sampler(scale=0.5, eta=0.0),
    "LodestarDreamguider": _sampler(eta=0.0, strength=5.0, first=0.01),
}
