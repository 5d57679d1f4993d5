"""Block edits on the host's networks: "dit" block replacements where a network offers them, else the block's own forward for the time of one network call.

A block runs for the whole batch; edited rows are changed before it and put in place behind it, so the other rows of the call are what they would be alone.
"""
from __future__ import annotations

import contextlib
import inspect

import torch

from ..attention.blocks import BlockSite
from ..attention.edits import merge_groups
from ..layers import JOINT_FAMILIES
from .attention_hooks import _grid, joint_slices
from .compiled import eager
from .geometry import block_modules
from .places import unet_grid

_ROTARY = ("freqs_cis", "rope", "rope_emb_L_1_1_D", "freqs", "image_rotary_emb")      # what blocks without a replacement call their rotary embedding
_TEXT = ("text_tokens", "encoder_hidden_states", "y")                             # and their text stream


def _network(call):
    return call.session.network


def _replaceable(geometry, layer):
    """Whether the host offers a block replacement for a layer."""
    return geometry.family not in ("unet", "blocks") and layer.key[0] is not None


def install(call, options):
    """Adds block replacements for this call's block edits to `options` (a copy that belongs to the call)."""
    edits = call.blocked
    if not edits:
        return
    session = call.session
    if not session.geometry.layers:
        raise ValueError(f"Lodestar does not know the layers of {_network(call)}; its blocks cannot be left out or changed.")
    for edit in edits:
        edit.check(session.geometry, session.selected(edit))
    layers = [x for x in session.geometry.layers if _replaceable(session.geometry, x) and any(x in session.selected(e) for e in edits)]
    if not layers:
        return
    transformer = options["transformer_options"]
    replace = {kind: dict(table) for kind, table in transformer.get("patches_replace", {}).items()}
    table = replace.setdefault("dit", {})
    for layer in layers:
        table[layer.key] = _replacement(call, layer, table.get(layer.key))
    transformer["patches_replace"] = replace


def _replacement(call, layer, previous):
    def run(args, extra):
        options = args.get("transformer_options")
        options = call.live if options is None else options
        streams = {"image": args["img"]}
        if isinstance(args.get("txt"), torch.Tensor) and layer.stage == "double" and call.session.geometry.family in JOINT_FAMILIES:
            streams["text"] = args["txt"]
            options.get("lodestar_net", {})["text"] = args["txt"].shape[1]
        names = {"image": "img", "text": "txt"}

        def block(entered):
            given = {**args, **{names[k]: t for k, t in entered.items()}}
            out = previous(given, extra) if previous is not None else extra["original_block"](given)
            return {k: out.get(names[k]) for k in streams}, out

        made, out = _through(call, options, layer, "space", streams, block)
        return {**(args if out is None else out), **{names[k]: t for k, t in made.items()}}
    return eager(run, inner=True)


@contextlib.contextmanager
def placed(call, options, network):
    """Within it, the blocks that the rows of this network call edit, and that have no replacement, run through their edits."""
    session, geometry = call.session, call.session.geometry if call.blocked or call.rotated else None
    edits = {e for r in call.roles(options) for e in call.blocks_of(r)} if geometry is not None else ()
    call.live = options
    touched = []
    try:
        for layer in geometry.layers if geometry is not None else ():
            if _replaceable(geometry, layer):
                continue
            edited = any(layer in call.picked(e) for e in edits)
            watched = geometry.family != "unet" and any(layer in session.selected(e) for e in call.rotated)
            if not edited and not watched:
                continue
            for part, module in block_modules(network, layer).items():
                touched.append((module, module.__dict__.get("forward")))
                module.forward = _forward(call, options, layer, part, module, module.forward, edited)
        yield
    finally:
        for module, earlier in reversed(touched):
            if earlier is None:
                module.__dict__.pop("forward", None)
            else:
                module.forward = earlier


def _forward(call, options, layer, part, module, inner, edited):
    """A block's forward with the edits of this call's rows around it."""
    signature, family = inspect.signature(type(getattr(module, "_orig_mod", module)).forward), call.session.geometry.family

    def run(*args, **kwargs):
        bound = signature.bind(module, *args, **kwargs)
        given = bound.arguments
        for name in _ROTARY:
            if given.get(name) is not None:
                options["lodestar_net"]["pe"] = given[name]
        if not edited:
            return inner(*args, **kwargs)
        image = next((n for n, v in given.items() if isinstance(v, torch.Tensor) and v.ndim in (3, 5)), None)
        if image is None:
            raise ValueError(f"The blocks of {_network(call)} take their tokens in a form that block edits do not know.")
        like = given[image]
        streams = {"image": _tokens(module, like)}
        text = next((n for n in _TEXT if isinstance(given.get(n), torch.Tensor) and given[n].ndim == 3), None)
        if text is not None and (family in ("blocks", "cogvideo") or (family == "hidream" and layer.stage == "double")):
            streams["text"] = given[text]

        def block(entered):
            if entered["image"] is not streams["image"]:
                given[image] = _shaped(module, entered["image"], like)
            out = inner(*bound.args[1:], **bound.kwargs)
            outs = out if isinstance(out, tuple) else (out,)
            if len(outs) > 2 or not all(isinstance(t, torch.Tensor) for t in outs) or (len(outs) == 2 and "text" not in streams):
                raise ValueError(f"The blocks of {_network(call)} return something that block edits do not know.")
            made = {"image": _tokens(module, outs[0])}
            return (made if len(outs) == 1 else {**made, "text": outs[1]}), out

        # where the family is not known, the result alone tells whether a block returns its text too; where attention calls are told by their order, all must run
        made, _ = _through(call, options, layer, part, streams, block, must_run=family == "blocks" or (family != "unet" and bool(call.edited)))
        out = _shaped(module, made["image"], like)
        return (out, made["text"]) if made.get("text") is not None else out
    return eager(run, inner=True)


def _tokens(module, x):
    """[rows, tokens, width] of a block's picture, which Cosmos keeps as a grid."""
    if x.ndim == 3:
        return x
    return (x.movedim(3, 0) if getattr(module, "x_format", "") == "THWBD" else x).flatten(1, 3)


def _shaped(module, t, like):
    if like.ndim == 3:
        return t
    if getattr(module, "x_format", "") == "THWBD":
        return t.unflatten(1, like.shape[:3]).movedim(0, 3)
    return t.unflatten(1, like.shape[1:4])


def _site(call, options, layer, part, streams):
    """Where the picture's tokens are in the streams of a block."""
    geometry, step = call.session.geometry, call.step
    if geometry.family == "unet":
        return BlockSite(layer, part, slice(None), 1, *unet_grid(options, streams["image"].shape[1])[:2], step)
    net = options.get("lodestar_net")
    if net is None:
        return BlockSite(layer, part, step=step)
    frames, height, width = _grid(geometry, net["shape"])
    tokens, count = frames * height * width, streams["image"].shape[1]
    where = slice(0, tokens) if count >= tokens else slice(None)
    if geometry.family in JOINT_FAMILIES:
        if "text" in streams:
            where = slice(count - tokens, count) if geometry.image_last and count > tokens else where
        else:
            slices = joint_slices(geometry, net, count, tokens)
            where = slices[1] if slices is not None else slice(None)
    return BlockSite(layer, part, where, frames, height, width, step)


def _groups(call, options, layer, part, rows):
    """[(start, stop, edits)] of the rows of a block, those of a second text stream like the rows they copy."""
    roles = call.roles(options)
    shadow = options.get("lodestar_net", {}).get("shadow")
    size = (rows - (len(shadow.rows) if shadow is not None else 0)) // len(roles)
    labels = [tuple(e for e in call.blocks_of(r) if part in e.parts and layer in call.picked(e)) for r in roles]
    if shadow is None:
        return merge_groups(labels, size)
    return merge_groups([labels[i // size] for i in [*range(size * len(roles)), *shadow.rows]], 1)


def _through(call, options, layer, part, streams, block, must_run=False):
    """Runs `block(streams)` -> (streams, raw result) with the edits of each row around it: (streams, raw result, or None where the block was not needed)."""
    groups = _groups(call, options, layer, part, streams["image"].shape[0])
    edited = [g for g in groups if g[2]]
    if not edited:
        return block(streams)
    site = _site(call, options, layer, part, streams)
    vars(call.session).setdefault("blocks_fired", set()).update(e for _, _, edits in edited for e in edits)
    if len(edited) == len(groups) and all(len(edits) == 1 and edits[0].replaces for _, _, edits in groups) and not must_run:
        return _join(streams, [(a, b, edits[0].leave(site, _cut(streams, a, b), None)) for a, b, edits in groups]), None
    chains, entered = [], streams
    for start, stop, edits in edited:
        now, trace = {k: t[start:stop].clone() for k, t in streams.items()}, []      # the host's blocks update their streams in place
        for edit in edits:
            trace.append((edit, now))
            now = edit.enter(site, now)
        chains.append((start, stop, trace))
        if any(now[k] is not trace[0][1][k] for k in now):
            entered = _join(entered, [(start, stop, now)])
    made, out = block(entered)
    made = {k: t for k, t in made.items() if t is not None}
    for name, t in made.items():
        if t.shape != streams[name].shape:
            raise ValueError(f"{layer} of {_network(call)} changes the number or width of its tokens, so it cannot be left out or changed for some rows. Choose other layers.")
    parts = []
    for start, stop, trace in chains:
        now = _cut(made, start, stop)
        for edit, given in reversed(trace):
            now = edit.leave(site, {k: given[k] for k in made}, now)
        parts.append((start, stop, now))
    return _join(made, parts), out


def _cut(streams, start, stop):
    return {k: t[start:stop] for k, t in streams.items()}


def _join(streams, parts):
    """The streams with the rows of `parts` [(start, stop, streams)] in place of their own."""
    out = {}
    for name, t in streams.items():
        pieces, end = [], 0
        for start, stop, part in sorted(parts, key=lambda p: p[0]):
            pieces += [t[end:start]] if start > end else []
            pieces.append(part[name].to(t.dtype))
            end = stop
        pieces += [t[end:]] if end < t.shape[0] else []
        out[name] = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
    return out


def check_run(session):
    """After a sampling run: RuntimeError where a block edit was wanted and never ran."""
    lost = vars(session).get("blocks_wanted", set()) - vars(session).get("blocks_fired", set())
    if lost:
        names = ", ".join(sorted({type(e).__name__ for e in lost}))
        raise RuntimeError(f"{names} never reached the blocks of {session.network}: this host or another node runs them where block edits "
                           "cannot act.")
