"""Losses for the nodes that steer by a gradient."""
from ._define import Input, NodeDef, Output, category

REDUCTIONS = ("mean", "sum", "norm")
SPACES = ("latent", "rgb")


def _target(model, weight, reduction, power, factor, image, vae, latent, mask, space):
    from ..guidance.loss.target import TargetImage
    from ..guidance.method import BadInput
    title = TargetImage.title
    if (image is None) == (latent is None):
        raise BadInput(title, "target", "both" if image is not None else None, "Connect either an image (with a VAE) or a latent.")
    if image is not None and vae is None:
        raise BadInput(title, "vae", None, "An image needs the model's VAE.")
    if space == "rgb":
        if image is None:
            raise BadInput(title, "space", space, "A latent is compared as latents; connect an image and its VAE to compare pictures.")
        from ..guidance.host.decode import Decoder
        target, decoder = image[..., :3].movedim(-1, 1), Decoder(vae, model.get_model_object("latent_format"))
        return (TargetImage(target=target, mask=mask, space=space, decoder=decoder, weight=weight, reduction=reduction, power=power, factor=factor),)
    if image is not None:
        samples = vae.encode(image[..., :3])
    else:
        samples = latent["samples"]
    target = model.get_model_object("latent_format").process_in(samples)
    return (TargetImage(target=target, mask=mask, weight=weight, reduction=reduction, power=power, factor=factor),)


NODES = (NodeDef(
    node_id="LodestarTargetImageLoss",
    title="Target Image Loss",
    category=category("loss"),
    description="A loss that is small where the picture looks like a given one; steers through Universal Guidance.",
    inputs=(
        Input("model", "MODEL", "The model that will be guided: the target is brought into its latent space."),
        Input("weight", "FLOAT", "Factor of this loss, against others.", 1.0, -1000.0, 1000.0, 0.01),
        Input("reduction", "COMBO", "How the differences become one number: their mean, their sum, or the Euclidean norm (not squared).", "mean",
              choices=REDUCTIONS),
        Input("factor", "INT", "Compares averages over squares of so many latent cells: 1 every detail, more a rough layout of colour.", 1, 1, 64, 1),
        Input("image", "IMAGE", "The picture to come close to, as large as the one that is sampled. Needs the VAE.", optional=True),
        Input("vae", "VAE", "Encodes the image, or decodes the estimate where pictures are compared.", optional=True),
        Input("latent", "LATENT", "The target as a latent, in place of an image.", optional=True),
        Input("mask", "MASK", "Where the picture is compared; everywhere without it.", optional=True),
        Input("power", "FLOAT", "2: squared differences, 1: absolute ones. Not used by the norm.", 2.0, 0.5, 4.0, 0.1, optional=True, advanced=True),
        Input("space", "COMBO", "latent: the image is encoded once, no decoding. rgb: the estimate is decoded at every step and compared as a picture; "
              "slower, needs memory for the decoder's gradient.", "latent", choices=SPACES, optional=True, advanced=True),
    ),
    outputs=(Output("LODESTAR_LOSS", "loss", "For Universal Guidance."),),
    run=_target,
    aliases=("image loss", "latent loss", "colour layout"),
    part_of="LodestarUniversalGuidance",
    help="""    loss = weight * reduce( mask |u - y|^power )

u is the clean estimate at each step, y the target, both as latents (or, with space rgb, as pictures); one value per picture of the batch. `norm` is the square root of the sum of squares, as DPS
and FreeDoM use it.

The target must have the size of the sampled latent, and be one picture or as many as the batch.
""",
),)
