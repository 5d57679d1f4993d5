"""Examples of exposures of a sensor, of learned values, and of a regulated spectrum."""

from __future__ import annotations

from ._examples import SEED, STEPS, Scene
from ._examples_heads import _many
from ._examples_particles import Steered

PICTURE = "a large red circle left of a small green square"


class Seen:
    """A picture and what an operator leaves of it."""

    def __init__(self, definitions, note, operator, **values):
        self.scene = scene = Scene(definitions, note, PICTURE)
        self.g = scene.graph
        self.picture = scene.decode(scene.sample(title="Makes a picture"))
        self.operator = self.g.add(operator, **values)[0]
        self.degraded = self.apply(self.operator, self.picture)

    def apply(self, operator, image, title=None):
        return self.g.add("LodestarApplyOperator", title, operator=operator, image=image)[0]

    def show(self, image, name, title):
        self.g.add("SaveImage", title, images=image, filename_prefix=f"lodestar/{name}")

    def measurement(self, noise=0.0):
        return self.g.add("LodestarMeasurement", operator=self.operator, image=self.degraded, vae=self.scene.vae, noise=noise)[0]

    def restored(self, sampler, name, title):
        sigmas = self.g.add("BasicScheduler", model=self.scene.model, scheduler="normal", steps=STEPS)[0]
        self.scene.save(self.scene.custom(sampler, sigmas, self.g.add("RandomNoise", noise_seed=SEED + 1)[0]), name, title)


def _exposed(definitions, definition, name):
    made = Seen(definitions, f"{definition.title}: {definition.description} The picture, what a sensor sees of it in a sixteenth of the time (brightened, so that it can be seen), and what comes back.",
                "LodestarSensorExposureOperator", ratio=16.0, photons=1000.0, read_noise=2.0)
    brightening = made.g.add("LodestarLowLightOperator", "To look at it: 16 times as bright", gain=16.0)[0]
    restored = made.g.add(definition.node_id, image=made.degraded, operator=made.operator, network=made.g.add("LodestarLoadExposureNetwork")[0], seed=SEED)
    made.show(made.picture, f"{name}_picture", "The picture")
    made.show(made.apply(brightening, made.degraded, "Brightened"), f"{name}_measured", "What was measured")
    made.show(restored[0], name, "Exposed on")
    return made.g


def _sensor(definitions, definition, name):
    made = Seen(definitions, f"{definition.title}: {definition.description} The picture, what a sensor sees of it in a quarter of the time, and what the Null-Space Sampler makes of that.",
                definition.node_id, ratio=4.0, photons=400.0, read_noise=2.0)
    made.show(made.picture, f"{name}_picture", "The picture")
    made.show(made.degraded, f"{name}_measured", "What was measured")
    made.restored(made.g.add("LodestarNullSpaceSampler", measurement=made.measurement(0.02))[0], name, "Restored")
    return made.g


def _valued(definitions, definition, name):
    made = Steered(definitions, f"{definition.title}: {definition.description} The value is how much contrast the picture will have. Above steered, below plain; then the values (negative) of the candidates.", "a circle and a square")
    value = made.g.add("LodestarLoadValueFunction")[0]
    sampler = made.g.add(definition.node_id, value=value, candidates=16)
    return made.finish(sampler[0], sampler[1], name)


def _learned(definitions, definition, name):
    made = Steered(definitions, f"{definition.title}: {definition.description} Here it learns from twelve pictures how small their JPEG files are, which is too few to change much: take hundreds. Above steered by it, below plain.")
    g = made.g
    examples = g.add("LodestarScoreLatentsByLoss", model=made.scene.model, latent=_many(made.scene, "a red circle and a blue square", 12), loss=made.loss("LodestarJPEGSizeLoss"))[0]
    value = g.add(definition.node_id, model=made.scene.model, examples=examples, steps=80, batch=12)[0]
    g.add("LodestarSaveValueFunction", value=value)
    sampler = g.add("LodestarLearnedValueSampler", value=value, candidates=8)
    return made.finish(sampler[0], sampler[1], name)


def _regulated(definitions, definition, name):
    """DifIISR: super-resolution led by a spectrum; below without it."""
    note = ("Here super-resolution with spectrum regulation (DifIISR): it takes the measurement, an eighth of the size, and a loss at once: the spectrum that the sensor is known to give, of another of its pictures. "
            "The measured picture, with the loss, and without: little changes, since the model draws such edges by itself. The authors' other term is a Feature Loss, which Combine Losses adds.")
    made = Seen(definitions, f"{definition.title}: {definition.description} {note}", "LodestarSuperResolutionOperator", factor=8)
    g, scene, measured = made.g, made.scene, made.measurement()
    other = scene.decode(scene.sample(seed=SEED + 5, title="Another picture of the sensor"))
    spectrum = g.add("LodestarSpectrumLoss", model=scene.model, image=other, vae=scene.vae, lowest=0.15, highest=1.0)[0]
    made.show(made.degraded, f"{name}_measured", "What was measured")
    made.restored(g.add(definition.node_id, measurement=measured, loss=spectrum, strength=100.0)[0], name, "With the spectrum")
    made.restored(g.add(definition.node_id, "Without the loss", measurement=measured)[0], f"{name}_without", "Without")
    return g


MORE = {"Spectrum-Regulated Super-Resolution": ("LodestarSteeredDiffusion", _regulated)}
OWN = {
    "LodestarExposureDiffusion": _exposed,
    "LodestarSensorExposureOperator": _sensor,
    "LodestarLearnedValueSampler": _valued,
    "LodestarTrainValueFunction": _learned,
}
