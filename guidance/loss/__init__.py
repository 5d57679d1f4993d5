"""Losses, their gradients, and the solvers that use them."""
