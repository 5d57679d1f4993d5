"""Examples of the operators and of the samplers that restore pictures, on the bundled models: a picture is made, measured, and restored from its measurement."""

from __future__ import annotations

from ._examples import CFG, SEED, SIZE, Scene
from ._examples_weights import _box

STEPS = 20
PROMPT = "a large red circle left of a small green square"
HUB = "LodestarDiffusionPosteriorSampling"


class Restoration:
    """A picture, its measurement, and what becomes of it. `operator`: node id and values; a required MASK or IMAGE of it is drawn."""

    def __init__(self, definitions, definition, note, operator, noise=0.0, latent=False, **values):
        self.scene = scene = Scene(definitions, f"{definition.title}: {definition.description} {note}", prompt=PROMPT)
        self.graph, self.definition = scene.graph, definition
        made = scene.sample(title="Makes a picture")
        self.picture = scene.decode(made)
        self.operator = self.graph.add(operator, **self._sockets(definitions[operator], SIZE // 8 if latent else SIZE), **values)[0]
        if latent:
            degraded = self.graph.add("LodestarApplyOperatorToLatent", operator=self.operator, latent=made, noise=noise)[0]
            self.degraded = scene.decode(degraded)
            self.measurement = self.graph.add("LodestarMeasurement", operator=self.operator, latent=degraded, noise=noise)[0]
        else:
            self.degraded = self.graph.add("LodestarApplyOperator", operator=self.operator, image=self.picture, noise=noise)[0]
            self.measurement = self.graph.add("LodestarMeasurement", operator=self.operator, image=self.degraded, vae=scene.vae, noise=noise)[0]

    def _sockets(self, definition, size):
        wires, g, unit = {}, self.graph, size // 16
        for i in definition.inputs:
            if i.type == "MASK":
                wires[i.name] = _box(g, g.add("SolidMask", "What is known", value=0.0, width=size, height=size)[0], 8 * unit, 2 * unit, 6 * unit, 12 * unit, "What is missing")
            if i.type == "IMAGE":
                drawn = g.add("SolidMask", "The kernel", value=0.0, width=9, height=9)[0]
                drawn = _box(g, _box(g, drawn, 1, 4, 7, 1, "A stroke"), 4, 1, 1, 7, "Another stroke")
                wires[i.name] = g.add("MaskToImage", mask=drawn)[0]
        return wires

    def restore(self, sampler, steps=STEPS, cfg=CFG):
        scene, g = self.scene, self.graph
        sigmas = g.add("BasicScheduler", model=scene.model, scheduler="normal", steps=steps)[0]
        return scene.custom(sampler, sigmas, g.add("RandomNoise", noise_seed=SEED + 1)[0], cfg=cfg)

    def save(self, samples, name):
        g = self.graph
        g.add("SaveImage", "The picture", images=self.picture, filename_prefix=f"lodestar/{name}_picture")
        g.add("SaveImage", "What was measured", images=self.degraded, filename_prefix=f"lodestar/{name}_measured")
        self.scene.save(samples, name, "Restored")
        return g


ORDER = "The picture, what was measured of it, and what came back."


def _operator(scale=0.5, noise=0.0, **values):
    """Restored by Manifold Preserving Guidance, or by RED-diff where `scale` is None."""
    def make(definitions, definition, name):
        made = Restoration(definitions, definition, ORDER, definition.node_id, noise, **values)
        kind, given = ("LodestarREDdiff", {"inner": 2}) if scale is None else ("LodestarManifoldPreservingGuidance", {"scale": scale})
        return made.save(made.restore(made.graph.add(kind, measurement=made.measurement, **given)[0]), name)
    return make


def _solver(operator="LodestarInpaintingOperator", noise=0.0, latent=False, steps=STEPS, given=None, **values):
    def make(definitions, definition, name):
        made = Restoration(definitions, definition, ORDER, operator, noise, latent, **(given or {}))
        sampler = made.graph.add(definition.node_id, measurement=made.measurement, **values)[0]
        return made.save(made.restore(sampler, steps), name)
    return make


def _dps(definitions, definition, name):
    made = Restoration(definitions, definition, ORDER + " The last one is by Universal Guidance, from the same measurement.", "LodestarInpaintingOperator", 0.02)
    sampler = made.graph.add(definition.node_id, measurement=made.measurement)[0]
    graph = made.save(made.restore(sampler), name)
    loss = made.graph.add("LodestarMeasurementLoss", model=made.scene.model, measurement=made.measurement)[0]
    model = made.graph.add("LodestarUniversalGuidance", model=made.scene.model, loss=loss, scale=0.5)[0]
    made.scene.save(made.scene.sample(model, seed=SEED + 1), f"{name}_universal", "By Universal Guidance")
    return graph


OWN = {
    "LodestarInpaintingOperator": _operator(),
    "LodestarSuperResolutionOperator": _operator(None, factor=8),
    "LodestarGaussianBlurOperator": _operator(None, sigma=5.0),
    "LodestarMotionBlurOperator": _operator(None, length=25.0, angle=30.0),
    "LodestarKernelBlurOperator": _operator(None),
    "LodestarColourisationOperator": _operator(1.0),
    "LodestarRandomProjectionOperator": _operator(share=0.1),
    "LodestarWaveletOperator": _operator(None, levels=3),
    "LodestarMissingTracesOperator": _operator(share=0.7),
    "LodestarJPEGOperator": _operator(1.0, quality=5),
    "LodestarQuantisationOperator": _operator(1.0, levels=2),
    "LodestarLowLightOperator": _operator(2.0, gain=0.2, noise=0.02),
    HUB: _dps,
    "LodestarLossGuidedDiffusion": _solver("LodestarSuperResolutionOperator", given={"factor": 8}, samples=4, scale=8.0),
    "LodestarPseudoinverseGuidance": _solver("LodestarSuperResolutionOperator", latent=True, noise=0.1, given={"factor": 2}),
    "LodestarNullSpaceSampler": _solver(latent=True),
    "LodestarManifoldPreservingGuidance": _solver("LodestarGaussianBlurOperator", given={"sigma": 5.0}, scale=1.0),
    "LodestarLatentPosteriorSampling": _solver("LodestarInpaintingOperator"),
    "LodestarREDdiff": _solver("LodestarSuperResolutionOperator", steps=60, given={"factor": 8}),
    "LodestarReSample": _solver("LodestarSuperResolutionOperator", given={"factor": 8}),
    "LodestarRePaint": _solver("LodestarInpaintingOperator"),
}
