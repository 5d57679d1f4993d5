"""Train Restoration Prior inside the host: a LoRA on the linear layers of a MODEL's network, trained within the host's own sampling call."""
from __future__ import annotations

from types import SimpleNamespace

import comfy.sd
import torch

from ..method import BadInput
from ..training.restoration_prior import fresh, file_of
from .features import wrappers
from .geometry import checkpoint_modules
from .gradients import HostContext
from .probe import probe

PARTS = ("attn", "attention")


def layers(network, which):
    """{name: module} of the linear layers in the network's blocks; `which` "attention": those alone whose path names attention, all where none does."""
    names = {id(m): n for n, m in network.named_modules()}
    found = {}
    for block in checkpoint_modules(network):
        for name, module in block.named_modules(prefix=names[id(block)]):
            if hasattr(module, "in_features") and getattr(module, "weight", None) is not None:
                found[name] = module
    chosen = {n: m for n, m in found.items() if any(p in n for p in PARTS)}
    return chosen if which == "attention" and chosen else found


def _with_lora(inner, pair):
    def run(x, *args, **kwargs):
        down, up = pair
        return inner(x, *args, **kwargs) + (x.to(down.dtype) @ down.T @ up.T).to(x.dtype)
    return run


def train(method, model):
    """(LoRA {key: tensor}, mean loss at first, at last) of a TrainRestorationPrior on a MODEL."""
    if not wrappers():
        raise BadInput(method.title, "ComfyUI", "this version", "It needs gradients through the network, which this host cannot give; use a ComfyUI of December 2024 or newer.")
    first = method.examples.groups[0]
    inward = model.get_model_object("latent_format").process_in
    made = {}

    def work(p):
        base = p.guider.inner_model
        network = base.diffusion_model
        generator = torch.Generator().manual_seed(method.seed)
        touched = []
        context = HostContext(SimpleNamespace(model=base, peers={}))
        with torch.inference_mode(False), torch.enable_grad(), context():
            groups = [tuple(inward(t.clone().float()).to(p.x0.device) for t in group[:2]) for group in method.examples.groups]
            found = layers(network, method.layers)
            pairs = {n: tuple(t.to(p.x0.device).requires_grad_() for t in pair) for n, pair in fresh({n: (m.out_features, m.in_features) for n, m in found.items()}, method.rank, generator).items()}
            try:
                for name, module in found.items():
                    touched.append((module, module.__dict__.get("forward")))
                    module.forward = _with_lora(module.forward, pairs[name])
                made["losses"] = method.run(groups, lambda x, sigma, name: p.each(x, sigma, [name])[0], [t for pair in pairs.values() for t in pair], p.sampling.percent_to_sigma, p.flow)
            finally:
                for module, earlier in reversed(touched):
                    if earlier is None:
                        module.__dict__.pop("forward", None)
                    else:
                        module.forward = earlier
            made["lora"] = file_of(pairs)
        return None

    probe(model, method.names(), {"samples": first[0]}, work, total=method.steps * method.batch)
    return made["lora"], *made["losses"]


def applied(model, lora):
    """The MODEL with a LoRA, as the host's own loader puts it on."""
    return comfy.sd.load_lora_for_models(model, None, {k: v.clone() for k, v in lora.items()}, 1.0, 0.0)[0]
