"""Putting a method on a MODEL."""
import dataclasses

from ..engine import Pipeline
from ..layers import select
from ..method import BadInput, ModelRef, Prompt
from . import features
from .facts import Facts

KEY = "lodestar"


def pipeline_of(patcher):
    """The Pipeline on a MODEL (an empty one where there is none)."""
    return patcher.model_options.get(KEY) or Pipeline()


def attach(patcher, method, alone=False):
    """A clone of the MODEL with one more method; a plain clone where the method's parameters switch it off. `alone`: without the methods that are on it.

    Raises BadInput, LayerError or RuleConflict for what cannot work on this model, at the node rather than in the sampler.
    """
    method.validate()
    clone = patcher.clone()
    if method.neutral():
        return clone
    _check_layers(patcher, method)
    facts = Facts(patcher)
    if method.planar and facts.dimensions < 2:
        raise BadInput(method.title, "model", facts.network, "It works on the height and width of pictures and videos; what this model samples has only one axis.")
    method = method.fitted(facts)
    clone.model_options[KEY] = (Pipeline() if alone else pipeline_of(patcher)).add(method)
    if features.wrappers():
        from . import runs
        runs.install(clone)
    else:
        from . import legacy
        legacy.install(clone)
        if getattr(method, "uses_negative", False):      # such a host leaves the negative prompt out at cfg 1 before we are asked
            clone.model_options["disable_cfg1_optimization"] = True
        # networks calls of this host see transformer_options only
        clone.model_options["transformer_options"] = {**clone.model_options.get("transformer_options", {}), KEY: clone.model_options[KEY]}
    return clone


def bare(patcher):
    """A clone of the MODEL without the methods of this pack; what others put on it stays."""
    clone = patcher.clone()
    clone.model_options = {k: v for k, v in clone.model_options.items() if k != KEY}
    options = clone.model_options.get("transformer_options", {})
    if KEY in options:
        clone.model_options["transformer_options"] = {k: v for k, v in options.items() if k != KEY}
    return clone


def models_of(pipeline):
    """The other MODELs that the methods of a pipeline refer to, each once, as ModelRefs."""
    return _wired(pipeline, "MODEL", ModelRef)


def prompts_of(pipeline):
    """The conditionings that the methods of a pipeline bring, each once, as Prompts."""
    carried = [p for m in pipeline.methods for p in getattr(m, "prompts", ())]
    return list(dict.fromkeys(_wired(pipeline, "CONDITIONING", Prompt) + carried))


def _wired(pipeline, kind, reference):
    found = []
    for method in pipeline.methods:
        for f in dataclasses.fields(method):
            value = getattr(method, f.name)
            if f.metadata.get("socket") == kind and value is not None and not isinstance(value, str):
                found.append(value if isinstance(value, reference) else reference(value))
    return list(dict.fromkeys(found))


def _check_layers(patcher, method):
    """Selectors are resolved once at the node, so that a wrong name is reported where it was typed."""
    for name in getattr(method, "selectors", ("layers",)):
        selector = getattr(method, name, None)
        if isinstance(selector, str) and selector:
            from .geometry import of_model
            select(of_model(patcher), selector, method.title)
