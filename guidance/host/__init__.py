"""The only room that imports ComfyUI: hooks, versions, gradients, other models, the geometry of networks."""
