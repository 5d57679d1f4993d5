"""Writes example_workflows/: for the page (*.json) and for the API (api/*.json), from one source (_examples.py). Needs no host.

    python scripts/make_workflows.py [--check]
"""

from __future__ import annotations

import sys

if not __package__:
    import _alias

    _alias.install()
    from lodestar.scripts.make_workflows import main as _main

    raise SystemExit(_main())

import json
from pathlib import Path

from ..guidance.catalogue import ROOT, WORKFLOWS, nodes, slug
from ._examples import all_graphs


def files():
    """{path relative to the checkout: text} of every generated workflow."""
    found = {}
    for name, graph in all_graphs(nodes(), slug).items():
        for path, value in ((f"{WORKFLOWS}/{name}.json", graph.ui()), (f"{WORKFLOWS}/api/{name}.json", graph.api())):
            found[path] = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    return found


def stale(found, folders, pattern):
    """The paths that are missing, out of date, or left over from an earlier run."""
    wrong = [p for p, text in found.items() if not (ROOT / p).is_file() or (ROOT / p).read_text(encoding="utf-8") != text]
    left = [q.relative_to(ROOT).as_posix() for f in folders for q in (ROOT / f).glob(pattern)]
    return wrong + [p for p in left if p not in found]


def write(found, folders, pattern):
    for path in stale(found, folders, pattern):
        target = ROOT / path
        if path not in found:
            target.unlink()
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(found[path], encoding="utf-8")


FOLDERS, PATTERN = (WORKFLOWS, f"{WORKFLOWS}/api"), "*.json"


def main(arguments=None):
    arguments = sys.argv[1:] if arguments is None else arguments
    found = files()
    wrong = stale(found, FOLDERS, PATTERN)
    if "--check" in arguments:
        print("\n".join(wrong) or "up to date")
        return 1 if wrong else 0
    write(found, FOLDERS, PATTERN)
    print(f"{len(found)} workflows, {len(wrong)} changed, in {Path(WORKFLOWS)}")
    return 0
