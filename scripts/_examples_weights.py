"""Examples of the nodes that run with weights of their own, and of the depth-guided injection, on the bundled models."""

from __future__ import annotations

from ._examples import SEED, SIZE, Scene
from ._examples_sharing import inverted


def _box(g, into, x, y, width, height, title=None):
    """A MASK with a white rectangle drawn into it."""
    white = g.add("SolidMask", title, value=1.0, width=width, height=height)[0]
    return g.add("MaskComposite", destination=into, source=white, x=x, y=y, operation="add")[0]


def _outline(g, into, x, y, side, line=3):
    """A MASK with the outline of a square drawn into it."""
    filled = _box(g, into, x, y, side, side, "A square")
    inner = g.add("SolidMask", "What is inside", value=1.0, width=side - 2 * line, height=side - 2 * line)[0]
    return g.add("MaskComposite", destination=filled, source=inner, x=x + line, y=y + line, operation="subtract")[0]


def _easycontrol(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: outlines drawn by hand say where two squares are to be, the prompt says the rest. Above with the node, below without, then the outlines.",
                  prompt="a large blue square left of a large yellow square", model="dit")
    g = scene.graph
    drawn = g.add("SolidMask", "An empty sheet", value=0.0, width=SIZE, height=SIZE)[0]
    drawn = _outline(g, _outline(g, drawn, 10, 12, 38), 72, 74, 38)
    picture = g.add("MaskToImage", mask=drawn)[0]
    lora = g.add("LodestarLoadConditionLora")[0]
    model = g.add(definition.node_id, model=scene.model, condition=g.add("VAEEncode", pixels=picture, vae=scene.vae)[0], lora=lora)[0]
    scene.save(scene.sample(model, seed=SEED + 2, title="With the node"), name, "With the node")
    scene.save(scene.sample(seed=SEED + 2, title="Without it"), f"{name}_without", "Without it")
    g.add("SaveImage", "The outlines", images=picture, filename_prefix=f"lodestar/{name}_outlines")
    return g


def _glyph(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: the bundled reader reads shapes as letters (o circle, h square, a triangle, x cross). A picture that says \"ho\" is inverted and drawn again: it is "
                               "to say \"xo\" in the source's style. Above with the node, below without.", prompt="a large red cross left of a large blue circle")
    g = scene.graph
    text, found = inverted(scene, "a large red square left of a large blue circle")
    reader = g.add("LodestarLoadTextRecogniser")[0]
    model = g.add(definition.node_id, model=scene.model, recogniser=reader, vae=scene.vae, text="xo", trajectory=found[3], reference_prompt=text, every=2)[0]
    euler = g.add("KSamplerSelect", sampler_name="euler")[0]
    scene.save(scene.custom(euler, found[2], found[1], model=model), name, "With the node")
    scene.save(scene.custom(euler, found[2], found[1]), f"{name}_without", "Without it")
    return g


def _depth(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: another view takes its texture from an inverted reference. The depth maps, drawn by hand here, keep subject and background apart; with a depth "
                               "ControlNet, put Apply ControlNet on both prompts too. Above with the node, below without.", prompt="a circle on the right")
    g = scene.graph
    text, found = inverted(scene, "a red circle on the left")
    far = g.add("SolidMask", "Far", value=0.0, width=SIZE, height=SIZE)[0]
    depths = {"reference_depth": _box(g, far, 8, 24, 56, 80, "Near, in the reference"), "depth": _box(g, far, 64, 24, 56, 80, "Near, in the new view")}
    model = g.add(definition.node_id, model=scene.model, trajectory=found[3], reference_prompt=text, **depths)[0]
    euler = g.add("KSamplerSelect", sampler_name="euler")[0]
    scene.save(scene.custom(euler, found[2], found[1], model=model), name, "With the node")
    scene.save(scene.custom(euler, found[2], found[1]), f"{name}_without", "Without it")
    return g


def _subject(g, scene, name, encoder, adapter, x, shape, seed, before):
    """A picture of a thing, drawn by the model itself, as a subject with its box; (subjects, the picture)."""
    text = g.add("CLIPTextEncode", f"The {name}", text=f"a large {name} in the center on a white background", clip=scene.clip)[0]
    picture = scene.decode(scene.sample(positive=text, seed=seed, title=f"Draws the {name}"))
    seen = g.add("CLIPVisionEncode", clip_vision=encoder, image=picture, crop="center")[0]
    region = g.add("LodestarRegion", f"Where the {name} is to be", x=x, y=0.3, width=0.42, height=0.42)[0]
    phrase = g.add("CLIPTextEncode", "What it is", text=f"a {shape}", clip=scene.clip)[0]
    given = dict(adapter=adapter, vision=seen, region=region, phrase=phrase)
    return g.add("LodestarAdapterSubject", **given, **({"subjects": before} if before is not None else {}))[0], picture


def _subjects(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: the prompt names two shapes and no colour. Two pictures, drawn here by the model itself, show what they look like; each is seen by its box alone. "
                               "Above with the node, below without, then the two pictures.", prompt="a circle and a square")
    g = scene.graph
    encoder, adapter = g.add("LodestarLoadDemoVision")[0], g.add("LodestarLoadImageAdapter")[0]
    one, first = _subject(g, scene, "red circle", encoder, adapter, 0.04, "circle", SEED, None)
    both, second = _subject(g, scene, "blue square", encoder, adapter, 0.54, "square", SEED + 1, one)
    model = g.add(definition.node_id, model=scene.model, subjects=both, scale=1.0)[0]
    scene.save(scene.sample(model, seed=SEED + 2, title="With the node"), name, "With the node")
    scene.save(scene.sample(seed=SEED + 2, title="Without it"), f"{name}_without", "Without it")
    for i, picture in enumerate((first, second)):
        g.add("SaveImage", "What the subjects look like", images=picture, filename_prefix=f"lodestar/{name}_{i + 1}")
    return g


OWN = {"LodestarMaskedSubjectAttention": _subjects, "LodestarEasyControl": _easycontrol, "LodestarGlyphAdaptiveAttention": _glyph, "LodestarDepthGuidedInjection": _depth}
