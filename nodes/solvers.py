"""The samplers that restore a picture from a measurement, and those that are led by a loss."""
from ..guidance.inverse.ddnm import NullSpaceSampler
from ..guidance.inverse.dps import DiffusionPosteriorSampling
from ..guidance.inverse.lgd import LossGuidedDiffusion
from ..guidance.inverse.mpgd import ManifoldPreservingGuidance
from ..guidance.inverse.pigdm import PseudoinverseGuidance
from ..guidance.inverse.psld import LatentPosteriorSampling
from ..guidance.inverse.reddiff import REDdiff
from ..guidance.inverse.repaint import RePaint
from ..guidance.inverse.resample import ReSample
from ..guidance.loss.solvers.dreamguider import Dreamguider
from ..guidance.loss.solvers.geoguide import GeoGuide
from ..guidance.loss.solvers.tfg import TrainingFreeGuidance
from ..guidance.loss.solvers.universal import UniversalGuidanceSampler
from ._define import NodeDef, Output, about, inputs_of


def _node(cls):
    """The node of a method that is a sampler."""
    def run(**values):
        method = cls(**values).validate()
        from ..guidance.host.sampler_inverse import sampler
        return (sampler(method),)
    return NodeDef(**about(cls), inputs=inputs_of(cls), run=run, outputs=(Output("SAMPLER", "sampler", "For SamplerCustom and SamplerCustomAdvanced."),))


NODES = tuple(map(_node, (NullSpaceSampler, PseudoinverseGuidance, DiffusionPosteriorSampling, ManifoldPreservingGuidance, REDdiff, RePaint, LatentPosteriorSampling, LossGuidedDiffusion,
                           ReSample, TrainingFreeGuidance, UniversalGuidanceSampler, GeoGuide, Dreamguider)))
