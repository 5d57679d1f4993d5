"""Finished results in the cache folder, and the tables that go into docs/effects."""
from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parent.parent
EFFECTS = ROOT / "docs" / "effects"


def cache_folder():
    """Where finished batches are kept between runs."""
    base = os.environ.get("LODESTAR_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lodestar"
    path = Path(base) / "bench"
    path.mkdir(parents=True, exist_ok=True)
    return path


class Store:
    """Results by key. `fresh` ignores what is there."""

    def __init__(self, folder, fresh=False):
        self.folder, self.fresh = Path(folder), fresh

    def path(self, *key):
        return self.folder / (hashlib.sha256(repr(key).encode()).hexdigest()[:24] + ".safetensors")

    def get(self, *key):
        """The result, or None where it is missing or unreadable."""
        path = self.path(*key)
        if self.fresh or not path.is_file():
            return None
        try:
            found = load_file(path)
        except (SafetensorError, OSError):
            return None
        return {k: v if v.ndim else float(v) for k, v in found.items()}

    def put(self, result, *key):
        """Keeps a dict of tensors and numbers."""
        path = self.path(*key)
        part = path.with_suffix(f".{os.getpid()}.part")
        save_file({k: torch.as_tensor(v, dtype=None if isinstance(v, torch.Tensor) else torch.float64).contiguous() for k, v in result.items()}, part)
        os.replace(part, path)
        return result


def read_json(path):
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}


def write_json(path, data):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(part, path)


def merge(old, node_id, generator, metrics, about):
    """effects.json with one method's figures on one generator replaced; everything else stays. A method measured with fewer prompts than others does not change what is said of all."""
    about = {**about, "prompts": max(about["prompts"], old.get("about", {}).get(generator, {}).get("prompts", 0))} if "prompts" in about else about
    methods = {k: dict(v) for k, v in old.get("methods", {}).items()}
    methods.setdefault(node_id, {})[generator] = metrics
    return {**old, "about": {**old.get("about", {}), generator: about}, "methods": methods}


def figure(estimate, digits=4):
    """An Estimate as plain data."""
    return {k: round(float(v), digits) for k, v in zip(("value", "low", "high"), estimate)}


def shown(value, low=None, high=None):
    """A figure for a table."""
    text = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return text if low is None or (low == value == high) else f"{text} [{low:.3g}, {high:.3g}]"


def table(head, rows):
    """A Markdown table."""
    cells = [list(map(str, head)), ["---"] * len(head)] + [[str(c) for c in r] for r in rows]
    return "\n".join("| " + " | ".join(r) + " |" for r in cells) + "\n"
