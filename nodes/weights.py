"""Nodes that read weight files of methods."""
from ..guidance.attention.easycontrol import EasyControl
from ._define import Input, NodeDef, Output, category

OUTLINES = "bundled: outlines, for the demo flow model"


def _lora_files():
    from ..guidance.host.weight_files import names
    return [OUTLINES, *names("loras")]


def _condition_lora(file, number):
    from ..guidance.attention.condition_lora import parse
    title = "Load Condition LoRA"
    if file == OUTLINES:
        from ..demo.weights_file import read
        return (parse(read("condition_outlines"), title, "file", OUTLINES, number),)
    from ..guidance.host.weight_files import load
    return (parse(load(title, "file", file, "loras"), title, "file", file, number),)


NODES = (NodeDef(
    node_id="LodestarLoadConditionLora",
    title="Load Condition LoRA",
    category=category("attention"),
    description="Reads the LoRA of a condition branch (EasyControl) from a safetensors file in models/loras.",
    inputs=(Input("file", "COMBO", "A file of models/loras in EasyControl's layout, or the small one that comes with the pack.", OUTLINES, choices=_lora_files),
            Input("number", "INT", "Which condition of the file, where it holds several.", 0, 0, 15, 1, optional=True, advanced=True)),
    outputs=(Output("LODESTAR_CONDITION_LORA", "lora", "For EasyControl."),),
    run=_condition_lora,
    help="""Files as the authors publish them (canny, depth, pose, seg, hedsketch, inpainting, subject ... for Flux) are read as they are. N is the number of the condition in the file, 0 in files of one:

- transformer_blocks.I.attn.processor.{q,k,v,proj}_loras.N.{down,up}.weight: double block I
- single_transformer_blocks.I.attn.processor.{q,k,v}_loras.N.{down,up}.weight: single block I

down is [rank, width], up [width, rank]; there is no alpha, it equals the rank. An ordinary LoRA has other keys and is refused: it belongs to Load LoRA.

The bundled file steers the demo flow model ("dit") by outlines: white lines, about three pixels wide, on black. It was trained by demo/train_condition.py.
""",
    part_of=EasyControl.node_id,
),)
