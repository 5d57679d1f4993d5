"""Edits of attention: what happens inside chosen layers, for chosen rows of the batch."""
