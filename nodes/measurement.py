"""Measuring a picture, and what is known of it as one wire."""
import torch

from ._define import Input, NodeDef, Output, category

HUB = "LodestarDiffusionPosteriorSampling"
REDUCTIONS = ("norm", "mean", "sum")
_operator = Input("operator", "LODESTAR_OPERATOR", "How the picture was measured.")
_seed = Input("seed", "INT", "Of the noise.", 0, 0, 2**32 - 1, 1)


def _noisy(y, operator, noise, seed):
    if noise:
        y = y + noise * torch.randn(y.shape, generator=torch.Generator().manual_seed(int(seed))).to(y)
    return operator.settle(y)


def _apply(operator, image, noise, seed):
    drawn = operator.drawn(image[..., :3].movedim(-1, 1), torch.Generator().manual_seed(int(seed) + 1))
    y = _noisy(drawn, operator, noise, seed)
    return (operator.show(y).movedim(1, -1).contiguous(),)


def _check(title, operator, space):
    if space not in operator.spaces:
        from ..guidance.method import BadInput
        raise BadInput(title, "operator", operator.title, "It has a meaning for pictures only; connect an image and its VAE.")


def _apply_latent(operator, latent, noise, seed):
    _check("Apply Operator to Latent", operator, "latent")
    y = _noisy(operator.measure(latent["samples"]), operator, noise, seed)
    return ({**{k: v for k, v in latent.items() if k != "noise_mask"}, "samples": y},)


def _measurement(operator, noise, image, vae, latent):
    from ..guidance.inverse.problem import Measurement
    from ..guidance.method import BadInput
    if (image is None) == (latent is None):
        raise BadInput("Measurement", "picture", "both" if image is not None else None, "Connect either a degraded image (with the VAE) or a degraded latent.")
    if image is not None and vae is None:
        raise BadInput("Measurement", "vae", None, "An image needs the model's VAE.")
    _check("Measurement", operator, "rgb" if image is not None else "latent")
    return (Measurement(operator, image if image is not None else latent["samples"], float(noise), vae if image is not None else None),)


def _loss(model, measurement, reduction, weight):
    from ..guidance.host.measurements import bind
    from ..guidance.loss.measurement import MeasurementLoss
    latent_format = model.get_model_object("latent_format")
    return (MeasurementLoss(bind=lambda like: bind(measurement, latent_format, like), reduction=reduction, weight=weight),)


NODES = (
    NodeDef("LodestarApplyOperator", "Apply Operator", category("inverse"), "Measures a picture: degrades it as the operator says, and adds noise.",
            inputs=(_operator, Input("image", "IMAGE", "The picture to measure."),
                    Input("noise", "FLOAT", "Standard deviation of the noise, for pictures from 0 to 1 (half of the papers', whose pictures go from -1 to 1).", 0.0, 0.0, 10.0, 0.005), _seed),
            outputs=(Output("IMAGE", "degraded", "What is left of it, as a picture: what was not measured is black."),), run=_apply, aliases=("degrade", "corrupt"), part_of=HUB,
            help="""    y = A u + noise z

Wavelets and random projections give pictures with values outside 0 to 1: connect them directly, since a file would cut them off.
"""),
    NodeDef("LodestarApplyOperatorToLatent", "Apply Operator to Latent", category("inverse"), "Measures a latent: degrades it as the operator says, and adds noise.",
            inputs=(_operator, Input("latent", "LATENT", "The latent to measure."), Input("noise", "FLOAT", "Standard deviation of the noise, in the VAE's units.", 0.0, 0.0, 100.0, 0.01), _seed),
            outputs=(Output("LATENT", "degraded", "What is left of it."),), run=_apply_latent, part_of=HUB,
            help="""    y = A z + noise n

For operators that have a meaning on latents (all but colourisation, JPEG, quantisation, low light and sensor exposure); sizes are in latent cells.
"""),
    NodeDef("LodestarMeasurement", "Measurement", category("inverse"), "What is known of a picture: how it was measured, what came out, how noisy it is.",
            inputs=(_operator, Input("noise", "FLOAT", "Standard deviation of the measurement's noise: for an image in its range of 0 to 1, for a latent in the VAE's units, as the nodes that apply an operator add it.",
                                     0.0, 0.0, 10.0, 0.005),
                    Input("image", "IMAGE", "The degraded picture. Needs the VAE.", optional=True), Input("vae", "VAE", "Decodes the estimate, so that the operator can act on it.", optional=True),
                    Input("latent", "LATENT", "The degraded latent, in place of an image: no decoding, the operator acts on latents.", optional=True)),
            outputs=(Output("LODESTAR_MEASUREMENT", "measurement", "For the samplers that restore, and for Measurement Loss."),), run=_measurement, aliases=("inverse problem",), part_of=HUB,
            help="""Give one degraded picture for all, or one for each of the batch; of the size that the operator makes of what is sampled.

Latents are cheap: no decoder at every step, and exact formulas. Pictures go through the decoder, with its gradient where the solver needs one.
"""),
    NodeDef("LodestarMeasurementLoss", "Measurement Loss", category("loss"), "A loss that is small where the picture agrees with a measurement.",
            inputs=(Input("model", "MODEL", "The model that will be guided."), Input("measurement", "LODESTAR_MEASUREMENT", "What is known of the picture."),
                    Input("reduction", "COMBO", "How the differences become one number: the Euclidean norm (not squared), or mean or sum of squares.", "norm", choices=REDUCTIONS),
                    Input("weight", "FLOAT", "Factor of this loss, against others.", 1.0, -1000.0, 1000.0, 0.01)),
            outputs=(Output("LODESTAR_LOSS", "loss", "For Universal Guidance."),), run=_loss, part_of=HUB,
            help="""    loss = weight * reduce( y - A u )

u is the clean estimate at each step (decoded and in [-1, 1], where the measurement is one of pictures), y the measurement, A its operator; one value per picture of the batch.
"""),
)
