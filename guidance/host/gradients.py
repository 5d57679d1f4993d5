"""Autograd inside the host: out of inference mode, weights as ordinary tensors, blocks recomputed where memory matters."""
from __future__ import annotations

import contextlib
import functools

import torch

from ..gradients import plain_context
from .compiled import eager
from .geometry import checkpoint_modules


def make_normal(network):
    """Weights that were made in inference mode cannot be saved for a backward pass: replaces them by ordinary ones, one at a time."""
    with torch.inference_mode(False):
        for module in network.modules():
            for table in (module._parameters, module._buffers):
                for name, tensor in table.items():
                    if tensor is None or not tensor.is_inference():
                        continue
                    new = tensor.detach().clone()
                    if isinstance(tensor, torch.nn.Parameter):
                        new = torch.nn.Parameter(new, requires_grad=False)
                    new.__dict__.update(tensor.__dict__)
                    table[name] = new


class _Recompute(torch.autograd.Function):
    """Runs a block without a graph, and again with one in the backward.

    Inputs are cloned: the host's blocks update them in place. Written out because the library's checkpoint keeps aliases of what such blocks overwrite.
    """

    @staticmethod
    def forward(ctx, function, skeleton, *tensors):
        ctx.function, ctx.skeleton = function, skeleton
        function.contexts.append(ctx)
        ctx.save_for_backward(*tensors)
        ctx.wanted = [t.requires_grad for t in tensors]
        with torch.no_grad():
            return function(*skeleton([t.detach().clone() for t in tensors]))

    @staticmethod
    def backward(ctx, *slopes):
        with plain_context():
            leaves = [t.detach().clone().requires_grad_(w) for t, w in zip(ctx.saved_tensors, ctx.wanted)]
            out = ctx.function(*ctx.skeleton([leaf * 1.0 if w else leaf for leaf, w in zip(leaves, ctx.wanted)]))
            outs = out if isinstance(out, tuple) else (out,)
            pairs = [(o, s) for o, s in zip(outs, slopes) if isinstance(o, torch.Tensor) and o.requires_grad and s is not None]
            wanted = [leaf for leaf, w in zip(leaves, ctx.wanted) if w]
            found = iter(torch.autograd.grad([o for o, _ in pairs], wanted, [s for _, s in pairs], allow_unused=True))
        return None, None, *[next(found) if w else None for w in ctx.wanted]


def recomputing(forward, contexts):
    """The forward of a module that keeps no activations; `recomputes` is the one within. What the backward needs is listed in `contexts`."""
    def run(*args, **kwargs):
        names = list(kwargs)
        values = [*args, *kwargs.values()]
        places = [i for i, v in enumerate(values) if isinstance(v, torch.Tensor) and v.is_floating_point()]
        if not any(values[i].requires_grad for i in places) or not torch.is_grad_enabled():
            return forward(*args, **kwargs)

        # the host writes into one dict of options which block is running: the backward needs it as it is now
        given, kept = [values], [dict(v) if isinstance(v, dict) else v for v in values]

        def skeleton(tensors):
            filled = list(given[0])
            for i, t in zip(places, tensors):
                filled[i] = t
            return filled

        def call(*filled):
            return forward(*filled[:len(args)], **dict(zip(names, filled[len(args):])))
        call.contexts = contexts
        out = _Recompute.apply(call, skeleton, *[values[i] for i in places])
        given[0] = kept
        return out
    run.recomputes, run.contexts = forward, contexts
    return run


@contextlib.contextmanager
def recomputed(network):
    """Within it, the network's blocks keep no activations; their own forward is back afterwards, and no backward is possible any more."""
    modules, contexts = checkpoint_modules(network), []
    try:
        for module in modules:
            module.forward = recomputing(module.forward, contexts)
        yield
    finally:
        for ctx in contexts:      # their functions hold the options of the call, which lead back to the graph: no garbage collection would ever free it
            ctx.function = ctx.skeleton = None
        for module in modules:
            module.__dict__.pop("forward", None)


def _check(slope):
    import comfy.model_management as management
    management.throw_exception_if_processing_interrupted()


@contextlib.contextmanager
def interruptible(network):
    """Within it, an interruption by the user ends a backward pass at the next of the network's blocks."""
    def watch(module, given, out):
        for t in out if isinstance(out, tuple) else (out,):
            if isinstance(t, torch.Tensor) and t.requires_grad:
                t.register_hook(_check)
    hook = eager(watch)
    handles = [module.register_forward_hook(hook) for module in checkpoint_modules(network)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _turn(x, matrices):
    """Applies the 2 x 2 matrices of a rotary embedding to the pairs of x."""
    pairs = x.to(matrices.dtype).reshape(*x.shape[:-1], -1, 1, 2)
    return (matrices[..., 0] * pairs[..., 0] + matrices[..., 1] * pairs[..., 1]).reshape(x.shape).to(x.dtype)


def _keep_matrices(ctx, inputs, output):
    ctx.save_for_backward(inputs[-1])


def _turn_back(ctx, *slopes):
    matrices, = ctx.saved_tensors
    back = matrices.transpose(-1, -2)
    return *[_turn(s, back) for s in slopes], None


def _keep_inputs(ctx, inputs, output):
    ctx.places = [i for i, t in enumerate(inputs) if isinstance(t, torch.Tensor)]
    ctx.inputs = [None if isinstance(t, torch.Tensor) else t for t in inputs]
    ctx.save_for_backward(*[inputs[i] for i in ctx.places])


def _backward_of(function):
    """The backward of a kernel, through the same formula in plain operations."""
    def back(ctx, *slopes):
        with plain_context():
            leaves = [t.detach().clone().requires_grad_(ctx.needs_input_grad[i]) for i, t in zip(ctx.places, ctx.saved_tensors)]
            given = list(ctx.inputs)
            for i, leaf in zip(ctx.places, leaves):
                given[i] = leaf
            out = function(*given)
            outs = out if isinstance(out, tuple) else (out,)
            wanted = [leaf for leaf in leaves if leaf.requires_grad]
            found = iter(torch.autograd.grad(outs, wanted, slopes, allow_unused=True))
        made = [None] * len(given)
        for i, leaf in zip(ctx.places, leaves):
            made[i] = next(found) if leaf.requires_grad else None
        return tuple(made)
    return back


@functools.lru_cache(None)
def _give_kernels_a_backward():
    """Some networks of the newest hosts (Cosmos Predict 2, Anima, Ernie, JoyImage) call kernels without a backward in spite of that switch: registers what is missing, once."""
    try:
        from comfy_kitchen.backends.eager import rope
    except ImportError:
        return
    for name in ("rms_rope", "rms_rope1", "rms_rope_split_half", "rms_rope_split_half1", "apply_rope_split_half", "apply_rope_split_half1"):
        try:
            torch.library.register_autograd(f"comfy_kitchen::{name}", _backward_of(getattr(rope, name)), setup_context=_keep_inputs)
        except (AttributeError, RuntimeError, ValueError):      # no such kernel, or it has a backward by now
            continue


@functools.lru_cache(None)
def _give_rotations_a_backward():
    """Some hosts (about 0.8) rotate queries and keys by a kernel that has no backward and offer no switch: registers the missing formula, once."""
    for name in ("apply_rope", "apply_rope1"):
        try:
            torch.library.register_autograd(f"comfy_kitchen::{name}", _turn_back, setup_context=_keep_matrices)
        except (AttributeError, RuntimeError, ValueError):      # no such kernel, or it has a backward by now
            continue


class HostContext:
    """The context that guidance.gradients uses on the host, called with `checkpoint`. alone(x, observers): the conditional prediction by itself (guidance.host.runs)."""

    alone = None

    def __init__(self, session):
        self.session, self.ready = session, False

    @contextlib.contextmanager
    def __call__(self, checkpoint=False):
        import comfy.model_management as management
        network = self.session.model.diffusion_model
        training = getattr(management, "in_training", None)
        if training is None:
            _give_rotations_a_backward()
        _give_kernels_a_backward()
        with plain_context():
            for each in (network, *(peer.patcher.model.diffusion_model for peer in self.session.peers.values())):
                make_normal(each)
            streams = getattr(management, "NUM_STREAMS", None)
            try:
                if training is not None:
                    management.in_training = True       # newer hosts then avoid kernels that have no backward
                if streams is not None:
                    management.NUM_STREAMS = 0      # offloaded weights then come as copies: what streams bring lies in buffers that are used again, and the backward pass would read other weights there
                with interruptible(network), recomputed(network) if checkpoint else contextlib.nullcontext():
                    yield
            finally:
                if training is not None:
                    management.in_training = training
                if streams is not None:
                    management.NUM_STREAMS = streams


@contextlib.contextmanager
def host_context(session):
    """Makes the host's context the one of the run's steering methods."""
    session.run.context = HostContext(session)
    try:
        yield
    finally:
        session.run.context = None
