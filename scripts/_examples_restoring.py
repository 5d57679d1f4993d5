"""Examples of the further samplers that restore or are led by a loss, on the bundled models."""

from __future__ import annotations

from ._examples import CFG, SEED, SIZE, STEPS, Scene
from ._examples_inverse import ORDER, Restoration, _solver
from ._examples_loss import _given, _loss, _sampler
from ._examples_weights import _box

RED, BLUE, GRAY = 0xE61F24, 0x1F40D9, 0x808080
PALETTE = "#e61f24; #1f40d9; #808080; #f5f5f5; #0d0d0d"


def _labels(g):
    """A label map: a red square and a blue one on gray."""
    picture = g.add("EmptyImage", "Background", width=SIZE, height=SIZE, batch_size=1, color=GRAY)[0]
    for colour, x, y, side in ((RED, 16, 40, 48), (BLUE, 88, 56, 24)):
        source = g.add("EmptyImage", "A region", width=side, height=side, batch_size=1, color=colour)[0]
        picture = g.add("ImageCompositeMasked", "Put together", destination=picture, source=source, x=x, y=y, resize_source=False)[0]
    return picture


def _semantic(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: {definition.description} Above with the label map, below without.", "a large red square left of a small blue square")
    g = scene.graph
    labels = _labels(g)
    g.add("SaveImage", "The label map", images=labels, filename_prefix=f"lodestar/{name}_regions")
    loss = g.add("LodestarPaletteSegmentationLoss", model=scene.model, image=labels, palette=PALETTE, space="small")[0]
    sampler = g.add(definition.node_id, loss=loss, labels=labels, strength=5.0)[0]
    sigmas, noise = g.add("BasicScheduler", model=scene.model, scheduler="normal", steps=STEPS)[0], g.add("RandomNoise", noise_seed=SEED)[0]
    scene.save(scene.custom(sampler, sigmas, noise), name, "With the label map")
    scene.save(scene.custom(g.add("KSamplerSelect", sampler_name="euler")[0], sigmas, noise), f"{name}_without", "Plain")
    return g


def _adaptation(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: a picture with foreign texture is drawn anew in the model's own manner. The picture as it is given, and what comes out.", "a large red circle left of a small green square")
    g = scene.graph
    degraded = g.add("LodestarApplyOperator", "What is foreign to the model", operator=g.add("LodestarQuantisationOperator", levels=4)[0], image=scene.decode(scene.sample(title="Makes a picture")), noise=0.2)[0]
    g.add("SaveImage", "Given", images=degraded, filename_prefix=f"lodestar/{name}_measured")
    scene.latent = g.add("VAEEncode", pixels=degraded, vae=scene.vae)[0]
    sampler = g.add(definition.node_id, source=scene.latent, scale=1.0, factor=4)[0]
    sigmas = g.add("BasicScheduler", "From half of the noise", model=scene.model, scheduler="normal", steps=STEPS, denoise=0.5)[0]
    scene.save(scene.custom(sampler, sigmas, g.add("RandomNoise", noise_seed=SEED + 1)[0], cfg=1.0), name, "Drawn anew")
    return g


def _tractable(definitions, definition, name):
    made = Restoration(definitions, definition, ORDER + " The Gaussian is fitted to sixteen other pictures.", "LodestarInpaintingOperator")
    scene, g = made.scene, made.graph
    known, scene.latent = scene.latent, g.add("EmptyLatentImage", "Others", width=SIZE, height=SIZE, batch_size=16)[0]
    others = scene.sample(seed=SEED + 100, title="Makes other pictures")
    scene.latent = known
    posterior = g.add("LodestarFitGaussianPrior", model=scene.model, latent=others, components=8)[0]
    return made.save(made.restore(g.add(definition.node_id, measurement=made.measurement, posterior=posterior, rate=0.1, rounds=1)[0]), name)


def _masked(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: {definition.description} The right third may change fully, the middle by half, the left not at all.", "a large red circle left of a small green square")
    g = scene.graph
    source = scene.sample(title="Makes a picture")
    scene.save(source, f"{name}_picture", "The picture")
    change = g.add("SolidMask", "Nothing changes", value=0.0, width=SIZE, height=SIZE)[0]
    for value, x, width in ((0.5, 40, 44), (1.0, 84, 44)):
        part = g.add("SolidMask", f"By {value:g}", value=value, width=width, height=SIZE)[0]
        change = g.add("MaskComposite", "Change map", destination=change, source=part, x=x, y=0, operation="add")[0]
    g.add("SaveImage", "The change map", images=g.add("MaskToImage", mask=change)[0], filename_prefix=f"lodestar/{name}_regions")
    other = g.add("CLIPTextEncode", "What it becomes", text="a large red circle left of a small blue triangle", clip=scene.clip)[0]
    sigmas = g.add("BasicScheduler", model=scene.model, scheduler="normal", steps=STEPS)[0]
    scene.save(scene.custom(g.add(definition.node_id, source=source, mask=change)[0], sigmas, g.add("RandomNoise", noise_seed=SEED + 2)[0], positive=other), name, "Changed")
    return g


def _projection(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: {definition.description} Here pictures of coarse wavelets. Above with it, below plain.", "a large red circle left of a small green square")
    g = scene.graph
    operator = g.add("LodestarWaveletOperator", levels=3)[0]
    sigmas, noise = g.add("BasicScheduler", model=scene.model, scheduler="normal", steps=STEPS)[0], g.add("RandomNoise", noise_seed=SEED)[0]
    scene.save(scene.custom(g.add(definition.node_id, operator=operator, vae=scene.vae)[0], sigmas, noise), name, "Projected")
    scene.save(scene.custom(g.add("KSamplerSelect", sampler_name="euler")[0], sigmas, noise), f"{name}_without", "Plain")
    return g


def _blind(definitions, definition, name):
    made = Restoration(definitions, definition, ORDER + " Only that it was blurred along a line is known; the kernel that was found goes into a second, quick restoration.", "LodestarMotionBlurOperator", 0.01, length=25.0, angle=30.0)
    g = made.graph
    guess = g.add("LodestarMotionBlurOperator", "The first guess", length=9.0, angle=0.0)[0]
    measured = g.add("LodestarMeasurement", operator=guess, image=made.degraded, vae=made.scene.vae, noise=0.01)[0]
    blind = g.add(definition.node_id, measurement=measured, size=27)
    first = made.restore(blind[0])
    found = g.add("LodestarEstimatedDegradation", estimate=blind[1], latent=first)
    graph = made.save(first, name)
    g.add("SaveImage", "The kernel that was found", images=found[1], filename_prefix=f"lodestar/{name}_kernel_measured")
    known = g.add("LodestarMeasurement", operator=found[0], image=made.degraded, vae=made.scene.vae, noise=0.02)[0]
    made.scene.save(made.restore(g.add("LodestarNullSpaceSampler", measurement=known)[0]), f"{name}_again", "Restored again")
    return graph


def _searched(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: {definition.description} Above with what it found, below with the strengths it began with.", "a red circle and a blue square")
    g, chosen = scene.graph, {"colour": "#e61f24", "others": "#808080; #f5f5f5; #0d0d0d; #1f40d9", "space": "small"}
    loss = g.add("LodestarColouredShapeLoss", model=scene.model, **_given(scene, definitions["LodestarColouredShapeLoss"], chosen), **chosen)[0]
    begun = {"rho": 0.0, "mu": 4.0, "smoothing": 0.0, "iterations": 1}
    found = g.add(definition.node_id, model=scene.model, positive=scene.positive, negative=scene.negative, latent=scene.latent, loss=loss, steps=8, seeds=1, seed=SEED, rounds=2, beam=1, **begun)
    sigmas, noise = g.add("BasicScheduler", model=scene.model, scheduler="normal", steps=STEPS)[0], g.add("RandomNoise", noise_seed=SEED)[0]
    scene.save(scene.custom(found[0], sigmas, noise), name, "With what it found")
    scene.save(scene.custom(g.add("LodestarTrainingFreeGuidance", loss=loss, **begun)[0], sigmas, noise), f"{name}_without", "As begun")
    return g


OWN = {
    "LodestarSteeredDiffusion": _solver("LodestarSuperResolutionOperator", given={"factor": 8}),
    "LodestarDecoupledPosteriorSampling": _solver(latent=True, noise=0.05, ahead=3),
    "LodestarSpectralSampler": _solver("LodestarGaussianBlurOperator", latent=True, noise=0.05, given={"sigma": 1.0}),
    "LodestarDegradationAwareSampler": _solver("LodestarSuperResolutionOperator", given={"factor": 4}, scale=0.5),
    "LodestarDiffusionDrivenAdaptation": _adaptation,
    "LodestarTractableSteering": _tractable,
    "LodestarMaskedSampler": _masked,
    "LodestarEstimateProjection": _projection,
    "LodestarBlindPosteriorSampling": _blind,
    "LodestarFreeDoM": _sampler(scale=1.0),
    "LodestarSemanticGradientGuidance": _semantic,
    "LodestarTrainingFreeGuidanceSearch": _searched,
    "LodestarPaletteSegmentationLoss": _loss(scale=1.0, prompt="a large circle", space="small", palette="#e61f24; #1f40d9; #f2d91a; #2ca02c; #808080; #f5f5f5; #0d0d0d"),
    "LodestarMultiscaleStructureLoss": _loss(scale=2.0, prompt="a large circle"),
}
