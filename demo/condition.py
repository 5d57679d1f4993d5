"""The bundled condition LoRA: outlines of a scene steer the bundled flow model, in the layout and the way of EasyControl.

`outlines` draws the condition; `forward` is the network with a condition as the paper writes it, one sequence of text, picture and condition under a mask, differentiable.
"""
import torch
import torch.nn.functional as F

from .scenes import mask_of
from .train_forward import _modulate, _rms, _rotate, rotary, timestep_features

RANK = 16
PARTS = {"double": ("q", "k", "v", "proj"), "single": ("q", "k", "v")}
PREFIX = {"double": "transformer_blocks", "single": "single_transformer_blocks"}


def outlines(scene, size=64):
    """White outlines of a scene's objects on black, [3, size, size] in [0, 1], two pixels wide."""
    lines = torch.zeros(size, size)
    for thing in scene.things:
        mask = mask_of(thing, size)[None, None]
        lines = torch.maximum(lines, F.max_pool2d(mask, 3, 1, 1)[0, 0] + F.max_pool2d(-mask, 3, 1, 1)[0, 0])
    return lines.clamp(0, 1).expand(3, size, size)


def fresh(network, rank=RANK, seed=0):
    """New weights {key: tensor} of a LoRA for a Flux network, up at zero: as if there were none."""
    g, weights, width = torch.Generator().manual_seed(seed), {}, network.hidden_size
    for stage, blocks in (("double", network.double_blocks), ("single", network.single_blocks)):
        for i in range(len(blocks)):
            for part in PARTS[stage]:
                name = f"{PREFIX[stage]}.{i}.attn.processor.{part}_loras.0"
                weights[f"{name}.down.weight"] = torch.randn(rank, width, generator=g) / rank
                weights[f"{name}.up.weight"] = torch.zeros(width, rank)
    return weights


def _added(weights, stage, i, part, x):
    name = f"{PREFIX[stage]}.{i}.attn.processor.{part}_loras.0"
    return x @ weights[f"{name}.down.weight"].T @ weights[f"{name}.up.weight"].T


def forward(m, x, t, context, pooled, conditions):
    """Velocity [n, channels, h, w] of a Flux network `m` with conditions [(weights, latent [n, channels, h', w'], offset or None)]: one sequence under the paper's mask.

    offset None: the condition lies over the picture; else it stands so many tokens below its top.
    """
    n, channels, h, w = x.shape
    p = m.patch_size

    def patches(z):
        return z.reshape(n, channels, z.shape[2] // p, p, z.shape[3] // p, p).permute(0, 2, 4, 1, 3, 5).reshape(n, -1, channels * p * p)

    txt, picture = m.txt_in(context), m.img_in(patches(x))
    tokens, length = txt.shape[1], picture.shape[1]
    own = [m.img_in(patches(z)) for _, z, _ in conditions]
    at = lambda time: F.silu(m.time_in(timestep_features(time)) + m.vector_in(pooled))
    vec, still = at(t), at(torch.zeros_like(t))
    turns = [rotary(h // p, w // p, tokens, m.params.axes_dim, m.params.theta)]
    for _, z, offset in conditions:
        turns.append(_turn(m, z.shape[2] // p, z.shape[3] // p, h // p, w // p, offset))
    cos, sin = (torch.cat(parts) for parts in zip(*turns))
    mask = torch.zeros(len(cos), len(cos), dtype=torch.bool)
    mask[:tokens + length] = True
    begin = tokens + length
    for z in own:
        mask[begin:begin + z.shape[1], begin:begin + z.shape[1]] = True
        begin += z.shape[1]

    def heads(z):
        return z.view(n, z.shape[1], 3, m.num_heads, -1).permute(2, 0, 3, 1, 4)

    def attend(streams):
        q, k, v = (torch.cat(z, 2) for z in zip(*streams))
        out = F.scaled_dot_product_attention(_rotate(q, cos, sin), _rotate(k, cos, sin), v, attn_mask=mask)
        return out.transpose(1, 2).flatten(2).split([s[0].shape[2] for s in streams], 1)

    def qkv(z, inner, norm, extra=0):
        q, k, v = heads(inner + extra)
        return _rms(q, norm.query_norm), _rms(k, norm.key_norm), v

    def projected(weights, stage, i, z):
        return torch.cat([_added(weights, stage, i, part, z) for part in "qkv"], -1)

    for i, b in enumerate(m.double_blocks):
        mt, mods = b.txt_mod.lin(vec).chunk(6, -1), [b.img_mod.lin(v).chunk(6, -1) for v in (vec, *[still] * len(own))]
        seen = _modulate(b.txt_norm1(txt), mt[0], mt[1])
        streams, images = [qkv(seen, b.txt_attn.qkv(seen), b.txt_attn.norm)], [picture, *own]
        for j, (z, mod) in enumerate(zip(images, mods)):
            seen = _modulate(b.img_norm1(z), mod[0], mod[1])
            streams.append(qkv(seen, b.img_attn.qkv(seen), b.img_attn.norm, projected(conditions[j - 1][0], "double", i, seen) if j else 0))
        outs = attend(streams)
        txt = txt + b.txt_attn.proj(outs[0]) * mt[2][:, None]
        txt = txt + b.txt_mlp(_modulate(b.txt_norm2(txt), mt[3], mt[4])) * mt[5][:, None]
        done = []
        for j, (z, mod, out) in enumerate(zip(images, mods, outs[1:])):
            out = b.img_attn.proj(out)
            out = out + _added(conditions[j - 1][0], "double", i, "proj", out) if j else out
            z = z + out * mod[2][:, None]
            done.append(z + b.img_mlp(_modulate(b.img_norm2(z), mod[3], mod[4])) * mod[5][:, None])
        picture, own = done[0], done[1:]
    z = [torch.cat((txt, picture), 1), *own]
    for i, b in enumerate(m.single_blocks):
        mods = [b.modulation.lin(v).chunk(3, -1) for v in (vec, *[still] * len(own))]
        streams, rest = [], []
        for j, (part, mod) in enumerate(zip(z, mods)):
            seen = _modulate(b.pre_norm(part), mod[0], mod[1])
            hidden = b.linear1(seen)
            streams.append(qkv(seen, hidden[..., :3 * m.hidden_size], b.norm, projected(conditions[j - 1][0], "single", i, seen) if j else 0))
            rest.append(F.gelu(hidden[..., 3 * m.hidden_size:], approximate="tanh"))
        z = [part + b.linear2(torch.cat((out, mlp), -1)) * mod[2][:, None] for part, out, mlp, mod in zip(z, attend(streams), rest, mods)]
    shift, scale = m.final_layer.adaLN_modulation[1](vec).chunk(2, -1)
    img = m.final_layer.linear(_modulate(m.final_layer.norm_final(z[0][:, tokens:]), shift, scale))
    return img.reshape(n, h // p, w // p, channels, p, p).permute(0, 3, 1, 4, 2, 5).reshape(n, channels, h, w)


def _turn(m, own_h, own_w, high, wide, offset):
    """cos and sin of a condition's tokens."""
    scale, shift = ((high / own_h, wide / own_w), 0) if offset is None else ((1.0, 1.0), offset)
    y, x = torch.meshgrid(torch.arange(own_h) * scale[0] + shift, torch.arange(own_w) * scale[1], indexing="ij")
    ids = torch.stack((torch.zeros(own_h * own_w), y.flatten().float(), x.flatten().float()), -1)
    angles = torch.cat([ids[:, i, None] / (m.params.theta ** (torch.arange(0, d, 2) / d)) for i, d in enumerate(m.params.axes_dim)], -1)
    return angles.cos(), angles.sin()
