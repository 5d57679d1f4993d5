"""How legible Text Super-Resolution makes small lines of text. A part of bench.restoration."""
from __future__ import annotations

import random

import torch

from .plan import to_be_higher
from .stats import difference, mean
from .store import table

NAME, SHARES, COUNT, NOISE, SEED = "Text Super-Resolution", (0.25, 0.17), 48, 0.05, 50_021      # parts of a line's size that are left of it; the seed is none of the training
SMALL, ALONE, TOLD, READ, WRONG = "enlarged again, bicubic", "drawn by the picture alone", "told its text", "told what the reader reads, twice", "told one wrong character"
ROWS = (SMALL, ALONE, TOLD, READ, WRONG)


def restored(low, said, **values):
    """Lines [n, 3, h, w] in [0, 1] as the node draws each, with a text of its own ("": none)."""
    from ..demo.lines import network
    from ..guidance.inverse.text_super_resolution import TextSuperResolution
    whole = torch.ones(1, *low.shape[-2:])
    return torch.cat([TextSuperResolution(mask=whole, network=network(), text=text, seed=i, **values).restored(u[None])[0] for i, (u, text) in enumerate(zip(low, said))])


def figures(share, count=COUNT):
    """{row: {characters read rightly (1 - edit distance as a share of the text), whole lines read rightly, psnr in dB}, each [value, low, high]; above: of characters, beyond rows of the same lines}."""
    from ..demo.lines import LineReader
    from ..demo.train_text_lines import edit_share, examples, mistaken
    texts, true, low = examples(random.Random(SEED), count, torch.Generator().manual_seed(SEED), share, NOISE)
    true, low, reader, groups = (true + 1) / 2, (low + 1) / 2, LineReader(), list(range(count))
    none = [""] * count
    lines = {SMALL: low, ALONE: restored(low, none), TOLD: restored(low, texts), READ: restored(low, none, recogniser=reader, rounds=2),
             WRONG: restored(low, [mistaken(random.Random(i), t) for i, t in enumerate(texts)])}
    scores = {}
    for name, drawn in lines.items():
        back = reader.read(drawn)
        scores[name] = {"characters": torch.tensor([1 - min(1.0, edit_share(a, b)) for a, b in zip(back, texts)], dtype=torch.float64),
                        "lines": torch.tensor([float(a == b) for a, b in zip(back, texts)], dtype=torch.float64),
                        "psnr": -10 * (drawn - true).square().mean((1, 2, 3)).clamp(min=1e-10).log10().double()}
    rows = {name: {what: [round(v, 4) for v in mean(values, groups)] for what, values in found.items()} for name, found in scores.items()}
    for name in (ALONE, TOLD, READ, WRONG):
        rows[name]["above"] = {base: [round(v, 4) for v in difference(scores[name]["characters"], scores[base]["characters"], groups)] for base in (SMALL, ALONE) if base != name}
    return rows


def measured():
    with torch.inference_mode():
        return {"count": COUNT, "shares": {f"{share:g}": figures(share) for share in SHARES}}


def effects(found):
    """{metric: figures} of the node, in the form of effects.json."""
    made = {}
    for share, rows in found["shares"].items():
        for base in (SMALL, ALONE):
            made[f"characters read, at {share} of the size, against it {base}"] = to_be_higher(rows[TOLD]["characters"], rows[TOLD]["above"][base], rows[base]["characters"], TOLD, base, found["count"])
    return made


def page(found):
    """Lines of restoration.md."""
    spread = lambda e, digits: f"{e[0]:.{digits}f} [{e[1]:.{digits}f}, {e[2]:.{digits}f}]"
    share = lambda e: f"{e[0]:.0%} [{e[1]:.0%}, {e[2]:.0%}]"
    lines = ["## Small lines of text", "", f"{NAME} with the bundled network: {found['count']} lines of four or five characters, 16 x 64 pixels, of which a part of the size is left, with noise of {NOISE:g}. The reader knows the font. "
             "Above: of the share of characters, beyond the same lines enlarged.", ""]
    for part, rows in sorted(found["shares"].items(), reverse=True):      # the file's keys are sorted
        lines += [f"{part} of the size:", "", table(["", "characters read", "lines read", "PSNR", "above"],
                                                  [[name, share(r["characters"]), share(r["lines"]), spread(r["psnr"], 1), spread(r["above"][SMALL], 2) if "above" in r else ""] for name, r in sorted(rows.items(), key=lambda row: ROWS.index(row[0]))])]
    return lines
