"""Nodes that make and use warps between two views of a picture."""
from ..guidance.attention.feature_correspondence import FeatureCorrespondenceGuidance
from ._define import Input, NodeDef, Output, category


def _view(width, height, forward, right, down, yaw, pitch, roll, fov, near, far, depth):
    import torch

    from ..guidance.attention.warps import NODE, distances, view_warp
    from ..guidance.method import BadInput
    if depth is None:
        distance = torch.ones(1, height // 8, width // 8)
    elif not 0 < near < far:
        raise BadInput(NODE, "near", near, f"It must be positive and less than far ({far:g}).")
    else:
        distance = distances(depth, near, far)
    return (view_warp(distance, fov, forward, right, down, yaw, pitch, roll),)


def _apply(warp, detail, samples, image):
    import torch

    from ..guidance.attention.warps import with_detail
    from ..guidance.method import BadInput
    if samples is None and image is None:
        raise BadInput("Apply Warp", "samples", None, "Connect a latent or an image.")
    latent = None
    if samples is not None:
        old = samples["samples"]
        latent = {**samples, "samples": with_detail(warp.apply(old), old, detail)}
    picture = None if image is None else warp.apply(image.movedim(-1, 1)).movedim(1, -1)
    size = picture.shape[1:3] if picture is not None else [8 * n for n in latent["samples"].shape[-2:]]
    return latent, picture, 1 - warp.at(*size)[1]


_turn = dict(default=0.0, min=-180.0, max=180.0, step=0.1)
_move = dict(default=0.0, min=-100.0, max=100.0, step=0.01)

NODES = (
    NodeDef(
        node_id="LodestarViewWarp",
        title="View Warp",
        category=category("attention"),
        description="How a picture looks after the camera has moved or turned, as a warp.",
        inputs=(
            Input("width", "INT", "Width of the picture in pixels; with a depth picture its own size counts.", 512, 16, 16384, 8),
            Input("height", "INT", "Height of the picture in pixels.", 512, 16, 16384, 8),
            Input("forward", "FLOAT", "How far the camera moves forward. Without a depth picture everything is at distance 1: 0.2 shows the middle 1.2 times as large.", **{**_move, "default": 0.2}),
            Input("right", "FLOAT", "How far the camera moves to the right.", **_move),
            Input("down", "FLOAT", "How far the camera moves down.", **_move),
            Input("yaw", "FLOAT", "How far the camera turns to the right, in degrees.", **_turn),
            Input("pitch", "FLOAT", "How far the camera turns upwards, in degrees.", **_turn),
            Input("roll", "FLOAT", "How far the camera turns clockwise, in degrees.", **_turn),
            Input("fov", "FLOAT", "Angle that the longer side of the picture spans, in degrees.", 60.0, 5.0, 150.0, 1.0),
            Input("near", "FLOAT", "Distance of what is white in the depth picture.", 1.0, 0.001, 1000.0, 0.01),
            Input("far", "FLOAT", "Distance of what is black in the depth picture.", 10.0, 0.001, 10000.0, 0.01),
            Input("depth", "IMAGE", "Inverse depth, bright near, as MiDaS, Depth Anything and their like give it. Without it: a plane at distance 1.", optional=True),
        ),
        outputs=(Output("LODESTAR_WARP", "warp", "For Feature-Correspondence Guidance and Apply Warp."),),
        run=_view,
        help="""A place of the new view lies at P_old = R P_new + T, both seen through the same lens. The distance of what the new view shows is taken from the old view's depth at the same place, as
the authors of DreamDrone do: right for small movements. A batch of depth pictures gives a warp for each picture of the batch.
""",
        part_of=FeatureCorrespondenceGuidance.node_id,
    ),
    NodeDef(
        node_id="LodestarApplyWarp",
        title="Apply Warp",
        category=category("attention"),
        description="A latent or a picture as a warp shows it, and what the old view does not show as a mask.",
        inputs=(
            Input("warp", "LODESTAR_WARP", "From View Warp."),
            Input("detail", "FLOAT", "Up to which frequency the latent is warped, as a share of its sampling rate; above it keeps what it had, so that noise stays as rough as it was. "
                  "0.5 warps all of it.", 0.3125, 0.0, 0.5, 0.0125),
            Input("samples", "LATENT", "A latent, clean or noisy (an inversion's).", optional=True),
            Input("image", "IMAGE", "A picture.", optional=True),
        ),
        outputs=(Output("LATENT", "latent", "The warped latent."), Output("IMAGE", "image", "The warped picture."), Output("MASK", "hidden", "1 where the old view shows nothing.")),
        run=_apply,
        help="""Bilinear; beyond the border the old view is mirrored. The authors warp a latent that was inverted to a low level of noise, with its frequencies up to 20 of 64 cells (0.3125).
""",
        part_of=FeatureCorrespondenceGuidance.node_id,
    ),
)
