"""Examples of EDICT, and of what optimises the noise and the text that a picture is sampled from."""

from __future__ import annotations

from ._examples import CFG, SEED, SIZE, STEPS, Scene
from ._examples_weights import _box

TWO, SHORT = "a red circle and a blue square", 8
OTHERS = "#808080; #f5f5f5; #0d0d0d"


def _edict(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: {definition.description} Above EDICT, below Euler over the same schedule and noise.")
    g = scene.graph
    sigmas = g.add("BasicScheduler", model=scene.model, scheduler="normal", steps=STEPS)[0]
    noise = g.add("RandomNoise", noise_seed=SEED)[0]
    scene.save(scene.custom(g.add(definition.node_id, mix=0.8)[0], sigmas, noise), name, "EDICT")
    scene.save(scene.custom(g.add("KSamplerSelect", sampler_name="euler")[0], sigmas, noise), f"{name}_without", "Euler")
    return g


def _inversion(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: a picture is made, encoded, inverted under CFG; from its two states comes the picture again. Sample with another prompt from part of the way (strength 0.5, say) for an edit.")
    g = scene.graph
    picture = scene.decode(scene.sample(title="Makes a picture"))
    g.add("SaveImage", "The picture", images=picture, filename_prefix=f"lodestar/{name}_picture")
    encoded = g.add("VAEEncode", pixels=picture, vae=scene.vae)[0]
    found = g.add(definition.node_id, model=scene.model, positive=scene.positive, negative=scene.negative, latent_image=encoded, steps=STEPS, cfg=3.0)
    scene.save(scene.custom(found[3], found[2], found[1], cfg=3.0), name, "The picture again")
    return g


def _noise(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: {definition.description} Here the red thing comes to a place. Above with the optimised noise, below with the noise of the seed.", TWO)
    g = scene.graph
    region = _box(g, g.add("SolidMask", "Where it is not", value=0.0, width=SIZE, height=SIZE)[0], SIZE // 2 + 8, SIZE // 2 - 24, 48, 48, "Where it is to be")
    loss = g.add("LodestarColouredShapeLoss", model=scene.model, region=region, space="small", colour="#e61f24", others=f"{OTHERS}; #1f40d9")[0]
    wires = dict(model=scene.model, positive=scene.positive, negative=scene.negative, latent_image=scene.latent, loss=loss)
    found = g.add(definition.node_id, **wires, iterations=16, steps=SHORT, cfg=CFG, seed=SEED, clip=0.02)
    scene.save(found[0], name, "With the optimised noise")
    plain = g.add("KSampler", "With the noise of the seed", model=scene.model, seed=SEED, steps=SHORT, cfg=CFG, sampler_name="euler", scheduler="normal", positive=scene.positive, negative=scene.negative,
                  latent_image=scene.latent)[0]
    scene.save(plain, f"{name}_without", "With the noise of the seed")
    return g


def _text(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: {definition.description} Here the red circle in the mask turns yellow (a counterfactual); everything else is kept. Above changed, below the picture of the start.",
                  "a red circle left of a blue square")
    g = scene.graph
    mask = _box(g, g.add("SolidMask", "What stays", value=0.0, width=SIZE, height=SIZE)[0], 0, 0, SIZE // 2, SIZE, "What may change")
    region = _box(g, g.add("SolidMask", "Where it is not", value=0.0, width=SIZE, height=SIZE)[0], 28, 42, 44, 44, "Where the circle is")
    loss = g.add("LodestarColouredShapeLoss", model=scene.model, mask=mask, region=region, space="small", colour="#f7e626", others=f"{OTHERS}; #e61f24; #1f40d9", softness=0.3)[0]
    wires = dict(model=scene.model, positive=scene.positive, negative=scene.negative, latent_image=scene.latent, loss=loss, mask=mask)
    found = g.add(definition.node_id, **wires, iterations=14, steps=SHORT, cfg=3.0, seed=SEED, rate=0.06, keep=1.0, blend=0.5)
    scene.save(found[0], name, "Changed")
    plain = g.add("KSampler", "The picture of the start", model=scene.model, seed=SEED, steps=SHORT, cfg=3.0, sampler_name="euler", scheduler="normal", positive=scene.positive, negative=scene.negative,
                  latent_image=scene.latent)[0]
    scene.save(plain, f"{name}_without", "The picture of the start")
    return g


OWN = {"LodestarEDICTSampler": _edict, "LodestarEDICTInversion": _inversion, "LodestarOptimiseInitialNoise": _noise, "LodestarOptimiseLatentAndText": _text}
