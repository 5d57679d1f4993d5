"""The image adapter that comes with the pack: MS-Diffusion's layout in small, for the bundled U-Net and the demo image encoder (vision.py)."""
import torch

from . import networks, text
from .measure import WIDTH as FEATURES

NAME = "subject_adapter"
WIDTH, TOKENS, INNER = 64, 4, 128        # of the resampler's queries; tokens of a subject; width of its attention
BACKGROUND = 2


def widths():
    """Widths of the U-Net's cross-attentions in the order of the files: encoder, decoder, middle."""
    c, m = networks.UNET["model_channels"], networks.UNET["channel_mult"]
    levels = [c * k for k, depth in zip(m, networks.UNET_DEPTH_IN) for _ in range(depth)]
    per = len(networks.UNET_DEPTH_OUT) // len(m)
    up = [c * k for k in reversed(m) for _ in range(per)]
    return [*levels, *up, c * m[-1]]


def fresh(seed=0, kept=FEATURES):
    """Weights before training: values are zeros, so that nothing is changed."""
    g = torch.Generator().manual_seed(seed)
    w = {}

    def linear(name, i, o, bias=True):
        w[f"image_proj.{name}.weight"] = torch.randn(o, i, generator=g) / i ** 0.5
        if bias:
            w[f"image_proj.{name}.bias"] = torch.zeros(o)

    def norm(name, c):
        w[f"image_proj.{name}.weight"], w[f"image_proj.{name}.bias"] = torch.ones(c), torch.zeros(c)

    ground = text.WIDTH + 64
    w["image_proj.grounding_latents"] = torch.randn(1, TOKENS, WIDTH, generator=g) / WIDTH ** 0.5
    linear("latent_proj.0", ground, WIDTH)
    linear("latent_proj.2", WIDTH, TOKENS * WIDTH)
    norm("latent_norm", WIDTH)
    linear("proj_in", kept, WIDTH)
    for i in range(2):
        norm(f"layers.{i}.0.norm1", WIDTH)
        norm(f"layers.{i}.0.norm2", WIDTH)
        linear(f"layers.{i}.0.to_q", WIDTH, INNER, bias=False)
        linear(f"layers.{i}.0.to_kv", WIDTH, 2 * INNER, bias=False)
        linear(f"layers.{i}.0.to_out", INNER, WIDTH, bias=False)
        norm(f"layers.{i}.1.0", WIDTH)
        linear(f"layers.{i}.1.1", WIDTH, 4 * WIDTH, bias=False)
        linear(f"layers.{i}.1.3", 4 * WIDTH, WIDTH, bias=False)
    norm("attention_norm", WIDTH)
    linear("proj_out", WIDTH, text.WIDTH)
    norm("norm_out", text.WIDTH)
    for n, width in enumerate(widths()):
        w[f"ms_adapter.{2 * n + 1}.to_k_ip.weight"] = torch.randn(width, text.WIDTH, generator=g) / text.WIDTH ** 0.5
        w[f"ms_adapter.{2 * n + 1}.to_v_ip.weight"] = torch.zeros(width, text.WIDTH)
    w["dummy_image_tokens"] = torch.randn(1, BACKGROUND, text.WIDTH, generator=g)
    return w
