"""The bundled pixel-aware attention (PASD) for the bundled U-Net, with an encoder of the degraded latent in place of a ControlNet."""
import torch

from . import latents, networks

NAME = "pixel_attention"
WIDTHS = (48, 64)      # of the encoder's maps, the finest first


def layers():
    """[((up block, layer), width, channels of the skip connection)] of the bundled U-Net's decoder."""
    c, m, per = networks.UNET["model_channels"], networks.UNET["channel_mult"], networks.UNET["num_res_blocks"]
    skips = [c]
    for i, k in enumerate(m):
        skips += [c * k] * per + ([c * k] if i < len(m) - 1 else [])
    return [((i, j), c * k, skips.pop()) for i, k in enumerate(reversed(m)) for j in range(per + 1)]


def fresh(seed=0):
    """Weights before training {key: tensor}: nothing of the picture is added."""
    g, w = torch.Generator().manual_seed(seed), {}

    def normal(out, given, *kernel):
        return torch.randn(out, given, *kernel, generator=g) / (given * torch.Size(kernel).numel()) ** 0.5
    for (up, layer), width, seen in layers():
        at = f"up_blocks.{up}.pixel_attentions.{layer}"
        for name in ("norm", *(f"transformer_blocks.0.norm{i}" for i in (1, 2, 3))):
            w[f"{at}.{name}.weight"], w[f"{at}.{name}.bias"] = torch.ones(width), torch.zeros(width)
        for name, zero in (("proj_in", False), ("proj_out", True)):
            w[f"{at}.{name}.weight"], w[f"{at}.{name}.bias"] = torch.zeros(width, width) if zero else normal(width, width), torch.zeros(width)
        for attention, given in (("attn1", width), ("attn2", seen)):
            for part in "qkv":
                w[f"{at}.transformer_blocks.0.{attention}.to_{part}.weight"] = normal(width, width if part == "q" else given)
            w[f"{at}.transformer_blocks.0.{attention}.to_out.0.weight"], w[f"{at}.transformer_blocks.0.{attention}.to_out.0.bias"] = normal(width, width), torch.zeros(width)
        for name, out, given in (("0.proj", 2 * width, width), ("2", width, width)):
            w[f"{at}.transformer_blocks.0.ff.net.{name}.weight"], w[f"{at}.transformer_blocks.0.ff.net.{name}.bias"] = normal(out, given), torch.zeros(out)
    before = latents.CHANNELS
    for i, width in enumerate(WIDTHS):
        name = "enter" if i == 0 else f"down.{i - 1}"
        w[f"pixel_encoder.{name}.weight"], w[f"pixel_encoder.{name}.bias"] = 1.4 * normal(width, before, 3, 3), torch.zeros(width)
        before = width
    each = len(layers()) // len(WIDTHS)
    for i, (_, _, seen) in enumerate(layers()):
        given = WIDTHS[len(WIDTHS) - 1 - i // each]
        w[f"pixel_encoder.leave.{i}.weight"], w[f"pixel_encoder.leave.{i}.bias"] = torch.zeros(seen, given, 3, 3), torch.zeros(seen)
    return w
