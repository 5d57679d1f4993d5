"""Samplers: pure step functions and loops; guidance.host makes the host's SAMPLER of them."""
from .cfgpp import CFGPlusPlusSampler

__all__ = ["CFGPlusPlusSampler"]
