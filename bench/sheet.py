"""A small sheet of pictures: a labelled row per setup, a column per case."""
from __future__ import annotations

import io
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

LIMIT = 150_000
CELL, LABEL, PAD = 96, 170, 4


def sheet(rows, captions):
    """rows: [(label, pictures [n, 3, h, w] in [0, 1])]; captions: one per column."""
    columns = len(captions)
    font = ImageFont.load_default()
    top = 44
    out = Image.new("RGB", (LABEL + columns * (CELL + PAD), top + len(rows) * (CELL + PAD)), "white")
    draw = ImageDraw.Draw(out)
    for j, text in enumerate(captions):
        draw.multiline_text((LABEL + j * (CELL + PAD), 2), _wrap(draw, text, font, CELL, 4), fill="black", font=font, spacing=0)
    for i, (label, pictures) in enumerate(rows):
        y = top + i * (CELL + PAD)
        draw.multiline_text((4, y + 4), _wrap(draw, label, font, LABEL - 10, 7), fill="black", font=font)
        for j, p in enumerate(pictures[:columns]):
            pixels = (p.clamp(0, 1).permute(1, 2, 0) * 255).round().byte().numpy()
            out.paste(Image.fromarray(pixels).resize((CELL, CELL), Image.Resampling.BICUBIC), (LABEL + j * (CELL + PAD), y))
    return out


def _wrap(draw, text, font, width, lines):
    out, line = [], ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if line and draw.textlength(longer, font=font) > width:
            out.append(line)
            line = word
        else:
            line = longer
    return "\n".join([*out, line][:lines])


def save(picture, path, limit=LIMIT):
    """Writes a PNG of at most `limit` bytes, with fewer colours and then fewer pixels where it must."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for colours, factor in ((None, 1.0), (256, 1.0), (128, 1.0), (96, 0.75), (64, 0.5)):
        small = picture if factor == 1.0 else picture.resize((int(picture.width * factor), int(picture.height * factor)), Image.Resampling.LANCZOS)
        data = io.BytesIO()
        (small if colours is None else small.quantize(colours)).save(data, "PNG", optimize=True)
        if data.tell() <= limit:
            break
    path.write_bytes(data.getvalue())
    return data.tell()
