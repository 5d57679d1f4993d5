"""The record of a run as a picture: small line charts and the previews below them. Drawn with Pillow, no plotting library."""
from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

_INK, _GRID, _PAPER = (40, 44, 52), (222, 226, 232), (255, 255, 255)
_COLOURS = ((31, 119, 180), (214, 90, 20), (44, 140, 60), (148, 70, 180), (200, 40, 60), (90, 90, 90))
CHARTS = (("rms of predictions", ("guided rms", "cond rms")), ("what guidance adds (rms)", ("added rms", "cond - uncond rms", "branch 1 rms", "branch 2 rms")),
          ("cosine of cond and uncond noise", ("cosine",)), ("evaluated predictions", ("evaluations",)))


def _nice(value):
    return f"{value:.3g}"


def chart(rows, title, names, size=(420, 240)):
    """One line chart of the named columns over the sampler calls."""
    font = ImageFont.load_default()
    image = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(image)
    left, top, right, bottom = 52, 26, size[0] - 12, size[1] - 34
    draw.text((left, 6), title, fill=_INK, font=font)
    names = [n for n in names if any(n in r for r in rows)]
    values = [r[n] for n in names for r in rows if n in r and r[n] == r[n]]
    if not values:
        draw.text((left, size[1] // 2), "not evaluated in this run", fill=_INK, font=font)
        return image
    low, high = min(values), max(values)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    for i in range(5):
        y = bottom - (bottom - top) * i / 4
        draw.line((left, y, right, y), fill=_GRID)
        draw.text((4, y - 6), _nice(low + (high - low) * i / 4), fill=_INK, font=font)
    last = max(1, len(rows) - 1)
    for i in range(0, len(rows), max(1, len(rows) // 6)):
        x = left + (right - left) * i / last
        draw.text((x - 6, bottom + 4), str(rows[i]["step"]), fill=_INK, font=font)
    for k, name in enumerate(names):
        colour = _COLOURS[k % len(_COLOURS)]
        points = [(left + (right - left) * i / last, bottom - (bottom - top) * (r[name] - low) / (high - low)) for i, r in enumerate(rows) if name in r and r[name] == r[name]]
        if len(points) > 1:
            draw.line(points, fill=colour, width=2)
        for x, y in points:
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=colour)
        draw.text((left + 110 * k, size[1] - 15), name, fill=colour, font=font)
    return image


def plot(rows, previews=(), width=860):
    """The whole sheet as a PIL image. previews: [(sigma, PIL image)]."""
    charts = [chart(rows, title, names, (width // 2, 240)) for title, names in CHARTS]
    thumbs = [(s, p.resize((128, max(1, 128 * p.height // p.width)), Image.Resampling.NEAREST)) for s, p in previews]
    per_row = max(1, width // 138)
    lines = (len(thumbs) + per_row - 1) // per_row
    tall = max((p.height for _, p in thumbs), default=0) + 18
    sheet = Image.new("RGB", (width, 480 + lines * tall + (8 if lines else 0)), _PAPER)
    for i, c in enumerate(charts):
        sheet.paste(c, ((i % 2) * (width // 2), (i // 2) * 240))
    draw = ImageDraw.Draw(sheet)
    for i, (sigma, p) in enumerate(thumbs):
        x, y = 8 + (i % per_row) * 138, 488 + (i // per_row) * tall
        sheet.paste(p, (x, y + 14))
        draw.text((x, y), f"sigma {_nice(sigma)}", fill=_INK, font=ImageFont.load_default())
    return sheet


def summary(rows):
    """A few lines of text: calls, evaluations, where guidance was strongest."""
    if not rows:
        return "The inspector has seen no run yet: connect its MODEL output to a sampler, and the sampler's latent to the plot."
    evaluations = sum(r["evaluations"] for r in rows)
    peak = max(rows, key=lambda r: r["added rms"])
    text = f"{len(rows)} sampler calls, {evaluations} predictions; guidance was strongest at step {peak['step']} (sigma {_nice(peak['sigma'])}, rms {_nice(peak['added rms'])})"
    cosines = [r["cosine"] for r in rows if "cosine" in r]
    return text + (f"; cosine of the noise predictions {_nice(min(cosines))} to {_nice(max(cosines))}" if cosines else "")
