"""Examples of motion, time and hard bounds on the bundled models."""

from __future__ import annotations

from ._examples import SEED, SIZE, STEPS, Scene
from ._examples_weights import _box


def _black(g):
    return g.add("SolidMask", "An empty mask", value=0.0, width=SIZE, height=SIZE)[0]


def _sampler(scene, sampler, seed, name, title):
    g = scene.graph
    sigmas = g.add("BasicScheduler", model=scene.model, scheduler="normal", steps=STEPS)[0]
    samples = scene.custom(sampler, sigmas, g.add("RandomNoise", noise_seed=seed)[0])
    scene.save(samples, name, title)
    return samples


def _constraint(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: {definition.description} Here the right half may not be strongly red. Above with the bound, below without.", "a large red circle and a blue square")
    g = scene.graph
    half = _box(g, _black(g), SIZE // 2, 0, SIZE // 2, SIZE, "Where red is forbidden")
    model = g.add(definition.node_id, model=scene.model, upper="0.5, 1, 1", region=half)[0]
    scene.save(scene.sample(model, title="With the bound"), name, "With the bound")
    scene.save(scene.sample(title="Without it"), f"{name}_without", "Without it")
    return g


def _motion(definitions, definition, name):
    seed = SEED + 3
    scene = Scene(definitions, f"{definition.title}: {definition.description} A picture is made; what its mask marks is to move 40 pixels to the right. Above the moved picture, below the source, then the flow.", "a red circle")
    g = scene.graph
    samples = scene.sample(seed=seed, title="Makes the source")
    source = scene.decode(samples)
    mask = _box(g, _black(g), 12, 30, 66, 66, "What moves")
    flow = g.add("LodestarFlowFromMask", mask=mask, dx=40.0)
    loss = g.add("LodestarFlowMotionLoss", model=scene.model, image=source, flow=flow[0], vae=scene.vae)[0]
    _sampler(scene, g.add(definition.node_id, loss=loss, repeats=2, edit_mask=flow[2], latent=samples)[0], seed, name, "Moved")
    g.add("SaveImage", "The source", images=source, filename_prefix=f"lodestar/{name}_source")
    g.add("SaveImage", "The flow", images=g.add("LodestarShowFlow", flow=flow[0])[0], filename_prefix=f"lodestar/{name}_flow")
    return g


def _estimate(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: {definition.description} Two frames of a video by the demo model, and how the first becomes the second.", "a large red circle", model="video", batch=8)
    g = scene.graph
    video = scene.sample(title="Makes a video")
    first, second = (scene.decode(g.add("LatentFromBatch", title, samples=video, batch_index=i, length=1)[0]) for i, title in ((0, "The first frame"), (7, "The last frame")))
    network = g.add("LodestarLoadFlowNetwork")[0]
    flow = g.add(definition.node_id, network=network, first=first, second=second)[0]
    g.add("SaveImage", "The first frame", images=first, filename_prefix=f"lodestar/{name}_first")
    g.add("SaveImage", "The last frame", images=second, filename_prefix=f"lodestar/{name}_last")
    g.add("SaveImage", "The flow", images=g.add("LodestarShowFlow", flow=flow)[0], filename_prefix=f"lodestar/{name}")
    return g


def _frames(scene, count):
    """The latents of a batch of pictures that are taken for frames."""
    scene.latent = scene.graph.add("EmptyLatentImage", "Frames", width=SIZE, height=SIZE, batch_size=count)[0]


def _plain(scene, seed, name):
    _sampler(scene, scene.graph.add("KSamplerSelect", sampler_name="euler")[0], seed, f"{name}_without", "Plain")


def _source(scene, prompt, seed, title="Makes the picture"):
    positive = scene.graph.add("CLIPTextEncode", "Prompt of the picture", text=prompt, clip=scene.clip)[0]
    return scene.sample(positive=positive, seed=seed, title=title)


def _frame_guidance(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: {definition.description} The demo U-Net makes single pictures: three pictures of a batch stand for frames. The first one is to be a given key frame, and neighbours are to agree. Above guided, "
                  "below plain, then the key frame. Of a video take over = video.", "a red circle")
    g = scene.graph
    key = scene.decode(scene.sample(seed=SEED + 3, title="Makes the key frame"))
    _frames(scene, 3)
    target = g.add("LodestarTargetImageLoss", model=scene.model, image=key, vae=scene.vae, reduction="mean")[0]
    first = g.add("LodestarLossOfFrames", loss=target, frames="0", over="batch")[0]
    calm = g.add("LodestarFrameConsistencyLoss", model=scene.model, over="batch", space="latent", weight=10.0)[0]
    loss = g.add("LodestarCombineLosses", a=first, b=calm)[0]
    _sampler(scene, g.add(definition.node_id, loss=loss, rate=0.1, rounds=2)[0], SEED, name, "Guided")
    _plain(scene, SEED, name)
    g.add("SaveImage", "The key frame", images=key, filename_prefix=f"lodestar/{name}_key")
    return g


def _left(scene):
    return _box(scene.graph, _black(scene.graph), 0, 0, SIZE // 2, SIZE, "What is known")


def _reference(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: {definition.description} The demo U-Net makes single pictures: one stands for a frame. Its left half is known. Above guided, below plain, then the rendered frame.", "a red circle and a blue square")
    g = scene.graph
    known = scene.decode(_source(scene, "a red circle left of a blue square", SEED + 4, "Makes the rendered frame"))
    loss = g.add("LodestarReferenceSequenceLoss", model=scene.model, image=known, mask=_left(scene), vae=scene.vae)[0]
    _sampler(scene, g.add(definition.node_id, loss=loss, rho=1.0, eta=0.0)[0], SEED, name, "Guided")
    _plain(scene, SEED, name)
    g.add("SaveImage", "The rendered frame", images=known, filename_prefix=f"lodestar/{name}_reference")
    return g


def _observed(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: {definition.description} The left half of a picture is observed; there is no prompt, and the three pictures are led to three quantiles. Above led, below plain, then the observed picture.", "")
    g = scene.graph
    known = scene.decode(_source(scene, "a large red circle", SEED + 3))
    _frames(scene, 3)
    loss = g.add("LodestarQuantileLoss", model=scene.model, image=known, mask=_left(scene), space="latent", vae=scene.vae)[0]
    _sampler(scene, g.add(definition.node_id, loss=loss, scale=1.0)[0], SEED, name, "Led")
    _plain(scene, SEED, name)
    g.add("SaveImage", "The observed picture", images=known, filename_prefix=f"lodestar/{name}_observed")
    return g


def _sound(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: {definition.description} The bundled models make no sound: a picture stands for it, with time along its width, as ACE-Step's latents have it. Its first half is known and goes on in its manner. "
                  "Above continued, below plain, then the whole sound.", "a red circle and a blue square")
    g = scene.graph
    known = _source(scene, "a red circle left of a blue square", SEED + 4, "Makes the known sound")
    context = g.add("LodestarSoundContext", latent=scene.latent, sound=known, seconds=10.0, task="continuation", begin=5.0, fade=0.5)
    loss = g.add("LodestarSoundContextLoss", model=scene.model, context=context[0], known=context[1])[0]
    style = g.add("LodestarSoundStyleLoss", model=scene.model, latent=known)[0]
    spectra = g.add("LodestarSpectralSoundLoss", model=scene.model, latent=known, vae=scene.vae)[0]
    manner = g.add("LodestarCombineLosses", "Timbre and spectra", a=style, b=spectra, weight_b=0.1)[0]
    loss = g.add("LodestarCombineLosses", "What is known, and how it sounds", a=loss, b=manner)[0]
    _sampler(scene, g.add(definition.node_id, loss=loss, scale=1.0, eta=0.0, context=context[0], known=context[1])[0], SEED, name, "Continued")
    _plain(scene, SEED, name)
    scene.save(known, f"{name}_known", "The known sound")
    return g


OWN = {
    "LodestarEstimateFlow": _estimate,
    "LodestarFrameGuidance": _frame_guidance,
    "LodestarReferenceSequenceGuidance": _reference,
    "LodestarObservationSelfGuidance": _observed,
    "LodestarSoundGuidance": _sound,
    "LodestarMotionGuidance": _motion,
    "LodestarValueConstraint": _constraint,
}
