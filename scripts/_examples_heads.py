"""Examples of the losses that look inside the network or at the noisy state, on the bundled models."""

from __future__ import annotations

from ._examples import SEED, STEPS, Scene

BOTH = "a red circle and a blue square"


def _moved(definitions, definition, name):
    """One thing in another place; the picture without the node is what the other thing is kept from."""
    scene = Scene(definitions, f"{definition.title}: {definition.description} Here the red circle is moved and the blue square kept. Above with the node, below the picture that it refers to.", prompt=None)
    g = scene.graph
    words = g.add("LodestarPromptWords", clip=scene.clip, text=BOTH, words="red circle, blue square")
    before = scene.sample(positive=words[0], title="Without it")
    place = g.add("LodestarSelfGuidanceTerm", "Where the circle is to be", words=words[1], phrases="red circle", x=0.25, y=0.75, weight=3.0)[0]
    keep = g.add("LodestarSelfGuidanceTerm", "The square as it was", words=words[1], phrases="blue square", property="shape", source="reference", terms=place)[0]
    model = g.add(definition.node_id, model=scene.model, terms=keep, reference=before, scale=1.0)[0]
    scene.save(scene.sample(model, positive=words[0], title="With the node"), name, "With the node")
    scene.save(before, f"{name}_without", "Without it")
    return g


OWN = {
    "LodestarSelfGuidance": _moved,
}
