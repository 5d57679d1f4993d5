"""Attention edits on the host's hooks: U-Net replacements per layer, the attention override and block replacements of DiTs.

Everything is put into the options of one call, chained in front of what others have put there, and gone afterwards.
"""
from __future__ import annotations

import torch

from ..attention.edits import Site, apply_rows
from .shadow import Shadow

LAYER = "lodestar_layer"
JOINT_FAMILIES = ("flux", "sd3", "qwen", "hunyuan", "aura", "lumina")


def install(call, options):
    """Adds the hooks that this call's edits need to `options` (a copy that belongs to the call)."""
    edits = call.edited
    if not edits:
        return
    geometry = call.session.geometry
    if not geometry.layers:
        raise ValueError(f"Lodestar does not know the layers of {type(call.session.model.diffusion_model).__name__}; attention edits cannot be placed on it.")
    transformer = options["transformer_options"]
    if geometry.family == "unet":
        _install_unet(call, transformer)
    else:
        _install_dit(call, transformer)


# U-Nets

def _install_unet(call, transformer):
    replace = {kind: dict(table) for kind, table in transformer.get("patches_replace", {}).items()}
    patches = {kind: list(functions) for kind, functions in transformer.get("patches", {}).items()}
    for attention, kind in (("attn1", "self"), ("attn2", "cross")):
        layers = call.layers_with(kind)
        if not layers:
            continue
        table = replace.setdefault(attention, {})
        earlier, blocks = dict(table), {}
        for layer in layers:
            blocks.setdefault(layer.key[:2], {})[layer.key[2]] = layer
        # keys of whole blocks, so that a replacement which another pack sets later (inside its own extra pass) still wins there
        for block, depths in blocks.items():
            table[block] = _by_depth(call, depths, kind, earlier.get(block))
            for depth, layer in depths.items():
                if (*block, depth) in earlier:
                    table[(*block, depth)] = _unet_replacement(call, layer, kind, earlier[(*block, depth)])
    tokens = [e for e in call.edited if getattr(e, "negative", None) is not None and "cross" in e.kinds]
    if tokens:
        patches.setdefault("attn2_patch", []).append(_append_tokens(call, tokens))
    transformer["patches_replace"], transformer["patches"] = replace, patches


def _append_tokens(call, edits):
    """An attn2 patch that appends the edits' own tokens to the text; the replacement splits their keys and values off again."""
    def patch(n, context, value, extra):
        block = extra.get("block")
        key = (*block, extra.get("block_index", 0)) if block else None
        for edit in edits:
            if any(layer.key == key for layer in call.session.selected(edit)):
                tokens = call.session.cross_tokens(edit.negative, context.shape[0], context)
                context = torch.cat((context, tokens), 1)
                value = torch.cat((value, tokens.to(value)), 1)
        return n, context, value
    return patch


def _heads(t, heads):
    b, n, c = t.shape
    return t.view(b, n, heads, c // heads).transpose(1, 2)


def _flat(t):
    return t.transpose(1, 2).flatten(2)


def _subset(extra, start, stop, rows):
    """The options as another pack should see them when it is given rows start:stop."""
    if start == 0 and stop == rows:
        return extra
    out = dict(extra)
    for name in ("cond_or_uncond", "uuids", "lodestar_chunks"):
        if out.get(name):
            size = rows // len(out[name])
            out[name] = out[name][start // size: (stop + size - 1) // size]
    return out


def _plain(q, k, v, extra):
    """The host's own attention, as a U-Net block without a replacement runs it."""
    from comfy.ldm.modules.attention import optimized_attention
    options = {"transformer_options": extra} if "uuids" in extra else {}
    return optimized_attention(q, k, v, extra["n_heads"], attn_precision=extra.get("attn_precision"), **options)


def _by_depth(call, depths, kind, previous):
    """One replacement for all transformer blocks of a block; those without edits run as before."""
    runs = {depth: _unet_replacement(call, layer, kind, previous) for depth, layer in depths.items()}

    def run(q, k, v, extra):
        return runs.get(extra.get("block_index", 0), previous or _plain)(q, k, v, extra)
    return run


def _unet_replacement(call, layer, kind, previous):
    """The replacement of one layer's attention: rows with edits go through them, the others through what was there before."""
    carriers = [e for e in call.edited if getattr(e, "negative", None) is not None and kind in e.kinds and layer in call.session.selected(e)] if kind == "cross" else []

    def run(q, k, v, extra):
        heads, rows = extra["n_heads"], q.shape[0]
        appended = {}
        for edit in reversed(carriers):
            n = call.session.cross_tokens(edit.negative, 1, q).shape[1]
            appended[edit] = (k[:, -n:], v[:, -n:])
            k, v = k[:, :-n], v[:, :-n]

        def attend(q_, k_, v_, start, stop):
            narrowed = _subset(extra, start, stop, rows)
            return (previous or _plain)(q_, k_, v_, narrowed)

        groups = call.groups(extra, rows, layer, kind)
        if all(not edits for _, _, edits in groups):
            return attend(q, k, v, 0, rows)
        shape = extra.get("activations_shape")
        site = Site(kind, layer, shape[-2] if shape else None, shape[-1] if shape else None, None, slice(None), None, call.step)

        def attend_heads(q_, k_, v_, start, stop):
            return _heads(attend(_flat(q_), _flat(k_), _flat(v_), start, stop), heads)

        qh, kh, vh = (_heads(t, heads) for t in (q, k, v))
        extras = {e: tuple(_heads(t, heads) for t in pair) for e, pair in appended.items()}
        site = _with_extra(site, extras, lambda a, b, c: _heads(_plain(_flat(a), _flat(b), _flat(c), extra), heads))
        return _flat(_rows(groups, qh, kh, vh, attend_heads, site))
    return run


def _with_extra(site, extras, plain):
    from dataclasses import replace
    return replace(site, extra={"tokens": extras, "plain": plain})


def _rows(groups, q, k, v, attend, site):
    """apply_rows with the appended tokens cut to each group's rows."""
    from dataclasses import replace
    parts = []
    for start, stop, edits in groups:
        rows = slice(start, stop)
        cut = {e: (a[rows], b[rows]) for e, (a, b) in site.extra["tokens"].items()}
        local = replace(site, extra={**site.extra, "tokens": cut})
        shift = lambda q_, k_, v_, a, b, start=start: attend(q_, k_, v_, start + a, start + b)
        parts.append(apply_rows([(0, stop - start, edits)], q[rows], k[rows], v[rows], shift, local))
    return torch.cat(parts) if len(parts) > 1 else parts[0]


# DiTs

def _install_dit(call, transformer):
    replace = {kind: dict(table) for kind, table in transformer.get("patches_replace", {}).items()}
    table = replace.setdefault("dit", {})
    for layer in call.session.geometry.layers:
        if layer.key[0] is not None:
            table[layer.key] = _block(layer, table.get(layer.key))
    transformer["patches_replace"] = replace
    transformer["optimized_attention_override"] = _override(call, transformer.get("optimized_attention_override"))


def _block(layer, previous):
    """A block replacement that writes which layer is running into the block's own copy of the options."""
    def run(args, extra):
        options = args.get("transformer_options")
        if options is not None:
            net = options.get("lodestar_net")
            place = {"layer": layer, "calls": 0}
            if net is not None and args.get("txt") is not None and layer.stage == "double":
                net["text"] = args["txt"].shape[1]
            args = {**args, "transformer_options": {**options, LAYER: place}}
        return previous(args, extra) if previous is not None else extra["original_block"](args)
    return run


def _place(call, options):
    """Which layer an attention call belongs to: our own mark, or the host's block_index; None where neither says."""
    place = options.get(LAYER)
    if place is not None:
        return place
    net = options.get("lodestar_net")
    index, stage = options.get("block_index"), options.get("block_type")
    if net is None:
        return None
    geometry = call.session.geometry
    if index is None:
        # no mark at all: the order of the calls tells
        per_layer = len(geometry.layers[0].attentions)
        net["count"] = net.get("count", -1) + 1
        number = net["count"] // per_layer
        return {"layer": geometry.layers[number], "calls": net["count"] % per_layer} if number < len(geometry.layers) else None
    for layer in geometry.layers:
        if layer.index == index and (stage is None or layer.stage == stage or len(geometry.stages()) == 1):
            seen = net.setdefault("seen", {})
            seen[layer] = seen.get(layer, -1) + 1
            return {"layer": layer, "calls": seen[layer]}
    return None


def _grid(geometry, shape):
    """Token grid (frames, height, width) of a latent of this shape."""
    pt, ph, pw = geometry.patch
    frames = -(-shape[2] // pt) if len(shape) == 5 else 1
    return frames, -(-shape[-2] // ph), -(-shape[-1] // pw)


def _site(call, place, net, q_tokens, k_tokens):
    """(kind, text slice, image slice, height, width) of an attention call, None where it is not one we know."""
    geometry, layer = call.session.geometry, place["layer"]
    frames, height, width = _grid(geometry, net["shape"])
    tokens = frames * height * width
    if geometry.family in JOINT_FAMILIES:
        if q_tokens != k_tokens:
            return None
        text = q_tokens - tokens if "text" not in net else net["text"]
        if q_tokens == tokens or text <= 0:         # image-only attention inside a joint block (SD3.5 medium)
            return Site("self", layer, height, width, None, slice(0, tokens), None, call.step) if q_tokens == tokens else None
        if geometry.text_first:
            return Site("joint", layer, height, width, slice(0, text), slice(text, text + tokens), None, call.step)
        return Site("joint", layer, height, width, slice(q_tokens - text, q_tokens), slice(0, tokens), None, call.step)
    number = place["calls"]
    kind = layer.attentions[min(number, len(layer.attentions) - 1)]
    return Site(kind, layer, height, width, None, slice(None), None, call.step)


def _override(call, previous):
    """The attention override of one call: finds the layer, and runs the rows that carry edits through them."""
    def run(func, *args, **kwargs):
        def base(*a, **k):
            return previous(func, *a, **k) if previous is not None else func(*a, **k)

        options = kwargs.get("transformer_options") or {}
        net = options.get("lodestar_net")
        if net is None:
            return base(*args, **kwargs)
        q, k, v = args[:3]
        heads = args[3] if len(args) > 3 else kwargs["heads"]
        reshaped, keep = kwargs.get("skip_reshape", False), kwargs.get("skip_output_reshape", False)
        place = _place(call, options)
        site = None
        if place is not None:
            site = _site(call, place, net, q.shape[-2], k.shape[-2])
            place["calls"] += 1
        shadow = net.get("shadow")
        if site is None or (shadow is None and place["layer"] not in call.layers_with(site.kind)):
            return base(*args, **kwargs)
        rows, main = q.shape[0], net["rows"]
        groups = call.groups(options, main, place["layer"], site.kind)
        if shadow is None and all(not edits for _, _, edits in groups):
            return base(*args, **kwargs)
        rest = list(args[4:])
        mask = kwargs.get("mask", rest[0] if rest else None)

        def attend(q_, k_, v_, start, stop, extra_mask=None):
            local = dict(kwargs)
            local["transformer_options"] = _subset(options, start, stop, rows) if rows == main else options
            m = mask
            if m is not None and m.ndim >= 3 and m.shape[0] == rows and (start, stop) != (0, rows):
                m = m[start:stop]
            if extra_mask is not None:
                m = extra_mask if m is None else m + extra_mask
            if rest:
                local_rest = [m, *rest[1:]]
            else:
                local_rest = []
                if m is not None or "mask" in kwargs:
                    local["mask"] = m
            if reshaped:
                out = base(q_, k_, v_, heads, *local_rest, **local)
            else:
                out = base(_flat(q_), _flat(k_), _flat(v_), heads, *local_rest, **local)
            return out if keep else _heads(out, heads)

        if reshaped:
            qh, kh, vh = q, k, v
        else:
            qh, kh, vh = _heads(q, heads), _heads(k, heads), _heads(v, heads)
        if kh.shape[1] != qh.shape[1]:      # grouped queries: one key head for several
            kh, vh = (t.repeat_interleave(qh.shape[1] // t.shape[1], 1) for t in (kh, vh))
        site = _with_extra(site, {}, None)
        if shadow is not None:
            out = shadow.attention(call, site, groups, qh, kh, vh, attend, place["layer"])
        else:
            out = _rows(groups, qh, kh, vh, attend, site)
        return out if keep else _flat(out)
    return run


def shadow_rows(call, options, x, roles):
    """The Shadow of a network call whose edits need a second text stream (joint attention), or None."""
    geometry = call.session.geometry
    if geometry.family not in JOINT_FAMILIES or options.get("uuids") is None:
        return None
    edits = [e for e in call.edited if getattr(e, "negative", None) is not None]
    if not edits:
        return None
    size = x.shape[0] // len(roles)
    chunks = [i for i, r in enumerate(roles) if any(e in call.edits_of(r) for e in edits)]
    if not chunks:
        return None
    if len(edits) > 1:
        raise ValueError("Two attention edits with a negative prompt of their own cannot run on one model with joint attention; keep one of them.")
    return Shadow(call, edits[0], chunks, size, options)
