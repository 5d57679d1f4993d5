"""Conditionings cut to a part of the picture, or made for another size, in the host's own terms: areas, masks, a cropped ControlNet hint."""
from __future__ import annotations

import torch

FUZZ = 8       # over so many cells the host fades out the borders of an area


def crops(entry, windows, x, controls):
    """[(number, entry)]: a conditioning entry once per window that it reaches into. x: the noisy latent. controls(control, window): the ControlNet for a window.

    The windows' borders are not faded: every entry gets a mask. An area's own fading goes into it.
    """
    if "gligen" in entry:
        raise ValueError("Sliding windows: GLIGEN boxes cannot be cropped. Take GLIGEN off the prompt, or remove the node.")
    own, mask = _flat(entry.get("area")), entry.get("mask")
    if mask is None:
        mask = _faded(own, x.shape).to(x.device)
    found = []
    for number, window in enumerate(windows):
        area = window if own is None else _common(own, window)
        if area is None:
            continue
        cut = {**entry, "area": area, "mask": mask}
        if entry.get("control") is not None:
            cut["control"] = controls(entry["control"], window)
        found.append((number, cut))
    return found


def _flat(area):
    """(height, width, y, x) of an area, whose frames are left out."""
    if area is None:
        return None
    n = len(area) // 2
    return tuple(area[n - 2:n]) + tuple(area[-2:])


def _common(a, b):
    """Where two areas overlap, None where they do not."""
    y, x = max(a[2], b[2]), max(a[3], b[3])
    bottom, right = min(a[2] + a[0], b[2] + b[0]), min(a[3] + a[1], b[3] + b[1])
    return (bottom - y, right - x, y, x) if bottom > y and right > x else None


def _faded(area, shape):
    """A mask [1, (frames,) height, width] of ones that fades towards the borders of an area as the host's does."""
    mask = torch.ones(1, *shape[2:])
    if area is None:
        return mask
    for axis, (size, start) in enumerate(zip(area[:2], area[2:])):
        axis, full = mask.ndim - 2 + axis, shape[-2 + axis]
        size = min(full - start, size)
        reach = min(FUZZ, size // 4)
        for i in range(reach):
            if start != 0:
                mask.narrow(axis, start + i, 1).mul_((i + 1) / reach)
            if start + size < full:
                mask.narrow(axis, start + size - 1 - i, 1).mul_((i + 1) / reach)
    return mask


def cropped_control(control, window, shape, model):
    """A copy of a ControlNet (and of those behind it) whose hint is cropped as the window is; made ready as the host does at the start of a run."""
    copy = _copied(control, window, shape)
    copy.pre_run(model, model.model_sampling.percent_to_sigma)
    return copy


def _copied(control, window, shape):
    copy = control.copy()
    for name in ("cond_hint_original", "extra_concat_orig"):
        value = getattr(control, name, None)
        if isinstance(value, torch.Tensor):
            setattr(copy, name, _part(value, window, shape))
        elif isinstance(value, list):
            setattr(copy, name, [_part(v, window, shape) if isinstance(v, torch.Tensor) else v for v in value])
    earlier = getattr(control, "previous_controlnet", None)
    if earlier is not None:
        copy.set_previous_controlnet(_copied(earlier, window, shape))
    return copy


def _part(picture, window, shape):
    """The part of a picture [..., height, width] of any size that a window of the latent shows."""
    h, w = picture.shape[-2:]
    y, bottom = (round(v * h / shape[-2]) for v in (window[2], window[2] + window[0]))
    x, right = (round(v * w / shape[-1]) for v in (window[3], window[3] + window[1]))
    return picture[..., y:max(bottom, y + 1), x:max(right, x + 1)]


def relative(entry, shape):
    """A conditioning entry whose area is in shares of a latent of this shape, so that it fits any size."""
    area = entry.get("area")
    if area is None or area[0] == "percentage":
        return entry
    n, sizes = len(area) // 2, shape[2:]
    if n < len(sizes):
        area = (sizes[0], *area[:n], 0, *area[n:])
    return {**entry, "area": ("percentage", *(v / size for v, size in zip(area, (*sizes, *sizes))))}


def scaled(t, like):
    """A latent or a mask [..., height, width] at the height and width of `like`."""
    if t is None or t.shape[-2:] == like.shape[-2:]:
        return t
    planes = t.reshape(-1, 1, *t.shape[-2:]).float()
    return torch.nn.functional.interpolate(planes, like.shape[-2:], mode="area").reshape(*t.shape[:-2], *like.shape[-2:]).to(t.dtype)
