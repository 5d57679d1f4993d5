"""What an image adapter makes of an image encoder's output: the tokens that pictures attend to. Pure functions of a file's tensors.

Every function takes the tensors of its part of the file (keys without their prefix) in float32 and returns [n, tokens, width].
"""
from __future__ import annotations

import torch
import torch.nn.functional as F

HEAD = 64            # width of a head in every published resampler; files do not say it
PAIR_HEADS = 8       # of LOTS' pair former; files do not say it
FREQUENCIES, TEMPERATURE = 8, 100.0


def _linear(w, name, x):
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def _norm(w, name, x):
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])


def _attend(q, k, v, heads):
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def projected(w, embeds):
    """One embedding a picture [n, c] to a few tokens: a linear map and a norm (IP-Adapter)."""
    width = w["norm.weight"].shape[0]
    return _norm(w, "norm", _linear(w, "proj", embeds).unflatten(-1, (-1, width)))


def mapped(w, features):
    """Features [n, m, c] to as many tokens: a perceptron and a norm (IP-Adapter "full")."""
    return _norm(w, "proj.3", _linear(w, "proj.2", F.gelu(_linear(w, "proj.0", features))))


def box_waves(boxes):
    """Sines and cosines [n, 64] of boxes [n, 4] (left, top, right, bottom, in fractions of the picture) at 8 frequencies."""
    waves = TEMPERATURE ** (torch.arange(FREQUENCIES, dtype=torch.float32) / FREQUENCIES) * boxes.float()[..., None]
    return torch.stack((waves.sin(), waves.cos()), -1).permute(0, 2, 3, 1).flatten(1)


def grounded(w, boxes, phrases):
    """First queries [n, tokens, c] of a grounded resampler: of boxes [n, 4] and pooled phrases [n, p]; a phrase of None takes the learned ones."""
    learned, out = w["grounding_latents"][0], []
    for box, phrase in zip(boxes, phrases):
        if phrase is None:
            out.append(learned)
            continue
        x = torch.cat((phrase.float().view(1, -1), box_waves(box[None])), -1)
        out.append(_norm(w, "latent_norm", _linear(w, "latent_proj.2", F.gelu(_linear(w, "latent_proj.0", x))).view(learned.shape)))
    return torch.stack(out)


def resampled(w, features, queries=None):
    """Features [n, m, c] to the tokens of a perceiver resampler (IP-Adapter "plus", MS-Diffusion); queries as `grounded` makes them, else the learned ones."""
    x = _linear(w, "proj_in", features)
    latents = w["latents"].expand(len(x), -1, -1) if queries is None else queries
    depth = 1 + max(int(k.split(".")[1]) for k in w if k.startswith("layers."))
    for i in range(depth):
        own, ff = f"layers.{i}.0", f"layers.{i}.1"
        a, b = _norm(w, f"{own}.norm1", x), _norm(w, f"{own}.norm2", latents)
        k, v = _linear(w, f"{own}.to_kv", torch.cat((a, b), 1)).chunk(2, -1)
        latents = latents + _linear(w, f"{own}.to_out", _attend(_linear(w, f"{own}.to_q", b), k, v, max(1, k.shape[-1] // HEAD)))
        latents = latents + _linear(w, f"{ff}.3", F.gelu(_linear(w, f"{ff}.1", _norm(w, f"{ff}.0", latents))))
    if "attention_norm.weight" in w:
        latents = _norm(w, "attention_norm", latents)
    return _norm(w, "norm_out", _linear(w, "proj_out", latents))


def paired(image, text, former, sketches, descriptions):
    """Tokens [n, compression tokens, width] of n pairs of a sketch's features [n, m, c] and a pooled description [n, p] (LOTS).

    Pairs do not see each other; one group norm runs over the tokens of all of them, as in the released code. Only the compression tokens leave.
    """
    width = image["norm.weight"].shape[0]
    words = _norm(text, "norm", _linear(text, "proj", descriptions).unflatten(-1, (-1, width)))
    learned = former["cls_tokens"][0]
    x = torch.cat((learned.expand(len(sketches), -1, -1), _norm(image, "norm", _linear(image, "proj", sketches)), words), 1)
    n, length, c = x.shape
    x = F.group_norm(x.reshape(1, n * length, c).transpose(1, 2), 32, former["norm.weight"], former["norm.bias"], 1e-6).transpose(1, 2).reshape(n, length, c)
    if "in_proj.weight" in former:
        x = _linear(former, "in_proj", x)
    depth = 1 + max(int(k.split(".")[1]) for k in former if k.startswith("transformer_blocks."))
    for i in range(depth):
        block = f"transformer_blocks.{i}"
        for norm, attention in (("norm1", "attn1"), ("norm2", "attn2")):
            y = _norm(former, f"{block}.{norm}", x)
            q, k, v = (_linear(former, f"{block}.{attention}.to_{part}", y) for part in "qkv")
            x = x + _linear(former, f"{block}.{attention}.to_out.0", _attend(q, k, v, PAIR_HEADS))
        up, gate = _linear(former, f"{block}.ff.net.0.proj", _norm(former, f"{block}.norm3", x)).chunk(2, -1)
        x = x + _linear(former, f"{block}.ff.net.2", up * F.gelu(gate))
    return (_linear(former, "proj_out", x) if "proj_out.weight" in former else x)[:, :learned.shape[1]]
