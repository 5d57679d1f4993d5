"""Samplers that are led by a loss: gradients of any loss, on the loop of guidance.inverse.solver."""
