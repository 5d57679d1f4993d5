"""Training of readout heads in the host: features of single predictions of the MODEL."""
from __future__ import annotations

import torch

from ..attention.properties import feature_reader
from ..layers import select
from ..method import BadInput
from ..training.readout import refuse_what_is_no_picture
from .examples import samples_of, ticker
from .facts import Facts
from .features import wrappers
from .geometry import of_model
from .probe import probe


def layers_of(model, method):
    """(reader, layers) of a TrainReadoutHead on a MODEL; its default reads a U-Net's decoder, and every third layer of others."""
    facts = Facts(model)
    cls, found = feature_reader(facts, method.layers, method.title, "decoder")
    if not method.layers and facts.geometry.family != "unet":
        found = " ".join(found.split()[1::3] or found.split()[:1])
    select(of_model(model), found, method.title)
    return cls(found)


def train(method, model, positive, latent, maps, groups, moves=None):
    """(Readout, loss at first, loss at last) of a TrainReadoutHead: maps, groups, or the moves within pairs."""
    if not wrappers():
        raise BadInput(method.title, "ComfyUI", "this version", "The features inside its networks cannot be read; use a ComfyUI of December 2024 or newer.")
    samples = samples_of(method.title, latent)
    refuse_what_is_no_picture(samples, method.title, "latent")
    reader, seen = layers_of(model, method), {}

    def take(observer, found):
        seen.update(found)

    def work(p):
        x0 = p.x0.detach().clone()
        device = x0.device

        def features_of(x, sigma):
            seen.clear()
            with torch.no_grad():
                p.observed(x.to(device), sigma.to(device))
            if not seen:
                raise ValueError(f"{method.title}: no features were seen; another node takes the layers {reader.layers} away.")
            return dict(seen)

        with torch.inference_mode(False):
            return method.run(x0.clone().cpu(), maps, groups, features_of, p.sampling.percent_to_sigma, p.flow, ticker(), moves)
    return probe(model, {"positive": positive}, latent, work, observers=(reader,), take=take)
