"""Example of hard bounds on the bundled models."""

from __future__ import annotations

from ._examples import SIZE, Scene
from ._examples_weights import _box


def _black(g):
    return g.add("SolidMask", "An empty mask", value=0.0, width=SIZE, height=SIZE)[0]


def _constraint(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: {definition.description} Here the right half may not be strongly red. Above with the bound, below without.", "a large red circle and a blue square")
    g = scene.graph
    half = _box(g, _black(g), SIZE // 2, 0, SIZE // 2, SIZE, "Where red is forbidden")
    model = g.add(definition.node_id, model=scene.model, upper="0.5, 1, 1", region=half)[0]
    scene.save(scene.sample(model, title="With the bound"), name, "With the bound")
    scene.save(scene.sample(title="Without it"), f"{name}_without", "Without it")
    return g


OWN = {"LodestarValueConstraint": _constraint}
