"""Examples of the particle samplers and of losses that give values only, on the bundled models."""

from __future__ import annotations

from ._examples import CFG, SEED, SIZE, STEPS, Scene
from ._examples_inverse import Restoration
from ._examples_loss import RED


class Steered:
    """A prompt with its plain ancestral picture, and the nodes that steer it."""

    def __init__(self, definitions, note, prompt="a red circle and a blue square", steps=STEPS, cfg=CFG, seed=SEED):
        self.scene = scene = Scene(definitions, note, prompt)
        self.g, self.cfg = scene.graph, cfg
        self.sigmas = self.g.add("BasicScheduler", model=scene.model, scheduler="normal", steps=steps)[0]
        self.noise = self.g.add("RandomNoise", noise_seed=seed)[0]

    def loss(self, node_id, title=None, **values):
        if values.get("space", "rgb") == "rgb":
            values["vae"] = self.scene.vae
        return self.g.add(node_id, title, model=self.scene.model, **values)[0]

    def sample(self, sampler, name, title, model=None, cfg=None):
        samples = self.scene.custom(sampler, self.sigmas, self.noise, model, cfg=self.cfg if cfg is None else cfg)
        self.scene.save(samples, name, title)
        return samples

    def finish(self, sampler, record, name, title="Steered", model=None):
        samples = self.sample(sampler, name, title, model)
        plain = self.g.add("KSamplerSelect", sampler_name="euler_ancestral")[0]
        self.sample(plain, f"{name}_without", "Plain, ancestral")
        sheet = self.g.add("LodestarParticlePlot", record=record, latent=samples)[0]
        self.g.add("SaveImage", "What the particles did", images=sheet, filename_prefix=f"lodestar/{name}_plot")
        return self.g


def _placed(made):
    """Something red to the right below, as values only."""
    shape = made.loss("LodestarColouredShapeLoss", "Something red, right below", space="small", shape=0.0, place=1.0, x=0.75, y=0.75, **RED)
    return made.g.add("LodestarLossWithoutGradient", loss=shape)[0]


def _steering(definitions, definition, name):
    made = Steered(definitions, f"{definition.title}: {definition.description} Here something red is to be right below, and the loss gives values only. Above steered, below plain; then what the particles did.")
    sampler = made.g.add(definition.node_id, loss=_placed(made), particles=8, strength=50.0, every=2)
    return made.finish(sampler[0], sampler[1], name)


def _svdd(definitions, definition, name):
    made = Steered(definitions, f"{definition.title}: {definition.description} Here the picture is to be a small JPEG file. Above steered, below plain; then the losses of the candidates.", "a red circle and a blue square")
    sampler = made.g.add(definition.node_id, loss=made.loss("LodestarJPEGSizeLoss"), candidates=6)
    return made.finish(sampler[0], sampler[1], name)


def _free(definitions, definition, name):
    made = Steered(definitions, f"{definition.title}: {definition.description} Two judges: something red is to be right below, and the picture is to have little grain. Above steered, below plain.")
    calm = made.loss("LodestarTotalVariationLoss", space="small")
    sampler = made.g.add(definition.node_id, loss=_placed(made), second=calm, how="consensus", candidates=8, steps=8)
    return made.finish(sampler[0], sampler[1], name)


def _kalman(definitions, definition, name):
    made = Restoration(definitions, definition, "Left the picture, then what was measured of it, and what came back. The operator writes a JPEG file: it has no gradient.", "LodestarJPEGOperator", quality=5, codec="real")
    sampler = made.graph.add(definition.node_id, measurement=made.measurement, particles=12)[0]
    return made.save(made.restore(sampler, steps=12, cfg=1.0), name)


def _corrector(definitions, definition, name):
    made = Steered(definitions, f"{definition.title}: {definition.description} Here CFG is corrected. Above corrected, below CFG with the ancestral sampler; then the effective number of particles.")
    corrector = made.g.add(definition.node_id, model=made.scene.model, guidance=CFG, particles=4)
    return made.finish(corrector[1], corrector[2], name, "Corrected", corrector[0])


def _readable(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: {definition.description} A code is sampled over; among the next states of each step the one is kept that a reader reads, and of those the one with the "
                  "fewest wrong modules. Above steered, below plain.", prompt="a large blue square on a yellow background", size=2 * SIZE)
    g = scene.graph
    code = g.add("LodestarQRCode", text="lodestar", width=2 * SIZE, height=2 * SIZE, level="M", module=8, quiet_zone=2)[0]
    scene.latent = g.add("VAEEncode", pixels=code, vae=scene.vae)[0]
    modules = g.add("LodestarQRCodeLoss", model=scene.model, image=code, quiet_zone=2, vae=scene.vae)[0]
    reads = g.add(definition.node_id, model=scene.model, text="lodestar", vae=scene.vae)[0]
    loss = g.add("LodestarCombineLosses", a=reads, b=modules, weight_b=10.0)[0]
    sigmas = g.add("BasicScheduler", model=scene.model, scheduler="normal", steps=10, denoise=0.1)[0]
    noise = g.add("RandomNoise", noise_seed=SEED)[0]
    found = scene.custom(g.add("LodestarSVDDSampler", loss=loss, candidates=6)[0], sigmas, noise)
    picture = scene.decode(found)
    g.add("SaveImage", "Steered", images=picture, filename_prefix=f"lodestar/{name}")
    scene.save(scene.custom(g.add("KSamplerSelect", sampler_name="euler_ancestral")[0], sigmas, noise), f"{name}_without", "Plain, ancestral")
    g.add("LodestarReadQRCode", image=picture, code=code)
    return g


OWN = {"LodestarParticleSteering": _steering, "LodestarSVDDSampler": _svdd, "LodestarFree2Guide": _free, "LodestarEnsembleKalmanGuidance": _kalman, "LodestarFeynmanKacCorrector": _corrector,
       "LodestarQRReadableLoss": _readable}
