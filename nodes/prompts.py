"""Methods that work on the words of a prompt, and encode it themselves."""
from __future__ import annotations

from dataclasses import replace

from ..guidance.attention.structured import StructuredDiffusionGuidance
from ._define import Input, NodeDef, Output, about, inputs_of

_MODEL = Input("model", "MODEL", "The model to guide.")
_CLIP = Input("clip", "CLIP", "The model's text encoder.")


def _structured(model, clip, **values):
    import uuid

    from ..guidance.attention.tokens import Words
    from ..guidance.host.attach import attach
    from ..guidance.host.geometry import of_model
    from ..guidance.host.text import encode
    from ..guidance.layers import JOINT_FAMILIES
    from ..guidance.method import BadInput
    method = StructuredDiffusionGuidance(**values).validate()
    conditioning = encode(clip, method.text)
    words = Words(clip, method.text, conditioning[0][0].shape[1], method.title)
    joint = of_model(model).family in JOINT_FAMILIES
    if joint and method.chosen == "keys":
        raise BadInput(method.title, "mode", method.mode, "This model's text takes part in joint attention, where keys cannot be replaced alone. Choose values.")
    mark = uuid.uuid4().hex
    method = method.with_texts(words, conditioning, lambda text: encode(clip, text)[0][0], mark)
    if joint:
        return model.clone(), [[method.texts[0].cond[0][0], d] for _, d in conditioning]
    return attach(model, method), [[t, {**d, "lodestar_prompt": mark}] for t, d in conditioning]


def _multiline(inputs, *names):
    return tuple(replace(i, multiline=i.name in names) for i in inputs)


NODES = (
    NodeDef(
        **about(StructuredDiffusionGuidance),
        inputs=(_MODEL, _CLIP, *_multiline(inputs_of(StructuredDiffusionGuidance), "text", "phrases")),
        outputs=(Output("MODEL", "model", "The model with this method added."), Output("CONDITIONING", "positive", "The prompt, for the sampler.")),
        run=_structured),
)
