"""One definition of a node, and what the host takes: a V3 class where it has comfy_api, else a V1 class."""
from __future__ import annotations

import dataclasses
import inspect
from typing import Any, Callable

from ..guidance.frozen import frozen
from ..guidance.method import Edit, Finish, Gate, Rule, Steer, Term

PREFIX = "Lodestar"
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
STAGES = (Gate, Rule, Edit, Term, Steer, Finish)      # what can be attached to a MODEL


@frozen
class Input:
    """A socket (any type name of the host) or a widget (one of WIDGETS). A widget that is optional takes its default where it is left out."""

    name: str
    type: str
    tooltip: str = ""
    default: Any = None
    min: float | None = None
    max: float | None = None
    step: float | None = None
    choices: tuple = ()
    optional: bool = False
    advanced: bool = False
    label: str | None = None
    multiline: bool = False

    @property
    def options(self):
        """The entries of a menu; `choices` may be a function that looks them up."""
        return list(self.choices() if callable(self.choices) else self.choices)

    @property
    def widget(self):
        return self.type in WIDGETS


@frozen
class Output:
    type: str
    name: str
    tooltip: str = ""


@frozen
class Shown:
    """What `run` may return in place of a tuple: the outputs, and a text that is shown on the node."""

    outputs: tuple
    text: str


@frozen
class NodeDef:
    """A node. `run(**inputs)` gives the tuple of outputs. `method` is the method class whose docstring is its help; `part_of` the node id of the
    method that it serves, where that is another node's."""

    node_id: str
    title: str
    category: str
    description: str
    inputs: tuple
    outputs: tuple
    run: Callable
    output_node: bool = False
    aliases: tuple = ()
    help: str = ""
    method: Any = None
    part_of: str = ""

    def ordered(self):
        """The inputs as the host orders them: the required ones first."""
        return tuple(i for i in self.inputs if not i.optional) + tuple(i for i in self.inputs if i.optional)

    def call(self, given):
        """`run` with the defaults of what was left out; (outputs, text or None)."""
        values = {i.name: i.default for i in self.inputs if i.optional}
        result = self.run(**{**values, **given})
        return (result.outputs, result.text) if isinstance(result, Shown) else (result, None)


def category(family):
    return f"{PREFIX}/{family[:1].upper()}{family[1:]}"


def summary(cls):
    """The first sentence or line of a class's docstring, as one line."""
    text = inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0]
    return " ".join(text.split())


def input_of(name, meta, default):
    """The Input of one field of a method (made by guidance.method's param or socket)."""
    if "socket" in meta:
        return Input(name, meta["socket"], meta["tip"], optional=bool(meta["optional"]))
    common = dict(tooltip=meta["tip"], default=default, advanced=bool(meta["advanced"]), optional=bool(meta["advanced"]), label=meta["label"])
    if meta["choices"] is not None:
        return Input(name, "COMBO", choices=tuple(meta["choices"]), **common)
    kind = {bool: "BOOLEAN", int: "INT", float: "FLOAT", str: "STRING"}[type(default)]
    limits = dict(min=meta["low"], max=meta["high"], step=meta["step"]) if kind in ("INT", "FLOAT") else {}
    return Input(name, kind, **limits, **common)


def inputs_of(cls):
    """The Inputs of a method's fields, in order."""
    return tuple(input_of(f.name, f.metadata, f.default) for f in dataclasses.fields(cls) if f.metadata)


def about(cls):
    """The parts of a NodeDef that a method class says itself."""
    return dict(node_id=cls.node_id, title=cls.title, category=category(cls.family), description=summary(cls), aliases=tuple(cls.aliases), method=cls)


def node_of(cls):
    """The node of a method: MODEL in, the fields, MODEL out."""
    def run(model, **values):
        from ..guidance.host.attach import attach
        return (attach(model, cls(**values).validate()),)

    inputs = (Input("model", "MODEL", "The model to guide."), *inputs_of(cls))
    return NodeDef(**about(cls), inputs=inputs, outputs=(Output("MODEL", "model", "The model with this method added."),), run=run)


def attachable(cls):
    return issubclass(cls, STAGES)


def _present(**options):
    return {k: v for k, v in options.items() if v not in (None, "", ()) and v is not False}


def _known(function, options):
    """The options that this host's version of a class takes."""
    names = inspect.signature(function).parameters
    return {k: v for k, v in options.items() if k in names}


# V3

def _v3_input(i, io):
    options = _present(display_name=i.label, optional=i.optional, tooltip=i.tooltip, advanced=i.advanced)
    if not i.widget:
        kind = io.Custom(i.type).Input
        return kind(i.name, **_known(kind, options))
    kind = {"INT": io.Int, "FLOAT": io.Float, "STRING": io.String, "BOOLEAN": io.Boolean, "COMBO": io.Combo}[i.type].Input
    options |= {"default": i.default}
    if i.type in ("INT", "FLOAT"):
        options |= {k: v for k, v in dict(min=i.min, max=i.max, step=i.step).items() if v is not None}
    if i.type == "COMBO":
        options["options"] = i.options
    if i.multiline:
        options["multiline"] = True
    return kind(i.name, **_known(kind, options))


def v3_class(definition, io):
    """The node as a class of comfy_api's io.ComfyNode."""
    def define_schema(cls):
        return io.Schema(**_known(io.Schema, _present(
            node_id=definition.node_id, display_name=definition.title, category=definition.category, description=definition.description,
            search_aliases=list(definition.aliases) or None, is_output_node=definition.output_node,
            inputs=[_v3_input(i, io) for i in definition.inputs],
            outputs=[io.Custom(o.type).Output(**_present(display_name=o.name, tooltip=o.tooltip)) for o in definition.outputs])))

    def execute(cls, **values):
        outputs, text = definition.call(values)
        return io.NodeOutput(*outputs, **({} if text is None else {"ui": {"text": (text,)}}))

    made = type(definition.node_id, (io.ComfyNode,), {
        "__module__": __name__, "__doc__": definition.description, "define_schema": classmethod(define_schema), "execute": classmethod(execute)})
    made.GET_SCHEMA()       # so that a faulty definition fails here, alone
    return made


# V1

def _v1_input(i):
    options = _present(tooltip=i.tooltip, advanced=i.advanced)
    if i.widget:
        options["default"] = i.default
    if i.type in ("INT", "FLOAT"):
        options |= {k: v for k, v in dict(min=i.min, max=i.max, step=i.step).items() if v is not None}
    if i.multiline:
        options["multiline"] = True
    return (i.options if i.type == "COMBO" else i.type, options)


def v1_class(definition):
    """The node as a plain class with INPUT_TYPES."""
    def input_types(cls):
        groups = {"required": {i.name: _v1_input(i) for i in definition.inputs if not i.optional}}
        optional = {i.name: _v1_input(i) for i in definition.inputs if i.optional}
        return groups | ({"optional": optional} if optional else {})

    def execute(self, **values):
        outputs, text = definition.call(values)
        return outputs if text is None else {"ui": {"text": (text,)}, "result": outputs}

    made = type(definition.node_id, (), {
        "__module__": __name__, "__doc__": definition.description, "INPUT_TYPES": classmethod(input_types), "execute": execute, "FUNCTION": "execute",
        "RETURN_TYPES": tuple(o.type for o in definition.outputs), "RETURN_NAMES": tuple(o.name for o in definition.outputs),
        "OUTPUT_TOOLTIPS": tuple(o.tooltip for o in definition.outputs), "CATEGORY": definition.category, "DESCRIPTION": definition.description,
        "OUTPUT_NODE": definition.output_node, "SEARCH_ALIASES": list(definition.aliases)})
    made.INPUT_TYPES()
    return made
