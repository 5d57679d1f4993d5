"""Losses of frames and of observed values, and the samplers that follow them."""
from ..guidance.loss.frames import OVER, FrameConsistency, ReferenceSequence
from ..guidance.loss.quantile import Quantile
from ..guidance.loss.solvers.frame import FrameGuidance
from ..guidance.loss.solvers.observation import ObservationSelfGuidance
from ..guidance.loss.solvers.reference import ReferenceSequenceGuidance
from ._define import Input, NodeDef, Output, category
from .losses import TYPE, _node as loss_node
from .solvers import _node as solver_node


def _frames(loss, frames, over, ratio, context, shrink):
    from ..guidance.loss.base import LossSum, Scaled
    from ..guidance.loss.frames import FrameLoss
    from ..guidance.method import BadInput
    if isinstance(loss, (LossSum, Scaled)):
        raise BadInput(FrameLoss.title, "loss", loss.title, "Put each loss on its frames first, and combine them behind it.")
    return (FrameLoss(loss, frames, over, ratio, context, shrink).check(),)


NODES = (
    NodeDef(
        node_id="LodestarLossOfFrames",
        title="Loss of Frames",
        category=category("loss"),
        description="A loss of chosen frames alone, key frames for example; of a video only the latents that they need are decoded.",
        inputs=(Input("loss", TYPE, "What the frames are to be: Target Image Loss or Wavelet Target Loss with the key pictures, Colour Loss for a style, Edge Loss for outlines."),
                Input("frames", "STRING", "Numbers of the frames, from 0, separated by commas; -1 is the last one. As many as the loss has pictures, or any number where it has one.", "0"),
                Input("over", "COMBO", "video: frames of each video. batch: the pictures of the batch are the frames.", "video", choices=OVER),
                Input("ratio", "INT", "Pictures in each latent frame but the first: 4 for Wan, Hunyuan Video and CogVideoX, 8 for LTX, 6 for Mochi, 1 where each picture has its own.", 4, 1, 16, 1, optional=True, advanced=True),
                Input("context", "INT", "Latent frames that are decoded for a frame: it and those before.", 2, 1, 16, 1, optional=True, advanced=True),
                Input("shrink", "FLOAT", "Size of what is decoded, as a share.", 0.5, 0.1, 1.0, 0.05, optional=True, advanced=True)),
        outputs=(Output(TYPE, "loss", "For Frame Guidance and other nodes that take a loss."),),
        run=_frames,
        part_of=FrameGuidance.node_id,
        aliases=("key frame", "keyframe loss"),
        help="""    loss = sum over chosen frames i of  part(u_i)
    u_i: picture i of decode( latents j - context + 1 .. j, made smaller by `shrink` ),   j = (i - 1) div ratio + 1

A video decoder sees little of other times, so a slice of 2 or 3 latents shows the frame nearly as the whole video does, for a small part of the memory. Losses of the latent itself (space latent) see latent j.
""",
    ),
    loss_node(FrameConsistency, FrameGuidance.node_id),
    loss_node(ReferenceSequence, ReferenceSequenceGuidance.node_id),
    loss_node(Quantile, ObservationSelfGuidance.node_id),
    solver_node(FrameGuidance),
    solver_node(ReferenceSequenceGuidance),
    solver_node(ObservationSelfGuidance),
)
