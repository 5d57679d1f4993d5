"""Pairs of streams in one batch (guidance.attention.unicon): noise levels of their own, text of their own, and the projections of the blocks that join them, put in place for one network call."""
from __future__ import annotations

import contextlib
import math

import torch

from ..attention.joint_streams import Rows, placed_in
from ..attention.unicon import Apart, JointStreams, levels
from ..method import BadInput
from .calls import spread
from .compiled import eager
from .geometry import block_modules
from .gradients import recomputing

_MASK = "denoise_mask_function"


def attention_widths(network, geometry):
    """{layer's name: (width of its tokens, width of its text)} of a U-Net, {} of others."""
    if geometry.family != "unet":
        return {}
    blocks = {str(layer): block_modules(network, layer)["space"] for layer in geometry.layers}
    return {name: (b.attn1.to_q.in_features, b.attn2.to_k.in_features if b.attn2 is not None else None) for name, b in blocks.items()}


def _edit(edits):
    return next((e for e in edits if isinstance(e, JointStreams)), None)


def _method(session):
    return next((m for m in session.run.pipeline.methods if getattr(m, "own_levels", False)), None)


@contextlib.contextmanager
def opened(session):
    """Around a run: a noise mask says how much noise each place begins with. Places are held until the level of the sampling has come down to theirs."""
    method = _method(session)
    if method is None:
        yield
        return
    arguments, options = session.arguments, session.guider.model_options
    rows = arguments["noise"].shape[0]
    if rows % 2:
        raise BadInput(method.title, "latent_image", f"a batch of {rows}", "It samples pairs: connect Joint Latent, which makes a batch of images and as many conditions.")
    mask = arguments["denoise_mask"]
    if mask is None or bool((mask == 1).all()):
        yield
        return
    if _MASK in options:
        raise BadInput(method.title, "model", "a model with another use of the noise mask (Differential Diffusion)", "Remove that node: the joint latent's noise mask already works that way.")
    begins = levels(mask.expand(rows, *mask.shape[1:]), session.guider.model_patcher.get_model_object("model_sampling").percent_to_sigma)
    session.begins = begins, begins.flatten(1).amax(1)

    def open_places(sigma, denoise_mask, extra_options=None):
        begin = begins.to(denoise_mask.device)
        return (sigma.view(-1, *[1] * (begin.ndim - 1)).to(begin) <= begin * (1 + 1e-5)).to(denoise_mask)
    options[_MASK] = open_places
    try:
        yield
    finally:
        options.pop(_MASK, None)


def enter(call, x, t, c_crossattn, roles, options, kwargs):
    """Before a network call: (x, t, c_crossattn, kwargs) with each stream at its own level and with its own text."""
    size = x.shape[0] // len(roles)
    uuids = options.get("uuids") or [None] * len(roles)
    for i, (role, chunk) in enumerate(zip(roles, uuids)):
        edit = _edit(call.edits_of(role))
        if edit is None:
            continue
        rows = slice(i * size, (i + 1) * size)
        if getattr(call.session, "begins", None) is not None and (role is None or role.source is None):
            x, t = _at_own_level(call, x, t, rows, call.session.entries.get(chunk, {}).get("area"))
        if edit.prompt is not None and role is not None and role.prompt == "positive":
            c_crossattn, kwargs = _with_text(call, edit, c_crossattn, kwargs, slice(rows.start + size // 2, rows.stop), x.shape[0])
    return x, t, c_crossattn, kwargs


def _at_own_level(call, x, t, rows, area):
    """x and t with the rows whose stream still waits: what was given, noised to the level at which it waits."""
    session = call.session
    begin = session.begins[1].to(t)
    waits = t[rows] > begin * (1 + 1e-5)
    if not bool(waits.any()):
        return x, t
    sampling = session.model.model_sampling
    told = torch.minimum(begin.clamp(min=float(getattr(sampling, "sigma_min", 0.0))), t[rows])      # a stream without noise is at the model's least level, as in training
    given, noise = _given(session, x.device)
    if x.shape[2:] != given.shape[2:]:
        if not area or area[0] == "percentage" or tuple(x.shape[-2:]) != tuple(area[:2]):
            raise BadInput("UniCon", "model", f"a network input of {list(x.shape[-2:])} cells", f"The streams have {list(given.shape[-2:])}, and one that is kept cannot be brought to another size: "
                           "remove the node that evaluates the picture at another size.")
        cut = (..., slice(area[2], area[2] + area[0]), slice(area[3], area[3] + area[1]))
        given, noise = given[cut], noise[cut]
    kept = sampling.noise_scaling(told.view(-1, *[1] * (x.ndim - 1)).to(noise), noise, given)
    x, t = x.clone(), t.clone()
    x[rows] = torch.where(waits.view(-1, *[1] * (x.ndim - 1)), kept.to(x.dtype), x[rows])
    t[rows] = torch.where(waits, told, t[rows])
    return x, t


def _given(session, device):
    """(latent as the model sees it, noise) that the run began with, in float32."""
    key = ("joint latent", str(device))
    if key not in session.references:
        latent = session.arguments["latent_image"].to(device=device, dtype=torch.float32)
        latent = session.model.process_latent_in(latent) if torch.count_nonzero(latent) > 0 else latent
        session.references[key] = latent, session.arguments["noise"].to(device=device, dtype=torch.float32)
    return session.references[key]


def _with_text(call, edit, context, kwargs, rows, count):
    """The text (and pooled vector, where the network takes one) of the condition's rows in place of the prompt's."""
    entries = call.session.prompt_conds(edit.prompt)
    found = {k: entries[0]["model_conds"][k].cond for k in ("c_crossattn", "y") if k in entries[0].get("model_conds", {})}
    own = spread(found["c_crossattn"], rows.stop - rows.start).to(context)
    length = math.lcm(context.shape[1], own.shape[1])      # repeated texts leave the attention as it is; the host does the same
    context = context.repeat(1, length // context.shape[1], 1) if context.shape[1] != length else context.clone()
    context[rows] = own.repeat(1, length // own.shape[1], 1)
    vector = kwargs.get("y")
    if "y" in found and isinstance(vector, torch.Tensor) and vector.shape[0] == count:
        vector = vector.clone()
        vector[rows] = found["y"].to(vector).expand(rows.stop - rows.start, *found["y"].shape[1:])
        kwargs = {**kwargs, "y": vector}
    return context, kwargs


@contextlib.contextmanager
def placed(call, options, network):
    """Within it, the network's transformer blocks run with the weights of the streams in their rows."""
    roles = call.roles(options)
    carried = [call.edits_of(r) for r in roles]
    edit = next((e for e in map(_edit, carried) if e is not None), None)
    if edit is None:
        yield
        return
    joined = [None if _edit(edits) is None else not any(isinstance(e, Apart) for e in edits) for edits in carried]
    touched = []
    try:
        for holder, blocks in _holders(call, edit, network):
            touched.append((holder, holder.__dict__.get("forward")))
            holder.forward = _forward(call, edit, blocks, holder.forward, joined)
        yield
    finally:
        for module, earlier in reversed(touched):
            _back(module, earlier)


def _back(module, earlier):
    if earlier is None:
        module.__dict__.pop("forward", None)
    else:
        module.forward = earlier


def _holders(call, edit, network):
    """[(module that holds transformer blocks, [(layer, block's module, its weights)])]."""
    found = {}
    for layer in call.session.geometry.layers:
        weights = edit.weights.layers.get(str(layer))
        if weights is not None:
            sequence = network.middle_block if layer.stage == "middle" else getattr(network, f"{layer.stage}_blocks")[layer.index]
            holder = next(m for m in sequence if getattr(m, "transformer_blocks", None) is not None)
            found.setdefault(id(holder), (holder, []))[1].append((layer, block_modules(network, layer)["space"], weights))
    return list(found.values())


def _forward(call, edit, blocks, inner, joined):
    """The forward of a module with transformer blocks, with the streams in their projections; where it is computed again for a gradient they are there too."""
    again = getattr(inner, "recomputes", None)

    def run(x, *args, **kwargs):
        from comfy.ldm.modules.attention import optimized_attention
        if x.shape[0] % (2 * len(joined)):
            raise ValueError(f"{edit.title}: {x.shape[0]} rows in a block are no pairs of streams.")
        rows, touched = _rows(joined, x.shape[0] // len(joined), x.device), []
        try:
            for _, module, weights in blocks:
                attend = lambda q, k, v, m=module.attn1: optimized_attention(q, k, v, m.heads, attn_precision=m.attn_precision)
                for at, make in placed_in(module, _moved(call.session, weights, x.device), rows, attend, edit.scale, edit.amount):
                    touched.append((at, at.__dict__.get("forward")))
                    at.forward = make(at.forward)
            return (again or inner)(x, *args, **kwargs)
        finally:
            for at, earlier in reversed(touched):
                _back(at, earlier)
    return eager(recomputing(run, inner.contexts) if again is not None else run, inner=True)


def _rows(joined, size, device):
    with torch.inference_mode(False):
        return Rows(len(joined), size, joined, device)


def _moved(session, block, device):
    """A block's weights on the device in the network's dtype, as ordinary tensors; kept for the run."""
    model = session.model
    dtype = model.get_dtype() if model.manual_cast_dtype is None else model.manual_cast_dtype
    key = ("joint weights", id(block), str(device), dtype)
    if key not in session.references:
        with torch.inference_mode(False), torch.no_grad():
            session.references[key] = block.moved(lambda t: t.to(device=device, dtype=dtype).clone())
    return session.references[key]
