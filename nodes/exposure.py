"""Exposure Diffusion and its network's file."""
from ..guidance.inverse.exposure import ExposureDiffusion
from ._define import Input, NodeDef, Output, about, category, inputs_of

BUNDLED = "bundled: the demo scenes"
LOADER = "Load Exposure Network"


def _files():
    from ..guidance.host.weight_files import names
    return [BUNDLED, *names()]


def _load(file):
    from ..guidance.inverse.exposure_network import parse
    if file == BUNDLED:
        from ..demo.exposure import network
        return (network(),)
    from ..guidance.host.weight_files import load, notes_of
    from ..guidance.method import BadInput
    try:
        return (parse(load(LOADER, "file", file), notes_of(file)),)
    except ValueError as error:
        raise BadInput(LOADER, "file", file, str(error)) from error


def _expose(image, network=None, **values):
    from ..demo.exposure import network as bundled
    method = ExposureDiffusion(network=network if network is not None else bundled(), **values).validate()
    from ..guidance.host.exposure import exposed
    estimates = exposed(method, image[..., :3].movedim(-1, 1).float())
    shown = [u.movedim(1, -1).clamp(0, 1).contiguous() for u in estimates]
    return shown[0], shown[-1]


NODES = (
    NodeDef(
        **about(ExposureDiffusion),
        inputs=(Input("image", "IMAGE", "The dark, noisy picture, as the sensor gives it: Apply Operator with the same operator makes one."), *inputs_of(ExposureDiffusion)),
        outputs=(Output("IMAGE", "image", "The well-exposed picture."), Output("IMAGE", "first", "The network's first estimate, without further exposures.")),
        run=_expose),
    NodeDef(
        node_id="LodestarLoadExposureNetwork", title=LOADER, category=category("inverse"),
        description="Reads the network of Exposure Diffusion from a safetensors file in models/lodestar.",
        inputs=(Input("file", "COMBO", "A file of models/lodestar in the authors' layout for three colours, or the small one that comes with the pack.", BUNDLED, choices=_files),),
        outputs=(Output("LODESTAR_EXPOSURE_NETWORK", "network", "For Exposure Diffusion."),), run=_load, part_of=ExposureDiffusion.node_id,
        help="""Keys, as in the authors' U-Net (UNetSeeInDark with photon counts and the adaptive residual), each with weight and bias:

- conv1_1, conv1_2 to conv5_1, conv5_2: the way down, of width, 2, 4, 8, 16 width channels
- upv6, conv6_1, conv6_2 to upv9, conv9_1, conv9_2: the way back
- conv10_1 [7, width, 1, 1]: the mask's logit, the picture, what is added to the input

conv1_1 takes 6 channels (the brightened picture, its electrons divided by a unit) or 9 (the first picture too); the width is read from the file. The unit is the metadata `unit`, 15583 without it, as in the
authors' code. The authors publish pickles, for raw mosaics of four colours: networks trained with their code on three (--stage_in srgb) fit once their `netG` is saved as safetensors. The bundled file was
trained by demo/train_exposure.py.
"""),
)
