"""Source and target on one canvas, and the target cut out again."""
from ..guidance.attention.side_by_side import SIDES, SideBySideCanvas
from ._define import Input, NodeDef, Output, about, category, inputs_of


def _canvas(vae, source, target=None, mask=None, source_control=None, target_control=None, **values):
    method = SideBySideCanvas(**values).validate()
    rgb = lambda t: None if t is None else t[..., :3]
    canvas, painted, control = method.sheet(rgb(source), rgb(target), mask, (rgb(source_control), rgb(target_control)))
    return {"samples": vae.encode(canvas), "noise_mask": painted[:, None]}, canvas, painted, control


def _crop(side, gap, samples=None, image=None):
    from ..guidance.attention.side_by_side import target_part
    from ..guidance.method import BadInput
    if samples is None and image is None:
        raise BadInput("Side-by-Side Crop", "samples", None, "Connect a latent or an image.")
    latent = None
    if samples is not None:
        rows, columns = target_part(side, *samples["samples"].shape[-2:])
        latent = {k: v for k, v in samples.items() if k != "noise_mask"} | {"samples": samples["samples"][..., rows, columns].clone()}
    picture = None
    if image is not None:
        rows, columns = target_part(side, *image.shape[1:3], gap)
        picture = image[:, rows, columns].clone()
    return latent, picture


_IMAGE = "IMAGE"

NODES = (
    NodeDef(
        **about(SideBySideCanvas),
        inputs=(Input("vae", "VAE", "Encodes the canvas."), Input("source", _IMAGE, "The picture whose look is carried over."), *inputs_of(SideBySideCanvas),
                Input("target", _IMAGE, "The picture to be painted in; without it the whole half is new.", optional=True),
                Input("mask", "MASK", "The part of the target that is painted (white); without it all of it.", optional=True),
                Input("source_control", _IMAGE, "Pose, depth or edges of the source, for the control canvas.", optional=True),
                Input("target_control", _IMAGE, "Pose, depth or edges wanted in the target, for the control canvas.", optional=True)),
        outputs=(Output("LATENT", "latent", "The canvas with its noise mask, for the sampler."), Output(_IMAGE, "canvas", "The canvas, for an inpainting model's conditioning."),
                 Output("MASK", "mask", "What is painted, on the canvas."), Output(_IMAGE, "control", "Both controls beside each other, for a ControlNet; nothing without controls.")),
        run=_canvas,
    ),
    NodeDef(
        node_id="LodestarSideBySideCrop",
        title="Side-by-Side Crop",
        category=category("attention"),
        description="The target's part of a side-by-side canvas.",
        inputs=(Input("side", "COMBO", "Where the source is on the canvas.", "left", choices=SIDES),
                Input("gap", "INT", "Pixels next to the source that are left out of the picture.", 0, 0, 256, 1),
                Input("samples", "LATENT", "The sampled canvas.", optional=True), Input("image", _IMAGE, "The decoded canvas.", optional=True)),
        outputs=(Output("LATENT", "latent", "The target alone, without a noise mask: sample it again at a low denoise to refine it."), Output(_IMAGE, "image", "The target alone.")),
        run=_crop,
        part_of=SideBySideCanvas.node_id,
        help="Give it the same side as the canvas. What is not connected comes out empty.\n",
    ),
)
