"""Examples of the methods that move the sample by energies of its attention, on the bundled models."""

from __future__ import annotations

from ._examples import Scene
from ._examples_regions import BOTH, pictures, placed, swapped


def _excite(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: {definition.description} Above with the node, below without.", prompt=None)
    found = scene.graph.add("LodestarPromptWords", clip=scene.clip, text="a green cross and a yellow square", words="green cross, yellow square")
    model = scene.graph.add(definition.node_id, model=scene.model, words=found[1])[0]
    scene.save(scene.sample(model, positive=found[0], cfg=2.0, title="With the node"), name, "With the node")
    scene.save(scene.sample(positive=found[0], cfg=2.0, title="Without it"), f"{name}_without", "Without it")
    return scene.graph


def _scribble(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: {definition.description} The prompt names no place.", prompt=None)
    strokes = ('[{"scribble": [[0.6, 0.3], [0.85, 0.2]], "thickness": 0.12, "words": "red circle"},\n'
               ' {"scribble": [[0.15, 0.75], [0.4, 0.75]], "thickness": 0.12, "words": "blue square"}]')
    regions = scene.graph.add("LodestarRegionsFromJSON", text=strokes)[0]
    positive, found = placed(scene, regions, BOTH)
    return pictures(scene, definition, name, positive, found, regions)


OWN = {
    "LodestarAttendAndExcite": _excite,
    "LodestarLayoutGuidance": swapped,
    "LodestarBoxDiff": swapped,
    "LodestarScribbleGuidance": _scribble,
}
