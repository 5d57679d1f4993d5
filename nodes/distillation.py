"""Score distillation: the guidances, and what is optimised under them."""

from ..guidance.distillation.composite import CompositeDistillation
from ..guidance.distillation.distil import DistilPictures, ScoreDistillation
from ..guidance.distillation.dsd import DenoisedScoreDistillation
from ..guidance.distillation.hifa import HiFAGuidance
from ..guidance.distillation.hybrid import HybridDistillation
from ..guidance.distillation.ism import IntervalScoreMatching
from ..guidance.distillation.sds import SDSGuidance
from ..guidance.distillation.tsm import TrajectoryScoreMatching
from ._define import Input, NodeDef, Output, Shown, about, inputs_of

TYPE = "LODESTAR_DISTILLATION"


def _guidance(cls):
    return NodeDef(**about(cls), inputs=inputs_of(cls), run=lambda **values: (cls(**values).validate(),),
                   outputs=(Output(TYPE, "guidance", "For Score Distillation, Distil Pictures and Composite Distillation."),))


def _shown(sizes):
    """The gradient's size at the beginning and at the end."""
    part = max(1, len(sizes) // 10)
    return f"size of the gradient: {sum(sizes[:part]) / part:.3g} at first, {sum(sizes[-part:]) / part:.3g} at the end" if sizes else "off"


def _latent(latent, **values):
    method = ScoreDistillation(**values).validate()
    from ..guidance.host.distillation import distil_latent
    out, sizes = distil_latent(method, latent)
    return Shown((out,), _shown(sizes))


def _pictures(image, mask=None, **values):
    method = DistilPictures(**values).validate()
    from ..guidance.host.distillation import distil_pictures
    out, sizes = distil_pictures(method, image, mask)
    return Shown((out,), _shown(sizes))


def _composite(object, mask, background, **values):
    import json
    method = CompositeDistillation(**values).validate()
    from ..guidance.host.distillation import distil_composite
    image, cover, found, sizes = distil_composite(method, object, mask, background)
    rounded = [{k: [round(n, 4) for n in v] if isinstance(v, list) else round(v, 4) for k, v in f.items()} for f in found]
    text = json.dumps(rounded[0] if len(rounded) == 1 else rounded)
    return Shown((image, cover, text), f"{text}\n{_shown(sizes)}")


def _inputs(cls, *first):
    """The guidance, what is optimised, and the parameters."""
    guidance, *others = inputs_of(cls)
    return guidance, *first, *others


NODES = (
    *map(_guidance, (SDSGuidance, HiFAGuidance, DenoisedScoreDistillation, IntervalScoreMatching, TrajectoryScoreMatching, HybridDistillation)),
    NodeDef(**about(ScoreDistillation), run=_latent, inputs=_inputs(ScoreDistillation, Input("latent", "LATENT", "What is optimised, and where it starts: an empty latent, or a picture's.")),
            outputs=(Output("LATENT", "latent", "The optimised latent."),)),
    NodeDef(**about(DistilPictures), run=_pictures, outputs=(Output("IMAGE", "image", "The optimised pictures."),),
            inputs=(*_inputs(DistilPictures, Input("image", "IMAGE", "What is optimised, and where it starts.")), Input("mask", "MASK", "The pixels that may move.", optional=True))),
    NodeDef(**about(CompositeDistillation), run=_composite,
            inputs=_inputs(CompositeDistillation, Input("object", "IMAGE", "The object, in a picture of its own."), Input("mask", "MASK", "Where the object is in its picture (1 inside)."),
                           Input("background", "IMAGE", "What it is set into.")),
            outputs=(Output("IMAGE", "image", "The composite."), Output("MASK", "mask", "Where the object is in it."), Output("STRING", "parameters", "What was found, as JSON."))),
)
