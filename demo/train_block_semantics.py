"""Trains the block-wise semantics that come with the pack (demo/block_semantics.py): the bundled U-Net, whose own weights stay as they are, draws the picture of which it sees a blurred and noisy one.

    python scripts/_module.py lodestar.demo.train_block_semantics --host PATH_OF_COMFYUI --out demo/weights [--steps 160] [--batch 4] [--rate 5e-3] [--seed 0]

Loss: the noise's squared error, weighted as in the U-Net's own training, and the absolute error of the maps that the extractor finds. Half of the pictures have their true maps as guidance, half the
extractor's. One caption in two is empty. Then the extractor is trained anew, alone (EXTRACT steps of 4 pictures), with the cross-entropy of each place: by the absolute error so few steps leave all
maps black, so that in effect half of the pictures had black maps before.
"""
import json
import os
import random

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from ..guidance.attention.module_edits import ModuleEdit, diffusers_names
from ..guidance.frozen import frozen
from ..guidance.inverse.block_semantics import MAPS, Guided, Looked, parse
from ..guidance.inverse.pixel_aware import decoder_layers
from . import text
from .block_semantics import NAME, fresh, maps
from .degraded import encode, pairs
from .module_training import placed
from .scenes import SIZE
from .train_generator import import_host
from .train_loop import encoder_of, frozen_unet, options, train

EXTRACT = 220


@frozen
class Seen(ModuleEdit):
    """What SeesPicture adds in attention to the text, as an edit of the modules that can be differentiated. blocks: ((diffusers' name of an attention, layer's name), ...); tokens: of each level."""

    weights: object = None
    tokens: tuple = ()
    blocks: tuple = ()

    def names(self):
        return tuple(name for name, _ in self.blocks)

    def result(self, site, name, module, out, given):
        heads = lambda t: t.unflatten(-1, (module.heads, -1)).transpose(1, 2)
        q, shares = heads(module.to_q(given)), self.weights.shares(dict(self.blocks)[name])
        seen = sum(share * F.scaled_dot_product_attention(q, heads(module.to_k(t)), heads(module.to_v(t))) for share, t in zip(shares, self.tokens))
        return out + F.linear(seen.transpose(1, 2).flatten(2), module.to_out[0].weight)      # the bias is there once


def blocks(network):
    """((diffusers' name of an attention to the text, layer's name), ...) of a U-Net."""
    stages, found = {"input_blocks": "input", "middle_block": "middle", "output_blocks": "output"}, []
    for name, own in diffusers_names(network).items():
        if ".attentions." in name:
            part, number, *_ = own.split(".")
            layer, depth = f"{stages[part]}.{0 if part == 'middle_block' else number}", len(network.get_submodule(own).transformer_blocks)
            found += [(f"{name}.transformer_blocks.{d}.attn2", layer if depth == 1 else f"{layer}.{d}") for d in range(depth)]
    return tuple(found)


def batch(rng, n, code, encoder, generator):
    """(true latents, degraded pictures, context, true maps)."""
    scenes, pictures, bad, _ = pairs(rng, n, generator)
    with torch.no_grad():
        context, _ = encoder(text.tokenize([s.caption if rng.random() > 0.5 else "" for s in scenes]))
    true = [maps(s) for s in scenes]
    return encode(pictures, code), bad, context, {name: F.interpolate(torch.stack([m[name] for m in true]), pictures.shape[-2:], mode="bilinear") for name in MAPS}


def loss_of(network, weights, made, alpha, generator, places):
    x, bad, context, true = made
    level = torch.randint(0, 1000, (len(x),), generator=generator)
    a, noise = alpha[level][:, None, None, None], torch.randn(x.shape, generator=generator)
    w = parse(weights, "train", "weights")
    found, given = w.maps(bad), torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5
    shown = {name: torch.where(given, true[name], found[name].detach()) for name in MAPS}
    with placed(network, Seen("", w, tuple(w.tokens(bad)), blocks(network)), Guided("", Looked(w, (), tuple(w.guides(shown)), places))):
        out = network(a.sqrt() * x + (1 - a).sqrt() * noise, level.float(), context=context)
    snr = (a / (1 - a)).flatten()
    return ((out - noise).square().mean((1, 2, 3)) * (snr.clamp(max=5) + 1) / snr).mean() + sum((found[name] - true[name]).abs().mean() for name in MAPS)


def extractor(o):
    """Trains the file's extractor anew, the rest stays as it is; writes the file, and adds to its figures how far found maps are from the true ones, as a share of how far black ones are."""
    path, figures = os.path.join(o.out, NAME + ".safetensors"), os.path.join(o.out, NAME + ".json")
    begin = fresh(o.seed)
    weights = {k: begin[k] if k.startswith("extract") else v.float() for k, v in load_file(path).items()}
    trained = {k: v.requires_grad_() for k, v in weights.items() if k.startswith("extract")}
    optimiser, rng, noise = torch.optim.AdamW(trained.values(), 0.0, weight_decay=0.0), random.Random(o.seed + 2), torch.Generator().manual_seed(o.seed + 2)

    def errors(n, rng, error):
        scenes, _, bad, _ = pairs(rng, n, noise)
        true, found = [maps(s, 2 * SIZE) for s in scenes], parse(weights, "train", "weights").maps(bad)
        return {name: error(found[name], torch.stack([m[name] for m in true])) for name in MAPS}
    for step in range(EXTRACT):
        optimiser.param_groups[0]["lr"] = 6e-3 * min(1.0, (step + 1) / 20) * min(1.0, (EXTRACT - step) / (0.5 * EXTRACT))
        optimiser.zero_grad()
        sum(errors(4, rng, lambda a, b: F.binary_cross_entropy(a.clamp(1e-4, 1 - 1e-4), b)).values()).backward()
        optimiser.step()
    with torch.no_grad():
        share = errors(48, random.Random(10_000), lambda a, b: float((a - b).square().mean() / b.square().mean()))
    save_file({k: v.detach().half().contiguous() for k, v in weights.items()}, path)
    with open(figures, encoding="utf-8") as f:
        found = json.load(f)
    with open(figures, "w", encoding="utf-8") as f:
        json.dump({**found, "maps": {name: round(v, 3) for name, v in share.items()}}, f, indent=1)
        f.write("\n")


def main():
    o = options(__doc__.splitlines()[0], 160, 4)
    import_host(o.host)
    torch.set_grad_enabled(True)
    network, alpha = frozen_unet(o.out)
    encoder, code = encoder_of(o.out), load_file(os.path.join(o.out, "latents.safetensors"))
    noise = torch.Generator().manual_seed(o.seed + 1)
    table = diffusers_names(network)
    places = tuple((skip, number) for _, skip, _, number in decoder_layers(lambda name: table.get(name)))
    train(o, NAME, lambda: fresh(o.seed), lambda rng, n: batch(rng, n, code, encoder, noise), lambda weights, made, generator: loss_of(network, weights, made, alpha, generator, places))
    extractor(o)


if __name__ == "__main__":
    main()
