"""The host's CLIP_VISION models as encoders with a gradient: without the rounding of their own preparation, and with every hidden layer."""
from __future__ import annotations

import contextlib

import torch

from ..gradients import plain_context
from ..loss.encoder import Seen
from ..method import BadInput
from .gradients import make_normal

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class HostVision:
    """An encoder (guidance.loss.encoder) of a CLIP_VISION. The host loads its weights when it is first used; it computes in float32 whatever they are."""

    def __init__(self, clip_vision, node, field_name="clip_vision"):
        self.host = clip_vision
        network = getattr(clip_vision, "model", None)
        self.stack = _stack(network) if isinstance(network, torch.nn.Module) else None
        if self.stack is None or not hasattr(clip_vision, "patcher"):
            raise BadInput(node, field_name, type(clip_vision).__name__, "Connect a CLIP_VISION from CLIP Vision Loader, or Load Demo Vision.")
        if getattr(clip_vision, "model_type", "") == "siglip2_vision_model":
            raise BadInput(node, field_name, "SigLIP 2 with pictures of any shape", "Its preparation has no gradient; use a CLIP, SigLIP or DINO encoder.")
        self.network = network
        self.side = int(getattr(clip_vision, "image_size", 224))
        self.layers = tuple(range(len(self.stack) + 1))
        self.style_layers, self.feature_layers = (min(2, len(self.stack)),), (max(1, len(self.stack) - 1),)
        self.key = "host vision", id(clip_vision)

    def __deepcopy__(self, memo):
        return self

    def see(self, pictures, layers=()):
        """Seen of pictures [n, 3, side, side] in about [0, 1]."""
        import comfy.model_management as management
        device = getattr(self.host, "load_device", pictures.device)
        if next(self.network.parameters()).device != torch.device(device):
            management.load_models_gpu([self.host.patcher])
        taken = {}
        with plain_context() if torch.is_grad_enabled() else contextlib.nullcontext():
            make_normal(self.network)
            mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (getattr(self.host, "image_mean", MEAN), getattr(self.host, "image_std", STD)))
            given = (pictures.to(device, torch.float32) - mean) / std
            handles = [self._watch(n, taken) for n in set(layers)]
            try:
                out = self.network(pixel_values=given, intermediate_output=-2)
            finally:
                for handle in handles:
                    handle.remove()
            embedding = out[2]
            back = lambda t: t.to(pictures.device, torch.float32)
            return Seen(back(embedding) if embedding.ndim == 2 else None, {n: back(_squares(t)) for n, t in taken.items()})

    def _watch(self, number, taken):
        """Keeps hidden state `number` in `taken`: what comes out of that many layers."""
        def entered(module, args, kwargs):
            taken[number] = (args[0] if args else next(iter(kwargs.values()))).clone()      # the layers update their input in place

        def left(module, args, output):
            taken[number] = (output[0] if isinstance(output, tuple) else output).clone()
        return self.stack[0].register_forward_pre_hook(entered, with_kwargs=True) if number == 0 else self.stack[number - 1].register_forward_hook(left)


def _stack(network):
    """The transformer's layers: its longest list of modules."""
    lists = [m for m in network.modules() if isinstance(m, torch.nn.ModuleList)]
    return max(lists, key=len, default=None)


def _squares(tokens):
    """The patches of tokens [n, t, d] as a map [n, d, h, h]; what is no patch (class and register tokens) comes first and is left out."""
    h = int(tokens.shape[1] ** 0.5)
    return tokens[:, tokens.shape[1] - h * h:].transpose(1, 2).unflatten(2, (h, h))


def encoder(clip_vision, node, field_name="clip_vision"):
    """An encoder of what a CLIP_VISION wire brings: a host's model, or what is an encoder by itself."""
    return clip_vision if hasattr(clip_vision, "see") else HostVision(clip_vision, node, field_name)


def text_embeddings(clip, lines, vision, node, field_name="text"):
    """[lines, d] on the CPU: texts in the space of the encoder's embeddings, by the host's CLIP. BadInput where its text has no part there."""
    from .text import encode
    found = []
    for line in lines:
        pooled = [d.get("pooled_output") for _, d in encode(clip, line)]
        if not pooled or pooled[0] is None:
            raise BadInput(node, "clip", type(clip).__name__, "This text encoder gives no pooled text; use a CLIP (CLIP Loader with clip_l or clip_g).")
        found.append(pooled[0].detach().float().cpu().flatten())
    _refuse_unprojected(clip, node)
    with torch.inference_mode(False):
        made = torch.stack([f.clone() for f in found])
        project = getattr(vision, "project_text", None)
        return made if project is None else project(made).detach().clone()


def _refuse_unprojected(clip, node):
    """Checkpoints of SD 1.5 leave the text projection out; the host puts the identity there, and its texts are then not in the space of the pictures."""
    for module in getattr(clip, "cond_stage_model", torch.nn.Module()).modules():
        weight = getattr(getattr(module, "text_projection", None), "weight", None)
        if isinstance(weight, torch.Tensor) and weight.ndim == 2 and weight.shape[0] == weight.shape[1] > 1 and weight.device.type != "meta":
            if torch.equal(weight.detach().float().cpu(), torch.eye(weight.shape[0])):
                raise BadInput(node, "clip", "a text encoder without its projection", "It came with a checkpoint that leaves the projection out (SD 1.5); load the complete clip_l.safetensors by CLIP Loader.")
