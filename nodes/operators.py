"""A node for each measurement operator."""
from ..guidance.inverse.operators import OPERATORS
from ._define import NodeDef, Output, about, inputs_of


def _node(cls):
    def run(**values):
        return (cls(**values).validate(),)
    return NodeDef(**about(cls), inputs=inputs_of(cls), run=run, outputs=(Output("LODESTAR_OPERATOR", "operator", "For Apply Operator and Measurement."),))


NODES = tuple(map(_node, OPERATORS))
