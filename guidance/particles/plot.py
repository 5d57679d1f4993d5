"""The record of a particle sampler as a picture."""
from __future__ import annotations

from PIL import Image

from ..inspection.plot import chart

SHOWN = 3      # pictures of a batch with curves of their own


def columns(record):
    """[{"step", "effective 1", "descendants 1", "best 1", "mean 1", ...}]: the record's rows with a column for each of the first pictures."""
    found = []
    for row, kept in zip(record.rows, record.survivors()):
        line = {"step": row["step"]}
        for b, value in enumerate((row["ess"] or ())[:SHOWN]):
            line[f"effective {b + 1}"] = value
        for b, value in enumerate((kept or ())[:SHOWN]):
            line[f"descendants {b + 1}"] = value
        for b, losses in enumerate((row["losses"] or ())[:SHOWN]):
            line[f"best {b + 1}"], line[f"mean {b + 1}"] = min(losses), sum(losses) / len(losses)
        found.append(line)
    return found


def plot(record, size=(430, 240)):
    """The sheet as a PIL image: effective numbers and descendants where particles were weighed, losses where there were any."""
    rows = columns(record)
    named = lambda name: tuple(f"{name} {b + 1}" for b in range(SHOWN))
    wanted = [(title, named(name)) for title, name in (("effective number of particles", "effective"), ("first particles with descendants", "descendants"), ("loss: best", "best"), ("loss: mean", "mean"))]
    wanted = [(title, names) for title, names in wanted if not rows or any(n in line for line in rows for n in names)]
    charts = [chart(rows, title, names, size) for title, names in wanted]
    sheet = Image.new("RGB", (2 * size[0], (len(charts) + 1) // 2 * size[1]), (255, 255, 255))
    for i, c in enumerate(charts):
        sheet.paste(c, (i % 2 * size[0], i // 2 * size[1]))
    return sheet
