"""Example of Text Super-Resolution: a line of text that is hardly legible, drawn anew."""

from __future__ import annotations

from ._examples import SEED
from ._graph import Graph

TEXT = "LODE7"


def _text(definitions, definition, name):
    g = Graph(definitions, f"{definition.title}: {definition.description} A line as it should be, after it was made small, and drawn anew: told its text, and by the picture alone. What a reader reads in the small one is shown by the last node.")
    line = g.add("LodestarDemoTextLine", text=TEXT, seed=SEED)
    network = g.add("LodestarLoadTextNetwork")[0]

    def save(image, ending, title):
        g.add("SaveImage", title, images=image, filename_prefix=f"lodestar/{name}{ending}")
    save(g.add(definition.node_id, image=line[1], mask=line[2], text=TEXT, network=network, seed=SEED)[0], "", "Told its text")
    save(g.add(definition.node_id, "By the picture alone", image=line[1], mask=line[2], network=network, seed=SEED)[0], "_without", "By the picture alone")
    save(line[0], "_picture", "As it should be")
    save(line[1], "_measured", "After it was made small")
    recogniser = g.add("LodestarLoadTextRecogniser", file="bundled: lines of one font")[0]
    save(g.add(definition.node_id, "As it is read", image=line[1], mask=line[2], network=network, recogniser=recogniser, rounds=2, seed=SEED)[0], "_read", "Read, drawn, and read again")
    return g


OWN = {"LodestarTextSuperResolution": _text}
