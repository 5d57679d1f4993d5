"""A second text inside one network call, for edits with a negative prompt of their own.

Joint attention: shadow rows, copies of the positive rows that carry the other text. The image stream of a shadow row stays equal to its original's: both get
the same combined head output and the same modulation. Cross attention: the other text's tokens are appended to every row's and cut off again in each call.
"""
from __future__ import annotations

import math
from dataclasses import replace

import torch

from ..attention.edits import add_bias, apply_rows, rows_of
from .places import inside, prompt_of


def own_texts(edit):
    """The Prompts of an edit's own: its negative prompt, or other texts that it attends to."""
    negative = getattr(edit, "negative", None)
    return (negative,) if negative is not None else tuple(getattr(edit, "texts", ()))


def own_tokens(session, prompt, like, rows=1):
    """The text tokens [rows, n, width] of a Prompt without the padding that its attention mask hides; several entries one after the other."""
    from .calls import spread
    parts = []
    for entry in session.prompt_conds(prompt):
        conds = entry.get("model_conds", {})
        if "c_crossattn" not in conds:
            continue
        tokens = spread(conds["c_crossattn"].cond, rows)
        mask = conds["attention_mask"].cond[0].reshape(-1) if "attention_mask" in conds else None
        if mask is not None and mask.shape[0] == tokens.shape[1] and not mask.is_floating_point() and mask.any():
            tokens = tokens[:, mask.bool().to(tokens.device)]      # the first picture's mask is every picture's
        parts.append(tokens)
    if not parts:
        raise ValueError(f"the {prompt.name} conditioning has no text tokens (c_crossattn) for this model")
    tokens = torch.cat(parts, 1).to(device=like.device, dtype=like.dtype)
    if tokens.shape[2] != like.shape[2]:
        raise ValueError(f"the {prompt.name} conditioning has tokens of width {tokens.shape[2]}, the positive's have {like.shape[2]}: they come from different text encoders")
    return tokens


def _pad(t, length):
    """Text of `length` tokens, filled up with its own mean (networks that pool their text then pool the same)."""
    missing = length - t.shape[1]
    return torch.cat((t, t.mean(1, keepdim=True).expand(-1, missing, -1)), 1) if missing else t


def _pad_mask(mask, length, hidden):
    """An attention mask over text with more tokens in its last axis, hidden or not."""
    value = (-torch.inf if hidden else 0) if mask.is_floating_point() else (0 if hidden else 1)
    return torch.cat((mask, mask.new_full((*mask.shape[:-1], length - mask.shape[-1]), value)), -1)


def _sum(mask, bias):
    if mask is None or bias is None:
        return bias if mask is None else mask
    return add_bias(mask, bias)


class Shadow:
    """Belongs to one network call. `rows` are the originals' row numbers; the shadows are appended in the same order."""

    def __init__(self, call, edit, chunks, size, options):
        self.edit = edit
        self.rows = [c * size + i for c in chunks for i in range(size)]
        self.call = call
        self.options = options
        options["lodestar_net"]["shadow"] = self

    def _rows(self, t, n):
        """The tensor with the rows of the shadows appended, where its first axis is the batch."""
        if isinstance(t, torch.Tensor) and t.ndim and t.shape[0] == n:
            return torch.cat((t, t[self.rows]))
        if isinstance(t, list):
            return [self._rows(x, n) for x in t]
        if isinstance(t, dict):
            return {k: self._rows(x, n) for k, x in t.items()}
        return t

    def expand(self, x, t, c_concat, c_crossattn, control, options):
        """The positional arguments of the network call with the shadows' rows."""
        n = self.n = x.shape[0]
        negative = own_tokens(self.call.session, self.edit.negative, c_crossattn, len(self.rows))
        longest = max(c_crossattn.shape[1], negative.shape[1])
        self.lengths = (c_crossattn.shape[1], negative.shape[1], longest)
        if self.call.session.geometry.family == "lumina" and self.lengths[1] > self.lengths[0]:
            raise ValueError(f"The negative prompt of an attention edit has {self.lengths[1]} tokens, the positive prompt {self.lengths[0]}. On this network the place of the "
                             "picture depends on the length of the text, so the negative may not be longer: shorten it, or lengthen the positive prompt.")
        text = torch.cat((_pad(c_crossattn, longest), _pad(negative, longest)))
        return (self._rows(x, n), self._rows(t, n), self._rows(c_concat, n), text, self._rows(control, n), options)

    def expand_dict(self, kwargs):
        """The named arguments; the mask of the text is made as long as the longer text, and is open for all tokens of the shadows."""
        out = {k: self._rows(v, self.n) for k, v in kwargs.items()}
        mask = kwargs.get("attention_mask")
        if isinstance(mask, torch.Tensor) and mask.shape[-1] == self.lengths[0]:
            if self.call.session.geometry.family == "lumina":
                raise ValueError("Attention edits with a negative prompt cannot run on this network while the positive prompt has padding (an attention mask).")
            mask = _pad_mask(mask, self.lengths[2], hidden=True)
            if mask.shape[0] == self.n:
                open_ = torch.zeros_like(mask[self.rows]) if mask.is_floating_point() else torch.ones_like(mask[self.rows])
                mask = torch.cat((mask, open_))
            out["attention_mask"] = mask
        return out

    def _mask(self, q, k, length, begin):
        """Hides the padding of a text stream that is shorter than the other; `begin` is where the text starts among the keys."""
        if length == self.lengths[2]:
            return None
        mask = torch.zeros(1, 1, 1, k.shape[2], dtype=q.dtype, device=q.device)
        mask[..., begin + length: begin + self.lengths[2]] = float("-inf")
        return mask

    def _begin(self, text):
        """Where the prompt's tokens start in the text of a joint call, which may hold registers or other encoders' tokens too."""
        return prompt_of(self.call, text, self.lengths[2]).start

    def refine(self, q, k, v, attend):
        """Attention among text tokens alone, before the blocks: the padding of each stream stays hidden."""
        n = self.n
        parts = [(slice(0, n), self.lengths[0]), (slice(n, None), self.lengths[1])]
        return torch.cat([attend(q[rows], k[rows], v[rows], rows.start, rows.stop or q.shape[0], self._mask(q, k, length, 0)) for rows, length in parts])

    def attention(self, call, site, groups, q, k, v, attend, layer):
        """Head outputs of all rows: the originals' image rows are combined with their shadows', both keep their own text."""
        n, rows = self.n, self.rows
        masks = [self._mask(q, k, length, self._begin(site.text)) if site.text is not None else None for length in self.lengths[:2]]
        own = [(a, b, tuple(e for e in edits if e != self.edit)) for a, b, edits in groups]
        parts = []
        for start, stop, edits in own:
            cut = slice(start, stop)
            base = lambda q_, k_, v_, a, b, bias=None, start=start: attend(q_, k_, v_, start + a, start + b, _sum(masks[0], bias))
            window = inside(site.window, call.window_at(self.options, start, n))
            local = replace(rows_of(site, start, stop, q.shape[0]), extra={"tokens": {}, "texts": {}, "plain": None, "others": False}, window=window)
            parts.append(apply_rows([(0, stop - start, edits)], q[cut], k[cut], v[cut], base, replace(local, mask=_sum(masks[0], local.mask))))
        out = torch.cat(parts)
        if site.kind != "joint":
            return torch.cat((out, out[rows]))
        other = attend(q[n:], k[n:], v[n:], n, n + len(rows), masks[1]).clone()
        rest = slice(site.text.stop, None) if site.text.start == 0 else slice(0, site.text.start)     # the picture, and reference pictures
        image = out[rows][:, :, rest]
        if layer in call.session.selected(self.edit):
            image = self.edit.combine(image, other[:, :, rest])
            out = out.clone()
            out[rows, :, rest] = image
        other[:, :, rest] = image
        return torch.cat((out, other))


class Appended:
    """Belongs to one network call: tokens of the edits' own texts behind every row's text, for networks with text cross attention.

    `length` is the text's own number of tokens, `tokens` the number with all that was appended.
    """

    def __init__(self, call, edits, options):
        self.call, self.edits = call, edits
        self.shape = options["lodestar_net"]["shape"]
        options["lodestar_net"]["appended"] = self

    def expand(self, x, t, c_concat, c_crossattn, control, options):
        """The positional arguments of the network call with the longer text."""
        self.length = c_crossattn.shape[1]
        parts, self.places = [c_crossattn], {}
        for edit in self.edits:
            for i, prompt in enumerate(own_texts(edit)):
                tokens = own_tokens(self.call.session, prompt, c_crossattn, c_crossattn.shape[0])
                begin = sum(p.shape[1] for p in parts)
                self.places[edit, i] = slice(begin, begin + tokens.shape[1])
                parts.append(tokens)
        self.tokens = sum(p.shape[1] for p in parts)
        if self.tokens == self._image_tokens():      # the number of keys has to tell text from picture; nobody reads the last token
            parts.append(c_crossattn[:, -1:])
            self.tokens += 1
        return x, t, c_concat, torch.cat(parts, 1), control, options

    def _image_tokens(self):
        pt, ph, pw = self.call.session.geometry.patch
        frames = self.shape[2] if len(self.shape) == 5 else 1
        return math.ceil(frames / pt) * math.ceil(self.shape[-2] / ph) * math.ceil(self.shape[-1] / pw)

    def expand_dict(self, kwargs):
        """The named arguments; the mask of the text grows with it."""
        mask = kwargs.get("attention_mask")
        if isinstance(mask, torch.Tensor) and mask.shape[-1] == self.length:
            return {**kwargs, "attention_mask": _pad_mask(mask, self.tokens, hidden=False)}
        return kwargs

    def split(self, k, v):
        """{(edit, number of the text): (keys, values)} of the appended tokens of a call with heads [rows, heads, tokens, width]."""
        return {edit: (k[:, :, place], v[:, :, place]) for edit, place in self.places.items()}
