"""Condition streams: tokens that pass the network on a way of their own, whose keys and values other rows look at (guidance.attention.easycontrol).

A stream is one evaluation of the network at t = 0 on the condition's clean latent, in which the picture sees itself alone. One token of the prompt goes along, because the network wants a text;
nobody looks at it. Keys and values are taken where the network calls its attention. The LoRA, and the positions of the tokens, are put in place for this evaluation by exchanging the forward of the
modules concerned, and are gone behind it.
"""
from __future__ import annotations

import contextlib
import hashlib

import torch

from ..attention.sources import entries
from ..method import BadInput

_DROPPED = ("ref_latents", "ref_latents_method", "attention_mask", "control")      # what belongs to the sampled picture
PROJECTIONS = {"double": (("img_attn.qkv", ("q", "k", "v")), ("img_attn.proj", ("proj",))), "single": (("linear1", ("q", "k", "v")),)}


def streams_of(edits):
    """The streams that edits look at, each once."""
    return tuple(dict.fromkeys(e.stream for e in edits if getattr(e, "stream", None) is not None))


def enter(call, options, x, c_concat, c_crossattn, roles, kwargs):
    """Before a network call: the keys and values of its rows' conditions, computed where they are not known yet."""
    if not streams_of(call.edited):
        return
    net, size = options["lodestar_net"], x.shape[0] // len(roles)
    uuids = options.get("uuids") or [None] * len(roles)
    net["streams"] = found = {}
    made = {}       # of this call, where nothing is kept
    for i, (role, chunk) in enumerate(zip(roles, uuids)):
        rows = slice(i * size, (i + 1) * size)
        for stream in streams_of(call.edits_of(role)):
            if c_concat is not None:
                raise BadInput(stream.node, "model", type(call.session.model.diffusion_model).__name__, "A model whose latent is joined with another picture (inpainting, control) has no "
                               "condition tokens; use the model without it.")
            found.setdefault(stream, [None] * len(roles))[i] = _bank(call, stream, x, rows, c_crossattn, kwargs, chunk, made)


class Streams:
    """What `site.streams` is: the keys and values of a condition for the rows from `start` on of a network call."""

    def __init__(self, net, layer, rows, start=0):
        self.net, self.layer, self.rows, self.start = net, layer, rows, start

    def at(self, start):
        return Streams(self.net, self.layer, self.rows, self.start + start)

    def __call__(self, stream, rows):
        """(keys, values) [rows, heads, n, head_dim], None where the rows have none."""
        banks = self.net["streams"].get(stream)
        if banks is None:
            return None
        size = self.rows // len(banks)
        parts = [(banks[r // size], r % size) for r in range(self.start, self.start + rows)]
        if any(bank is None for bank, _ in parts):
            return None
        out = []
        for side in (0, 1):
            pieces = []
            for bank, r in parts:
                t = bank[self.layer][side]
                pieces.append(t if t.shape[0] == 1 else t[r:r + 1])
            same = all(p is pieces[0] for p in pieces)
            out.append(pieces[0].expand(rows, -1, -1, -1) if same else torch.cat(pieces))
        return tuple(_recordable(t) for t in out)


def _recordable(t):
    """The tensor as autograd takes it, where a gradient is recorded around the call."""
    return t.clone() if torch.is_grad_enabled() and t.is_inference() and not torch.is_inference_mode_enabled() else t


def _bank(call, stream, x, rows, c_crossattn, kwargs, chunk, made):
    """{layer: (keys, values)} of a condition for the rows of one chunk; kept for the run by what it depends on, the prompt's vector and guidance."""
    session = call.session
    size = rows.stop - rows.start
    own = {k: _cut(v, rows, x.shape[0]) for k, v in kwargs.items() if k not in _DROPPED}
    by_chunk, by_content = session.__dict__.setdefault("stream_contents", {}), session.__dict__.setdefault("streams", {})
    with session.run.lock:
        content = by_chunk.get((chunk, size)) if chunk is not None else None
    if content is None:
        content = _content(own, size)
        by_chunk[chunk, size] = content
    key = (stream, content, str(x.device), tuple(x.shape[-2:]))
    kept = by_content if stream.keep else made
    if key not in kept:
        kept[key] = _evaluate(call, stream, x[rows], c_crossattn[rows], own)
        with session.run.lock:
            session.run.report.evaluations += next(iter(kept[key].values()))[0].shape[0] / size
            session.run.report.network_calls += 1
            session.run.report.by_kind["condition"] += 1
    return kept[key]


def _cut(value, rows, count):
    return value[rows] if isinstance(value, torch.Tensor) and value.ndim and value.shape[0] == count else value


def _content(own, size):
    """(digest, whether the rows differ) of what a stream depends on beside the condition: the prompt's pooled vector and the guidance."""
    digest, differ = hashlib.sha256(), False
    for name in sorted(own):
        value = own[name]
        if isinstance(value, torch.Tensor):
            value = value.detach().float().cpu()
            differ |= value.ndim > 0 and value.shape[0] == size > 1 and not bool((value == value[:1]).all())
    for name in sorted(own):
        value = own[name]
        if isinstance(value, torch.Tensor):
            value = value.detach().float().cpu()
            value = value[:1] if not differ and value.ndim and value.shape[0] == size else value
            digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest(), differ


def _latent(session, stream, device):
    """The condition as the network sees it [n, channels, height, width]; kept for the run."""
    key = ("condition", stream.latent, str(device))
    if key not in session.references:
        import comfy.sample
        samples = comfy.sample.fix_empty_latent_channels(session.guider.model_patcher, stream.latent.value["samples"])
        wanted = session.arguments["noise"].shape[1]
        if samples.shape[1] != wanted:
            raise BadInput(stream.node, "condition", f"a latent of {samples.shape[1]} channels", f"This model's latents have {wanted}: encode the picture with its VAE.")
        session.references[key] = session.model.process_latent_in(samples.to(device=device, dtype=torch.float32))
    return session.references[key]


def _evaluate(call, stream, x, context, own):
    """One evaluation of the network on the condition: {layer: (keys, values)} [n, heads, tokens, head_dim], n the batch where condition or prompts differ, else 1."""
    session = call.session
    model, network = session.model, session.model.diffusion_model
    size, dtype = x.shape[0], model.get_dtype() if model.manual_cast_dtype is None else model.manual_cast_dtype
    latent = _latent(session, stream, x.device)
    differ = _content(own, size)[1]
    n = size if differ or latent.shape[0] > 1 else 1
    latent = entries(latent, n if latent.shape[0] == 1 else size, stream.node, "condition")
    to = lambda t: t.to(device=x.device, dtype=dtype if t.is_floating_point() else t.dtype)
    given = {k: to(v[:n] if v.ndim and v.shape[0] == size else v) if isinstance(v, torch.Tensor) else v for k, v in own.items()}
    capture = _Capture(session.geometry)
    with torch.no_grad(), _lora(network, stream, x.device, dtype, session), _positions(network, stream, latent, x, session.geometry):
        network(to(latent), torch.zeros(n, device=x.device), context=to(context[:n, :1]), transformer_options=capture.options(), **given)
    missing = [str(layer) for layer in session.geometry.layers if layer not in capture.found]
    if missing:
        raise RuntimeError(f"{stream.node} found no attention in {', '.join(missing)} of {type(network).__name__}: this host or another node computes it elsewhere.")
    return capture.found


class _Capture:
    """Takes keys and values of the picture's tokens at every layer, and keeps the text's one token out of their sight."""

    def __init__(self, geometry):
        self.geometry, self.layer, self.found = geometry, None, {}

    def options(self):
        table = {layer.key: self._block(layer) for layer in self.geometry.layers}
        return {"patches_replace": {"dit": table}, "optimized_attention_override": self._attention, "patches": {}, "cond_or_uncond": [0]}

    def _block(self, layer):
        def run(args, extra):
            self.layer = layer
            return extra["original_block"](args)
        return run

    def _attention(self, func, q, k, v, heads, *args, **kwargs):
        if self.layer is None or not kwargs.get("skip_reshape"):
            raise RuntimeError("condition tokens: this network's attention has a form that is not known")
        picture = slice(1, None) if self.geometry.text_first else slice(0, -1)
        # the keys are copied: what the network is given are views of all its tokens
        self.found[self.layer] = tuple(t[:, :, picture].contiguous().clone() for t in (k, v))
        q, k, v = (t[:, :, picture] for t in (q, k, v))
        out = func(q, k, v, heads, *args, **kwargs)
        rest = out.new_zeros(out.shape[0], 1, out.shape[2])
        return torch.cat((rest, out) if self.geometry.text_first else (out, rest), 1)


@contextlib.contextmanager
def _exchanged(modules):
    """Modules with other forwards, [(module, make(earlier))], for a while."""
    before = []
    try:
        for module, make in modules:
            before.append((module, module.__dict__.get("forward")))
            module.forward = make(module.forward)
        yield
    finally:
        for module, earlier in reversed(before):
            if earlier is None:
                module.__dict__.pop("forward", None)
            else:
                module.forward = earlier


def _lora(network, stream, device, dtype, session):
    """The LoRA on the projections of the picture's tokens."""
    if stream.lora is None or stream.amount == 0:
        return contextlib.nullcontext()
    key = ("lora", stream.lora, str(device), dtype)
    if key not in session.references:
        move = lambda t: t.to(device=device, dtype=dtype)
        session.references[key] = {at: {p: (move(a), move(b)) for p, (a, b) in parts.items()} for at, parts in stream.lora.pairs.items()}
    changed = []
    for (stage, index), parts in session.references[key].items():
        block = (network.double_blocks if stage == "double" else network.single_blocks)[index]
        for name, wanted in PROJECTIONS[stage]:
            changed.append((block.get_submodule(name), _with_lora([parts[p] for p in wanted], stream.amount, on_result=wanted == ("proj",))))
    return _exchanged(changed)


def _with_lora(pairs, amount, on_result):
    """make(forward): adds the LoRA of each part to its share of the output's channels, the first of them; on_result: the LoRA sees the output, as in the authors' network, not the input."""
    def make(forward):
        def run(x, *args, **kwargs):
            out = forward(x, *args, **kwargs)
            seen = out if on_result else x
            added = torch.cat([seen.to(a.dtype) @ a.T @ b.T for a, b in pairs], -1).to(out.dtype) * amount
            return out + added if added.shape[-1] == out.shape[-1] else torch.cat((out[..., :added.shape[-1]] + added, out[..., added.shape[-1]:]), -1)
        return run
    return make


def _positions(network, stream, latent, x, geometry):
    """The tokens' places: over the whole picture (spatial), or beside it (subject)."""
    _, ph, pw = geometry.patch
    grid = lambda t: (-(-t.shape[-2] // ph), -(-t.shape[-1] // pw))
    (own_h, own_w), (high, wide) = grid(latent), grid(x)
    scale = (high / own_h, wide / own_w) if stream.mode == "spatial" else (1.0, 1.0)
    shift = stream.offset if stream.mode == "subject" else 0

    def make(forward):
        def run(ids):
            ids = ids.float().clone()
            picture = slice(1, None) if geometry.text_first else slice(0, -1)
            ids[:, picture, 1] = ids[:, picture, 1] * scale[0] + shift
            ids[:, picture, 2] = ids[:, picture, 2] * scale[1]
            return forward(ids)
        return run
    return _exchanged([(network.pe_embedder, make)])
