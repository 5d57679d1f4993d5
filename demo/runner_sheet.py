"""The default demo: the same prompts and seeds under several guidances, side by side in one labelled picture.

COLUMNS is the sheet: a label and what is put between the model and the sampler. Everything else follows from it."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path

from .runner_client import Client, files_of, write_new
from .runner_errors import Failure
from .runner_progress import Silent

PROMPTS = ("a large red circle", "a small blue square above a yellow triangle", "a green triangle left of a purple circle")
SEED = 7
SIZE = 128
STEPS = 20
GENERATORS = ("unet", "dit")


@dataclass(frozen=True)
class Column:
    """One column: `node` and `inputs` describe the guidance node; an input "$negative" is linked to the empty prompt."""

    label: str
    cfg: float
    node: str | None = None
    inputs: dict = field(default_factory=dict)


COLUMNS = (
    Column("no guidance\nw = 1", 1.0),
    Column("CFG\nw = 4", 4.0),
    Column("CFG + PAG\nw = 3, scale 2", 3.0, "LodestarPerturbedAttentionGuidance", {"scale": 2.0, "layers": "middle"}),
    Column("APG\nw = 4", 4.0, "LodestarAdaptiveProjectedGuidance", {"eta": 0.0, "norm_threshold": 0.0, "momentum": -0.5}),
    Column("CFG + NAG\nw = 4", 4.0, "LodestarNormalizedAttentionGuidance", {"negative": "$negative", "scale": 3.0}),
)


def workflow(column: Column, prompts=PROMPTS, generator: str = "unet", seed: int = SEED, steps: int = STEPS) -> dict:
    """The graph of one column in API format: one sampler per prompt, the model loaded once."""
    graph = {
        "model": {"class_type": "LodestarLoadDemoModel", "inputs": {"model": generator}},
        "negative": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["model", 1]}},
        "latent": {"class_type": "EmptyLatentImage", "inputs": {"width": SIZE, "height": SIZE, "batch_size": 1}},
    }
    model = ["model", 0]
    if column.node is not None:
        inputs = {name: ["negative", 0] if value == "$negative" else value for name, value in column.inputs.items()}
        graph["guidance"] = {"class_type": column.node, "inputs": {"model": model, **inputs}}
        model = ["guidance", 0]
    for i, prompt in enumerate(prompts):
        graph[f"prompt-{i}"] = {"class_type": "CLIPTextEncode", "inputs": {"text": prompt, "clip": ["model", 1]}}
        graph[f"sampler-{i}"] = {"class_type": "KSampler", "inputs": {
            "model": model, "positive": [f"prompt-{i}", 0], "negative": ["negative", 0], "latent_image": ["latent", 0], "seed": seed + i,
            "steps": steps, "cfg": column.cfg, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}}
        graph[f"decode-{i}"] = {"class_type": "VAEDecode", "inputs": {"samples": [f"sampler-{i}", 0], "vae": ["model", 2]}}
        graph[f"save-{i}"] = {"class_type": "SaveImage", "inputs": {"images": [f"decode-{i}", 0], "filename_prefix": f"sheet-{i}"}}
    return graph


def complete(graph: dict, info: dict) -> dict:
    """Fill in the defaults of the server's node classes: over the API, an input left out is an error even where it has one."""
    from .runner_workflow import input_specs

    for node in graph.values():
        required = (info.get(node["class_type"], {}).get("input") or {}).get("required") or {}
        for name, spec in input_specs(info.get(node["class_type"], {})).items():
            options = spec[1] if len(spec) > 1 and isinstance(spec[1], dict) else {}
            if name in required and name not in node["inputs"] and "default" in options:
                node["inputs"][name] = options["default"]
    return graph


def compose(columns: list[tuple[str, list]], rows: list[str], title: str = "", cell: int = 192):
    """One picture from (label, pictures) columns and row captions."""
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as e:
        raise Failure("The comparison sheet needs Pillow (pip install Pillow).") from e
    try:
        font, small = ImageFont.load_default(18), ImageFont.load_default(14)
    except TypeError:  # Pillow before 10.1
        font = small = ImageFont.load_default()
    gap, left, top, bottom = 8, 190, 78 if title else 54, 8
    sheet = Image.new("RGB", (left + len(columns) * (cell + gap), top + len(rows) * (cell + gap) + bottom), "white")
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((gap, 6), title, "black", font)
    for r, caption in enumerate(rows):
        text = _wrap(caption, draw, small, left - 2 * gap)
        draw.multiline_text((gap, top + r * (cell + gap) + gap), text, "black", small, spacing=4)
    for c, (label, pictures) in enumerate(columns):
        x = left + c * (cell + gap)
        head, _, rest = label.partition("\n")
        draw.text((x, top - 48), head, "black", font)
        draw.text((x, top - 24), rest, "#555555", small)
        for r, picture in enumerate(pictures):
            method = Image.NEAREST if picture.width <= cell // 2 else Image.LANCZOS
            sheet.paste(picture.convert("RGB").resize((cell, cell), method), (x, top + r * (cell + gap)))
    return sheet


def _wrap(text: str, draw, font, width: int) -> str:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer, font=font) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)


def pictures_of(client: Client, outputs: dict, count: int) -> list:
    """The pictures of save-0, save-1 ... as PIL images."""
    from PIL import Image

    found = []
    for i in range(count):
        files = files_of(outputs.get(f"save-{i}") or {})
        if not files:
            raise Failure(f"The host finished without giving picture {i + 1} of the sheet.")
        found.append(Image.open(io.BytesIO(client.fetch(files[0]))))
    return found


def make(client: Client, out: Path, progress: Silent, timeout: float | None = None, generator: str = "unet", prompts=PROMPTS,
         seed: int = SEED, columns=COLUMNS, build=workflow) -> Path:
    """Run every column and write the sheet."""
    from .runner_workflow import check_classes

    info, done = client.object_info(), []
    graphs = [(column, complete(build(column, prompts, generator, seed), info)) for column in columns]
    for _, graph in graphs:
        check_classes(graph, info)
    for n, (column, graph) in enumerate(graphs, 1):
        name = column.label.partition("\n")[0]
        outputs = client.run(graph, progress, timeout, f"{n}/{len(graphs)} {name}")
        done.append((column.label, pictures_of(client, outputs, len(prompts))))
    sheet = compose(done, list(prompts), f"Lodestar: {STEPS} Euler steps, same seeds, bundled {generator} model")
    data = io.BytesIO()
    sheet.save(data, "PNG")
    return write_new(out / "comparison.png", data.getvalue())
