"""Fits two heads on the scene encoder's unit embeddings: a linear classifier of single objects' kinds, and a taste, a score from 0 to 10 that is high for warm colours.

    python -m demo.train_scene_heads --out demo/weights [--scenes 1500] [--seed 0]
"""
import argparse
import json
import os
import random

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from .scene_clip import SceneTower
from .scene_heads import KINDS, TASTE, warmth
from .scene_vgg import CLASSES
from .scenes import batch
from .train_measure import flawed
from .train_scene_clip import unfinished
from .train_scene_vgg import kinds


def seen(tower, code, rng, generator, n, count):
    """(scenes, unit embeddings [n, 96])."""
    scenes, found = [], []
    with torch.no_grad():
        while len(scenes) < n:
            some, pictures = batch(rng, 100, count)
            scenes += some
            found.append(F.normalize(tower(unfinished(flawed(pictures, code, generator), generator))[1], dim=1))
    return scenes, torch.cat(found)


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--out", default="demo/weights")
    p.add_argument("--scenes", type=int, default=1500)
    p.add_argument("--seed", type=int, default=0)
    o = p.parse_args()
    torch.set_num_threads(1)
    read = lambda name: load_file(os.path.join(o.out, f"{name}.safetensors"))
    tower, code = SceneTower(), read("latents")
    tower.load_state_dict({k: v.float() for k, v in read("scene_clip").items()})
    rng, generator = random.Random(o.seed), torch.Generator().manual_seed(o.seed)
    scenes, e = seen(tower, code, rng, generator, o.scenes, 1)
    fresh, f = seen(tower, code, rng, generator, 500, 1)
    weight, bias = torch.zeros(len(CLASSES), e.shape[1], requires_grad=True), torch.zeros(len(CLASSES), requires_grad=True)
    rule, truth = torch.optim.Adam([weight, bias], 0.3), kinds(scenes)
    for _ in range(300):
        loss = F.cross_entropy(e @ weight.T + bias, truth) + 1e-5 * weight.square().sum()
        rule.zero_grad()
        loss.backward()
        rule.step()
    right = ((f @ weight.T + bias).argmax(1) == kinds(fresh)).float().mean().item()
    scenes, e = seen(tower, code, rng, generator, o.scenes, None)
    fresh, f = seen(tower, code, rng, generator, 500, None)
    a, y = torch.cat((e, torch.ones(len(e), 1)), 1).double(), torch.tensor([warmth(s) for s in scenes]).double()
    line = torch.linalg.solve(a.T @ a + 1e-2 * torch.eye(a.shape[1]).double(), a.T @ y).float()
    guessed, wanted = f @ line[:-1] + line[-1], torch.tensor([warmth(s) for s in fresh])
    save_file({"weight": weight.detach().half().contiguous(), "bias": bias.detach().half().contiguous()}, os.path.join(o.out, f"{KINDS}.safetensors"))
    save_file({"weight": line[None, :-1].half().contiguous(), "bias": line[-1:].half().contiguous()}, os.path.join(o.out, f"{TASTE}.safetensors"))
    result = {"seed": o.seed, "scenes": o.scenes, "kinds": round(right, 4), "taste_correlation": round(torch.corrcoef(torch.stack((guessed, wanted)))[0, 1].item(), 4)}
    with open(os.path.join(o.out, "scene_heads.json"), "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1)
        file.write("\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
