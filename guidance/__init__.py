"""Lodestar's library: methods as values, one engine. Only guidance.host imports ComfyUI."""
