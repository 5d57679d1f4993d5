"""Examples of the readout heads, on the bundled U-Net."""

from __future__ import annotations

from ._examples import SIZE, Scene
from ._examples_heads import _many
from ._examples_weights import _box

SEED = 3


def _both(scene, definition, name, **values):
    """With the node and without it."""
    model = scene.graph.add(definition.node_id, model=scene.model, step_size=0.1, **values)[0]
    scene.save(scene.sample(model, seed=SEED, title="With the node"), name, "With the node")
    scene.save(scene.sample(seed=SEED, title="Without it"), f"{name}_without", "Without it")
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
    scene = Scene(definitions, f"{definition.title}: {definition.description} Here it learns from twelve of the model's own samples what pictures on white and on black have for looks; Readout Guidance then makes the picture "
                  "look like a reference on white. Above with it, below without.", "a red circle and a blue square")
    g = scene.graph
    white, black = (_many(scene, f"a red circle and a blue square on a {ground} background") for ground in ("white", "black"))
    latents = g.add("LatentBatch", samples1=white, samples2=black)[0]
    empty = g.add("CLIPTextEncode", "Empty prompt", text="", clip=scene.clip)[0]
    readout = g.add(definition.node_id, model=scene.model, positive=empty, latent=latents, groups="0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1", steps=40, batch=6)[0]
    g.add("LodestarSaveReadoutHead", readout=readout, prefix="lodestar/grounds")
    one = g.add("CLIPTextEncode", "Prompt of the reference", text="a green cross on a white background", clip=scene.clip)[0]
    reference = scene.sample(positive=one, seed=SEED + 1, title="Makes the reference")
    return _both(scene, definitions["LodestarReadoutGuidance"], name, readout=readout, reference=reference, reference_prompt=one)


OWN = {"LodestarReadoutGuidance": _shapes, "LodestarTrainReadoutHead": _trained}
