"""Files of image adapters with random weights, in the published layouts and small."""
import torch


def _adder(seed):
    g, w = torch.Generator().manual_seed(seed), {}

    def linear(name, i, o, bias=True):
        w[f"{name}.weight"] = torch.randn(o, i, generator=g) / i ** 0.5
        if bias:
            w[f"{name}.bias"] = torch.randn(o, generator=g) * 0.1

    def norm(name, c):
        w[f"{name}.weight"], w[f"{name}.bias"] = 1 + torch.randn(c, generator=g) * 0.1, torch.randn(c, generator=g) * 0.1
    return g, w, linear, norm


def adapter_file(kind="embedding", widths=(8, 8), tokens=16, features=12, phrase=6, seed=0, count=3):
    """Tensors of a file: `widths` of the layers in its order, `tokens` the width of the tokens, `features` of the image encoder's output, `count` tokens a picture."""
    g, w, linear, norm = _adder(seed)
    part = {"grounded": "ms_adapter", "pairs": "cross_attn"}.get(kind, "ip_adapter")
    name = "lots" if kind == "pairs" else "ip"
    for n, width in enumerate(widths):
        for side in "kv":
            linear(f"{part}.{2 * n + 1}.to_{side}_{name}", tokens, width, bias=False)
    if kind == "embedding":
        linear("image_proj.proj", features, tokens * count)
        norm("image_proj.norm", tokens)
    elif kind == "full":
        linear("image_proj.proj.0", features, features)
        linear("image_proj.proj.2", features, tokens)
        norm("image_proj.proj.3", tokens)
    elif kind == "pairs":
        linear("image_proj.proj", features, tokens)
        norm("image_proj.norm", tokens)
        linear("text_proj.proj", phrase, tokens * 2)
        norm("text_proj.norm", tokens)
        w["pair_former.cls_tokens"] = torch.randn(1, 1, count, tokens, generator=g)
        norm("pair_former.norm", tokens)
        for i in range(2):
            block = f"pair_former.transformer_blocks.{i}"
            for j in (1, 2, 3):
                norm(f"{block}.norm{j}", tokens)
            for a in ("attn1", "attn2"):
                for side in "qkv":
                    linear(f"{block}.{a}.to_{side}", tokens, tokens, bias=False)
                linear(f"{block}.{a}.to_out.0", tokens, tokens)
            linear(f"{block}.ff.net.0.proj", tokens, 8 * tokens)
            linear(f"{block}.ff.net.2", 4 * tokens, tokens)
    else:
        c, inner = 10, 128
        w["image_proj.grounding_latents" if kind == "grounded" else "image_proj.latents"] = torch.randn(1, count, c, generator=g)
        if kind == "grounded":
            linear("image_proj.latent_proj.0", phrase + 64, 9)
            linear("image_proj.latent_proj.2", 9, count * c)
            norm("image_proj.latent_norm", c)
            norm("image_proj.attention_norm", c)
            w["dummy_image_tokens"] = torch.randn(1, 2, tokens, generator=g)
        linear("image_proj.proj_in", features, c)
        linear("image_proj.proj_out", c, tokens)
        norm("image_proj.norm_out", tokens)
        for i in range(2):
            own, ff = f"image_proj.layers.{i}.0", f"image_proj.layers.{i}.1"
            norm(f"{own}.norm1", c)
            norm(f"{own}.norm2", c)
            linear(f"{own}.to_q", c, inner, bias=False)
            linear(f"{own}.to_kv", c, 2 * inner, bias=False)
            linear(f"{own}.to_out", inner, c, bias=False)
            norm(f"{ff}.0", c)
            linear(f"{ff}.1", c, 4 * c, bias=False)
            linear(f"{ff}.3", 4 * c, c, bias=False)
    return w


def widths_of(network):
    """Widths of the attentions to text of a U-Net of the host, in the order of the files."""
    found = lambda part: [m.attn2.to_q.weight.shape[0] for m in part.modules() if getattr(m, "attn2", None) is not None]
    return [*found(network.input_blocks), *found(network.output_blocks), *found(network.middle_block)]
