"""Edits of a U-Net's hidden features: behind its residual blocks, and in front of the projections of its self-attention."""
from __future__ import annotations

from ..frozen import frozen
from .edits import AttentionEdit


@frozen
class ResidualEdit(AttentionEdit):
    """Changes what the residual block of a selected layer's block returns, before its transformer. `site.shared`: {Branch: the reference's features [batch, ...]}."""

    kinds = ()

    def residual(self, site, h):
        """h [rows, channels, height, width] -> the same shape; must not change it in place."""
        raise NotImplementedError


@frozen
class InputEdit(AttentionEdit):
    """Changes the normalised tokens from which a selected layer's self-attention makes its queries, keys and values. `site.shared`: {Branch: the reference's [batch, ...]}.

    site.extra: {"attention": the layer's attention module with to_q and to_k, "heads": its number of heads}.
    """

    kinds = ()

    def entering(self, site, h):
        """h [rows, tokens, channels] -> the same shape; must not change it in place."""
        raise NotImplementedError
