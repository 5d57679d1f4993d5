"""A small text-image encoder of the demo scenes: pictures and captions in one space, as CLIP has them; and a small classifier in torchvision's VGG layout.

The image tower is trained (train_scene_clip.py) against the bundled text encoder, which stays as it is: a projection of its pooled state is learned beside the tower. It shares nothing
with the measuring network, which can therefore judge what it leads to.
"""
import torch
import torch.nn.functional as F
from torch import nn

from .measure import _Block, fit_size
from .text import WIDTH as TEXT
from .weights_file import fill, read

NAME = "scene_clip"
WIDTHS = (24, 48, 64)      # channels of the three stages, at 32 x 32, 16 x 16 and 8 x 8
EMBED = 96


class SceneTower(nn.Module):
    """pictures [n, 3, 64, 64] in [0, 1] -> (stages: three maps, embedding [n, EMBED]); text(pooled [n, 128]) -> [n, EMBED]. Neither is of unit length."""

    def __init__(self):
        super().__init__()
        a, b, c = WIDTHS
        self.enter = nn.Conv2d(12 + 2, a, 3, padding=1)
        self.fine = _Block(a, 1)
        self.down = nn.Conv2d(a, b, 4, stride=2, padding=1)
        self.middle = nn.ModuleList(_Block(b, d) for d in (1, 2))
        self.last = nn.Conv2d(b, c, 4, stride=2, padding=1)
        self.coarse = nn.ModuleList(_Block(c, d) for d in (1, 2))
        self.norm = nn.GroupNorm(8, c)
        self.out = nn.Sequential(nn.Linear(2 * c, 128), nn.SiLU(), nn.Linear(128, EMBED))
        self.text = nn.Linear(TEXT, EMBED)
        self.scale = nn.Parameter(torch.tensor(2.3))      # log of the inverse temperature

    def stages(self, pictures):
        x = F.pixel_unshuffle(pictures * 2 - 1, 2)
        at = torch.linspace(-1, 1, x.shape[-1], device=x.device, dtype=x.dtype)
        place = torch.stack(torch.meshgrid(at, at, indexing="ij")).expand(x.shape[0], -1, -1, -1)
        fine = self.fine(self.enter(torch.cat((x, place), 1)))
        middle = self.down(F.silu(fine))
        for block in self.middle:
            middle = block(middle)
        coarse = self.last(F.silu(middle))
        for block in self.coarse:
            coarse = block(coarse)
        return fine, middle, F.silu(self.norm(coarse))

    def forward(self, pictures):
        found = self.stages(pictures)
        return found, self.out(torch.cat((found[-1].mean((2, 3)), found[-1].amax((2, 3))), 1))


def load_tower():
    """The trained tower in float32, without gradients."""
    tower = SceneTower()
    fill(tower, read(NAME), NAME)
    return tower.eval().requires_grad_(False)


__all__ = ["EMBED", "NAME", "SceneTower", "fit_size", "load_tower"]
