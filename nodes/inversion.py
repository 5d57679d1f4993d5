"""From a picture to noise and back."""
from ..guidance.inversion.ddim import DDIMInversion
from ._define import Input, NodeDef, Output, about, inputs_of


def _ddim(model, positive, latent_image, negative, sigmas, **values):
    method = DDIMInversion(**values).validate()
    from ..guidance.host.inversion import invert
    found = invert(method, model, positive, negative, latent_image, sigmas)
    return (*found, found[1].trajectory)


NODES = (NodeDef(
    **about(DDIMInversion),
    inputs=(
        Input("model", "MODEL", "The model to invert with; guidance nodes on it take part."),
        Input("positive", "CONDITIONING", "Describes the picture that is inverted."),
        Input("latent_image", "LATENT", "The picture, encoded by the VAE."),
        *inputs_of(DDIMInversion),
        Input("negative", "CONDITIONING", "Needed only where cfg is not 1 or the rule is cfg++.", optional=True),
        Input("sigmas", "SIGMAS", "A schedule of your own, in place of steps and scheduler.", optional=True),
    ),
    outputs=(
        Output("LATENT", "inverted", "The noisy latent, for samplers that add no noise (not for flow models: take the noise there)."),
        Output("NOISE", "noise", "The noise that leads back to the picture, for SamplerCustomAdvanced."),
        Output("SIGMAS", "sigmas", "The schedule of the way back."),
        Output("LODESTAR_TRAJECTORY", "trajectory", "Every state on the way, for nodes that look at the picture while another is made."),
    ),
    run=_ddim,
),)
