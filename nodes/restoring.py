"""Further samplers that restore or are led by a loss, and what they need: a fitted Gaussian, an estimated degradation, a search for strengths."""
from ..guidance.inverse.blind import BlindPosteriorSampling
from ..guidance.inverse.copaint import TractableSteering
from ..guidance.inverse.daps import DecoupledPosteriorSampling
from ..guidance.inverse.dda import DiffusionDrivenAdaptation
from ..guidance.inverse.ddrm import SpectralSampler
from ..guidance.inverse.degradation_aware import DegradationAwareSampler
from ..guidance.inverse.masked_sampler import MaskedSampler
from ..guidance.inverse.projection import EstimateProjection
from ..guidance.inverse.steered import SteeredDiffusion
from ..guidance.inversion.ddim import SCHEDULERS
from ..guidance.loss.solvers.freedom import FreeDoM
from ..guidance.loss.solvers.semantic import SemanticGradientGuidance
from ..guidance.loss.solvers.tfg import TrainingFreeGuidance
from ._define import Input, NodeDef, Output, Shown, about, category, inputs_of
from .solvers import _node

_sampler = Output("SAMPLER", "sampler", "For SamplerCustom and SamplerCustomAdvanced.")


def _aware(restorer=None, **values):
    from ..guidance.host.restorers import Restorer
    from ..guidance.host.sampler_inverse import sampler
    return (sampler(DegradationAwareSampler(restorer=Restorer(restorer), **values)),)


def _blind(**values):
    from ..guidance.host.sampler_inverse import sampler
    method = BlindPosteriorSampling(**values).validate()
    return sampler(method), method.found


def _estimated(estimate, latent, index):
    import torch

    from ..guidance.method import BadInput
    title = "Estimated Degradation"
    found = estimate.estimate
    if found is None:
        raise BadInput(title, "estimate", None, "Nothing has been estimated yet: connect the latent that the sampler made.")
    if index >= len(found.theta):
        raise BadInput(title, "index", index, f"There are {len(found.theta)} pictures.")
    operator = found.operator(index)
    if found.kind == "exposure":
        text = f"gain {operator.gain:.3f}, gamma {operator.gamma:.3f}"
        picture = operator.measure(torch.linspace(0, 1, 128).expand(1, 3, 32, 128))
    else:
        text = f"width {operator.sigma:.2f}" if found.kind == "gaussian" else f"kernel of {found.size} x {found.size}"
        kernel = found.kernels(found.theta[index:index + 1].detach().float().cpu())[0]
        picture = torch.nn.functional.interpolate((kernel / kernel.max())[None, None].expand(1, 3, -1, -1), scale_factor=max(1, 128 // found.size), mode="nearest")
    return Shown((operator, picture.movedim(1, -1).contiguous(), text), text)


def _gaussian(model, components, latent=None, image=None, vae=None):
    import torch

    from ..guidance.inverse.tractable import fitted
    from ..guidance.method import BadInput
    title = "Fit Gaussian Prior"
    if (image is None) == (latent is None):
        raise BadInput(title, "picture", "both" if image is not None else None, "Connect either images (with the VAE) or latents.")
    if image is not None and vae is None:
        raise BadInput(title, "vae", None, "Images need the model's VAE.")
    samples = vae.encode(image[..., :3]) if image is not None else latent["samples"]
    if samples.shape[0] < 2:
        raise BadInput(title, "picture", f"{samples.shape[0]} picture", "Give several pictures in one batch, the more the better; one has no spread.")
    with torch.inference_mode(False):
        z = model.get_model_object("latent_format").process_in(samples.clone().float().cpu())
        prior = fitted(z, int(components))
    text = f"{len(prior.directions)} components of {samples.shape[0]} pictures; {100 * (1 - prior.rest * z[0].numel() / float(z.flatten(1).var(0).sum())):.0f} % of their variance"
    return Shown((prior,), text)


def _search(model, positive, negative, latent, loss, validation, cfg, steps, scheduler, seeds, seed, beam, rounds, rho, mu, smoothing, iterations, repeats):
    import comfy.samplers

    from ..guidance.host.sampler_inverse import sampler
    from ..guidance.host.search import searched
    from ..guidance.loss.solvers.search import written
    method = TrainingFreeGuidance(loss=loss, rho=rho, mu=mu, smoothing=smoothing, iterations=iterations, repeats=repeats).validate()
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), scheduler, steps)
    best, table = searched(method, model, positive, negative, cfg, latent, sigmas, validation if validation is not None else loss, seeds, seed, beam, rounds)
    text = written(table)
    return Shown((sampler(best), text), text)


_FIELDS = {i.name: i for i in inputs_of(TrainingFreeGuidance)}

NODES = (
    *map(_node, (SteeredDiffusion, DecoupledPosteriorSampling, SpectralSampler, DiffusionDrivenAdaptation, TractableSteering, MaskedSampler, EstimateProjection, FreeDoM, SemanticGradientGuidance)),
    NodeDef(**about(DegradationAwareSampler), inputs=inputs_of(DegradationAwareSampler), run=_aware, outputs=(_sampler,)),
    NodeDef(**about(BlindPosteriorSampling), inputs=inputs_of(BlindPosteriorSampling), run=_blind,
            outputs=(_sampler, Output("LODESTAR_ESTIMATE", "estimate", "What it finds of the degradation while it samples, for Estimated Degradation."))),
    NodeDef(
        node_id="LodestarEstimatedDegradation",
        title="Estimated Degradation",
        category=category("inverse"),
        description="The degradation that Blind Posterior Sampling found, as an operator and as a picture.",
        inputs=(Input("estimate", "LODESTAR_ESTIMATE", "From Blind Posterior Sampling."), Input("latent", "LATENT", "What the sampler made: so that this comes after the run."),
                Input("index", "INT", "Which picture of the batch.", 0, 0, 4096, 1)),
        outputs=(Output("LODESTAR_OPERATOR", "operator", "For Measurement: the picture can be restored again, now that its degradation is known."), Output("IMAGE", "image", "The kernel, or how brightness is changed."),
                 Output("STRING", "text", "In words.")),
        run=_estimated,
        output_node=True,
        part_of=BlindPosteriorSampling.node_id,
        help="The estimate is that of the last run that used this sampler: give each run a sampler of its own.\n"),
    NodeDef(
        node_id="LodestarFitGaussianPrior",
        title="Fit Gaussian Prior",
        category=category("inverse"),
        description="Fits a Gaussian to the latents of given pictures: their principal components, and one variance for the rest.",
        inputs=(Input("model", "MODEL", "The model that will sample: its latents' scale."), Input("components", "INT", "Principal components that are kept.", 32, 1, 4096, 1),
                Input("latent", "LATENT", "A batch of latents.", optional=True), Input("image", "IMAGE", "Or a batch of pictures, with the VAE.", optional=True), Input("vae", "VAE", "Encodes the pictures.", optional=True)),
        outputs=(Output("LODESTAR_GAUSSIAN", "posterior", "For Tractable Steering."),),
        run=_gaussian,
        aliases=("PCA", "principal components"),
        part_of=TractableSteering.node_id,
        help="""    z = mean + sum_k w_k d_k + e,    w standard normal, e of one variance

Pictures of the kind and size that is restored, some dozens or more. What the Gaussian says of a hidden part, given the known one, is known in closed form.
"""),
    NodeDef(
        node_id="LodestarTrainingFreeGuidanceSearch",
        title="Training-Free Guidance Search",
        category=category("loss"),
        description="Finds rho, mu and smoothing of Training-Free Guidance for a loss: one doubled at a time, the best few kept.",
        inputs=(Input("model", "MODEL", "The model that samples."), Input("positive", "CONDITIONING", "Positive prompt."), Input("negative", "CONDITIONING", "Negative prompt."),
                Input("latent", "LATENT", "Of the size that is sampled."), Input("loss", "LODESTAR_LOSS", "What guides."),
                Input("validation", "LODESTAR_LOSS", "What finished pictures are judged by, lower is better; it may give values only. Without it the loss that guides.", optional=True),
                Input("cfg", "FLOAT", "Guidance scale of CFG.", 4.0, 0.0, 100.0, 0.1), Input("steps", "INT", "Steps of each trial.", 20, 1, 1000, 1),
                Input("scheduler", "COMBO", "Noise levels of each trial.", "normal", choices=SCHEDULERS), Input("seeds", "INT", "Pictures per trial.", 2, 1, 64, 1), Input("seed", "INT", "Of the first one's noise.", 0, 0, 2**32 - 1, 1),
                Input("beam", "INT", "How many of the best are doubled further.", 2, 1, 16, 1), Input("rounds", "INT", "How often.", 3, 1, 20, 1),
                *(_FIELDS[n] for n in ("rho", "mu", "smoothing", "iterations", "repeats"))),
        outputs=(_sampler, Output("STRING", "table", "All that was tried, the best first.")),
        run=_search,
        output_node=True,
        aliases=("hyper-parameter search", "TFG search", "beam search"),
        part_of=TrainingFreeGuidance.node_id,
        help="""Starts from small strengths. Those that are 0 stay 0. At most 1 + 3 beam rounds trials, each of `seeds` pictures; a trial that was made is not made again.

A validation loss other than the one that guides keeps the search from strengths that only please the loss: a preference head, a similarity to the prompt, or a sum with Total Variation.
"""),
)
