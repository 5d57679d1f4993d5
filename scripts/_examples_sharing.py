"""Examples of the nodes that look at another picture, on the bundled models."""

from __future__ import annotations

from ._examples import CFG, SEED, SIZE, STEPS, Scene

STYLE, STYLE_MODEL = "a red circle on a black background", "dit"


def _style(definitions, definition, name):
    scene = Scene(definitions, "StyleAligned: four prompts share the style of a reference picture. Above with the node, below without, then the reference.", prompt=None,
                  model=STYLE_MODEL)
    g = scene.graph
    scene.latent = g.add("EmptyLatentImage", width=SIZE, height=SIZE, batch_size=4)[0]
    positive = g.add("LodestarPromptPerPicture", clip=scene.clip,
                     prompts="a blue square above a yellow triangle\na green cross\na purple square right of an orange circle\na cyan triangle")[0]
    one = g.add("EmptyLatentImage", "One picture", width=SIZE, height=SIZE)[0]
    text = g.add("CLIPTextEncode", "Prompt of the reference", text=STYLE, clip=scene.clip)[0]
    reference = g.add("KSampler", "Makes the reference", model=scene.model, seed=SEED, steps=STEPS, cfg=CFG, sampler_name="euler", scheduler="normal", positive=text,
                      negative=scene.negative, latent_image=one)[0]
    model = g.add(definition.node_id, model=scene.model, reference=reference, reference_prompt=text)[0]
    scene.save(scene.sample(model, positive=positive, title="With the node"), name, "With the node")
    scene.save(scene.sample(positive=positive, title="Without it"), f"{name}_without", "Without it")
    scene.save(reference, f"{name}_reference", "The reference")
    return g


OWN = {"LodestarStyleAligned": _style}
