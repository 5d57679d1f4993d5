"""Examples of the nodes that take regions, on the bundled models."""

from __future__ import annotations

from ._examples import CFG, SEED, STEPS, Scene

BOTH = "a red circle and a blue square"
PLACES = (dict(x=0.05, y=0.5, width=0.45, height=0.45), dict(x=0.5, y=0.05, width=0.45, height=0.45))
THINGS = ("red circle", "blue square")


def placed(scene, regions, text=BOTH, **values):
    """(positive, regions) of Prompt with Regions."""
    node = scene.graph.add("LodestarRegionPrompt", clip=scene.clip, text=text, regions=regions, **values)
    return node[0], node[1]


def pictures(scene, definition, name, positive, regions, shown, cfg=4.0, **values):
    """With the node, without it, and the regions."""
    model = scene.graph.add(definition.node_id, model=scene.model, regions=regions, **values)[0]
    scene.save(scene.sample(model, positive=positive, cfg=cfg, title="With the node"), name, "With the node")
    scene.save(scene.sample(positive=positive, cfg=cfg, title="Without it"), f"{name}_without", "Without it")
    picture = scene.graph.add("LodestarShowRegions", regions=shown, width=256, height=256)[0]
    scene.graph.add("SaveImage", "The regions", images=picture, filename_prefix=f"lodestar/{name}_regions")
    return scene.graph


def masked(scene, before, **values):
    """A Region from Mask behind others: a white rectangle at the upper right."""
    g = scene.graph
    black, white = g.add("SolidMask", "Black", value=0.0, width=128, height=128), g.add("SolidMask", "White", value=1.0, width=56, height=56)
    mask = g.add("MaskComposite", destination=black[0], source=white[0], x=66, y=6, operation="add")[0]
    return g.add("LodestarRegionFromMask", mask=mask, regions=before, **values)[0]


def regional(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: {definition.description} The sampler's prompt says only what is around the regions.", prompt=None)
    first = scene.graph.add("LodestarRegion", **PLACES[0], prompt="a red circle")[0]
    regions = masked(scene, first, prompt="a blue square")
    positive, found = placed(scene, regions, "on a gray background")
    return pictures(scene, definition, name, positive, found, regions)


def dense(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: {definition.description} The prompt names no place.", prompt=None)
    rows = [f'{{"box": [{p["x"]}, {p["y"]}, {p["width"]}, {p["height"]}], "words": "{t}"}}' for p, t in zip(PLACES[::-1], THINGS)]
    regions = scene.graph.add("LodestarRegionsFromJSON", text="[" + ",\n ".join(rows) + "]")[0]
    positive, found = placed(scene, regions, phrase_by_phrase=True)
    return pictures(scene, definition, name, positive, found, regions)


def swapped(definitions, definition, name, **values):
    """The two things in each other's places."""
    scene = Scene(definitions, f"{definition.title}: {definition.description} The prompt names no place.", prompt=None)
    chain = {}
    for place, thing in zip(PLACES[::-1], THINGS):
        chain = {"regions": scene.graph.add("LodestarRegion", **place, words=thing, **chain)[0]}
    positive, found = placed(scene, chain["regions"])
    return pictures(scene, definition, name, positive, found, chain["regions"], **values)


def directed(definitions, definition, name):
    """The bundled text encoder's padding knows nothing of the layout: no trailing tokens; half of the 20 steps, sums kept (less noise)."""
    return swapped(definitions, definition, name, trailing=0, steps=0.5, renormalise=True)


def nasa(definitions, definition, name):
    """A prompt without colours, and one of them not wanted."""
    scene = Scene(definitions, f"{definition.title}: {definition.description} No CFG (cfg 1), as few-step models are sampled. Above with the node, below without.", prompt="a circle and a square")
    away = scene.graph.add("CLIPTextEncode", "Not wanted", text="a yellow circle a yellow square", clip=scene.clip)[0]
    model = scene.graph.add(definition.node_id, model=scene.model, negative=away)[0]
    scene.save(scene.sample(model, cfg=1.0, title="With the node"), name, "With the node")
    scene.save(scene.sample(cfg=1.0, title="Without it"), f"{name}_without", "Without it")
    return scene.graph


def several(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: {definition.description} Each thing's words guide in a place of their own. Above with the node, below without.", prompt=BOTH, model="dit")
    g, model = scene.graph, scene.model
    for thing, place in zip(THINGS, PLACES):
        black = g.add("SolidMask", "Black", value=0.0, width=128, height=128)[0]
        white = g.add("SolidMask", "White", value=1.0, width=58, height=58)[0]
        mask = g.add("MaskComposite", destination=black, source=white, x=round(place["x"] * 128), y=round(place["y"] * 128), operation="add")[0]
        text = g.add("CLIPTextEncode", f"Prompt for the {thing}", text=f"a {thing}", clip=scene.clip)[0]
        model = g.add(definition.node_id, model=model, condition=text, scale=4.0, mask=mask)[0]
    scene.save(scene.sample(model, seed=SEED + 1, cfg=1.5, title="With the node"), name, "With the node")
    scene.save(scene.sample(seed=SEED + 1, title="Without it"), f"{name}_without", "Without it")
    return g


def scene_graph(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: {definition.description} Dense Diffusion keeps the layout. Its output `prompt` is the graph as a sentence.", prompt=None)
    graph = scene.graph.add(definition.node_id, text="a green triangle left of a purple circle; a yellow square below the circle", size=0.36)
    positive, found = placed(scene, graph[0], "a green triangle and a purple circle and a yellow square")
    return pictures(scene, definitions["LodestarDenseDiffusion"], name, positive, found, graph[0])


def structured(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: {definition.description} Above with the node, below without.", prompt="a red square and a green circle and a blue triangle")
    node = scene.graph.add(definition.node_id, model=scene.model, clip=scene.clip, text="a red square and a green circle and a blue triangle", mode="automatic")
    scene.save(scene.sample(node[0], positive=node[1], title="With the node"), name, "With the node")
    scene.save(scene.sample(title="Without it"), f"{name}_without", "Without it")
    return scene.graph


def paired(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: {definition.description} Two pictures come out: the source and its edit.", prompt=None)
    node = scene.graph.add(definition.node_id, model=scene.model, clip=scene.clip, latent=scene.latent, source="a red circle and a blue square", target="a green circle and a blue square",
                           mode="replace", detail=2)
    out = scene.graph.add("KSampler", "Both prompts", model=node[0], seed=SEED, steps=STEPS, cfg=CFG, sampler_name="euler", scheduler="normal", positive=node[1],
                          negative=scene.negative, latent_image=node[2])[0]
    scene.save(out, name, "Source and edit")
    return scene.graph


OWN = {"LodestarPromptToPrompt": paired,
       "LodestarStructuredDiffusionGuidance": structured, "LodestarMultiConditionalCFG": several, "LodestarSceneGraphLayout": scene_graph,
       "LodestarRegionalPrompts": regional, "LodestarDenseDiffusion": dense, "LodestarDirectedDiffusion": directed,
       "LodestarNegativeAwaySteerAttention": nasa}
