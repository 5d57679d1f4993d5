"""Examples of the losses that look through an encoder, by Universal Guidance on the bundled model."""

from __future__ import annotations

from ._examples import SEED, SIZE, Scene
from ._examples_weights import _box

TWO = "a circle and a square"
LOSS = "With the loss"


def _vision(scene):
    return scene.graph.add("LodestarLoadDemoVision", encoder="scenes and captions")[0]


def _network(scene, file="bundled: kinds and colours of the demo scenes", title=None):
    return scene.graph.add("LodestarLoadVisionNetwork", title, file=file)[0]


def _picture(scene, prompt, title, seed=SEED + 1, save=None):
    """A picture of another prompt, as a reference."""
    other = scene.graph.add("CLIPTextEncode", f"Prompt: {title}", text=prompt, clip=scene.clip)[0]
    made = scene.decode(scene.sample(positive=other, seed=seed, title=f"Makes {title}"))
    if save:
        scene.graph.add("SaveImage", title, images=made, filename_prefix=f"lodestar/{save}")
    return made


def _loss(given, note, prompt=TWO, scale=1.0, seed=SEED, cfg=4.0):
    """given(scene, name) -> the loss node's inputs beside model and VAE."""
    def make(definitions, definition, name):
        scene = Scene(definitions, f"{definition.title}: {definition.description} {note} Above with the loss, below without.", prompt)
        loss = scene.graph.add(definition.node_id, model=scene.model, vae=scene.vae, **given(scene, name))[0]
        model = scene.graph.add("LodestarUniversalGuidance", model=scene.model, loss=loss, scale=scale)[0]
        scene.save(scene.sample(model, seed=seed, cfg=cfg, title=LOSS), name, LOSS)
        scene.save(scene.sample(seed=seed, cfg=cfg, title="Without it"), f"{name}_without", "Without it")
        return scene.graph
    return make


def _text(scene, name):
    return {"clip_vision": _vision(scene), "clip": scene.clip, "text": "a red circle"}


def _image(scene, name):
    return {"clip_vision": _vision(scene), "image": _picture(scene, "a large green triangle on a black background", "the picture to be like", save=f"{name}_given")}


def _exemplars(scene, name):
    return {"clip_vision": _vision(scene), "image": _picture(scene, "a large purple circle and a small yellow square", "a good example", save=f"{name}_good"),
            "bad": _picture(scene, "a large red circle and a small blue square", "a bad example")}


def _style(scene, name):
    return {"clip_vision": _vision(scene), "image": _picture(scene, "an orange cross on a black background", "the style", save=f"{name}_given"), "mode": "statistics"}


def _features(scene, name):
    return {"network": _network(scene), "image": _picture(scene, "a large yellow triangle left of a small red circle on a gray background", "the picture to be like", save=f"{name}_given"), "mode": "perceptual"}


def _classes(scene, name):
    return {"classifier": _network(scene, "bundled: kinds, for the demo scene encoder", "Kinds"), "clip_vision": _vision(scene), "classes": "red circle"}


def _cells(scene, name):
    black = scene.graph.add("SolidMask", "Where it is not", value=0.0, width=SIZE, height=SIZE)[0]
    return {"network": _network(scene), "region": _box(scene.graph, black, SIZE // 2 + 8, SIZE // 2 - 24, 48, 48, "Where it is to be"), "label": "red"}


def _taste(scene, name):
    return {"clip_vision": _vision(scene), "head": _network(scene, "bundled: a taste for warm colours, for the demo scene encoder", "A taste")}


def _semantic(scene, name):
    return {"clip_vision": _vision(scene), "clip": scene.clip, "text": "a large circle", "image": _picture(scene, "a blue square on a black background", "the style", save=f"{name}_given"),
            "image_loss": "style"}


OWN = {
    "LodestarCLIPTextLoss": _loss(_text, "The prompt says a circle, the loss's text a red circle.", "a circle", seed=23, cfg=2.0),
    "LodestarCLIPImageLoss": _loss(_image, "The prompt says nothing of the given picture's colours.", "a triangle"),
    "LodestarExemplarLoss": _loss(_exemplars, "The colours are those of the good example."),
    "LodestarStyleLoss": _loss(_style, "The prompt names a shape, the style picture has the colours and the ground.", "a large circle"),
    "LodestarFeatureLoss": _loss(_features, "The prompt is empty; what is where comes from the given picture.", ""),
    "LodestarClassifierLoss": _loss(_classes, "The prompt says a circle, the class is red circle.", "a circle", seed=23, cfg=2.0),
    "LodestarSegmentationLoss": _loss(_cells, "The red thing is to be on the right.", "a red circle and a blue square"),
    "LodestarPreferenceLoss": _loss(_taste, "The bundled taste likes warm colours."),
    "LodestarSemanticGuidanceLoss": _loss(_semantic, "The shape is the text's, the colour the style picture's; without the loss nothing is made here.", "a circle"),
}
