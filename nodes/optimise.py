"""EDICT, and what optimises the noise and the text that a picture is sampled from."""
from ..guidance.inversion.edict import EDICTInversion, EDICTSampler
from ..guidance.loss.initial_noise import OptimiseInitialNoise
from ..guidance.loss.latent_text import OptimiseLatentAndText
from ._define import Input, NodeDef, Output, Shown, about, inputs_of


def _sampler(**values):
    method = EDICTSampler(**values).validate()
    from ..guidance.host.sampler_edict import sampler
    return (sampler(method),)


def _invert(model, positive, latent_image, negative, sigmas, **values):
    method = EDICTInversion(**values).validate()
    from ..guidance.host.sampler_edict import invert
    return invert(method, model, positive, negative, latent_image, sigmas)


def _search(cls, name):
    def run(model, positive, latent_image, negative, noise, sigmas, **values):
        import torch
        with torch.inference_mode(False):      # nodes run in it; gradients need tensors of the other kind
            values = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in values.items()}
        method = cls(**values).check()
        from ..guidance.host import optimise
        *outputs, history = getattr(optimise, name)(method, model, positive, negative, latent_image, sigmas, noise)
        numbers = lambda t: ", ".join(f"{v:.4g}" for v in t.tolist())
        return Shown(tuple(outputs), f"loss at the start: {numbers(history[0])}\nsmallest: {numbers(history.min(0).values)}\niterations: {len(history) - 1}")
    return run


def _wires(cls):
    return (
        Input("model", "MODEL", "The model that samples."), Input("positive", "CONDITIONING", "What the picture shows."), Input("latent_image", "LATENT", "An empty latent of the picture's size; with strength below 1, or a noise mask, a picture."),
        *inputs_of(cls), Input("negative", "CONDITIONING", "Needed only where cfg is not 1.", optional=True), Input("noise", "NOISE", "The first noise, in place of the seed's: that of an inversion, for example.", optional=True),
        Input("sigmas", "SIGMAS", "A schedule of your own, in place of steps and scheduler.", optional=True))


_FOUND = (Output("LATENT", "latent", "The picture."), Output("NOISE", "noise", "The noise that it comes from, for SamplerCustomAdvanced."), Output("SIGMAS", "sigmas", "The schedule."))

NODES = (
    NodeDef(**about(EDICTSampler), inputs=inputs_of(EDICTSampler), run=_sampler, outputs=(Output("SAMPLER", "sampler", "For SamplerCustom and SamplerCustomAdvanced."),)),
    NodeDef(
        **about(EDICTInversion),
        inputs=(Input("model", "MODEL", "The model to invert with; guidance nodes on it take part."), Input("positive", "CONDITIONING", "Describes the picture that is inverted."),
                Input("latent_image", "LATENT", "The picture, encoded by the VAE."), *inputs_of(EDICTInversion),
                Input("negative", "CONDITIONING", "Needed only where cfg is not 1.", optional=True), Input("sigmas", "SIGMAS", "A schedule of your own, in place of steps and scheduler.", optional=True)),
        outputs=(Output("LATENT", "inverted", "The first of the two noisy states, to look at; sample from the noise."), Output("NOISE", "noise", "The noise that leads back to the picture, for SamplerCustomAdvanced."),
                 Output("SIGMAS", "sigmas", "The schedule of the way back."), Output("SAMPLER", "sampler", "The EDICT Sampler that knows the second state; only with it the way back is exact.")),
        run=_invert,
    ),
    NodeDef(**about(OptimiseInitialNoise), inputs=_wires(OptimiseInitialNoise), run=_search(OptimiseInitialNoise, "optimise_noise"),
            outputs=(*_FOUND, Output("SAMPLER", "sampler", "The sampler that leads from the noise to the picture: Euler, or EDICT's that knows its second state."))),
    NodeDef(**about(OptimiseLatentAndText), inputs=_wires(OptimiseLatentAndText), run=_search(OptimiseLatentAndText, "optimise_text"),
            outputs=(*_FOUND, Output("CONDITIONING", "positive", "The positive prompt with its changes."), Output("CONDITIONING", "negative", "The negative prompt with its changes."))),
)
