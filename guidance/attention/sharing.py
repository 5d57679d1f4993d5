"""What methods that share keys and values between pictures have in common: whom they look at, statistics of tokens, attention to more keys."""
from __future__ import annotations

import math

import torch

from ..method import BadInput, Branch, Prompt
from .edits import Shared
from .sources import source_of

NEGATIVE_ROWS = ("own", "same", "off")


def edits_of(method, make, source):
    """The edits of a sharing method: make(branch, reach) for the rows of the positive and the negative prompt.

    With a source the positive rows look at the reference under the method's reference_prompt (without one: under the positive prompt); negative_rows "own": the negative rows
    at the reference under the negative prompt, "same": at the same reference, "off": they are left alone. Without a source (branch None) rows look at their batch.
    """
    everyone = "positive" if method.negative_rows == "off" else "all"
    if source is None:
        return (make(None, everyone),)
    prompt = getattr(method, "reference_prompt", None)
    prompt = "positive" if prompt is None else prompt if isinstance(prompt, Prompt) else Prompt(prompt, f"reference_prompt of {method.title}")
    positive = Branch(prompt, source=source)
    if method.negative_rows == "own":
        return make(positive, "positive"), make(Branch("negative", source=source), "negative")
    return (make(positive, everyone),)


def source(method, salt=0):
    """The Source of a method's fields reference and trajectory."""
    return source_of(method.title, method.reference, method.trajectory, getattr(method, "noise", "shared"), salt)


def seen(site, branch, q, k, v):
    """The Shared that the rows look at, [rows, ...]: the reference branch's, or without one the first picture of each prompt's rows."""
    rows = q.shape[0]
    if branch is None:
        picture = [t.unflatten(0, (-1, site.batch))[:, :1].expand(-1, site.batch, *t.shape[1:]).flatten(0, 1)[:, :, site.image] for t in (q, k, v)]
        return Shared(*picture)
    found = (site.shared or {}).get(branch)
    if found is None:
        raise RuntimeError(f"the reference of an attention edit was not evaluated before {site.layer}; another pack cuts the network's batch in a way that it cannot be found")
    tile = lambda t: t if t.shape[0] == rows else t.repeat(rows // t.shape[0], 1, 1, 1)
    return Shared(tile(found.q), tile(found.k), tile(found.v))


def statistics(t, eps=1e-5):
    """Mean and standard deviation over tokens [rows, heads, 1, head_dim], in float32."""
    t = t.float()
    return t.mean(-2, keepdim=True), (t.var(-2, keepdim=True) + eps).sqrt() if t.shape[-2] > 1 else torch.full_like(t, eps ** 0.5)


def adain(t, style, amount=1.0):
    """t with the mean and standard deviation over tokens of `style`, per head and channel; `amount` mixes it with t."""
    if amount == 0:
        return t
    mean, std = statistics(t)
    style_mean, style_std = statistics(style)
    moved = (t.float() - mean) / std * style_std + style_mean
    return (t.float() + amount * (moved - t.float())).to(t.dtype)


def put(t, image, value):
    """t [rows, heads, tokens, head_dim] with the picture's tokens replaced."""
    if image == slice(None):
        return value
    t = t.clone()
    t[:, :, image] = value
    return t


def column_bias(own, more, weight, like):
    """A bias [1, 1, 1, own + more] that multiplies the softmax weights of the last `more` keys by `weight`; None for a weight of 1."""
    if weight == 1:
        return None
    bias = torch.zeros(1, 1, 1, own + more, dtype=torch.float32, device=like.device)
    bias[..., own:] = math.log(weight) if weight > 0 else float("-inf")
    return bias.to(like.dtype)


def attend_image(site, attend, q, k, v, changed, bias=None):
    """Attention whose picture queries see other keys and values, and whose other queries (text, reference pictures) see their own.

    q, k, v are the network's, `changed` (q, k, v) those for the picture's queries.
    """
    more = () if bias is None else (bias,)
    if site.kind != "joint":
        return attend(*changed, *more)
    image = site.image
    begin, end = image.start or 0, q.shape[2] if image.stop is None else image.stop
    if not site.partial:
        return put(attend(q, k, v), image, attend(*changed, *more)[:, :, image])
    out = torch.empty_like(q)
    out[:, :, image] = attend(changed[0][:, :, image], *changed[1:], *more)
    rest = attend(torch.cat((q[:, :, :begin], q[:, :, end:]), 2), k, v)
    out[:, :, :begin], out[:, :, end:] = rest[:, :, :begin], rest[:, :, begin:]
    return out


def keep_first(site, attend, q, k, v, out):
    """out with the network's own attention for the first picture of each prompt's rows, which is the others' reference."""
    first = slice(0, None, site.batch)
    out = out.clone()
    out[first] = attend(q[first], k[first], v[first]) if site.partial else attend(q, k, v)[first]
    return out


def same_grid(node, site, found, q):
    """BadInput where a reference has another number of tokens than the picture, which an edit that takes its queries needs alike."""
    own = q[:, :, site.image].shape[2]
    if found.q.shape[2] != own:
        raise BadInput(node, "layers", str(site.layer), f"The reference has {found.q.shape[2]} tokens there, the picture {own} (a prompt with an area of its own?). "
                       "This method needs both to cover the same grid.")


def mask_at(mask, site, rows, like):
    """A graph's MASK [n, height, width] on the token grid of a call: [rows, tokens] in [0, 1], the same for every frame; entry i of the batch has mask i or the single one."""
    import torch.nn.functional as F

    from .regions import _shares
    left, top, wide, high = site.window
    mask = mask.detach().to("cpu", torch.float32)
    mask = mask[:, 0] if mask.ndim == 4 else mask[None] if mask.ndim == 2 else mask
    down, across = _shares(site.height, top, high, mask.shape[1]), _shares(site.width, left, wide, mask.shape[2])
    found = (down @ mask @ across.T).clamp(0, 1).flatten(1).repeat(1, site.frames)
    if found.shape[0] not in (1, site.batch):
        raise BadInput("mask", "mask", f"{found.shape[0]} masks", f"The batch has {site.batch}: give one mask for all pictures, or one for each.")
    missing = like.shape[2] - found.shape[1]
    if missing:
        found = F.pad(found, (0, missing)) if missing > 0 else found[:, :like.shape[2]]
    return found.expand(site.batch, -1).repeat(rows // site.batch, 1).to(like.device)
