"""Nodes around ControlNets."""
from ..guidance.attention.control_norm import ControlNorm
from ._define import Input, NodeDef, Output, category


def _load(file):
    from ..guidance.attention.control_norm import parse
    from ..guidance.host.weight_files import load
    return (parse(load("Load ControlNorm", "file", file, "controlnet"), file),)


NODES = (NodeDef(
    node_id="LodestarLoadControlNorm",
    title="Load ControlNorm",
    category=category("control"),
    description="Reads the projections of ControlNorm from a safetensors file in models/controlnet.",
    inputs=(Input("file", "STRING", "Name of the file in models/controlnet, with its folder where it lies in one.", "controlnorm.safetensors"),),
    outputs=(Output("LODESTAR_CONTROL_NORM", "weights", "For ControlNorm."),),
    run=_load,
    help="""Keys, C being the channels of the place and 2C rows of which the first C give gamma, the last C beta:

- middle.0.weight [2C, C] or [2C, C, 1, 1], middle.0.bias [2C]: the middle block
- output.I.weight, output.I.bias: the skip connection that enters output block I

Places may be left out; a bias that is left out is 0. gamma = 0 and beta = the residual (the lower half of the weight the identity) is a ControlNet as usual.
""",
    part_of=ControlNorm.node_id,
),)
