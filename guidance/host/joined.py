"""Several texts in one joint attention: an edit's own texts behind the prompt of every row, open to the rows and parts of the picture that the edit says."""
from __future__ import annotations

import copy
from dataclasses import replace

import torch

from ..attention.edits import add_bias
from .shadow import _pad_mask, own_texts, own_tokens

# where the text is mixed before the blocks, or the place of the picture depends on its length, another text cannot stand behind the prompt
REFUSED = {"lumina": "the place of its picture depends on the length of the text", "hunyuan": "its text tokens are mixed with one another before the first block",
           "hidream": "its text enters every block anew, from a language model", "krea": "its text tokens are mixed with one another before the first block",
           "mochi": "its text is cut to the length of the prompt inside every block", "kandinsky": "its text tokens are mixed with one another before the first block"}


class Joined:
    """Belongs to one network call. `length` is the prompt's own number of tokens, `tokens` the number with the edit's texts behind it."""

    def __init__(self, call, edit, options):
        self.call, self.edit = call, edit
        options["lodestar_net"]["joined"] = self

    def expand(self, x, t, c_concat, c_crossattn, control, options):
        """The positional arguments of the network call with the longer text."""
        self.length = self.tokens = c_crossattn.shape[1]
        parts, self.places = [c_crossattn], []
        for prompt in own_texts(self.edit):
            tokens = own_tokens(self.call.session, prompt, c_crossattn, c_crossattn.shape[0])
            self.places.append(slice(self.tokens, self.tokens + tokens.shape[1]))
            self.tokens += tokens.shape[1]
            parts.append(tokens)
        return x, t, c_concat, torch.cat(parts, 1), control, options

    def expand_dict(self, kwargs):
        """The named arguments; the mask of the text grows with it."""
        mask = kwargs.get("attention_mask")
        if isinstance(mask, torch.Tensor) and mask.shape[-1] == self.length:
            return {**kwargs, "attention_mask": _pad_mask(mask, self.tokens, hidden=False)}
        return kwargs

    def attention(self, site, groups, attention, rows):
        """Head outputs of a joint call. Rows without the edit are run as if there were no text but the prompt; what comes out for the others' tokens is 0.

        rows(groups, attention, site): the edits of some rows (guidance.host.attention_hooks).
        """
        begin, count = site.prompt.stop, self.tokens - self.length
        hidden = slice(begin, begin + count)
        parts, short = [], None
        for start, stop, edits in groups:
            if self.edit in edits:
                rest = tuple(e for e in edits if e != self.edit)
                parts.append(rows([(start, stop, rest)], *self._open(site, attention, start)))
                continue
            short = short or self._short(site, attention, hidden)
            out = rows([(start, stop, edits)], *short)
            parts.append(torch.cat((out[:, :, :begin], out.new_zeros(*out.shape[:2], count, out.shape[3]), out[:, :, begin:]), 2))
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _open(self, site, attention, start):
        """The call with the edit's bias in the network's own mask, where every other edit sees it."""
        from .places import inside
        window = inside(site.window, self.call.window_at(attention.options, start, attention.rows))
        places = [slice(site.prompt.start + p.start, site.prompt.start + p.stop) for p in self.places]
        cache = self.call.session.__dict__.setdefault("joined_bias", {})
        key = (self.edit, site.height, site.width, site.frames, window, attention.q.shape[2], self.tokens, attention.q.dtype, str(attention.q.device))
        if key not in cache:
            if len(cache) > 4:
                cache.clear()
            cache[key] = self.edit.bias(replace(site, window=window), places, attention.q.shape[2], attention.q.dtype, attention.q.device)
        opened = copy.copy(attention)
        opened.mask = cache[key] if site.mask is None else add_bias(site.mask, cache[key])
        return opened, replace(site, mask=opened.mask)

    def _short(self, site, attention, hidden):
        """The call without the edit's texts."""
        def cut(t, axis):
            return torch.cat((t.narrow(axis, 0, hidden.start), t.narrow(axis, hidden.stop, t.shape[axis] - hidden.stop)), axis)

        def moved(s):
            count = hidden.stop - hidden.start
            return slice(s.start - count if s.start >= hidden.stop else s.start, s.stop - count if s.stop >= hidden.stop else s.stop)
        short = copy.copy(attention)
        short.q, short.k, short.v = (cut(t, 2) for t in (attention.q, attention.k, attention.v))
        mask = site.mask
        if mask is not None:
            mask = cut(mask, 3) if mask.shape[3] > 1 else mask
            mask = cut(mask, 2) if mask.shape[2] > 1 else mask
        short.mask = mask
        return short, replace(site, mask=mask, text=moved(site.text), image=moved(site.image))
