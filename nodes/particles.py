"""The particle samplers, what they report, and losses that give values only."""
from ..guidance.loss.blackbox import JpegSize, QRReadable
from ..guidance.particles.enkg import EnsembleKalmanGuidance
from ..guidance.particles.fkc import FeynmanKacCorrector
from ..guidance.particles.free2guide import Free2Guide
from ..guidance.particles.steering import ParticleSteering
from ..guidance.particles.svdd import SVDD
from ._define import Input, NodeDef, Output, Shown, about, category, inputs_of
from .losses import TYPE, _node as loss_node

SERVES = ParticleSteering.node_id
RECORD = "LODESTAR_PARTICLES"
_SAMPLER = Output("SAMPLER", "sampler", "For SamplerCustom and SamplerCustomAdvanced.")
_RECORD = Output(RECORD, "record", "What the run does, for the Particle Plot.")


def _made(cls, values):
    from ..guidance.particles.swarm import Record
    method, record = cls(**values).validate(), Record()
    from ..guidance.host.sampler_particles import sampler
    return sampler(method.recording(record)), record


def _sampler(cls):
    return NodeDef(**about(cls), inputs=inputs_of(cls), run=lambda **values: _made(cls, values), outputs=(_SAMPLER, _RECORD))


def _corrector(model, **values):
    from ..guidance.host.attach import attach
    store = {}
    sampler, record = _made(FeynmanKacCorrector, {**values, "store": store})
    method = FeynmanKacCorrector(**values, store=store)
    return model if method.neutral() and method.eta == 0 else attach(model, method.ingredients), sampler, record


def _plot(record, latent):
    import numpy
    import torch

    from ..guidance.particles.plot import plot
    sheet = torch.from_numpy(numpy.asarray(plot(record).convert("RGB")).copy()).float()[None] / 255
    text = record.words()
    return Shown((sheet, text), text)


def _blind(loss):
    from ..guidance.loss.blackbox import ValuesOnly
    return (ValuesOnly(loss),)


NODES = (
    *map(_sampler, (ParticleSteering, SVDD, Free2Guide, EnsembleKalmanGuidance)),
    NodeDef(
        **about(FeynmanKacCorrector),
        inputs=(Input("model", "MODEL", "The model that samples."), *inputs_of(FeynmanKacCorrector)),
        outputs=(Output("MODEL", "model", "The same model, which hands its single predictions to the sampler: connect it to the guider."), _SAMPLER, _RECORD),
        run=_corrector),
    NodeDef(
        node_id="LodestarParticlePlot",
        title="Particle Plot",
        category=category("particles"),
        description="Draws what a particle sampler did: effective numbers, descendants, losses.",
        inputs=(Input("record", RECORD, "From a particle sampler."), Input("latent", "LATENT", "The sampler's output: makes sure that the plot is drawn after the run.")),
        outputs=(Output("IMAGE", "image", "Curves over the steps, one for each of the first pictures."), Output("STRING", "summary", "The same in words.")),
        run=_plot,
        aliases=("ESS", "effective sample size", "ancestors"),
        part_of=SERVES,
        help="""Effective number: 1 / sum of squared weights: as many particles as there are, where all weigh the same; 1 where one has all the weight. Descendants: how many of the first particles
still have offspring: with few left, the others explored in vain; lower the strength, or weigh later. Losses: the best and the mean at each weighing.

The record is that of the last run of the sampler's node.
"""),
    loss_node(JpegSize, SERVES),
    loss_node(QRReadable, SERVES),
    NodeDef(
        node_id="LodestarLossWithoutGradient",
        title="Loss without Gradient",
        category=category("loss"),
        description="A loss as values only, as a black box would give them.",
        inputs=(Input("loss", TYPE, "Any loss."),),
        outputs=(Output(TYPE, "loss", "The same loss; samplers that need a gradient refuse it."),),
        run=_blind,
        part_of=SERVES,
        aliases=("black box", "detach"),
        help="""Particle samplers never use gradients, with or without this node. It makes sure that nothing else does, and shows what steering by values alone can do with a loss whose gradient is known.
""",
    ),
)
