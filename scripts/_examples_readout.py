"""Examples of the readout heads, on the bundled U-Net."""

from __future__ import annotations

from ._examples import CFG, SIZE, STEPS, Scene
from ._examples_heads import _many
from ._examples_weights import _box

SEED = 3


def _sample(scene, title, model=None):
    """As the other examples, by a sampler that adds noise: see the node's help."""
    return scene.graph.add("KSampler", title, model=model or scene.model, seed=SEED, steps=STEPS, cfg=CFG, sampler_name="euler_ancestral", scheduler="normal",
                           positive=scene.positive, negative=scene.negative, latent_image=scene.latent)[0]


def _both(scene, definition, name, **values):
    """With the node and without it."""
    model = scene.graph.add(definition.node_id, model=scene.model, step_size=0.1, **values)[0]
    scene.save(_sample(scene, "With the node", model), name, "With the node")
    scene.save(_sample(scene, "Without it"), f"{name}_without", "Without it")
    return scene.graph


def _shapes(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: {definition.description} The bundled head reads where the shapes are; the map wants one at the top left and a smaller one at the bottom right. "
                  "Above with the node, below without, and the map.", "a red square and a blue square")
    g = scene.graph
    black = g.add("SolidMask", "Nothing", value=0.0, width=SIZE, height=SIZE)[0]
    mask = _box(g, _box(g, black, 12, 12, 44, 44, "One shape"), 80, 80, 28, 28, "The other")
    wanted = g.add("MaskToImage", mask=mask)[0]
    _both(scene, definition, name, readout=g.add("LodestarLoadReadoutHead")[0], image=wanted)
    g.add("SaveImage", "The map", images=wanted, filename_prefix=f"lodestar/{name}_regions")
    return g


def _trained(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: {definition.description} Here it learns from sixteen of the model's own samples to read rough colours: the maps are the pictures themselves. In the map that Readout Guidance is "
                  "given the ground is white and a green thing at the top right: the ground becomes white and a thing comes there, but it is no green square, since sixteen pictures and fifty steps are few. Above with it, below without, and the map.", "a square")
    g = scene.graph
    own = _many(scene, "", 16)
    readout = g.add(definition.node_id, model=scene.model, positive=g.add("CLIPTextEncode", "Empty prompt", text="", clip=scene.clip)[0], latent=own, image=scene.decode(own), channels="colour",
                    steps=50, batch=6, rate=2e-3)[0]
    g.add("LodestarSaveReadoutHead", readout=readout, prefix="lodestar/colours")
    white, green = (g.add("EmptyImage", title, width=side, height=side, color=colour)[0] for title, side, colour in (("White", SIZE, 0xF5F5F5), ("Green", 48, 0x21A638)))
    wanted = g.add("ImageCompositeMasked", destination=white, source=green, x=68, y=12)[0]
    _both(scene, definitions["LodestarReadoutGuidance"], name, readout=readout, image=wanted)
    g.add("SaveImage", "The map", images=wanted, filename_prefix=f"lodestar/{name}_regions")
    return g


def _drag(definitions, definition, name):
    """The model's own picture, and the same noise with a drag in it."""
    scene = Scene(definitions, f"{definition.title} with drags: the bundled head of places finds what the first picture shows at the beginning of a drag, and the second picture, of the same noise, is to show it at its end; that of looks keeps the rest as it was. "
                  "Above with the drag, below without.", "a red circle")
    g = scene.graph
    first = g.add("KSampler", "Without the drag", model=scene.model, seed=SEED, steps=STEPS, cfg=CFG, sampler_name="euler", scheduler="normal", positive=scene.positive, negative=scene.negative, latent_image=scene.latent)[0]
    model = g.add(definition.node_id, model=scene.model, readout=g.add("LodestarLoadReadoutHead", file=PLACES)[0], reference=first, noise="shared", step_size=0.03, drags="0.5, 0.5 > 0.75, 0.3", radius=0.09)[0]
    model = g.add(definition.node_id, "The same looks", model=model, readout=g.add("LodestarLoadReadoutHead", file=LOOKS)[0], reference=first, noise="shared", step_size=0.02)[0]
    second = g.add("KSampler", "With the drag", model=model, seed=SEED, steps=STEPS, cfg=CFG, sampler_name="euler", scheduler="normal", positive=scene.positive, negative=scene.negative, latent_image=scene.latent)[0]
    scene.save(second, name, "With the drag")
    scene.save(first, f"{name}_without", "Without it")
    return g


PLACES, LOOKS = "bundled: matching places of the demo scenes, for the demo U-Net", "bundled: looks of the demo scenes, for the demo U-Net"
MORE = {"Readout Guidance with Drags": ("LodestarReadoutGuidance", _drag)}
OWN = {"LodestarReadoutGuidance": _shapes, "LodestarTrainReadoutHead": _trained}
