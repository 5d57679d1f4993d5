"""Restoring what was measured: forward operators, and the solvers that sample pictures which agree with a measurement."""
