"""The examples of nodes that change the whole network, and of those that read from it."""

from __future__ import annotations

from ._examples import PROMPT, SEED, SIZE, Scene, guided
from ._graph import Graph

# examples with models that do not come with the pack, and what their picture says
NEEDS_WEIGHTS = {"controlnorm": "ControlNorm\n\nThis example needs\nSD1.5, a ControlNet and\nthe projections trained for it."}


def _entropy(definitions, definition, name):
    return guided(definitions, definition, name, size=192)


def _draft(definitions, definition, name):
    return guided(definitions, definition, name, kept=0.4, pool_height=2, pool_width=2, least_tokens=0)


def _temperature(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: {definition.description} A video of eight frames; the white square of the mask is where something moves. Above with the node, below without.",
                  "a large red circle", model="video", batch=8)
    g = scene.graph
    still = g.add("SolidMask", "Nothing", value=0.0, width=SIZE, height=SIZE)
    moving = g.add("SolidMask", "Where something moves", value=1.0, width=64, height=64)
    mask = g.add("MaskComposite", destination=still[0], source=moving[0], x=32, y=32, operation="add")
    model = g.add(definition.node_id, model=scene.model, mask=mask[0])[0]
    scene.save(scene.sample(model, title="With the node"), name, "With the node")
    scene.save(scene.sample(title="Without it"), f"{name}_without", "Without it")
    return g


def _made(definitions, definition, name, note=""):
    """A scene with a picture that is sampled, decoded and saved: (scene, image)."""
    scene = Scene(definitions, f"{definition.title}: {definition.description}{note}")
    image = scene.decode(scene.sample(title="Makes a picture"))
    scene.graph.add("SaveImage", "The picture", images=image, filename_prefix=f"lodestar/{name}_picture")
    return scene, image


def _heat_maps(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: {definition.description} Put it behind the guidance nodes, and Attention Heat Maps behind the sampler.")
    g = scene.graph
    capture = g.add(definition.node_id, model=scene.model)
    samples = scene.sample(capture[0])
    image = scene.decode(samples)
    g.add("SaveImage", "The picture", images=image, filename_prefix=f"lodestar/{name}")
    for words in ("blue square", "yellow triangle"):
        maps = g.add("LodestarAttentionHeatMaps", f"Heat of {words}", maps=capture[1], latent=samples, clip=scene.clip, prompt=PROMPT, words=words, image=image)
        g.add("SaveImage", f"Where {words} is", images=maps[0], filename_prefix=f"lodestar/{name}_{words.replace(' ', '_')}")
    return g


def _classifier(definitions, definition, name):
    scene, image = _made(definitions, definition, name, " Press Run: the captions are listed, the best one first.")
    captions = "\n".join(f"a small {colour} square above a yellow triangle" for colour in ("red", "green", "blue", "purple"))
    scene.graph.add(definition.node_id, model=scene.model, captions=captions, samples=16, stages="8:2", clip=scene.clip, image=image, vae=scene.vae)
    return scene.graph


def _information(definitions, definition, name):
    scene, image = _made(definitions, definition, name, " Of two captions that name one thing each, and of one that names both: where each says something that the other does not.")
    g = scene.graph
    texts = {"base": "", "first": "a blue square", "second": "a yellow triangle", "both": "a blue square and a yellow triangle"}
    prompts = {k: g.add("CLIPTextEncode", f"Prompt: {k}", text=t, clip=scene.clip)[0] for k, t in texts.items()}
    found = g.add(definition.node_id, model=scene.model, **prompts, samples=32, form="standard", image=image, vae=scene.vae)
    for slot, title in ((3, "Only the first prompt says"), (4, "Only the second prompt says"), (5, "Both together say")):
        g.add("SaveImage", title, images=found[slot], filename_prefix=f"lodestar/{name}_{slot}")
    return g


def _segmentation(definitions, definition, name):
    scene, image = _made(definitions, definition, name)
    g = scene.graph
    found = g.add(definition.node_id, model=scene.model, clip=scene.clip, prompt="a blue square and a yellow triangle", words="blue square, yellow triangle", image=image, vae=scene.vae)
    g.add("SaveImage", "The classes", images=found[2], filename_prefix=f"lodestar/{name}")
    return g


def _correspondence(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: {definition.description} Two pictures with the same prompt; the second one is warped so that its things lie where they are in the first.")
    g = scene.graph
    pictures = [scene.decode(scene.sample(seed=SEED + 5 * i, title=f"Makes picture {i + 1}")) for i in range(2)]
    found = g.add(definition.node_id, model=scene.model, positive=scene.positive, first=pictures[0], second=pictures[1], vae=scene.vae)
    g.add("SaveImage", "The matches", images=found[2], filename_prefix=f"lodestar/{name}_plot")
    g.add("SaveImage", "The second, warped", images=found[0], filename_prefix=f"lodestar/{name}")
    return g


OWN = {
    "LodestarCaptureAttention": _heat_maps,
    "LodestarCrossAttentionSegmentation": _segmentation,
    "LodestarDenseCorrespondence": _correspondence,
    "LodestarDiffusionClassifier": _classifier,
    "LodestarPromptInformation": _information,
    "LodestarAttentionEntropyScaling": _entropy,
    "LodestarDraftAttention": _draft,
    "LodestarFreeU": lambda d, definition, name: guided(d, definition, name, cfg=2.0),
    "LodestarPLADIS": lambda d, definition, name: guided(d, definition, name, cfg=2.0),
    "LodestarTemporalAttentionTemperature": _temperature,
}
