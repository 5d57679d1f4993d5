"""Training-time forward of the DiT: the host's module and weights, written without in-place updates so that autograd
and torch.compile accept it. tests/host checks that it equals the host's own forward."""
import torch
import torch.nn.functional as F


def _modulate(x, shift, scale):
    return x * (1 + scale[:, None]) + shift[:, None]


def _rms(x, norm):
    weight = getattr(norm, "scale", None)
    return F.rms_norm(x, (x.shape[-1],), norm.weight if weight is None else weight, 1e-6)


def _rotate(x, cos, sin):
    pair = x.reshape(*x.shape[:-1], -1, 2)
    return torch.stack((pair[..., 0] * cos - pair[..., 1] * sin, pair[..., 0] * sin + pair[..., 1] * cos), -1).reshape(x.shape)


def rotary(height, width, text_tokens, axes_dim, theta):
    """cos and sin [text + height * width, head_dim / 2] of the three-axis rotary embedding."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    ids = torch.stack((torch.zeros(height * width), y.flatten().float(), x.flatten().float()), -1)
    ids = torch.cat((torch.zeros(text_tokens, 3), ids))
    angles = torch.cat([ids[:, i, None] / (theta ** (torch.arange(0, d, 2) / d)) for i, d in enumerate(axes_dim)], -1)
    return angles.cos(), angles.sin()


def timestep_features(t, dim=256, period=10000.0):
    freqs = torch.exp(-torch.log(torch.tensor(period)) * torch.arange(dim // 2) / (dim // 2))
    angles = 1000.0 * t[:, None] * freqs
    return torch.cat((angles.cos(), angles.sin()), -1)


def dit_forward(m, x, t, context, pooled, tap=1):
    """Velocity [n, 16, h, w] of the host's Flux module `m`, and the image tokens after single block `tap`."""
    n, channels, h, w = x.shape
    p = m.patch_size
    img = x.reshape(n, channels, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5).reshape(n, (h // p) * (w // p), -1)
    img, txt = m.img_in(img), m.txt_in(context)
    vec = F.silu(m.time_in(timestep_features(t)) + m.vector_in(pooled))
    tokens = txt.shape[1]
    cos, sin = rotary(h // p, w // p, tokens, m.params.axes_dim, m.params.theta)

    def heads(z):
        return z.view(n, z.shape[1], 3, m.num_heads, -1).permute(2, 0, 3, 1, 4)

    def attend(q, k, v):
        out = F.scaled_dot_product_attention(_rotate(q, cos, sin), _rotate(k, cos, sin), v)
        return out.transpose(1, 2).flatten(2)

    for b in m.double_blocks:
        mi, mt = b.img_mod.lin(vec).chunk(6, -1), b.txt_mod.lin(vec).chunk(6, -1)
        parts = []
        for z, mod, attn, norm in ((txt, mt, b.txt_attn, b.txt_norm1), (img, mi, b.img_attn, b.img_norm1)):
            q, k, v = heads(attn.qkv(_modulate(norm(z), mod[0], mod[1])))
            parts.append((_rms(q, attn.norm.query_norm), _rms(k, attn.norm.key_norm), v))
        out = attend(*[torch.cat(pair, 2) for pair in zip(*parts)])
        txt = txt + b.txt_attn.proj(out[:, :tokens]) * mt[2][:, None]
        img = img + b.img_attn.proj(out[:, tokens:]) * mi[2][:, None]
        txt = txt + b.txt_mlp(_modulate(b.txt_norm2(txt), mt[3], mt[4])) * mt[5][:, None]
        img = img + b.img_mlp(_modulate(b.img_norm2(img), mi[3], mi[4])) * mi[5][:, None]
    z = torch.cat((txt, img), 1)
    for i, b in enumerate(m.single_blocks):
        shift, scale, gate = b.modulation.lin(vec).chunk(3, -1)
        hidden = b.linear1(_modulate(b.pre_norm(z), shift, scale))
        q, k, v = heads(hidden[..., :3 * m.hidden_size])
        out = attend(_rms(q, b.norm.query_norm), _rms(k, b.norm.key_norm), v)
        mlp = F.gelu(hidden[..., 3 * m.hidden_size:], approximate="tanh")
        z = z + b.linear2(torch.cat((out, mlp), -1)) * gate[:, None]
        if i == tap:
            tapped = z[:, tokens:]
    shift, scale = m.final_layer.adaLN_modulation[1](vec).chunk(2, -1)
    img = m.final_layer.linear(_modulate(m.final_layer.norm_final(z[:, tokens:]), shift, scale))
    img = img.reshape(n, h // p, w // p, channels, p, p).permute(0, 3, 1, 4, 2, 5).reshape(n, channels, h, w)
    return img, tapped
