"""Writes docs/conformance.json and docs/conformance.md: what every node that looks into the network does on a tiny network of each of the host's classes.

    python scripts/make_conformance.py HOST [--only NETWORK ...]      HOST: a folder of the newest ComfyUI
    python scripts/make_conformance.py --page                         the page again, from the data that there are

tests/host/test_conformance.py compares the same runs with the JSON file.
"""
from __future__ import annotations

import sys

if not __package__:
    import _alias

    _alias.install()
    from lodestar.scripts.make_conformance import main as _main

    raise SystemExit(_main())

import json
import re
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA, PAGE = ROOT / "docs" / "conformance.json", ROOT / "docs" / "conformance.md"
SHOWN = ("outcome", "reason", "evaluations", "selectors", "touched")
MARKS = "abcdefghijklmnopqrstuvwxyz"


def host(path):
    """Makes a folder of ComfyUI importable, on the CPU."""
    import os
    sys.argv = ["main"]
    sys.path[:] = [str(path), *(p for p in sys.path if Path(p or os.getcwd()).resolve() not in (ROOT, ROOT / "scripts"))]
    import comfy.cli_args
    comfy.cli_args.args.cpu = True
    import torch
    torch.set_num_threads(1)
    import comfy.model_management      # noqa: F401


def measure(names=None):
    """{"networks": {name: facts}, "nodes": {node id: {network: outcome}}}."""
    from ..tests.zoo import matrix
    ids, known = matrix.node_ids(), matrix.definitions()
    data = {"networks": {}, "nodes": {node_id: {} for node_id in ids}}
    for name in names or matrix.ALL:
        began = time.process_time()
        network = matrix.Network(name, known)
        data["networks"][name] = network.facts()
        for node_id in ids:
            found = network.outcome(node_id)
            data["nodes"][node_id][name] = {k: found[k] for k in SHOWN if k in found}
        print(f"{name:<16} {sum(data['nodes'][i][name]['outcome'] == 'acts' for i in ids)} of {len(ids)} act, {time.process_time() - began:.1f} s", flush=True)
    return data


def general(text, facts):
    """A reason without the network's name, so that one line stands for many networks."""
    for name in (f"this {facts['family']} network", facts["class"], f"{facts['family']} network"):
        text = text.replace(name, "this network")
    text = re.sub(r"\d+ x \d+", "h x w", text.split(" It said: ")[0].replace(" this networks", " these networks"))
    return text[:1].upper() + text[1:]


def _mark(number):
    return MARKS[number] if number < len(MARKS) else MARKS[number // len(MARKS) - 1] + MARKS[number % len(MARKS)]


def page(data, titles, left_out):
    """docs/conformance.md."""
    from .make_docs import table
    networks, nodes = data["networks"], data["nodes"]
    reasons = {}
    rows = []
    for name, facts in networks.items():
        cells = []
        for node_id in nodes:
            found = nodes[node_id][name]
            if found["outcome"] == "acts":
                cells.append("+")
            else:
                text = ("FAILS: " if found["outcome"] == "fails" else "") + general(found["reason"].removeprefix(titles[node_id] + ": "), facts)
                cells.append(_mark(reasons.setdefault(text, len(reasons))))
        rows.append((f"{name} ({facts['class']})", *cells))
    families = {}
    for name, facts in networks.items():
        families.setdefault(facts["family"], name)
    families.pop("unknown", None)
    layers = []
    for node_id, found in nodes.items():
        groups = {}
        for family, name in families.items():
            one = found[name]
            if one["outcome"] == "acts" and one["touched"]:
                groups.setdefault(one["selectors"] or "all", []).append(f"{family} {one['touched']}")
        costs = sorted({found[n]["evaluations"] for n in networks if found[n]["outcome"] == "acts"})
        inside = "; ".join(f"`{selector}`: {', '.join(members)}" for selector, members in groups.items())
        layers.append((titles[node_id], " or ".join(f"{c:g}" for c in costs) or "-", inside or "none: acts on predictions"))
    acts = sum(f["outcome"] == "acts" for n in nodes.values() for f in n.values())
    return f"""# Conformance: every node on every network

Written by `scripts/make_conformance.py` from runs of the newest host; `tests/host/test_conformance.py` repeats the runs (among all tests a third of them, all where it is named) and fails where one is no longer as this page says.

Each network is the host's own class, tiny and with random weights, and is sampled by the host (two steps, CFG, one picture) with the node on it. It either acts (the result is finite
and differs from the run without the node) or stops with an error of ours that gives the reason. {len(networks)} networks, {len(nodes)} nodes, {acts} of {len(networks) * len(nodes)} pairs act.

## Which node acts where

`+` acts; a letter is the reason why not, listed below. Nodes by number: {'; '.join(f'{i} {titles[n]}' for i, n in enumerate(nodes, 1))}.

{table(("network", *map(str, range(1, len(nodes) + 1))), rows)}

### Reasons

{chr(10).join(f"- **{_mark(i)}** {text}" for text, i in reasons.items())}

## Layers touched by default, evaluations

For the first network of each family ({', '.join(f"{f}: {networks[n]['class']}, {networks[n]['layers']} layers" for f, n in families.items())}): the selector that
holds where the node's layers are left as they are, and how many of the tiny network's layers were really changed (or read) by kind of place (attention calls; whole blocks). Families that are not named
are not touched inside. Evaluations: network evaluations per step beside those of the prompts, where all of the schedule is in the node's window; parts of the picture and smaller pictures
count as one each. What the selectors mean on real models: [layers.md](layers.md).

{table(("node", "evaluations", "layers changed or read"), layers)}

## Not tested

{chr(10).join(f"- {name}: {why}." for name, why in left_out.items())}
"""


def current():
    """The page that belongs to the committed data."""
    from ..guidance import catalogue
    from ..tests.zoo.specimens import LEFT_OUT
    return page(json.loads(DATA.read_text(encoding="utf-8")), {node_id: cls.title for node_id, cls in catalogue.methods().items()}, LEFT_OUT)


def main(argv=None):
    import argparse
    parser = argparse.ArgumentParser(prog="scripts/make_conformance.py", description="The matrix of nodes and networks.")
    parser.add_argument("host", nargs="?", help="a folder of the newest ComfyUI")
    parser.add_argument("--page", action="store_true", help="write docs/conformance.md from docs/conformance.json and run nothing")
    parser.add_argument("--only", nargs="*", help="print the outcome of these networks and write nothing")
    args = parser.parse_args(argv)
    if args.page:
        PAGE.write_text(current(), encoding="utf-8")
        return 0
    if not args.host:
        parser.error("name the folder of a host")
    host(Path(args.host).resolve())
    data = measure(args.only)
    if args.only:
        for node_id, found in data["nodes"].items():
            for name, one in found.items():
                print(f"{name:<16} {node_id.removeprefix('Lodestar'):<32} {one['outcome']:<8} {one.get('reason') or one.get('touched', '')}")
        return 0
    DATA.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(current(), encoding="utf-8")
    failing = [(i, n) for i, found in data["nodes"].items() for n, one in found.items() if one["outcome"] == "fails"]
    print(f"{len(failing)} fail" + "".join(f"\n  {n}: {i}: {data['nodes'][i][n]['reason']}" for i, n in failing))
    return 1 if failing else 0
