"""Flow: made from a mask, estimated, shown; the motion loss and the sampler that follows it."""
from ..guidance.loss.motion import FlowMotion
from ..guidance.loss.solvers.motion import MotionGuidance
from ._define import Input, NodeDef, Output, Shown, category
from .losses import _node as loss_node
from .solvers import _node as solver_node

BUNDLED = "bundled: flat shapes"
FLOW, NETWORK = "LODESTAR_FLOW", "LODESTAR_FLOW_NETWORK"
SERVES = MotionGuidance.node_id


def _files():
    from ..guidance.host.weight_files import FLOWS, names
    return [BUNDLED, *names(FLOWS)]


def _network(file, updates):
    import torch

    from ..guidance.loss.flow import FlowEstimator, raft_of
    title = "Load Flow Network"
    with torch.inference_mode(False):      # gradients go through it
        if file == BUNDLED:
            from ..demo.flow import WORKS_AT, load
            return (FlowEstimator(load(), WORKS_AT, 8, WORKS_AT, "bundled"),)
        from ..guidance.host.weight_files import FLOWS, load as tensors
        return (raft_of({k: v.clone() for k, v in tensors(title, "file", file, FLOWS).items()}, title, file, updates),)


def _from_mask(mask, dx, dy, turn, scale):
    import torch

    from ..guidance.loss.flow import of_mask
    with torch.inference_mode(False):
        mask = mask.clone().float()
        flow, there = of_mask(mask, dx, dy, turn, scale)
        return flow, there, torch.maximum(mask, there)


def _estimate(network, first, second):
    import torch

    from ..guidance.loss.flow import Flow, visible
    from ..guidance.method import BadInput
    a, b = (t[..., :3].movedim(-1, 1) for t in (first, second))
    if a.shape[-2:] != b.shape[-2:] or (a.shape[0] != b.shape[0] and 1 not in (a.shape[0], b.shape[0])):
        raise BadInput("Estimate Flow", "second", list(second.shape), f"The first picture is {list(first.shape)}; give one of its size, one or as many.")
    n = max(a.shape[0], b.shape[0])
    with torch.inference_mode(False), torch.no_grad():
        vectors = network(a.clone().expand(n, -1, -1, -1), b.clone().expand(n, -1, -1, -1))
        return Flow(vectors), visible(vectors)[:, 0]


def _show(flow, longest):
    from ..guidance.loss.flow import shown
    length = flow.vectors.norm(dim=1).flatten(1)
    text = "\n".join(f"moves {100 * float((n > 0.5).float().mean()):.1f} % of the picture, by {float(n.amax()):.1f} pixels at most" for n in length)
    return Shown((shown(flow.vectors, longest).movedim(1, -1),), text)


NODES = (
    NodeDef(
        node_id="LodestarFlowFromMask",
        title="Flow From Mask",
        category=category("loss"),
        description="The flow of what a mask marks: moved, turned or scaled about its middle.",
        inputs=(Input("mask", "MASK", "What moves, on the source picture. It may be larger than the thing where the ground is plain."),
                Input("dx", "FLOAT", "Pixels to the right.", 0.0, -16384.0, 16384.0, 1.0), Input("dy", "FLOAT", "Pixels down.", 0.0, -16384.0, 16384.0, 1.0),
                Input("turn", "FLOAT", "Degrees clockwise.", 0.0, -360.0, 360.0, 1.0), Input("scale", "FLOAT", "Factor of its size.", 1.0, 0.05, 20.0, 0.05)),
        outputs=(Output(FLOW, "flow", "For Flow Motion Loss."), Output("MASK", "there", "Where it is to be."), Output("MASK", "both", "Where it is and where it is to be: an edit mask for Motion Guidance.")),
        run=_from_mask,
        part_of=SERVES,
        help="For each pixel p of the mask, with its middle c:  flow(p) = scale R (p - c) + c + (dx, dy) - p.  Flows are in pixels of the mask's size, and fitted to other sizes where they are used.\n",
    ),
    NodeDef(
        node_id="LodestarLoadFlowNetwork",
        title="Load Flow Network",
        category=category("loss"),
        description="A network that estimates how far each pixel moves between two pictures: the small one that comes with the pack, or RAFT.",
        inputs=(Input("file", "COMBO", "The bundled network, for flat shapes, or a safetensors file in models/optical_flow with torchvision's RAFT (small or large).", BUNDLED, choices=_files),
                Input("updates", "INT", "RAFT's iterations. The paper's authors take 5.", 5, 1, 64, 1, optional=True, advanced=True)),
        outputs=(Output(NETWORK, "network", "For Flow Motion Loss and Estimate Flow."),),
        run=_network,
        part_of=SERVES,
        help="""The bundled network has 0.23 million parameters, works at 64 pixels (larger pictures are made smaller) and was trained by demo/train_flow.py for 9 minutes on moved scenes like those that
the bundled models draw; its errors are in demo/weights/flow.json. It is of no use for photographs.

RAFT: convert the weights that torchvision publishes (raft_small_C_T_V2, raft_large_C_T_SKHT_V2) to safetensors with their keys as they are. Files of the original RAFT repository have other keys and
are refused.
""",
    ),
    NodeDef(
        node_id="LodestarEstimateFlow",
        title="Estimate Flow",
        category=category("loss"),
        description="How far each pixel of a picture moves to the next one, by a flow network.",
        inputs=(Input("network", NETWORK, "From Load Flow Network."), Input("first", "IMAGE", "The picture before."), Input("second", "IMAGE", "The picture after, of the same size.")),
        outputs=(Output(FLOW, "flow", "From the first to the second."), Output("MASK", "visible", "1 where the second picture still shows what the first does, by this flow.")),
        run=_estimate,
        part_of=SERVES,
        help="The flow of one picture can be asked of another one: with Flow Motion Loss a second source moves as the first did.\n",
    ),
    NodeDef(
        node_id="LodestarShowFlow",
        title="Show Flow",
        category=category("loss"),
        description="A flow as a picture: the hue says where to, the strength of the colour how far.",
        inputs=(Input("flow", FLOW, "The flow."), Input("longest", "FLOAT", "Pixels that have the full colour; 0: the longest vector of each picture.", 0.0, 0.0, 16384.0, 1.0)),
        outputs=(Output("IMAGE", "image", "Red moves to the right, green-yellow down, cyan to the left, violet up; white stays."),),
        run=_show,
        output_node=True,
        part_of=SERVES,
        help="Red moves to the right, green-yellow down, cyan to the left, violet up; white stays.\n",
    ),
    loss_node(FlowMotion, SERVES),
    solver_node(MotionGuidance),
)
