"""Methods that are a SAMPLER."""
from ..guidance.samplers.cfgpp import CFGPlusPlusSampler
from ._define import NodeDef, Output, about, inputs_of


def _cfgpp(**values):
    method = CFGPlusPlusSampler(**values).validate()
    from ..guidance.host.sampler_cfgpp import sampler
    return (sampler(method),)


NODES = (NodeDef(**about(CFGPlusPlusSampler), inputs=inputs_of(CFGPlusPlusSampler), run=_cfgpp,
                 outputs=(Output("SAMPLER", "sampler", "For SamplerCustom and SamplerCustomAdvanced, with a guider that takes two prompts."),)),)
