"""Samplers that keep several particles of each picture, and choose among them by values alone: no gradient of anything."""
