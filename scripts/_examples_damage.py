"""Examples of restorers of damaged pictures, on the bundled U-Net: a picture is made, parts of it are lost, and made anew."""

from __future__ import annotations

from ._examples import SEED, SIZE, Scene
from ._examples_restoring import BLUE, GRAY, RED
from ._examples_weights import _box

MAGENTA = 0xFF00FF
LARGE = 2 * SIZE
THINGS = ((RED, 28, 84, 84), (BLUE, 168, 100, 54))      # colour, x, y, side
LOST = ((64, 56, 48, 136), (112, 112, 80, 24), (192, 80, 40, 40), (16, 208, 88, 24), (136, 184, 32, 56))      # x, y, width, height


def _multi_scale(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: parts of a picture of twice the trained size are lost; a ControlNet sees what is left. Above restored with the node, below with the same ControlNet at one scale.",
                  "a large red square left of a small blue square on a gray background", size=LARGE)
    g = scene.graph
    left = g.add("EmptyImage", "The wall", width=LARGE, height=LARGE, batch_size=1, color=GRAY)[0]
    mask = g.add("SolidMask", "Nothing is lost", value=0.0, width=LARGE, height=LARGE)[0]
    for title, parts in (("A thing", THINGS), ("A lost part", tuple((MAGENTA, *part) for part in LOST))):
        for colour, x, y, width, *height in parts:
            painted = g.add("EmptyImage", title, width=width, height=(height or [width])[0], batch_size=1, color=colour)[0]
            left = g.add("ImageCompositeMasked", "Put in", destination=left, source=painted, x=x, y=y, resize_source=False)[0]
    for x, y, width, height in LOST:
        mask = _box(g, mask, x, y, width, height, "Where it is lost")
    g.add("SaveImage", "What is left of it", images=left, filename_prefix=f"lodestar/{name}_measured")
    control = g.add("LodestarLoadDemoControlNet")[0]
    texts = g.add("ControlNetApplyAdvanced", "Shows it to the model", positive=scene.positive, negative=scene.negative, control_net=control, image=left, strength=1.0)
    scene.positive, scene.negative = texts[0], texts[1]
    scene.latent = g.add("SetLatentNoiseMask", samples=g.add("VAEEncode", pixels=left, vae=scene.vae)[0], mask=mask)[0]
    model = g.add(definition.node_id, model=scene.model)[0]
    scene.save(scene.sample(model, seed=SEED + 1, cfg=2.0, title="With the node"), name, "With the node")
    scene.save(scene.sample(seed=SEED + 1, cfg=2.0, title="Without it"), f"{name}_without", "Without it")
    return g


OWN = {"LodestarMultiScaleRestoration": _multi_scale}
