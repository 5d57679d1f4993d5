"""Trains the layers over the frames of the bundled video model (demo/networks.py: video), on the scenes in motion (demo/motions.py). The bundled U-Net's own weights stay as they are.

    python -m demo.train_video --host PATH_OF_COMFYUI --out demo/weights [--steps 1200] [--batch 2] [--rate 2e-3] [--seed 0]

Every frame has a noise of its own, all of one level. At the start the added layers change nothing: their last projections are zero.
"""
import os

import torch
import torch.nn.functional as F
from torch import nn

from safetensors.torch import load_file

from . import latents, networks, text
from .motions import FRAMES, moving
from .scenes import random_scene, render
from .train_generator import import_host
from .train_loop import encoder_of, options, train

NAME = "video"


def added(key):
    return any(part in key for part in networks.OVER_FRAMES)


def network(folder, seed):
    """(the network, all of it frozen; {key: the added weights at their start}). The host must be on the path."""
    import comfy.ldm.modules.attention as attention
    import comfy.ops

    def attend(q, k, v, heads, *args, **kwargs):
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    attention.optimized_attention = attention.optimized_attention_masked = attend
    made = networks.video(comfy.ops.disable_weight_init, dtype=torch.float32)
    torch.manual_seed(seed)
    for module in made.modules():
        for base in (nn.Linear, nn.Conv2d, nn.Conv3d, nn.GroupNorm, nn.LayerNorm):
            if isinstance(module, base):
                base.reset_parameters(module)
    last = (".attn1.to_out.0.", ".ff_in.net.2.", ".ff.net.2.", ".time_pos_embed.2.", ".time_stack.out_layers.3.")
    fresh = {k: torch.zeros_like(v) if any(part in k for part in last) else v.detach().clone() for k, v in made.state_dict().items() if added(k)}
    own = networks.of_frames({k: v.float() for k, v in load_file(os.path.join(folder, "unet.safetensors")).items()})
    made.load_state_dict({**own, **fresh})
    return made.requires_grad_(False), fresh


def batch(rng, n, code, encoder):
    """(latents [n FRAMES, ...], context [n FRAMES, ...]): the frames of each video one after the other; a prompt in ten is empty."""
    scenes = [random_scene(rng) for _ in range(n)]
    frames = [f for s in scenes for f in moving(rng, s)]
    words = [s.caption if rng.random() > 0.1 else "" for s in scenes]
    with torch.no_grad():
        context, _ = encoder(text.tokenize(words))
    return latents.encode(torch.stack([render(f) for f in frames]), code), context.repeat_interleave(FRAMES, 0)


def loss_of(made, weights, drawn, alpha, generator):
    """The noise's squared error, weighted as in the U-Net's own training; strong noise, where frames agree or do not, is drawn more often."""
    x, context = drawn
    n = len(x) // FRAMES
    t = (1000 * torch.rand(n, generator=generator).pow(0.7)).long().clamp(max=999).repeat_interleave(FRAMES)
    a = alpha[t][:, None, None, None]
    noise = torch.randn(x.shape, generator=generator)
    out = torch.func.functional_call(made, weights, (a.sqrt() * x + (1 - a).sqrt() * noise, t.float()), {"context": context, "num_video_frames": FRAMES})
    snr = a / (1 - a)
    return ((out - noise).square() * ((snr.clamp(max=5) + 1) / snr)).mean()


def main():
    o = options(__doc__.split("\n")[0], steps=1200, batch=2)
    import_host(o.host)
    made, fresh = network(o.out, o.seed)
    beta = torch.linspace(0.00085 ** 0.5, 0.012 ** 0.5, 1000, dtype=torch.float64) ** 2
    alpha = torch.cumprod(1 - beta, 0).float()
    code, encoder = load_file(os.path.join(o.out, "latents.safetensors")), encoder_of(o.out)
    train(o, NAME, lambda: {k: v.clone() for k, v in fresh.items()}, lambda rng, n: batch(rng, n, code, encoder), lambda weights, drawn, generator: loss_of(made, weights, drawn, alpha, generator))


if __name__ == "__main__":
    main()
