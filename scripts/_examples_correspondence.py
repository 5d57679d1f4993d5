"""Examples of the nodes that follow correspondences, and of Cocktail, on the bundled models."""

from __future__ import annotations

from ._examples import CFG, SEED, SIZE, STEPS, Scene, guided
from ._examples_regions import dense
from ._graph import Graph


def _corrfill(definitions, definition, name):
    scene = Scene(definitions, "CorrFill: the middle of a picture is painted anew after a reference that shows the same things. Above with the node, below without, then the reference.",
                  prompt="", model="dit")
    g = scene.graph
    text = g.add("CLIPTextEncode", "Prompt of the reference", text="a red circle left of a blue square on a black background", clip=scene.clip)[0]
    reference = scene.sample(positive=text, title="Makes the reference")
    known = scene.sample(positive=text, seed=SEED + 1, title="Makes the picture with a hole")
    mask = g.add("SolidMask", "Outside the hole", value=0.0, width=SIZE, height=SIZE)[0]
    hole = g.add("SolidMask", "The hole", value=1.0, width=SIZE // 2, height=SIZE // 2)[0]
    mask = g.add("MaskComposite", destination=mask, source=hole, x=SIZE // 4, y=SIZE // 4, operation="add")[0]
    holed = g.add("SetLatentNoiseMask", samples=known, mask=mask)[0]
    model = g.add(definition.node_id, model=scene.model, reference=reference, reference_prompt=text)[0]
    for label, m, prefix in (("With the node", model, name), ("Without it", scene.model, f"{name}_without")):
        out = g.add("KSampler", label, model=m, seed=SEED + 2, steps=STEPS, cfg=CFG, sampler_name="euler", scheduler="normal", positive=scene.positive, negative=scene.negative,
                    latent_image=holed)[0]
        scene.save(out, prefix, label)
    scene.save(reference, f"{name}_reference", "The reference")
    return g


def _features(definitions, definition, name):
    scene = Scene(definitions, "Feature-Correspondence Guidance: a picture seen by a camera that has come nearer and moved to the right. Above with the node, below without, then the old "
                               "view and the old view warped.", prompt="a red circle left of a blue square")
    g = scene.graph
    old = scene.sample(title="Makes the old view")
    warp = g.add("LodestarViewWarp", width=SIZE, height=SIZE, forward=0.25, right=0.1)[0]
    model = g.add(definition.node_id, model=scene.model, warp=warp, reference=old, scale=1.0, normalise="unit rms")[0]
    scene.save(scene.sample(model, seed=SEED + 1, title="With the node"), name, "With the node")
    scene.save(scene.sample(seed=SEED + 1, title="Without it"), f"{name}_without", "Without it")
    scene.save(old, f"{name}_old", "The old view")
    warped = g.add("LodestarApplyWarp", warp=warp, image=scene.decode(old))
    g.add("SaveImage", "The old view, warped", images=warped[1], filename_prefix=f"lodestar/{name}_warped")
    return g


def _side_by_side(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: {definition.description} First the canvas, then the target cut out and refined at low noise, then the source. The bundled models never saw two pictures on "
                  "one canvas and make one picture of it: the ground is carried over, the circle's colour is not.", prompt="a circle left of a circle")
    g = scene.graph
    text = g.add("CLIPTextEncode", "Prompt of the source", text="a red circle on a yellow background", clip=scene.clip)[0]
    source = scene.decode(scene.sample(positive=text, title="Makes the source"))
    canvas = g.add(definition.node_id, vae=scene.vae, source=source, side="left")
    sampler = dict(steps=STEPS, sampler_name="euler", scheduler="normal", positive=scene.positive, negative=scene.negative, seed=SEED + 1)
    out = g.add("KSampler", "Paints the target", model=scene.model, cfg=CFG, latent_image=canvas[0], **sampler)[0]
    scene.save(out, name, "The canvas")
    target = g.add("LodestarSideBySideCrop", side="left", samples=out)[0]
    refined = g.add("KSampler", "Refines it", model=scene.model, cfg=CFG, latent_image=target, denoise=0.4, **sampler)[0]
    scene.save(refined, f"{name}_refined", "The target, refined")
    g.add("SaveImage", "The source", images=source, filename_prefix=f"lodestar/{name}_source")
    return g


COLOURLESS = "a circle left of a square"


def _second(definitions, definition, name):
    return guided(definitions, definition, name, prompt=COLOURLESS, extra="a red circle left of a blue square")


def _shaping(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: {definition.description} No adapter is bundled: a second prompt with an attention of its own stands in for one, at a low cfg as few-step models have it. Above with the node, below "
                               "without.", prompt=COLOURLESS)
    g = scene.graph
    text = g.add("CLIPTextEncode", "Second prompt", text="a red circle left of a blue square", clip=scene.clip)[0]
    model = g.add("LodestarDecoupledPrompt", model=g.add(definition.node_id, model=scene.model)[0], second=text)[0]
    scene.save(scene.sample(model, cfg=1.5, title="With the node"), name, "With the node")
    scene.save(scene.sample(g.add("LodestarDecoupledPrompt", model=scene.model, second=text)[0], cfg=1.5, title="Without it"), f"{name}_without", "Without it")
    return g


def _control(definitions, definition, name):
    g = Graph(definitions, f"{definition.title}: {definition.description} Needs a checkpoint of SD1.5, a ControlNet, the projections trained for it, and a picture of your own.")
    load = g.add("CheckpointLoaderSimple", ckpt_name="v1-5-pruned-emaonly-fp16.safetensors")
    texts = [g.add("CLIPTextEncode", title, text=text, clip=load[1])[0] for title, text in (("Positive prompt", "a house by a lake"), ("Negative prompt", ""))]
    control = g.add("ControlNetLoader", control_net_name="control_v11p_sd15_canny_fp16.safetensors")
    found = g.add("ControlNetApplyAdvanced", positive=texts[0], negative=texts[1], control_net=control[0], image=g.add("LoadImage")[0])
    model = g.add(definition.node_id, model=load[0], weights=g.add("LodestarLoadControlNorm")[0])
    samples = g.add("KSampler", model=model[0], seed=SEED, steps=STEPS, cfg=7.0, sampler_name="euler", scheduler="normal", positive=found[0], negative=found[1],
                    latent_image=g.add("EmptyLatentImage")[0])
    g.add("SaveImage", "The picture", images=g.add("VAEDecode", samples=samples[0], vae=load[2])[0], filename_prefix=f"lodestar/{name}")
    return g


OWN = {"LodestarSideBySideCanvas": _side_by_side, "LodestarControlNorm": _control, "LodestarCorrFill": _corrfill, "LodestarFeatureCorrespondenceGuidance": _features, "LodestarDecoupledPrompt": _second, "LodestarAdapterAttentionShaping": _shaping,
       "LodestarSpatialPromptWeighting": dense}
