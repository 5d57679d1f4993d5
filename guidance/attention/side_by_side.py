"""A source picture and the place for the target on one canvas, so that self-attention sees both."""
from __future__ import annotations

import torch
import torch.nn.functional as F

from ..frozen import frozen
from ..method import BadInput, Method, param

SIDES = ("left", "right", "above", "below")


def joined(source, target, side):
    """Both pictures [n, height, width, channels] of one size beside each other, the source on `side`."""
    pair = (source, target) if side in ("left", "above") else (target, source)
    return torch.cat(pair, 2 if side in ("left", "right") else 1)


def target_part(side, height, width, gap=0):
    """(rows, columns) as slices of the target on a canvas of height x width cells, `gap` cells of it next to the source left out."""
    h, w = height // 2, width // 2
    return {"left": (slice(0, height), slice(w + gap, width)), "right": (slice(0, height), slice(0, w - gap)),
            "above": (slice(h + gap, height), slice(0, width)), "below": (slice(0, h - gap), slice(0, width))}[side]


@frozen
class SideBySideCanvas(Method):
    """Puts a source picture and the place for the target on one canvas: the sampler keeps the source and paints the target, and self-attention carries the source's look over.

        canvas = [source | target],   noise mask = [0 | mask],   control = [control of the source | control of the target]

    This is the inpainting stage of PCDMs (source person and target pose side by side), without their trained network: an inpainting model, or a DiT that was trained on panels, takes from
    the source half what the target half should look like; a pose, depth or edge ControlNet is shown the control canvas. Before it, a prompt or Reference Attention settles what is wanted
    (their prior); after it, Side-by-Side Crop and a pass at low denoise refine the target alone (their refiner).

    Without a target picture the whole half is painted; with one only its mask (all of it without a mask). Source and target are brought to one size, the target's where there is one.
    Limits: a model that never saw two pictures on one canvas makes one picture of them. Give the prompt of both, or of the pair ("two pictures of the same ..."). Paper: Shen et al., arXiv 2310.06313.
    Cost: a canvas of twice the size.
    """

    node_id = "LodestarSideBySideCanvas"
    title = "Side-by-Side Canvas"
    family = "attention"
    paper = "Advancing Pose-Guided Image Synthesis (PCDMs)"
    aliases = ("in-context canvas", "diptych", "reference inpainting", "pose transfer")
    evaluations = "0 (twice the tokens)"

    side: str = param("left", "Where the source is on the canvas.", choices=SIDES)

    def sheet(self, source, target=None, mask=None, controls=(None, None)):
        """(canvas [n, H, W, 3], mask [n, H, W], control canvas or None) of IMAGEs [n, height, width, 3] and a MASK [n, height, width]."""
        n = max(t.shape[0] for t in (source, target, *controls) if t is not None)
        size = (source if target is None else target).shape[1:3]
        source, target = self._fit(source, n, size, "source"), None if target is None else self._fit(target, n, size, "target")
        if mask is not None and target is None:
            raise BadInput(self.title, "mask", "without a target", "A mask says which part of the target picture is painted; connect that picture too.")
        painted = source.new_ones(n, *size) if mask is None else self._fit(mask[..., None], n, size, "mask")[..., 0]
        if not (painted > 0).any():
            raise BadInput(self.title, "mask", "empty", "Nothing is marked, so nothing would be painted; mark the part of the target to paint in white.")
        empty = torch.full_like(source, 0.5)
        half = empty if target is None else target * (1 - painted[..., None]) + empty * painted[..., None]
        control = None
        if any(c is not None for c in controls):
            known = [torch.zeros_like(source) if c is None else self._fit(c, n, size, name) for c, name in zip(controls, ("source_control", "target_control"))]
            control = joined(*known, self.side)
        return joined(source, half, self.side), joined(torch.zeros_like(painted)[..., None], painted[..., None], self.side)[..., 0], control

    def _fit(self, t, n, size, name):
        """A picture at a size, for n pictures: too many values are cut by the larger scale's middle, so that shapes keep their proportions."""
        if t.shape[0] not in (1, n):
            raise BadInput(self.title, name, f"{t.shape[0]} pictures", f"Give one, or {n} like the others.")
        t = t.movedim(-1, 1).float()
        scale = max(size[0] / t.shape[2], size[1] / t.shape[3])
        if (t.shape[2], t.shape[3]) != tuple(size):
            h, w = max(size[0], round(t.shape[2] * scale)), max(size[1], round(t.shape[3] * scale))
            t = F.interpolate(t, (h, w), mode="bilinear", antialias=True, align_corners=False)
            y, x = (h - size[0]) // 2, (w - size[1]) // 2
            t = t[:, :, y:y + size[0], x:x + size[1]]
        return t.movedim(1, -1).expand(n, *size, -1)
