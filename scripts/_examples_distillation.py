"""Examples of score distillation on the bundled models."""

from __future__ import annotations

from ._examples import SEED, SIZE, Scene

PROMPT = "a cyan circle left of an orange cross"


def _led(scene, node_id="LodestarSDSGuidance", positive=None, model=None, **values):
    return scene.graph.add(node_id, model=model or scene.model, positive=positive or scene.positive, negative=scene.negative, **values)[0]


def _guidance(iterations, rate=0.1, optimiser="Adam", **values):
    def make(definitions, definition, name):
        scene = Scene(definitions, f"{definition.title}: {definition.description} Here {iterations} iterations on an empty latent. Above distilled, below sampled.", PROMPT)
        more = {"vae": scene.vae} if values.get("rgb") else {}
        guided = _led(scene, definition.node_id, **values, **more)
        distilled = scene.graph.add("LodestarScoreDistillation", "Distils", guidance=guided, latent=scene.latent, steps=iterations, rate=rate, optimiser=optimiser, seed=SEED)[0]
        scene.save(distilled, name, "Distilled")
        scene.save(scene.sample(title="Samples"), f"{name}_without", "Sampled")
        return scene.graph
    return make


def _score(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: a latent is optimised under SDS Guidance, beside it with a loss that makes it symmetrical, which no sampling run could hold as exactly.", "a large yellow triangle")
    g = scene.graph
    guided = _led(scene, cfg=7.5)
    loss = g.add("LodestarSymmetryLoss", model=scene.model, space="small")[0]
    values = dict(guidance=guided, latent=scene.latent, steps=100, rate=0.1, seed=SEED)
    scene.save(g.add(definition.node_id, "With the loss", loss=loss, loss_weight=10.0, **values)[0], name, "With the loss")
    scene.save(g.add(definition.node_id, "Without it", **values)[0], f"{name}_without", "Without it")
    return g


def _hybrid(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: two prompts lead one latent, each with its own guidance; a second model, or a ControlNet on one of them, goes the same way. Above both, below the first alone.",
                  "a large red circle on the left")
    g = scene.graph
    other = g.add("CLIPTextEncode", "Second prompt", text="a large blue square on the right", clip=scene.clip)[0]
    first = _led(scene, cfg=7.5)
    both = g.add(definition.node_id, a=first, b=_led(scene, positive=other, cfg=7.5))[0]
    values = dict(latent=scene.latent, steps=100, rate=0.1, seed=SEED)
    scene.save(g.add("LodestarScoreDistillation", "Under both", guidance=both, **values)[0], name, "Under both")
    scene.save(g.add("LodestarScoreDistillation", "Under the first", guidance=first, **values)[0], f"{name}_without", "Under the first")
    return g


def _pictures(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: the pixels of a picture are optimised towards another prompt, only in the right half. Above after, below before.", "a red circle left of a green square")
    g = scene.graph
    start = scene.decode(scene.sample(title="Makes the picture"))
    other = g.add("CLIPTextEncode", "What it is to become", text="a red circle left of a blue triangle", clip=scene.clip)[0]
    half = g.add("SolidMask", "The right half", value=1.0, width=SIZE // 2, height=SIZE)[0]
    mask = g.add("MaskComposite", destination=g.add("SolidMask", "The picture", value=0.0, width=SIZE, height=SIZE)[0], source=half, x=SIZE // 2, y=0, operation="add")[0]
    out = g.add(definition.node_id, guidance=_led(scene, positive=other, cfg=7.5, vae=scene.vae), image=start, mask=mask, steps=100, rate=0.03, seed=SEED)[0]
    g.add("SaveImage", "After", images=out, filename_prefix=f"lodestar/{name}")
    g.add("SaveImage", "Before", images=start, filename_prefix=f"lodestar/{name}_without")
    return g


def _object(scene, shade):
    """A plain square with its mask, and a background."""
    g = scene.graph
    square = g.add("MaskToImage", "The object", mask=g.add("SolidMask", "Its shade", value=shade, width=32, height=32)[0])[0]
    return square, g.add("SolidMask", "It fills its picture", value=1.0, width=32, height=32)[0]


def _background(scene, text):
    g = scene.graph
    prompt = g.add("CLIPTextEncode", "Prompt of the background", text=text, clip=scene.clip)[0]
    return scene.decode(scene.sample(positive=prompt, title="Makes the background"))


def _composite(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: a gray square is set into a picture; its colour is found under the prompt. Above after, below as it is put there.", "a red square right of a blue circle")
    g = scene.graph
    square, cover = _object(scene, 0.5)
    ground = _background(scene, "a blue circle on the left")
    guided = _led(scene, cfg=7.5, t_max=0.7, vae=scene.vae)
    values = dict(guidance=guided, object=square, mask=cover, background=ground, x=0.7, y=0.5)
    after = g.add(definition.node_id, "Finds its colour", steps=100, rate=0.05, seed=SEED, **values)[0]
    before = g.add(definition.node_id, "As it is put there", place_rate=0.0, size_rate=0.0, colour_rate=0.0, **values)[0]
    g.add("SaveImage", "After", images=after, filename_prefix=f"lodestar/{name}")
    g.add("SaveImage", "Before", images=before, filename_prefix=f"lodestar/{name}_without")
    return g


def _spatial(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: {definition.description} Here a white square is moved under SDS Guidance. Above with the node, below without.", None)
    g = scene.graph
    words = g.add("LodestarPromptWords", clip=scene.clip, text="a yellow square above a blue circle", words="above")
    square, cover = _object(scene, 1.0)
    ground = _background(scene, "a blue circle in the center")
    model = g.add(definition.node_id, model=scene.model, words=words[1], factor=5.0)[0]
    for title, used, file in (("With the node", model, name), ("Without it", scene.model, f"{name}_without")):
        guided = _led(scene, positive=words[0], model=used, cfg=7.5, t_min=0.8, t_max=0.9, vae=scene.vae)
        out = g.add("LodestarCompositeDistillation", title, guidance=guided, object=square, mask=cover, background=ground, x=0.25, y=0.5, steps=80, rate=0.05, size_rate=0.0, seed=SEED)[0]
        g.add("SaveImage", title, images=out, filename_prefix=f"lodestar/{file}")
    return g


OWN = {
    "LodestarSDSGuidance": _guidance(100, cfg=7.5),
    "LodestarHiFAGuidance": _guidance(40, cfg=4.0, rgb=0.1, steps=2),
    "LodestarDenoisedScoreDistillation": _guidance(80, cfg=7.5, amount=0.5),
    "LodestarIntervalScoreMatching": _guidance(60, rate=0.05, optimiser="SGD", cfg=7.5, t_min=0.3, t_max=0.7, steps=1),
    "LodestarTrajectoryScoreMatching": _guidance(60, rate=0.05, optimiser="SGD", cfg=7.5, t_min=0.3, t_max=0.7, steps=1),
    "LodestarScoreDistillation": _score,
    "LodestarHybridDistillation": _hybrid,
    "LodestarDistilPictures": _pictures,
    "LodestarCompositeDistillation": _composite,
    "LodestarSpatialWordAttention": _spatial,
}
