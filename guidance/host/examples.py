"""Examples for small networks, and their training, in the host: latents in the model's space, the schedule, progress, interrupts."""
from __future__ import annotations

import comfy.model_management
import comfy.utils
import torch

from ..loss.base import LossContext
from ..loss.minority import minority_scores, structure_distance
from ..method import BadInput
from .features import is_flow
from .probe import probe


def samples_of(node, latent, field="latent"):
    """The latents of a LATENT; BadInput for packed ones and for numbers that are none."""
    samples = latent["samples"]
    if getattr(samples, "is_nested", False):
        raise BadInput(node, field, "audio and video together", "Separate them first.")
    if not bool(torch.isfinite(samples).all()):
        raise BadInput(node, field, "not finite", "The latent holds numbers that are none; it was broken before this node.")
    return samples


def ticker():
    """tick(step, total, loss) of a training: moves the host's progress bar, and stops where the run is interrupted."""
    bar = []

    def tick(step, total, loss):
        comfy.model_management.throw_exception_if_processing_interrupted()
        if not bar:
            bar.append(comfy.utils.ProgressBar(total))
        bar[0].update(1)
    return tick


def train(method, model):
    """(Predictor, report) of a TrainNoiseAwareClassifier on the examples of a MODEL's latents."""
    sampling, latent_format = model.get_model_object("model_sampling"), model.get_model_object("latent_format")
    device = comfy.model_management.get_torch_device()
    channels = {p.shape[1] for p, _ in method.examples.parts}
    if len(channels) > 1:
        raise BadInput(method.title, "examples", f"latents of {' and '.join(map(str, sorted(channels)))} channels", "All must be of one kind.")
    with torch.inference_mode(False):
        latents = [latent_format.process_in(p.clone().float()).to(device) for p, _ in method.examples.parts]
        return method.run(latents, sampling.percent_to_sigma, is_flow(sampling), device, ticker())


def scored_by_loss(model, latent, loss, node):
    """[n]: the values of a loss at clean latents."""
    samples = samples_of(node, latent)
    latent_format, found = model.get_model_object("latent_format"), []
    with torch.inference_mode(False), torch.no_grad():
        for one in samples.split(1):      # decoders are the largest part of it
            comfy.model_management.throw_exception_if_processing_interrupted()
            z = latent_format.process_in(one.clone().float()).to(model.load_device)
            found.append(loss.value(z, LossContext()).float().cpu())
    return torch.cat(found)


def scored_by_rarity(model, positive, latent, vae, level, samples, seed, node):
    """[n]: minority scores of clean latents; distances of pictures where a VAE is given, else of latents."""
    samples_of(node, latent)
    view = lambda z: z.movedim(2, 1).flatten(0, 1) if z.ndim == 5 else z
    if vae is not None:
        from .decode import Decoder
        decoder = Decoder(vae, model.get_model_object("latent_format"))

        def view(z):
            with torch.no_grad():
                return torch.cat([decoder(one).detach().clamp(0, 1) for one in z.split(1)])

    def work(p):
        def denoise(x, sigma):
            return p.each(x, sigma, ["positive"])[0].float()
        found = []
        for part in p.x0.split(16):
            scores = minority_scores(part, denoise, p.sigma(level), p.flow, samples, seed, structure_distance, view)
            found.append(scores.view(part.shape[0], -1).mean(1).cpu())
        return torch.cat(found)
    return probe(model, {"positive": positive}, latent, work, total=samples * latent["samples"].shape[0])


def encoder_examples(model, vae, encoder, latent, node):
    """(latents [n, ...] in the model's space, embeddings [n, d]) of clean latents: what an image encoder gives of their pictures."""
    from ..loss.encoder import embedding_of, sized
    from .decode import Decoder
    samples = samples_of(node, latent)
    if samples.ndim != 4:
        raise BadInput(node, "latent", f"{samples.ndim} axes", "Give latents of pictures.")
    latent_format, found = model.get_model_object("latent_format"), []
    decoder = Decoder(vae, latent_format)
    with torch.inference_mode(False), torch.no_grad():
        latents = latent_format.process_in(samples.clone().float())
        for one in latents.split(4):
            comfy.model_management.throw_exception_if_processing_interrupted()
            pictures = decoder(one.to(model.load_device)).detach().clamp(0, 1)
            found.append(embedding_of(encoder.see(sized(pictures, encoder.side)), node).detach().float().cpu())
    return latents, torch.cat(found)


def train_encoder(method, model, latents, embeddings):
    """(NoisyEncoder, report) of a TrainNoiseAwareEncoder on latents of a MODEL."""
    sampling, device = model.get_model_object("model_sampling"), comfy.model_management.get_torch_device()
    with torch.inference_mode(False):
        return method.run(latents.to(device), embeddings, sampling.percent_to_sigma, is_flow(sampling), device, ticker())
