"""Terms of Self-Guidance: which property of which things is to become what."""
from __future__ import annotations

import dataclasses

from ..guidance.attention.properties import PropertyTerm
from ._define import Input, NodeDef, Output, category, inputs_of

TYPE = "LODESTAR_PROPERTIES"


def _term(terms=None, **values):
    import torch
    values = {("kind" if k == "property" else k): v for k, v in values.items()}
    if values.get("mask") is not None:
        with torch.inference_mode(False):      # a gradient goes past it
            values["mask"] = values["mask"].clone()
    return ((*(terms or ()), PropertyTerm(**values).check()),)


def _inputs():
    """The fields, `kind` under the name that users see."""
    return tuple(dataclasses.replace(i, name="property", label=None) if i.name == "kind" else i for i in inputs_of(PropertyTerm))


NODES = (NodeDef(
    node_id="LodestarSelfGuidanceTerm",
    title=PropertyTerm.title,
    category=category("loss"),
    description="What things of a prompt are to be like: their place, size, shape or looks; terms are chained.",
    inputs=(*_inputs(), Input("terms", TYPE, "Terms that come before this one; chain the nodes for several.", optional=True)),
    outputs=(Output(TYPE, "terms", "The terms before this one, and this one; for Self-Guidance."),),
    run=_term,
    aliases=("move object", "resize object", "keep shape", "copy appearance"),
    part_of="LodestarSelfGuidance",
    help="""    E = weight |property - target|_1        several phrases: their mean

- position: the middle of the attention to the words. value: at (x, y), from left and top. reference: its place there, moved by (x, y).
- size: the share of the picture that their soft mask covers, soft edges included. value: `size`. reference: its size times `size`, so 1 keeps it and 2 doubles it.
- shape: the soft mask itself. value: `mask`. reference: its shape there, at its place.
- appearance: the features under the soft mask, from the reference alone.

To move one thing and leave the rest, give the rest shape and appearance terms with the reference.
"""),)
