"""Examples of degraded pictures that are made of clean ones."""

from __future__ import annotations

from ._examples import SEED, STEPS, Scene

PICTURE = "a large red circle left of a small green square"


def _synthesis(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: {definition.description} Asked for are haze of two strengths and rain; what came out is measured under each. The bundled weights are of a short training: they draw the clean picture's things on its own ground, rain and snow (as specks for other kinds too), hardly haze or blur; the level follows what is asked for roughly (12 pictures: correlation of the means 0.53, without a level -0.29).", PICTURE)
    g = scene.graph
    clean = scene.decode(scene.sample(title="Makes a clean picture"))
    g.add("SaveImage", "The clean picture", images=clean, filename_prefix=f"lodestar/{name}_clean")
    load = g.add("LodestarLoadDemoModel", "The model that degrades", model="degrading")
    model, clip, vae = load[0], load[1], load[2]
    generator = g.add("LodestarLoadDegradationGenerator")[0]
    for kind, mean, deviation, end in (("haze", 0.3, 0.1, ""), ("haze", 0.12, 0.05, "_weak"), ("rain", 0.03, 0.1, "_rain")):
        made = g.add(definition.node_id, f"{kind}, mean {mean}", model=model, clip=clip, vae=vae, generator=generator, image=clean, text=PICTURE, degradation=kind, mean=mean, deviation=deviation)
        latent = g.add("KSampler", model=made[0], positive=made[1], negative=made[2], latent_image=made[3], seed=SEED, steps=STEPS, cfg=2.0, sampler_name="euler", scheduler="normal")[0]
        image = g.add("VAEDecode", samples=latent, vae=vae)[0]
        if kind == "haze":      # its edges are the scene's own
            network = g.add("LodestarLoadStructureCorrection")[0] if not end else network
            image = g.add("LodestarStructureCorrection", clean=clean, degraded=image, network=network)[0]
        g.add("SaveImage", f"{kind}, mean {mean}", images=image, filename_prefix=f"lodestar/{name}{end}")
        g.add("LodestarMeasureDegradationLevel", f"What came out of {mean}, {deviation}", clean=clean, degraded=image)
    return g


OWN = {"LodestarDegradationSynthesis": _synthesis}
