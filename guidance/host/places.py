"""Where things are in an attention call: the part of the picture that a token grid spans, and the prompt's own tokens among the keys."""
from ..attention.regions import WHOLE


def unet_grid(extra, tokens):
    """(height, width, window) of a layer's grid; odd sizes are rounded up at every halving, so that the grid reaches over the latent's edge."""
    high, wide = (extra.get("original_shape") or (None, None))[-2:]
    shape = extra.get("activations_shape")
    if high is None:
        return (*shape[-2:], WHOLE) if shape else (None, None, WHOLE)
    h, w, factor = high, wide, 1
    while h * w > tokens or (shape and (h, w) != tuple(shape[-2:]) and h > 1):
        h, w, factor = (h + 1) // 2, (w + 1) // 2, factor * 2
        if h == w == 1:
            break
    if h * w != tokens:
        return (*shape[-2:], WHOLE) if shape else (None, None, WHOLE)
    return h, w, (0.0, 0.0, w * factor / wide, h * factor / high)


def inside(grid, area):
    """The window of a grid that spans `grid` of an area which is `area` of the picture."""
    return area[0] + grid[0] * area[2], area[1] + grid[1] * area[3], grid[2] * area[2], grid[3] * area[3]


def prompt_first(session):
    """Whether the prompt's own tokens come before the other text of a joint call, or behind it (registers, other encoders' tokens)."""
    model = session.model.diffusion_model
    return session.geometry.family in ("lumina", "hidream") or (
        getattr(model, "byt5_in", None) is not None and getattr(model, "cond_type_embedding", None) is None)


def prompt_of(call, text, count):
    """Where the prompt's own `count` tokens are in the text of a joint call, None where they cannot all be in it."""
    begin = text.start if call.session.prompt_first else text.stop - count
    return slice(begin, begin + count) if text.start <= begin and begin + count <= text.stop else None
