"""Guidance from a degraded branch: result = base + scale * (conditional - degraded)."""
