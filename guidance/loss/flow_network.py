"""The small flow network: features of both pictures are matched everywhere with everywhere, and the flow is made finer. Differentiable in both pictures."""
import torch
import torch.nn.functional as F
from torch import nn

from .flow import warp

FINE, WIDTH = 20, 48       # features at 1/2 and 1/4 of the picture
MULTIPLE = 4               # of height and width


class _Block(nn.Module):
    def __init__(self, width, dilation=1):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation)

    def forward(self, x):
        return x + self.conv(F.silu(x))


class FlowNetwork(nn.Module):
    """forward(a, b): pictures [n, 3, h, w] in [0, 1], h and w multiples of 4 -> flow [n, 2, h, w] in pixels: b(p + flow(p)) shows what a(p) does.

        f_a, f_b: unit features at 1/4;   m(p) = sum_q softmax_q( t f_a(p) . f_b(q) - k |p - q|^2 ) q - p      matching of every cell with every cell, as in GMFlow (arXiv 2111.13680),
                                                                                                          where nothing tells cells apart the nearest; t, k learned
        then a correction from f_a, f_b warped by m, and m; then one at full size from the finer features

    `parts`: also the flows at 1/4, matched and corrected, in pixels of the whole.
    """

    def __init__(self):
        super().__init__()
        self.enter = nn.Conv2d(12, FINE, 3, padding=1)
        self.fine = _Block(FINE)
        self.down = nn.Conv2d(FINE, WIDTH, 4, stride=2, padding=1)
        self.blocks = nn.Sequential(*(_Block(WIDTH, d) for d in (1, 2, 4, 1)))
        self.place = nn.Conv2d(WIDTH, WIDTH, 1)
        self.sharp = nn.Parameter(torch.tensor([2.5, -2.0]))      # log t, log k
        self.join = nn.Conv2d(2 * WIDTH + 4, WIDTH, 3, padding=1)
        self.correct = nn.Sequential(_Block(WIDTH), _Block(WIDTH, 2), _Block(WIDTH))
        self.leave = nn.Conv2d(WIDTH, 2, 3, padding=1)
        self.spread = nn.Conv2d(WIDTH, 4 * FINE, 1)
        self.finish = nn.Conv2d(3 * FINE + 2, FINE, 3, padding=1)
        self.last = _Block(FINE)
        self.out = nn.Conv2d(FINE, 8, 3, padding=1)

    def features(self, pictures):
        fine = self.fine(self.enter(F.pixel_unshuffle(pictures * 2 - 1, 2)))
        return fine, self.blocks(self.down(F.silu(fine)))

    def matched(self, first, second):
        """[n, 3, h, w]: flow in cells, and how sure it is."""
        h, w = first.shape[-2:]
        a, b = (F.normalize(self.place(F.silu(t)).flatten(2), dim=1) for t in (first, second))
        t, k = self.sharp.exp()
        y, x = torch.meshgrid(torch.arange(h, device=a.device, dtype=a.dtype), torch.arange(w, device=a.device, dtype=a.dtype), indexing="ij")
        places = torch.stack((x, y)).flatten(1)
        share = (t * torch.einsum("ncp,ncq->npq", a, b) - k * torch.cdist(places.T, places.T).square()).softmax(-1)
        found = torch.einsum("npq,kq->nkp", share, places) - places
        return torch.cat((found, share.amax(-1)[:, None]), 1).unflatten(2, (h, w))

    def forward(self, a, b, parts=False):
        (fine, first), (other, second) = self.features(a), self.features(b)
        m = self.matched(first, second)
        flow, sure = m[:, :2], m[:, 2:]
        z = self.correct(self.join(torch.cat((first, warp(second, flow), flow / 4, sure, torch.ones_like(sure)), 1)))      # ones: where the border is
        better = flow + self.leave(F.silu(z))
        half = 2 * F.interpolate(better, scale_factor=2, mode="bilinear", align_corners=False)
        z = self.last(self.finish(torch.cat((F.pixel_shuffle(self.spread(F.silu(z)), 2), fine, warp(other, half), half / 8), 1)))
        out = 2 * F.interpolate(half, scale_factor=2, mode="bilinear", align_corners=False) + 4 * F.pixel_shuffle(self.out(F.silu(z)), 2)
        return (out, [4 * flow, 4 * better]) if parts else out
