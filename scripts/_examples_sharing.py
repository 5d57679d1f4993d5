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


def _reference(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: {definition.description} Above with the node, below without, then the reference.", prompt="a green cross above a yellow square",
                  model=STYLE_MODEL)
    g = scene.graph
    text = g.add("CLIPTextEncode", "Prompt of the reference", text=STYLE, clip=scene.clip)[0]
    reference = scene.sample(positive=text, seed=SEED + 1, title="Makes the reference")
    model = g.add(definition.node_id, model=scene.model, reference=reference, reference_prompt=text)[0]
    scene.save(scene.sample(model, title="With the node"), name, "With the node")
    scene.save(scene.sample(title="Without it"), f"{name}_without", "Without it")
    scene.save(reference, f"{name}_reference", "The reference")
    return g


def inverted(scene, prompt):
    """A picture of a prompt, encoded and inverted: (its text, the DDIM Inversion node)."""
    g = scene.graph
    text = g.add("CLIPTextEncode", "Prompt of the source", text=prompt, clip=scene.clip)[0]
    picture = scene.decode(scene.sample(positive=text, title="Makes the source"))
    g.add("SaveImage", "The source", images=picture, filename_prefix="lodestar/source")
    encoded = g.add("VAEEncode", pixels=picture, vae=scene.vae)[0]
    return text, g.add("LodestarDDIMInversion", model=scene.model, positive=text, latent_image=encoded, steps=STEPS)


def _mutual(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: a picture is inverted, and drawn again under another prompt. Above with the node, below without.",
                  prompt="a red circle and a blue square")
    g = scene.graph
    text, found = inverted(scene, "a red circle left of a blue square")
    model = g.add(definition.node_id, model=scene.model, trajectory=found[3], reference_prompt=text)[0]
    euler = g.add("KSamplerSelect", sampler_name="euler")[0]
    scene.save(scene.custom(euler, found[2], found[1], model=model), name, "With the node")
    scene.save(scene.custom(euler, found[2], found[1]), f"{name}_without", "Without it")
    return g


def _ctrl_x(definitions, definition, name):
    scene = Scene(definitions, "Ctrl-X: the structure of one picture, the appearance of another. Above with the node, below without, then structure and appearance.",
                  prompt="a red circle above a yellow square", model=STYLE_MODEL)
    g = scene.graph
    found = {}
    for part, text, seed in (("structure", "a large cyan circle above a small green square", SEED), ("appearance", "a red square and a yellow circle on a black background", SEED + 2)):
        prompt = g.add("CLIPTextEncode", f"Prompt of the {part}", text=text, clip=scene.clip)[0]
        latent = scene.sample(positive=prompt, seed=seed, title=f"Makes the {part}")
        scene.save(latent, f"{name}_{part}", f"The {part}")
        found |= {part: latent, f"{part}_prompt": prompt}
    model = g.add(definition.node_id, model=scene.model, **found)[0]
    scene.save(scene.sample(model, seed=SEED + 1, title="With the node"), name, "With the node")
    scene.save(scene.sample(seed=SEED + 1, title="Without it"), f"{name}_without", "Without it")
    return g


def _decoupled(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: {definition.description} The bundled models have no image adapter: without one the text's strength alone acts, here 6 and then 2 "
                               "in place of CFG 4. Above with the node, below without.")
    model = scene.graph.add(definition.node_id, model=scene.model, text_free=scene.negative, adapter="1", text="6, 6, 6, 6, 6, 6, 6, 6, 2")[0]
    scene.save(scene.sample(model, title="With the node"), name, "With the node")
    scene.save(scene.sample(title="Without it"), f"{name}_without", "Without it")
    return scene.graph


OWN = {"LodestarDecoupledGuidance": _decoupled, "LodestarStyleAligned": _style, "LodestarReferenceAttention": _reference, "LodestarMutualSelfAttention": _mutual, "LodestarCtrlX": _ctrl_x}
