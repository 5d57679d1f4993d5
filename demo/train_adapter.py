"""Trains the image adapter that comes with the pack (demo/adapter.py): things look like those in given pictures. The bundled U-Net's own weights stay as they are.

    python -m demo.train_adapter --host PATH_OF_COMFYUI --out demo/weights [--steps 700] [--batch 16] [--seed 0]

It shows that the mechanism works and serves tests and the example; for SDXL take the authors' files, brought to safetensors.
"""
import os

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from guidance.attention import adapter_tokens as t

from . import latents, text
from .adapter import NAME, fresh, widths
from .measure import load as load_measure
from .scenes import SIZE, SIZES, Scene, Thing, random_scene, render
from .train_generator import import_host
from .train_loop import encoder_of, frozen_unet, options, train
from .vision import features

PLACES = 2          # things in a scene


def reference(rng, thing):
    """A picture of a thing alone, elsewhere and of any size, on any ground."""
    size = rng.choice(tuple(SIZES))
    r = rng.uniform(*SIZES[size])
    at = [rng.uniform(r + 2, SIZE - r - 2) for _ in range(2)]
    return render(Scene(rng.choice(("white", "gray", "black")), (Thing(thing.colour, thing.shape, size, *at, r),)))


def box_of(rng, thing):
    """A box (left, top, right, bottom in fractions) around a thing, a little larger."""
    more = thing.radius * rng.uniform(1.0, 1.25)
    return [min(1.0, max(0.0, v / SIZE)) for v in (thing.x - more, thing.y - more, thing.x + more, thing.y + more)]


def words(rng, scene):
    """What the prompt says: everything, the shapes alone, that there are things at all ("a"), or nothing."""
    draw = rng.random()
    if draw < 0.2:
        return scene.caption
    if draw < 0.5:
        return " and ".join(f"a {t.shape}" for t in scene.things)
    return f"a scene on a {scene.background} background" if draw < 0.7 else ""


def batch(rng, n, code, encoder, vision):
    """(latents, context, features [n, PLACES, m, c], boxes [n, PLACES, 4], phrases, learned [n, PLACES])."""
    scenes = [random_scene(rng, PLACES) for _ in range(n)]
    with torch.no_grad():
        context, _ = encoder(text.tokenize([words(rng, s) for s in scenes]))
        _, phrases = encoder(text.tokenize([f"a {t.shape}" for s in scenes for t in s.things]))
        seen = features(vision, torch.stack([reference(rng, t) for s in scenes for t in s.things]))
    boxes = torch.tensor([box_of(rng, t) for s in scenes for t in s.things])
    learned = torch.tensor([rng.random() < 0.3 for _ in range(n * PLACES)])
    return latents.encode(torch.stack([render(s) for s in scenes]), code), context, seen, boxes, phrases, learned


def tokens_of(w, seen, boxes, phrases, learned):
    """[n, PLACES, tokens, width], differentiable."""
    waves = torch.cat((phrases, t.box_waves(boxes)), -1)
    own = F.linear(F.gelu(F.linear(waves, w["latent_proj.0.weight"], w["latent_proj.0.bias"])), w["latent_proj.2.weight"], w["latent_proj.2.bias"])
    shape = w["grounding_latents"].shape[1:]
    own = F.layer_norm(own.view(-1, *shape), shape[-1:], w["latent_norm.weight"], w["latent_norm.bias"])
    queries = torch.where(learned[:, None, None], w["grounding_latents"], own)
    return t.resampled(w, seen, queries).unflatten(0, (-1, PLACES))


def attentions(network):
    """The network's attentions to text in the order of the files."""
    found = lambda part: [m.attn2 for m in part.modules() if hasattr(m, "attn2")]
    return [*found(network.input_blocks), *found(network.output_blocks), *found(network.middle_block)]


class Attached:
    """The adapter inside the network, for training: `seen` holds (keys, values, cells) that the layers are to see."""

    def __init__(self, network):
        self.state = None
        for i, attention in enumerate(attentions(network)):
            attention.forward = self._forward(attention, i)

    def _forward(self, m, i):
        def forward(x, context=None, value=None, mask=None, transformer_options={}):
            heads = lambda t: t.unflatten(-1, (m.heads, -1)).transpose(1, 2)
            q = heads(m.to_q(x))
            out = F.scaled_dot_product_attention(q, heads(m.to_k(context)), heads(m.to_v(context)))
            w, tokens, boxes = self.state
            side = round(q.shape[2] ** 0.5)
            edges = torch.arange(side) / side
            rows = (edges[None, None] < boxes[..., 3:]) & (edges[None, None] + 1 / side > boxes[..., 1:2])
            columns = (edges[None, None] < boxes[..., 2:3]) & (edges[None, None] + 1 / side > boxes[..., :1])
            places = (rows[..., :, None] & columns[..., None, :]).flatten(2)                       # [n, PLACES, cells]
            shown = places.repeat_interleave(tokens.shape[2], 1).transpose(1, 2)
            shown = shown | ~places.any(1)[..., None]
            k, v = (heads(F.linear(tokens.flatten(1, 2), w[f"ms_adapter.{2 * i + 1}.to_{part}_ip.weight"])) for part in "kv")
            bias = torch.zeros(shown.shape).masked_fill(~shown, -torch.inf)[:, None]
            out = out + F.scaled_dot_product_attention(q, k, v, attn_mask=bias) * places.any(1)[:, None, :, None]
            return m.to_out(out.transpose(1, 2).flatten(2))
        return forward


def loss_of(network, attached, weights, made, alpha, generator):
    """The noise's squared error, weighted as in the network's own training."""
    x, context, seen, boxes, phrases, learned = made
    image = {k[len("image_proj."):]: v for k, v in weights.items() if k.startswith("image_proj.")}
    level = torch.randint(0, 1000, (len(x),), generator=generator)
    a = alpha[level][:, None, None, None]
    noise = torch.randn(x.shape, generator=generator)
    attached.state = weights, tokens_of(image, seen, boxes, phrases, learned), boxes.unflatten(0, (-1, PLACES))
    snr = (a / (1 - a)).flatten()
    error = (network(a.sqrt() * x + (1 - a).sqrt() * noise, level.float(), context=context) - noise).square().mean((1, 2, 3))
    return (error * (snr.clamp(max=5) + 1) / snr).mean()


def main():
    o = options(__doc__.splitlines()[0], 700, 16)
    import_host(o.host)
    torch.set_grad_enabled(True)
    network, alpha = frozen_unet(o.out)
    encoder, vision, code = encoder_of(o.out), load_measure(), load_file(os.path.join(o.out, "latents.safetensors"))
    assert [m.to_q.weight.shape[0] for m in attentions(network)] == widths()
    attached = Attached(network)
    train(o, NAME, lambda: fresh(o.seed), lambda rng, n: batch(rng, n, code, encoder, vision),
          lambda weights, made, generator: loss_of(network, attached, weights, made, alpha, generator))


if __name__ == "__main__":
    main()
