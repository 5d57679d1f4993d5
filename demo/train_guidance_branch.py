"""Trains the guidance branch that comes with the pack (demo/guidance_branch.py), behind the bundled one-step restorer: degradation estimated, Degradation-Guided LoRA, one step, the bundled VAE. All of these stay as they are.

    python scripts/_module.py lodestar.demo.train_guidance_branch --host PATH_OF_COMFYUI --out demo/weights [--steps 300] [--batch 6] [--rate 3e-3] [--seed 0]

It sees pieces of 64 pixels of a stock of restored pictures, turned and mirrored. Loss: 2 x squared error and 1 x the distance of features (of the bundled VGG in place of LPIPS), against the scene itself.
"""
import torch

from ..guidance.inverse.degradation import parse_estimator
from ..guidance.inverse.guidance_branch import parse
from . import degradation_lora, text
from .degraded import GOOD, encode, pairs
from .guidance_branch import NAME, fresh
from .train_degradation_lora import features, restored
from .train_generator import import_host
from .train_loop import encoder_of, frozen_unet, options, train
from .weights_file import read

STOCK, SIDE = 128, 64


class Restorer:
    """What stands before the branch, frozen."""

    def __init__(self, folder):
        from .loader_vae import make_vae
        self.network, self.alpha = frozen_unet(folder)
        self.encoder, self.code = encoder_of(folder), read("latents", folder)
        self.lora, self.estimator = read(degradation_lora.NAME, folder), parse_estimator(read(degradation_lora.ESTIMATOR, folder), "train", "file")
        self.vae = make_vae(folder).first_stage_model.float()

    def __call__(self, bad, texts):
        """Pictures [n, 3, 128, 128] in [0, 1] of one step from degraded ones."""
        with torch.no_grad():
            context, _ = self.encoder(text.tokenize(texts))
            z = restored(self.network, self.lora, encode(bad, self.code), context, self.estimator(bad), self.alpha)
            return ((self.vae.decode(z) + 1) / 2).clamp(0, 1)


class Stock:
    """Examples: pieces of STOCK pictures for the numbers `rng` that it is first asked with, whole fresh pictures for any others."""

    def __init__(self, restorer, generator):
        self.restorer, self.generator, self.rng, self.kept = restorer, generator, None, ()

    def fresh(self, rng, n):
        """[3, n, 3, 128, 128]: true pictures, degraded ones, what one step makes of these."""
        scenes, pictures, bad, _ = pairs(rng, n, self.generator)
        return torch.stack((pictures, bad, self.restorer(bad, [s.caption if rng.random() > 0.3 else GOOD for s in scenes])))

    def __call__(self, rng, n):
        if self.rng is None:
            self.rng, self.kept = rng, torch.cat([self.fresh(rng, 8) for _ in range(STOCK // 8)], 1)
        if rng is not self.rng:
            return self.fresh(rng, n)
        found = []
        for _ in range(n):
            y, x = (rng.randrange(self.kept.shape[-1] - SIDE + 1) for _ in "yx")
            piece = torch.rot90(self.kept[:, rng.randrange(STOCK), :, y:y + SIDE, x:x + SIDE], rng.randrange(4), (-2, -1))
            found.append(piece.flip(-1) if rng.random() < 0.5 else piece)
        return torch.stack(found, 1)


def loss_of(weights, made, vgg):
    pictures, bad, drawn = made
    out = drawn + parse(weights, "train", "branch").residual(bad, drawn)
    apart = sum((a - b).square().sum(1).mean() for a, b in zip(features(vgg, out), features(vgg, pictures)))
    return 2 * (2 * (out - pictures)).square().mean() + 0.2 * apart


def main():
    o = options(__doc__.splitlines()[0], 300, 6)
    import_host(o.host)
    torch.set_grad_enabled(True)
    restorer, vgg = Restorer(o.out), read("scene_vgg", o.out)
    stock = Stock(restorer, torch.Generator().manual_seed(o.seed + 1))
    train(o, NAME, lambda: fresh(o.seed), stock, lambda weights, made, generator: loss_of(weights, made, vgg))


if __name__ == "__main__":
    main()
