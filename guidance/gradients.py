"""The gradient of a loss of the prediction with respect to the noisy latent, in three costs.

g = -grad_x loss(D(x)), per sample (losses return one value per sample and are summed, so samples never mix).
  "network"     backward through the network: about three forward passes, all activations kept
  "checkpoint"  the same numbers, blocks recomputed in the backward: about four passes, activations of one block kept
  "none"        the network's Jacobian replaced by that of a unit Gaussian, a / (a^2 + s^2): no backward through the network
How a gradient enters a step is `enter`: the four modes of the field with their conversions, done once (x = a x0 + s n).
"""
from __future__ import annotations

import contextlib
import dataclasses
import weakref

import torch

ROUTES = ("network", "checkpoint", "none")
LOSS_SCALE = 2.0 ** 10     # keeps fp16 gradients out of the subnormals; divided out in float32


def rms(t):
    """Root mean square per sample, shaped to broadcast; summed in float32."""
    return t.float().square().mean(tuple(range(1, t.ndim)), keepdim=True).sqrt().to(t)


class _Handles(weakref.WeakValueDictionary):
    """{identity of a saved tensor: its handle} of PyTorch's context, without those that were copied already: such a tensor may be gone, and another one be at its address."""

    def __init__(self, context):
        super().__init__()
        self.context = context

    def __contains__(self, identity):
        handle = self.get(identity)
        return handle is not None and handle not in self.context.cloned


@contextlib.contextmanager
def _mutation():
    with torch.autograd.graph.allow_mutation_on_saved_tensors() as context:
        if isinstance(getattr(context, "tid_to_weakhandle", None), weakref.WeakValueDictionary) and hasattr(context, "cloned"):
            context.tid_to_weakhandle = _Handles(context)
        yield


@contextlib.contextmanager
def plain_context(checkpoint=False):
    """Autograd on, also under the executor's inference mode and a sampler's no_grad; networks may update tensors in place."""
    nested = getattr(torch.autograd.graph, "_allow_mutation_on_saved_tensors_enabled", False)
    mutation = contextlib.nullcontext() if nested else _mutation()
    with torch.inference_mode(False), torch.enable_grad(), mutation:
        yield


@dataclasses.dataclass
class Gradient:
    """denoised: the prediction (detached); value [batch]: the loss; direction: g = -grad_x loss, shaped as x."""

    denoised: torch.Tensor
    value: torch.Tensor
    direction: torch.Tensor


def gradient(step, evaluate, loss, route="network", context=None):
    """Gradient of `loss(denoised) -> [batch]` at step.x through `evaluate(x) -> denoised`; leaves no graph behind."""
    if route not in ROUTES:
        raise ValueError(f"unknown gradient route {route!r}; one of {', '.join(ROUTES)}")
    context = context or plain_context
    if route == "none":
        denoised = evaluate(step.x)
        with plain_context():
            leaf = denoised.detach().clone().float().requires_grad_(True)
            value = _values(loss(leaf), leaf)
            slope, = torch.autograd.grad(value.sum(), leaf)
        s, a = step.s.float(), step.a.float()
        direction = -(a / (a * a + s * s)) * slope
        return Gradient(denoised, value.detach(), direction.detach().to(step.x.dtype))
    with context(checkpoint=route == "checkpoint"):
        leaf = step.x.detach().clone().requires_grad_(True)
        denoised = evaluate(leaf)
        value = _values(loss(denoised.float()), denoised)
        slope, = torch.autograd.grad(value.sum() * LOSS_SCALE, leaf)
    return Gradient(denoised.detach(), value.detach(), (-slope.float() / LOSS_SCALE).detach().to(step.x.dtype))


def _values(value, like):
    if value.ndim != 1 or value.shape[0] != like.shape[0]:
        raise ValueError(f"a loss must return one value per sample, shape [{like.shape[0]}], not {list(value.shape)}")
    return value


NORMALISERS = ("none", "unit rms", "unit length")


def normalised(g, how):
    """A direction g [batch, ...] as it is, with a root mean square of 1, or a Euclidean length of 1, per sample; 0 stays 0."""
    if how == "none":
        return g
    axes = tuple(range(1, g.ndim))
    size = g.float().square().sum(axes, keepdim=True).sqrt() if how == "unit length" else g.float().square().mean(axes, keepdim=True).sqrt()
    return torch.where(size > 0, g.float() / size.clamp(min=1e-20), torch.zeros_like(g.float())).to(g.dtype)


MODES = ("score", "state", "keep noise", "estimate")


def next_ratio(step):
    """r = s_next / s of this step, and s_next, as floats (0 on the last step or without a schedule)."""
    if step.sigmas is None or step.index + 1 >= len(step.sigmas):
        return 0.0, 0.0
    following = float(step.sigmas[step.index + 1])
    return following / max(float(step.sigma.flatten()[0]), 1e-12), following


def enter(step, denoised, direction, scale, mode="score"):
    """The prediction with a direction entered by one of MODES.

    score        D + scale (s^2 / a) g            a change of the score; invariant to the number of steps
    state        the next state moves by scale g  (exact for first-order samplers)
    keep noise   D + scale g with the predicted noise kept: the next state moves by a_next scale g
    estimate     D + scale g, noise recomputed by the sampler
    A scale of 0 returns `denoised` itself.
    """
    if scale == 0:
        return denoised
    s, a = step.s, step.a
    if mode == "score":
        return denoised + scale * (s * s / a.clamp(min=0.05)) * direction
    if mode == "estimate":
        return denoised + scale * direction
    ratio, following = next_ratio(step)
    lever = max(1.0 - ratio, 1e-3)
    if mode == "state":
        return denoised + scale * direction / lever
    if mode == "keep noise":
        return denoised + scale * direction * ((1 - following) if step.flow else 1.0) / lever
    raise ValueError(f"unknown mode {mode!r}; one of {', '.join(MODES)}")
