"""Putting a method on a MODEL."""
from ..engine import Pipeline
from ..layers import select
from . import features

KEY = "lodestar"


def pipeline_of(patcher):
    """The Pipeline on a MODEL (an empty one where there is none)."""
    return patcher.model_options.get(KEY) or Pipeline()


def attach(patcher, method):
    """A clone of the MODEL with one more method; a plain clone where the method's parameters switch it off.

    Raises BadInput, LayerError or RuleConflict for what cannot work on this model, at the node rather than in the sampler.
    """
    method.validate()
    clone = patcher.clone()
    if method.neutral():
        return clone
    _check_layers(patcher, method)
    clone.model_options[KEY] = pipeline_of(patcher).add(method)
    if features.wrappers():
        from . import runs
        runs.install(clone)
    else:
        from . import legacy
        legacy.install(clone)
        # networks calls of this host see transformer_options only
        clone.model_options["transformer_options"] = {**clone.model_options.get("transformer_options", {}), KEY: clone.model_options[KEY]}
    return clone


def models_of(pipeline):
    """The other MODELs that the methods of a pipeline refer to, each once, as ModelRefs."""
    import dataclasses

    from ..method import ModelRef
    found = []
    for method in pipeline.methods:
        for f in dataclasses.fields(method):
            value = getattr(method, f.name)
            if f.metadata.get("socket") == "MODEL" and value is not None:
                found.append(value if isinstance(value, ModelRef) else ModelRef(value))
    return list(dict.fromkeys(found))


def _check_layers(patcher, method):
    """Selectors are resolved once at the node, so that a wrong name is reported where it was typed."""
    selector = getattr(method, "layers", None)
    if isinstance(selector, str) and selector:
        from .geometry import of_model
        select(of_model(patcher), selector, method.title)
