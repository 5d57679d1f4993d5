"""Writes example_workflows/*.jpg, the pictures that ComfyUI's template browser shows: what each example makes, run on a ComfyUI.

    python scripts/make_thumbnails.py PATH_OF_COMFYUI [NAME...]     in an environment that has this host; without names: those that are missing
"""

from __future__ import annotations

import sys

if not __package__:
    import _alias

    _alias.install()
    from lodestar.scripts.make_thumbnails import main as _main

    raise SystemExit(_main())

import io
import json

from ..demo.runner_client import Client, files_of, texts_of
from ..demo.runner_server import Server
from ..guidance.catalogue import ROOT, WORKFLOWS
from ._examples_reading import NEEDS_WEIGHTS

HEIGHT, QUALITY = 256, 88
FRAMES = 4      # that are shown of a video


def saved(graph):
    """The ids of the nodes that save pictures, in the graph's order."""
    return [k for k, node in graph.items() if node["class_type"] == "SaveImage"]


def written(texts):
    """Texts as a picture, for examples that make none."""
    from PIL import Image, ImageDraw, ImageFont
    text, font = "\n".join(texts), ImageFont.load_default()
    _, _, right, low = ImageDraw.Draw(Image.new("RGB", (1, 1))).multiline_textbbox((12, 12), text, font=font)
    sheet = Image.new("RGB", (round(right) + 12, max(HEIGHT, round(low) + 12)), "white")
    ImageDraw.Draw(sheet).multiline_text((12, 12), text, fill="black", font=font)
    return sheet.crop((0, 0, sheet.width, HEIGHT))


def picture(client, graph):
    """What an example saves, side by side in one picture, at most three; or what it says."""
    from PIL import Image
    outputs = client.run(graph)
    if not saved(graph):
        return written([t for output in outputs.values() for t in texts_of(output)])
    files = [found for k in saved(graph) if k in outputs for found in [files_of(outputs[k])] if found]
    opened = lambda f: Image.open(io.BytesIO(client.fetch(f))).convert("RGB")
    if min(map(len, files)) >= FRAMES:
        return _strips([[opened(f) for f in found] for found in files[:2]])
    parts = [opened(f) for found in files for f in found][:3]
    parts = [p.resize((max(1, round(p.width * HEIGHT / p.height)), HEIGHT), Image.Resampling.LANCZOS) for p in parts]
    sheet = Image.new("RGB", (sum(p.width for p in parts) + 4 * (len(parts) - 1), HEIGHT), "white")
    left = 0
    for p in parts:
        sheet.paste(p, (left, 0))
        left += p.width + 4
    return sheet


def _strips(videos):
    """FRAMES frames of each video side by side, one video under the other."""
    from PIL import Image
    high = (HEIGHT - 4 * (len(videos) - 1)) // len(videos)
    rows = [[frames[round(i * (len(frames) - 1) / (FRAMES - 1))] for i in range(FRAMES)] for frames in videos]
    wide = max(1, round(rows[0][0].width * high / rows[0][0].height))
    sheet = Image.new("RGB", (FRAMES * (wide + 4) - 4, HEIGHT), "white")
    for y, row in enumerate(rows):
        for x, frame in enumerate(row):
            sheet.paste(frame.resize((wide, high), Image.Resampling.LANCZOS), (x * (wide + 4), y * (high + 4)))
    return sheet


def main(arguments=None):
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments:
        print(__doc__)
        return 2
    host, *names = arguments
    graphs = {p.stem: json.loads(p.read_text(encoding="utf-8")) for p in sorted((ROOT / WORKFLOWS / "api").glob("*.json"))}
    unknown = [n for n in names if n not in graphs]
    if unknown:
        print(f"no example of this name: {', '.join(unknown)}. There are: {', '.join(graphs)}")
        return 2
    folder = ROOT / WORKFLOWS
    names = names or [n for n in graphs if not (folder / f"{n}.jpg").is_file()]
    told, run = [n for n in names if n in NEEDS_WEIGHTS], [n for n in names if n not in NEEDS_WEIGHTS]
    for n in told:
        written([NEEDS_WEIGHTS[n]]).save(folder / f"{n}.jpg", quality=QUALITY)
        print(f"{n}.jpg", flush=True)
    if run:
        with Server(host) as server:
            client = Client(server.url, server.alive)
            for n in run:
                picture(client, graphs[n]).save(folder / f"{n}.jpg", quality=QUALITY)
                print(f"{n}.jpg", flush=True)
    for left in folder.glob("*.jpg"):
        if not (folder / "api" / f"{left.stem}.json").is_file():      # looked up now: an example may have come meanwhile
            left.unlink()
    return 0
