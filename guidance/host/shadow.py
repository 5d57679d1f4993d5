"""Shadow rows: copies of the positive rows that carry another text, for edits of joint attention (a second text stream).

The image stream of a shadow row stays equal to its original's: both get the same combined head output and the same modulation.
"""
from __future__ import annotations

import torch


class Shadow:
    """Belongs to one network call. `rows` are the originals' row numbers; the shadows are appended in the same order."""

    def __init__(self, call, edit, chunks, size, options):
        self.edit = edit
        self.rows = [c * size + i for c in chunks for i in range(size)]
        self.call = call
        options["lodestar_net"]["shadow"] = self
        self.text = None

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
        negative = self.call.session.cross_tokens(self.edit.negative, len(self.rows), c_crossattn)
        longest = max(c_crossattn.shape[1], negative.shape[1])
        self.lengths = (c_crossattn.shape[1], negative.shape[1], longest)
        text = torch.cat((_pad(c_crossattn, longest), _pad(negative, longest)))
        return (self._rows(x, n), self._rows(t, n), self._rows(c_concat, n), text, self._rows(control, n), options)

    def expand_dict(self, kwargs):
        return {k: self._rows(v, self.n) for k, v in kwargs.items()}

    def _mask(self, q, k, length, text):
        """Hides the padding of a text stream that is shorter than the other."""
        if length == self.lengths[2]:
            return None
        mask = torch.zeros(1, 1, q.shape[2], k.shape[2], dtype=q.dtype, device=q.device)
        mask[..., text.start + length: text.stop] = float("-inf")
        return mask

    def attention(self, call, site, groups, q, k, v, attend, layer):
        """Head outputs of all rows: the originals' image rows are combined with their shadows', both keep their own text."""
        from ..attention.edits import apply_rows
        from dataclasses import replace
        n, rows = self.n, self.rows
        main_mask = self._mask(q, k, self.lengths[0], site.text) if site.text is not None else None
        shadow_mask = self._mask(q, k, self.lengths[1], site.text) if site.text is not None else None
        own = [(a, b, tuple(e for e in edits if e is not self.edit and e != self.edit)) for a, b, edits in groups]
        parts = []
        for start, stop, edits in own:
            cut = slice(start, stop)
            base = lambda q_, k_, v_, a, b, start=start: attend(q_, k_, v_, start + a, start + b, main_mask)
            parts.append(apply_rows([(0, stop - start, edits)], q[cut], k[cut], v[cut], base, replace(site, extra={"tokens": {}, "plain": None})))
        out = torch.cat(parts)
        if site.kind != "joint":
            return torch.cat((out, out[rows]))
        other = attend(q[n:], k[n:], v[n:], n, n + len(rows), shadow_mask)
        image = out[rows][:, :, site.image]
        if layer in call.session.selected(self.edit):
            image = self.edit.combine(image, other[:, :, site.image])
            out = out.clone()
            out[rows, :, site.image] = image
        other = other.clone()
        other[:, :, site.image] = image
        return torch.cat((out, other))


def _pad(t, length):
    return torch.cat((t, t.new_zeros(t.shape[0], length - t.shape[1], t.shape[2])), 1) if t.shape[1] < length else t
