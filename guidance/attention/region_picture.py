"""A picture of regions, to see where they are."""
from __future__ import annotations

import torch
from PIL import Image, ImageDraw

COLOURS = ((230, 75, 60), (65, 140, 220), (75, 180, 90), (240, 190, 50), (160, 100, 210), (60, 190, 190), (235, 130, 60), (150, 150, 150))


def draw(regions, height, width, picture=None, frames=1):
    """[frames, height, width, 3] in [0, 1]: the regions over a picture [height, width, 3] (dark grey without one), each in a colour with its number and words."""
    base = torch.full((height, width, 3), 0.12) if picture is None else picture[..., :3].detach().float().cpu().clamp(0, 1)
    sheets = []
    moving = any(len(r.boxes) > 1 or (r.mask is not None and len(r.mask) > 1) for r in regions)
    count = frames if moving else 1
    covers = [r.map(height, width, count if len(r.boxes) > 1 or (r.mask is not None and len(r.mask) > 1) else 1) for r in regions]
    for frame in range(count):
        sheet = base
        for i, cover in enumerate(covers):
            share = 0.45 * cover[min(frame, len(cover) - 1)][..., None] * (1.8 if regions.items[i].scribble else 1.0)
            sheet = sheet * (1 - share) + torch.tensor(COLOURS[i % len(COLOURS)]) / 255 * share
        sheets.append(_labelled(sheet, regions, frame / max(1, count - 1)))
    return torch.stack(sheets)


def _labelled(sheet, regions, time):
    image = Image.fromarray((sheet * 255).round().to(torch.uint8).numpy())
    pen = ImageDraw.Draw(image)
    for i, region in enumerate(regions):
        x, y, w, h = region.bounds(time)
        left, top = x * image.width, y * image.height
        right, bottom = (x + w) * image.width - 1, (y + h) * image.height - 1
        colour = COLOURS[i % len(COLOURS)]
        if region.boxes and right > left and bottom > top:
            pen.rectangle((left, top, right, bottom), outline=colour, width=max(1, image.width // 256))
        text = f"{i + 1} {region.words or region.prompt}".strip()
        while len(text) > 2 and pen.textlength(text) > image.width - left - 4:
            text = text[:-2] + "…" if not text.endswith("…") else text[:-2] + "…"
        pen.text((left + 3, top + 2), _printable(text), fill=(255, 255, 255), stroke_width=1, stroke_fill=(0, 0, 0))
    array = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
    return array.view(image.height, image.width, 3).float() / 255


def _printable(text):
    """The text without signs that the built-in font has not."""
    return text.replace("…", "...").encode("latin-1", "replace").decode("latin-1")
