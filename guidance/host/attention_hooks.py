"""Attention edits on the host's hooks: U-Net replacements per layer, the attention override and block replacements of DiTs.

Everything is put into the options of one call, chained in front of what others have put there, and gone afterwards.
"""
from __future__ import annotations

import functools
import logging

import torch

from ..attention.edits import Site, Tempering, by_groups, fit_bias, observed, only_observed, rows_of, titled
from ..attention.regions import WHOLE
from ..frozen import changed
from ..layers import JOINT_FAMILIES
from . import feature_hooks, references, rotary, unet_hooks
from .calls import Noter
from .compiled import eager
from .features import wrappers
from .joined import REFUSED, Joined
from .places import inside, prompt_first, prompt_of, unet_grid
from .scales import takes_scale
from .shadow import Appended, Shadow, own_texts
from .streams import Streams

LAYER = "lodestar_layer"
NO_SHADOW = {"hidream": "their text enters every block anew, from a language model whose states a second text stream would need",
             "krea": "the layers of their text encoder are joined by attention of their own before the blocks", "mochi": "every row's text is cut to the length of the prompt"}


def install(call, options):
    """Adds the hooks that this call's edits need to `options` (a copy that belongs to the call)."""
    edits = call.edited
    if not edits:
        return
    geometry = call.session.geometry
    if not geometry.layers:
        raise ValueError(f"Lodestar does not know the layers of {type(call.session.model.diffusion_model).__name__}; attention edits cannot be placed on it.")
    _refuse_unreachable(call)
    transformer = options["transformer_options"]
    if geometry.family == "unet":
        _install_unet(call, transformer)
        feature_hooks.install(call, transformer)
        unet_hooks.install(call, transformer)
    else:
        unet_hooks.refuse(call)
        _install_dit(call, transformer)


# U-Nets

def _install_unet(call, transformer):
    replace = {kind: dict(table) for kind, table in transformer.get("patches_replace", {}).items()}
    patches = {kind: list(functions) for kind, functions in transformer.get("patches", {}).items()}
    for attention, kind in (("attn1", "self"), ("attn2", "cross")):
        layers = call.layers_with(kind) | (call.layers_with("temporal") if kind == "self" and call.session.geometry.temporal else set())
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
    tokens = [e for e in call.edited if own_texts(e) and "cross" in e.kinds]
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
                for prompt in own_texts(edit):
                    tokens = call.session.cross_tokens(prompt, context.shape[0], context)
                    context = torch.cat((context, tokens), 1)
                    value = torch.cat((value, tokens.to(value)), 1)
        return n, context, value
    return eager(patch, session=call.session)


def _heads(t, heads):
    if t.ndim == 4:      # [rows, tokens, heads, width], as SD3 passes its values
        return t.transpose(1, 2)
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


def _plain(q, k, v, extra, bias=None, **options):
    """The host's own attention, as a U-Net block without a replacement runs it; with a bias on the logits where an edit adds one."""
    from comfy.ldm.modules.attention import optimized_attention
    if "uuids" in extra:
        options["transformer_options"] = extra
    if bias is not None:
        options["mask"] = fit_bias(bias, k.shape[1], q.shape[1]).to(q.dtype)
    return optimized_attention(q, k, v, extra["n_heads"], attn_precision=extra.get("attn_precision"), **options)


def _by_depth(call, depths, kind, previous):
    """One replacement for all transformer blocks of a block; those without edits run as before."""
    runs = {depth: _unet_replacement(call, layer, kind, previous) for depth, layer in depths.items()}

    def run(q, k, v, extra):
        return runs.get(extra.get("block_index", 0), previous or _plain)(q, k, v, extra)
    return eager(run, session=call.session)


def _temporal(call, q, layer, kind, extra):
    """Whether a call under a spatial block's key is attention over the frames of a video (SVD), told by its rows and tokens."""
    shape = extra.get("activations_shape")
    if not call.session.geometry.temporal or not shape:
        return False
    chunks = len(call.chunks(extra))
    frames, cells = shape[0] // chunks, shape[-2] * shape[-1]
    if frames != cells:
        return (q.shape[0], q.shape[1]) == (chunks * cells, frames)
    # as many frames as cells: the spatial block runs first, then the temporal one
    seen = extra.get("lodestar_net", {}).setdefault("spatial", {})
    seen[layer, kind] = seen.get((layer, kind), 0) + 1
    return seen[layer, kind] % 2 == 0


def _unet_replacement(call, layer, kind, previous):
    """The replacement of one layer's attention: rows with edits go through them, the others through what was there before."""
    carriers = [(e, i) for e in call.edited if kind in e.kinds and layer in call.session.selected(e) for i in range(len(own_texts(e)))] if kind == "cross" else []

    def run(q, k, v, extra):
        heads, rows = extra["n_heads"], q.shape[0]
        appended = {}
        for edit, i in reversed(carriers):
            n = call.session.cross_tokens(own_texts(edit)[i], 1, q).shape[1]
            appended[edit, i] = (k[:, -n:], v[:, -n:])
            k, v = k[:, :-n], v[:, :-n]

        def attend(q_, k_, v_, start, stop, bias=None):
            narrowed = _subset(extra, start, stop, rows)
            if bias is not None:        # replacements of other packs take none
                return _plain(q_, k_, v_, narrowed, bias)
            return (previous or _plain)(q_, k_, v_, narrowed)

        place = kind
        if _temporal(call, q, layer, kind, extra):
            if kind != "self":
                return attend(q, k, v, 0, rows)
            place = "temporal"
        groups = call.groups(extra, rows, layer, place)
        seen = references.attention(call, extra, layer, place, *(_heads(t, heads) for t in (q, k, v))) if call.references else {}
        if not any(edits for _, _, edits in groups):
            return attend(q, k, v, 0, rows)
        shape = extra.get("activations_shape")      # over the frames there is a row for each cell
        height, width, window = unet_grid(extra, q.shape[1] if place != "temporal" else shape[-2] * shape[-1])

        def attend_heads(q_, k_, v_, start, stop, bias=None):
            return _heads(attend(_flat(q_), _flat(k_), _flat(v_), start, stop, bias), heads)

        def scaled_heads(q_, k_, v_, start, stop, factor):
            from comfy.ldm.modules.attention import optimized_attention
            if not takes_scale(optimized_attention, q_):
                return None
            return _heads(_plain(_flat(q_), _flat(k_), _flat(v_), _subset(extra, start, stop, rows), scale=factor * q_.shape[-1] ** -0.5), heads)

        others = previous is not None or "optimized_attention_override" in extra
        qh, kh, vh = (_heads(t, heads) for t in (q, k, v))
        own = _extra({e: tuple(_heads(t, heads) for t in pair) for e, pair in appended.items()},
                     lambda a, b, c: _heads(_plain(_flat(a), _flat(b), _flat(c), extra), heads), previous is not None)
        site = Site(place, layer, height, width, None, slice(None), own, call.step, batch=rows // len(call.chunks(extra)), shared=seen, window=window,
                    prompt=slice(0, k.shape[1]) if place == "cross" else None,
                    latent=tuple(extra["original_shape"]) if extra.get("original_shape") is not None else None, note=Noter(call, extra, layer, rows))
        return _flat(_rows(groups, qh, kh, vh, attend_heads, site, call, extra, None if others else scaled_heads))
    return run


def _extra(extras, plain, others=False):
    """`Site.extra`, what its edits had appended: `tokens` {edit: (k, v)} of negative prompts, `texts` {edit: ((k, v), ...)} of other texts of their own.
    plain(q, k, v): attention without mask and without other packs'. others: whether `attend` leads through another pack's replacement."""
    if not extras:
        return {"tokens": {}, "texts": {}, "plain": plain, "others": others}
    texts = {}
    for (edit, i), pair in sorted(extras.items(), key=lambda item: item[0][1]):
        texts[edit] = (*texts.get(edit, ()), pair)
    tokens = {edit: pairs[0] for edit, pairs in texts.items() if getattr(edit, "negative", None) is not None}
    return {"tokens": tokens, "texts": texts, "plain": plain, "others": others}


def _cut(extra, rows):
    """The extras of some rows."""
    tokens = {e: (a[rows], b[rows]) for e, (a, b) in extra["tokens"].items()}
    texts = {e: tuple((a[rows], b[rows]) for a, b in pairs) for e, pairs in extra["texts"].items()}
    return {**extra, "tokens": tokens, "texts": texts}


def _rows(groups, q, k, v, attend, site, call, options, scaled=None):
    """Attention of a batch whose rows carry different edits: the appended tokens cut to each group's rows, and the grid to the part of the picture that they show."""
    def local(start, stop):
        count = q.shape[0]
        area = call.window_at(options, start, count)
        if (start, stop) == (0, count) and area == WHOLE:
            return site
        window = inside(site.window, area)
        if (start, stop) == (0, count) and window == site.window:
            return site
        return changed(rows_of(site, start, stop, count), extra=_cut(site.extra, slice(start, stop)), window=window)

    whole = (groups[0][0], groups[-1][1]) == (0, q.shape[0])      # not where a second text runs group after group
    if whole and only_observed(groups):
        return observed(groups, q, k, v, attend, local)
    return by_groups(groups, q, k, v, attend, local, scaled)


# DiTs

def _install_dit(call, transformer):
    if not wrappers():
        raise ValueError(f"Attention edits on {_network(call.session)} need a ComfyUI of October 2025 or newer; this host has no hook into its attention.")
    call.session.prompt_first = prompt_first(call.session)      # the network itself is not looked at inside its own (perhaps compiled) call
    replace = {kind: dict(table) for kind, table in transformer.get("patches_replace", {}).items()}
    table = replace.setdefault("dit", {})
    kept = vars(call.session).setdefault("marks", {})      # {layer: (what was replaced, our replacement)}: the same at every step
    for layer in call.session.geometry.layers:
        if layer.key[0] is not None:
            previous = table.get(layer.key)
            if layer not in kept or kept[layer][0] is not previous:
                kept[layer] = previous, eager(_block(layer, previous), inner=True, session=call.session)
            table[layer.key] = kept[layer][1]
    transformer["patches_replace"] = replace
    transformer["optimized_attention_override"] = _override(call, transformer.get("optimized_attention_override"))


def _block(layer, previous):
    """A block replacement that writes which layer is running into the block's own copy of the options."""
    def run(args, extra):
        options = args.get("transformer_options")
        net = None if options is None else options.get("lodestar_net")
        place = {"layer": layer, "calls": 0, "total": None, "image": _tokens(args.get("img")), "text": _tokens(args.get("txt")),
                 "pe": args.get("pe", (args["rope_cos"], args["rope_sin"]) if "rope_cos" in args else None)}
        if net is not None:
            if layer.stage == "double":
                net["text"], net["image"] = place["text"], place["image"]
            net.setdefault("ran", set()).add(layer)
            if previous is not None:
                net.setdefault("excused", set()).add(layer)
            args = {**args, "transformer_options": {**options, LAYER: place}}
        out = previous(args, extra) if previous is not None else extra["original_block"](args)
        place["total"] = place["calls"]      # a recomputed block (checkpointing) starts to count again
        return out
    return run


def _tokens(t):
    return t.shape[1] if isinstance(t, torch.Tensor) and t.ndim == 3 else None


def _place(call, options, net):
    """Which layer an attention call belongs to: our own mark, the host's block_index, or the order of the calls; None before and between the blocks."""
    place = options.get(LAYER)
    if place is not None:
        return place
    geometry = call.session.geometry
    index, stage = options.get("block_index"), options.get("block_type")
    marked = any(layer.key[0] is not None for layer in geometry.layers)
    if marked or index is None:
        number = net["unmarked"] = net.get("unmarked", -1) + 1
        if number < len(geometry.prelude) or marked:
            net["prelude"] = geometry.prelude[number] if number < len(geometry.prelude) else None
            return None
        return _by_order(geometry, number - len(geometry.prelude))
    for layer in geometry.layers:
        if layer.index == index and (stage is None or layer.stage == stage or len(geometry.stages()) == 1):
            place = net.setdefault("places", {}).setdefault(layer, {"layer": layer, "calls": 0, "total": None})
            if place["calls"] == len(layer.attentions):
                _computed_again(geometry)
            return place
    return None


def _by_order(geometry, number):
    """The place of the number-th attention call of all blocks."""
    for layer in geometry.layers:
        if number < len(layer.attentions):
            return {"layer": layer, "calls": number, "total": None}
        number -= len(layer.attentions)
    _computed_again(geometry)


def _computed_again(geometry):
    """Blocks that are computed a second time for a gradient, after others, cannot be told where the host writes no mark of ours."""
    raise ValueError(f"Lodestar cannot tell the layers of this {geometry.family} network apart when they are computed again for a gradient; "
                     "use the gradient route \"network\" or \"none\" instead of \"checkpoint\", or remove the attention edits.")


def _grid(geometry, shape):
    """Token grid (frames, height, width) of a latent of this shape."""
    pt, ph, pw = geometry.patch
    if len(shape) == 3:      # a sequence: one row
        return 1, 1, shape[-1]
    frames = -(-shape[2] // pt) if len(shape) == 5 else 1
    return frames, -(-shape[-2] // ph), -(-shape[-1] // pw)


def _site(call, place, net, q_tokens, k_tokens):
    """The Site of an attention call, None where it is not one we know; its layer may be another, which the caller puts right."""
    layer, joint = place["layer"], call.session.geometry.family in JOINT_FAMILIES
    # the layers of a network call differ in no more than this
    key = ("site", None if joint else _kind(layer, place, net, k_tokens), q_tokens, k_tokens, net.get("image"), net.get("text"))
    if key not in net:
        net[key] = _found_site(call, layer, net, key[1], joint, q_tokens, k_tokens)
    return net[key]


def _found_site(call, layer, net, kind, joint, q_tokens, k_tokens):
    geometry = call.session.geometry
    frames, height, width = _grid(geometry, net["shape"])
    if joint:
        site = _joint_site(call, layer, net, q_tokens, k_tokens, frames * height * width, height, width)
    else:
        length = net["appended"].length if net.get("appended") is not None else k_tokens
        site = None if kind is None else Site(kind, layer, height, width, None, slice(None), None, call.step, prompt=slice(0, length) if kind == "cross" else None)
    if site is None:
        return None
    _, ph, pw = geometry.patch
    return changed(site, frames=frames, window=(0.0, 0.0, width * pw / net["shape"][-1], height * ph / net["shape"][-2]), latent=net["shape"])


def _kind(layer, place, net, k_tokens):
    """ "self", "cross" or "image": by the number of the keys where it tells, else by the order of the calls in the block."""
    appended = net.get("appended")
    if appended is not None and k_tokens == appended.tokens:
        return "cross"
    if layer.attentions == ("self", "cross") and place.get("image") and place.get("text") and place["image"] != place["text"]:
        return {place["image"]: "self", place["text"]: "cross"}.get(k_tokens)
    number = place["calls"] % place["total"] if place["total"] else place["calls"]
    return layer.attentions[number] if number < len(layer.attentions) else None


def _joint_site(call, layer, net, q_tokens, k_tokens, tokens, height, width):
    geometry = call.session.geometry
    if q_tokens != k_tokens:
        return None
    if q_tokens == net.get("image", tokens):         # image-only attention inside a joint block (SD3.5 medium)
        return Site("self", layer, height, width, None, slice(0, tokens), None, call.step)
    slices = joint_slices(geometry, net, q_tokens, tokens)
    if slices is None:
        return None
    joined, prompt = net.get("joined"), None
    if net.get("text_tokens"):
        prompt = prompt_of(call, slices[0], joined.tokens if joined is not None else net["text_tokens"])
        prompt = slice(prompt.start, prompt.start + joined.length) if joined is not None else prompt
    return Site("joint", layer, height, width, *slices, None, call.step, prompt=prompt)


def joint_slices(geometry, net, count, tokens):
    """Slices of the text and of the picture in a stream of `count` tokens that holds both, None where they do not fit."""
    padded = -(-tokens // geometry.multiple) * geometry.multiple
    text = net.get("text") or (count - padded)
    if count < text + padded:      # Mochi cuts the padding of its text off inside the block
        text = count - padded
    others = count - text - padded                   # tokens of reference pictures
    if text <= 0 or others < 0:
        return None
    begin = (text if geometry.text_first else 0) + (others if geometry.image_last else 0)
    where = slice(0, text) if geometry.text_first else slice(count - text, count)
    return where, slice(begin, begin + tokens)



class _Attention:
    """One call of the host's attention function, split into rows and heads."""

    def __init__(self, base, args, kwargs, options, main, own=None):
        q, k, v = args[:3]
        self.base, self.kwargs, self.options, self.main = base, kwargs, options, main
        self.own = own      # the host's function, where `base` leads straight to it
        self.heads = args[3] if len(args) > 3 else kwargs["heads"]
        self.rest = list(args[4:])
        self.mask = kwargs.get("mask", self.rest[0] if self.rest else None)
        self.reshaped, self.keep = kwargs.get("skip_reshape", False), kwargs.get("skip_output_reshape", False)
        self.q, self.k, self.v = (q, k, v) if self.reshaped else (_heads(q, self.heads), _heads(k, self.heads), _heads(v, self.heads))
        if self.k.shape[1] != self.q.shape[1]:      # grouped queries: one key head for several
            self.k, self.v = (t.repeat_interleave(self.q.shape[1] // t.shape[1], 1) for t in (self.k, self.v))
        self.rows = self.q.shape[0]

    def cut_keys(self, count):
        """Keeps the first `count` keys; the mask too."""
        if self.mask is not None and self.mask.shape[-1] == self.k.shape[2]:
            self.mask = self.mask[..., :count]
        self.k, self.v = self.k[:, :, :count], self.v[:, :, :count]

    def attend(self, q, k, v, start, stop, extra_mask=None):
        """The network's own attention of rows start:stop."""
        mask = self.mask
        if mask is not None and mask.ndim >= 3 and mask.shape[0] == self.rows and (start, stop) != (0, self.rows):
            mask = mask[start:stop]
        if mask is not None and 1 < mask.shape[-1] < k.shape[2]:      # keys that an edit appended are open
            missing = k.shape[2] - mask.shape[-1]
            mask = torch.cat((mask, mask.new_full((*mask.shape[:-1], missing), mask.dtype == torch.bool)), -1)
        if extra_mask is not None:
            extra_mask = fit_bias(extra_mask, k.shape[2], q.shape[2]).to(q.dtype)
            if mask is not None and mask.dtype == torch.bool:
                mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, float("-inf"))
            if mask is not None and mask.ndim == 3:
                mask = mask.unsqueeze(1)
            mask = extra_mask if mask is None else mask + extra_mask
        return self._call(q, k, v, mask, self._narrowed(start, stop))

    def plain(self, q, k, v):
        """The same without a mask, for keys that are not the network's own."""
        return self._call(q, k, v, None, self.options)

    def scaled(self, q, k, v, start, stop, factor):
        """`attend` with its logits times a factor, None where the host's function takes no scale."""
        if self.mask is not None or not takes_scale(self.own, q):
            return None
        scale = factor * self.kwargs.get("scale", q.shape[-1] ** -0.5)
        return self._call(q, k, v, None, self._narrowed(start, stop), {"scale": scale})

    def _narrowed(self, start, stop):
        """The options as they are for rows start:stop."""
        return _subset(self.options, start, stop, self.rows) if self.rows == self.main else self.options

    def _call(self, q, k, v, mask, options, more={}):
        local, rest = {**self.kwargs, "transformer_options": options, **more}, list(self.rest)
        if rest:
            rest[0] = mask
        elif mask is not None or "mask" in local:
            local["mask"] = mask
        inputs = (q, k, v) if self.reshaped else (_flat(q), _flat(k), _flat(v))
        local.pop("heads", None)
        out = self.base(*inputs, self.heads, *rest, **local)
        return out if self.keep else _heads(out, self.heads)

    def result(self, out):
        return out if self.keep else _flat(out)


def _additive(mask, dtype):
    """An attention mask as the host's functions take it (2 to 4 axes, True = visible or additive) as [rows or 1, heads or 1, queries or 1, keys]."""
    if mask is None:
        return None
    mask = mask[None, None] if mask.ndim == 2 else mask[:, None] if mask.ndim == 3 else mask
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)
    return mask


def _override(call, previous):
    """The attention override of one call: finds the layer, and runs the rows that carry edits through them."""
    def run(func, *args, **kwargs):
        base = func if previous is None else functools.partial(previous, func)
        options = kwargs.get("transformer_options") or {}
        net = options.get("lodestar_net")
        if net is None:
            return base(*args, **kwargs)
        net["seen"], net["prelude"] = True, None
        place = _place(call, options, net)
        known = _known(call, options, net)
        if known is not None and place is not None and kwargs.get("mask") is None and len(args) == 4:
            key = place["layer"], place["calls"], args[0].shape, args[1].shape, args[0].dtype
            if key in known and (known[key] is None or known[key][0] is func):
                place["calls"] += 1
                return _as_before(known[key], net, place["layer"], base, args, kwargs)
        else:
            key = None
        axis = 2 if kwargs.get("skip_reshape", False) else 1
        q_tokens, k_tokens = args[0].shape[axis], args[1].shape[axis]
        shadow, appended, main = net.get("shadow"), net.get("appended"), net["rows"]
        site = None
        if place is not None and args[0].shape[0] == main + (len(shadow.rows) if shadow is not None else 0):
            site = _site(call, place, net, q_tokens, k_tokens)
        if place is not None:
            place["calls"] += 1
        text = appended is not None and k_tokens == appended.tokens and (site.kind == "cross" if site is not None else q_tokens != k_tokens)
        refine = site is None and shadow is not None and net["prelude"] == "text"
        groups = [] if site is None else call.groups(options, main, place["layer"], site.kind)
        edited = any(edits for _, _, edits in groups)
        looked = site is not None and call.references and references.wanted_at(call, place["layer"], site.kind)
        joined = net.get("joined") if site is not None and site.kind == "joint" else None
        if not (edited or looked or text or refine or joined is not None or (site is not None and shadow is not None)):
            if key is not None:
                known[key] = None
            return base(*args, **kwargs)
        attention = _Attention(base, args, kwargs, options, main, func if previous is None else None)
        if site is not None:
            seen = references.attention(call, options, place["layer"], site.kind, attention.q, attention.k, attention.v, site.image) if looked else {}
            more = {"layer": place["layer"], "batch": main // len(call.chunks(options)), "shared": seen, "partial": attention.mask is None}
            if looked and not edited and not text and shadow is None and joined is None:
                return base(*args, **kwargs)
        if edited:
            if site.kind == "self" and q_tokens != k_tokens:
                raise ValueError(f"This {call.session.geometry.family} network computes the self-attention of {place['layer']} in parts (guides of different strength); "
                                 "attention edits do not support that. Set the guides' strength to 1 or remove the edit.")
            net.setdefault("fired", {}).setdefault(place["layer"], []).extend(edits for _, _, edits in groups)
            if key is not None:
                _keep(known, key, attention, site, more["layer"], groups)
            more["note"] = Noter(call, options, place["layer"], main)
            if "streams" in net:
                more["streams"] = Streams(net, place["layer"], main)
            if any(e.unrotates for _, _, edits in groups for e in edits):
                more["rotation"] = _rotation(call, place, net, attention.q)
        return attention.result(_dispatch(call, attention, site, more if site is not None else {}, groups, shadow, appended if text else None, refine, joined))
    return eager(run, session=call.session)


def _known(call, options, net):
    """{(layer, number of the call in it, shapes, ...): what `_keep` found} of network calls like this one, at this step or an earlier one; None where each is looked at anew."""
    if "known" not in net:
        key = None
        if options.get("uuids") is not None and not call.references and not net.keys() & {"shadow", "appended", "joined"}:
            key = tuple(options["uuids"]), tuple(call.chunks(options)), net["shape"], net["rows"]
        kept = vars(call.session).setdefault("known", {})
        if key not in kept and len(kept) >= 16:      # edits that differ at every step are not worth keeping
            kept.clear()
        net["known"] = None if key is None else kept.setdefault(key, {})
    return net["known"]


def _keep(known, key, attention, site, layer, groups):
    """Files a call of which all rows carry one Tempering: (the host's function, the edit's group, its factor, the width of a head). What changes nothing is filed as None."""
    edits = groups[0][2]
    whole = len(groups) == 1 and groups[0][:2] == (0, attention.rows)
    if whole and len(edits) == 1 and isinstance(edits[0], Tempering) and takes_scale(attention.own, attention.q):
        known[key] = attention.own, edits, edits[0].factor(changed(site, layer=layer), attention.k.shape[2]), attention.q.shape[-1]


def _as_before(found, net, layer, base, args, kwargs):
    """An attention call as `_keep` found it."""
    if found is None:
        return base(*args, **kwargs)
    _, edits, factor, width = found
    net.setdefault("fired", {}).setdefault(layer, []).append(edits)
    if factor != 1.0:
        kwargs["scale"] = factor * kwargs.get("scale", width ** -0.5)      # kwargs are this call's own
    return base(*args, **kwargs)


def _rotation(call, place, net, q):
    """The rotary embedding that the block of an attention call was given, None where it has none."""
    pe = place.get("pe") if place.get("pe") is not None else net.get("pe")
    if pe is None:
        return None
    found = rotary.read(pe, q, split=call.session.geometry.family in ("cosmos", "ideogram"))
    if found is None and not vars(call.session).setdefault("rotation_unknown", False):
        call.session.rotation_unknown = True
        logging.warning("Lodestar: the rotary embedding of %s has a form that is not known; queries are edited as they are, turned.", _network(call.session))
    return found


def _dispatch(call, attention, site, more, groups, shadow, appended, refine, joined=None):
    """Head outputs of one attention call that is edited, or that has keys or rows of ours in it. more: what the Site does not hold yet."""
    q, rows = attention.q, attention.rows
    if refine:
        return shadow.refine(q, attention.k, attention.v, attention.attend)
    pairs = {}
    if appended is not None:
        pairs = appended.split(attention.k, attention.v)
        attention.cut_keys(appended.length)
    k, v = attention.k, attention.v
    if site is None:
        return attention.attend(q, k, v, 0, rows)
    site = changed(site, **more, extra=_extra(pairs, attention.plain), mask=_additive(attention.mask, q.dtype))
    if shadow is not None:
        return shadow.attention(call, site, groups, q, k, v, attention.attend, site.layer)
    if joined is not None:
        return joined.attention(site, groups, attention, lambda g, a, s: _rows(g, a.q, a.k, a.v, a.attend, s, call, a.options))
    return _rows(groups, q, k, v, attention.attend, site, call, attention.options, attention.scaled if attention.own else None)


def shadow_rows(call, options, x, roles):
    """What a network call needs for edits with a negative prompt of their own: more rows (joint attention), more text tokens (cross attention), or None."""
    geometry = call.session.geometry
    if geometry.family == "unet" or options.get("uuids") is None:
        return None
    edits = [e for e in call.edited if own_texts(e)]
    carried = [i for i, (r, (found, _)) in enumerate(zip(roles, call.chunks(options))) if r is not None and r.model is None and any(e in found for e in edits)]
    if not carried:
        return None
    if geometry.family not in JOINT_FAMILIES:
        if geometry.family in REFUSED:
            raise ValueError(f"{titled(edits[0])} is not possible on {geometry.family} networks: {REFUSED[geometry.family]}.")
        return Appended(call, edits, options)
    if len(edits) > 1:
        raise ValueError(f"{' and '.join(sorted({titled(e) for e in edits}))}: two attention edits with texts of their own cannot run on one model with joint attention; keep one of them.")
    if getattr(edits[0], "negative", None) is None:
        if geometry.family in REFUSED:
            raise ValueError(f"{titled(edits[0])} is not possible on {geometry.family} networks: {REFUSED[geometry.family]}.")
        return Joined(call, edits[0], options)
    if geometry.family in NO_SHADOW:
        raise ValueError(f"{titled(edits[0])}: a negative prompt inside attention is not possible on {geometry.family} networks: {NO_SHADOW[geometry.family]}.")
    return Shadow(call, edits[0], carried, x.shape[0] // len(roles), options)


# Nothing silent

def _refuse_unreachable(call):
    """ValueError where an edit names layers that hold no attention which it could change."""
    session = call.session
    reachable = vars(session).setdefault("reachable", set())      # asked once for a run
    for edit in call.edited:
        if edit in reachable:
            continue
        layers = session.selected(edit)
        if edit.kinds:
            edit.check(session.geometry, layers)
        if edit.kinds and layers and not any(set(edit.kinds) & set(layer.attentions) for layer in layers):
            kinds = sorted({k for layer in layers for k in layer.attentions})
            if not kinds:
                raise ValueError(f"{_network(session)} tells its attention nothing about the call, so no edit can find its rows: nodes that change or read attention cannot act on this "
                                 "model. Nodes that leave blocks out or act on predictions can.")
            raise ValueError(f"{titled(edit)} changes {' or '.join(edit.kinds)} attention; the selected layers of {_network(session)} have {', '.join(kinds)} "
                             f"attention. It has:\n{session.geometry.describe()}")
        reachable.add(edit)


def _network(session):
    return session.network


def expected(call, options):
    """{(edit, layer)} of the edits that the rows of a network call carry, on the layers that hold attention of their kinds."""
    kept, carried = vars(call.session).setdefault("expected", {}), frozenset(edit for edits, _ in call.chunks(options) for edit in edits)
    if carried not in kept:
        kept[carried] = frozenset((edit, layer) for edit in carried for layer in call.session.selected(edit) if set(edit.kinds) & set(layer.attentions))
    return kept[carried]


def ran(net):
    """{(edit, layer)} of the edits that a network call's attention was led through."""
    return {(e, layer) for layer, found in net.get("fired", {}).items() for edits in found for e in edits}


def check_fired(call, options):
    """After a network call: RuntimeError where a block ran and the edit placed on it did not (a host whose hook is gone, a node that takes it away).

    A network that was not run at all (step caches) and blocks that another pack replaces are no error.
    """
    net = options.get("lodestar_net")
    if net is None or call.session.geometry.family == "unet" or not call.edited:
        return
    wanted, fired = expected(call, options), ran(net)
    records = vars(call.session)
    records.setdefault("edits_wanted", set()).update(edit for edit, _ in wanted)
    records.setdefault("edits_fired", set()).update(edit for edit, _ in fired)
    if wanted <= fired:
        return
    marked = any(layer.key[0] is not None for layer in call.session.geometry.layers)
    reached = net.get("ran", set()) - net.get("excused", set())
    missing = [(e, x) for e, x in wanted - fired if (x in reached if marked else net.get("seen"))]
    if missing:
        edit = missing[0][0]
        names = ", ".join(str(x) for x in call.session.geometry.layers if (edit, x) in missing)
        raise RuntimeError(f"{titled(edit)} did not reach the attention of {names} in {_network(call.session)}. This host or another node computes it where "
                           "attention edits cannot act; choose other layers, or remove the node.")


def check_run(session):
    """After a sampling run: RuntimeError where an edit was wanted and never ran."""
    records = vars(session)
    lost = records.get("edits_wanted", set()) - records.get("edits_fired", set())
    if lost:
        names = ", ".join(sorted({titled(e) for e in lost}))
        raise RuntimeError(f"{names} never reached the attention of {_network(session)}: this host or another node computes it where attention edits cannot act.")
