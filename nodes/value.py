"""SVDD-MC: value functions, their training and files, and the sampler that asks them."""
from __future__ import annotations

from ..guidance.particles.learned_value import LearnedValueDecoding
from ..guidance.training.value import TrainValueFunction
from ._define import Input, NodeDef, Output, Shown, about, category, inputs_of
from ._kept import reader, written
from .particles import _sampler

VALUE = "LODESTAR_VALUE"
SERVES = LearnedValueDecoding.node_id
LOADER = "Load Value Function"
BUNDLED = "bundled: contrast of the demo scenes"


def _train(model, **values):
    method = TrainValueFunction(**values).validate()
    from ..guidance.host.examples import train
    function, report = train(method, model)
    kind = "mean of the returns" if method.temperature == 0 else f"soft value, temperature {method.temperature:g}"
    text = f"{len(method.examples)} examples, return {function.middle:.4g} +- {function.unit:.4g}; {kind}\n" + "\n".join(
        f"correlation with the return at {100 * p:.0f} % of the schedule: {v:.2f}" for p, v in report.items())
    return Shown((function, text), text)


def _parse():
    from ..guidance.training.value import parse
    return parse


_files, _load = reader(LOADER, {BUNDLED: "value_contrast"}, _parse)


def _save(value, prefix):
    return written("Save Value Function", value, prefix, "value function")


_VALUE = Output(VALUE, "value", "For SVDD Sampler with Learned Value.")

NODES = (
    _sampler(LearnedValueDecoding),
    NodeDef(
        **about(TrainValueFunction),
        inputs=(Input("model", "MODEL", "The model of these latents: their scale, and the noise schedule."), *inputs_of(TrainValueFunction)),
        outputs=(_VALUE, Output("STRING", "report", "How well it agrees with the returns of examples that were kept aside.")), run=_train),
    NodeDef(
        node_id="LodestarLoadValueFunction", title=LOADER, category=category("training"),
        description="Reads a value function from a safetensors file in models/lodestar.",
        inputs=(Input("file", "COMBO", "A file of models/lodestar, or the small one that comes with the pack.", BUNDLED, choices=_files),), outputs=(_VALUE,), run=_load, part_of=SERVES,
        help="""Files are those of Save Value Function, moved to models/lodestar. Keys:

- experts.0.*: the network, as Load Noise-Aware Classifier describes it, with one number as its answer
- edges [2], values [1]: 0 to 1, and 0
- scale [3]: middle, unit, temperature; the value is middle + unit times the network's answer

The bundled file tells how much contrast the scene of a noisy latent will have (standard deviation over the pixels), in latents of both demo models; it was trained by demo/train_value.py.
"""),
    NodeDef(
        node_id="LodestarSaveValueFunction", title="Save Value Function", category=category("training"),
        description="Writes a value function as a safetensors file into the output folder.",
        inputs=(Input("value", VALUE, "From Train Value Function."), Input("prefix", "STRING", "Name of the file in the output folder; a number is added.", "lodestar/value")),
        outputs=(Output("STRING", "path", "Where it was written."),), run=_save, output_node=True, part_of=SERVES,
        help="Half precision. Move the file to models/lodestar to load it again.\n"),
)
