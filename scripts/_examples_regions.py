"""Examples of the nodes that take regions, on the bundled models."""

from __future__ import annotations

from ._examples import Scene

BOTH = "a red circle and a blue square"
PLACES = (dict(x=0.05, y=0.5, width=0.45, height=0.45), dict(x=0.5, y=0.05, width=0.45, height=0.45))
THINGS = ("red circle", "blue square")


def boxes(scene, words=True, prompts=False):
    """Two chained Region nodes; the wire of both."""
    chain = {}
    for place, thing in zip(PLACES, THINGS):
        node = scene.graph.add("LodestarRegion", **place, words=thing if words else "", prompt=f"a {thing}" if prompts else "", **chain)
        chain = {"regions": node[0]}
    return chain["regions"]


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


OWN = {"LodestarRegionalPrompts": regional, "LodestarDenseDiffusion": dense}
