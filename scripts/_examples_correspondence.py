"""Examples of the nodes that follow correspondences, and of Cocktail, on the bundled models."""

from __future__ import annotations

from ._examples import CFG, SEED, SIZE, STEPS, Scene


def _corrfill(definitions, definition, name):
    scene = Scene(definitions, "CorrFill: the middle of a picture is painted anew after a reference that shows the same things. Above with the node, below without, then the reference.",
                  prompt="", model="dit")
    g = scene.graph
    text = g.add("CLIPTextEncode", "Prompt of the reference", text="a red circle left of a blue square on a black background", clip=scene.clip)[0]
    reference = scene.sample(positive=text, title="Makes the reference")
    known = scene.sample(positive=text, seed=SEED + 1, title="Makes the picture with a hole")
    mask = g.add("SolidMask", "Outside the hole", value=0.0, width=SIZE, height=SIZE)[0]
    hole = g.add("SolidMask", "The hole", value=1.0, width=SIZE // 2, height=SIZE // 2)[0]
    mask = g.add("MaskComposite", destination=mask, source=hole, x=SIZE // 4, y=SIZE // 4, operation="add")[0]
    holed = g.add("SetLatentNoiseMask", samples=known, mask=mask)[0]
    model = g.add(definition.node_id, model=scene.model, reference=reference, reference_prompt=text)[0]
    for label, m, prefix in (("With the node", model, name), ("Without it", scene.model, f"{name}_without")):
        out = g.add("KSampler", label, model=m, seed=SEED + 2, steps=STEPS, cfg=CFG, sampler_name="euler", scheduler="normal", positive=scene.positive, negative=scene.negative,
                    latent_image=holed)[0]
        scene.save(out, prefix, label)
    scene.save(reference, f"{name}_reference", "The reference")
    return g


OWN = {"LodestarCorrFill": _corrfill}
