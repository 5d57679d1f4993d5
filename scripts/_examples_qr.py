"""Example of the QR nodes: a picture is made, and then made readable as a code."""

from __future__ import annotations

from ._examples import SEED, Scene

SIZE = 256      # modules of 8 pixels, a cell of the latent each


def _refined(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: {definition.description} Here a picture becomes readable as a QR code. Above refined, below as it was sampled, then the code. Read QR Code says what a reader reads. "
                  "The bundled models know no codes; with a QR ControlNet on a large model much less has to be changed.", prompt="a large yellow triangle on a red background", size=SIZE)
    g = scene.graph
    samples = scene.sample(seed=SEED + 1, title="Makes the picture")
    code = g.add("LodestarQRCode", text="lodestar", width=SIZE, height=SIZE, level="M", module=8, quiet_zone=2)[0]
    loss = g.add("LodestarQRCodeLoss", model=scene.model, image=code, quiet_zone=2, vae=scene.vae)[0]
    refined = g.add(definition.node_id, model=scene.model, latent=samples, loss=loss, steps=60, rate=30.0)[0]
    picture = scene.decode(refined)
    g.add("SaveImage", "Readable", images=picture, filename_prefix=f"lodestar/{name}")
    scene.save(samples, f"{name}_without", "As it was sampled")
    g.add("SaveImage", "The code", images=code, filename_prefix=f"lodestar/{name}_code")
    g.add("LodestarReadQRCode", image=picture, code=code)
    return g


OWN = {"LodestarLossRefinement": _refined}
