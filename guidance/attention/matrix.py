"""Edits of the attention matrix itself: of the logits before the softmax, and of the weights after it."""
from __future__ import annotations

import torch

from .edits import AttentionEdit, fit_bias
from .explicit import logits, query_chunks


class MatrixEdit(AttentionEdit):
    """An edit that needs the attention matrix. Several of one call share one pass: all logits in order, the softmax, all weights in order.

    `part` is a slice of the queries: the matrix is worked through in parts, so that memory stays bounded; z and a are float32 [rows, heads, part, keys].
    """

    matrix = True

    def logits(self, site, z, part):
        """z changed before the softmax."""
        return z

    def weights(self, site, a, part):
        """The weights a changed after the softmax; their rows need not sum to 1 any more."""
        return a

    def apply(self, site, q, k, v, attend):
        return self.together((self,), site, attend)(q, k, v)

    @staticmethod
    def together(edits, site, attend):
        """One function (q, k, v, bias) -> head outputs for several of them."""
        def run(q, k, v, bias=None):
            bias = None if bias is None else fit_bias(bias, k.shape[2], q.shape[2])
            out = torch.empty_like(q[..., :v.shape[-1]])
            for part in query_chunks(*q.shape[:3], k.shape[2], copies=4):
                z = logits(q, k, site.mask, part)
                if bias is not None:
                    z = z + bias[:, :, part]
                for edit in edits:
                    z = edit.logits(site, z, part)
                a = z.softmax(-1)
                for edit in edits:
                    a = edit.weights(site, a, part)
                out[:, :, part] = (a @ v.float()).to(out.dtype)
            if site.extra and site.extra.get("others"):      # what another pack's replacement adds to attention is kept
                out = out + (attend(q, k, v) - site.extra["plain"](q, k, v))
            return out
        return run
