"""Every method of the pack as data: `python -m guidance.catalogue --json`. Needs no host.

A method is found by walking the packages of guidance/ for Method subclasses with a node_id. Its tests are found by name (tests/*/test_<module>.py) or by
`@pytest.mark.method("<node id>")` ("*": every method); its help page, workflow and effects by the node's id.
"""
from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import re
import sys
from pathlib import Path

if __name__ == "__main__" and __package__ == "guidance":      # run with -m in the checkout: come back as a part of the pack
    sys.path.append(str(Path(__file__).resolve().parent.parent / "scripts"))
    import _alias

    sys.path.pop()
    _alias.install()
    from lodestar.guidance.catalogue import main as _main

    raise SystemExit(_main())

from . import catalogue_tests
from .method import Method

ROOT = Path(__file__).resolve().parent.parent
HELP = "web/docs"
WORKFLOWS = "example_workflows"
EFFECTS = ROOT / "docs" / "effects" / "effects.json"
READINGS = ROOT / "docs" / "effects" / "readings.json"      # of nodes that read a picture and sample none, in the form of EFFECTS
RESTORED = ROOT / "docs" / "effects" / "restored.json"      # of what restores measurements, in the same form
FIGURES = ("value", "low", "high", "claimed", "reached")


def _direct(what, make):
    return make()


def modules(guard=_direct):
    """The modules of the method families (not of guidance.host, which needs ComfyUI). `guard(what, make)` may survive a faulty one."""
    base = Path(__file__).resolve().parent
    for family in sorted(p for p in base.iterdir() if (p / "__init__.py").is_file() and p.name != "host"):
        for folder in (family, *sorted(p for p in family.iterdir() if (p / "__init__.py").is_file())):
            place = folder.relative_to(base).parts
            for info in sorted(pkgutil.iter_modules([str(folder)]), key=lambda i: i.name):
                if info.ispkg:
                    continue
                name = ".".join((__package__, *place, info.name))
                module = guard("/".join(("guidance", *place, info.name + ".py")), lambda name=name: importlib.import_module(name))
                if module is not None:
                    yield module


def methods(guard=_direct):
    """{node id: method class}, sorted by id."""
    found = {}
    for module in modules(guard):
        for cls in vars(module).values():
            if inspect.isclass(cls) and issubclass(cls, Method) and cls.node_id and cls.paper and cls.__module__ == module.__name__:      # operators are parts: they have no paper
                other = found.setdefault(cls.node_id, cls)
                if other is not cls:
                    raise ValueError(f"{cls.__name__} and {other.__name__} have the same node id {cls.node_id}")
    return dict(sorted(found.items()))


def nodes():
    """{node id: NodeDef} of the pack this module is a part of."""
    pack = __package__.rpartition(".")[0]
    if not pack:
        raise RuntimeError("guidance is imported on its own; the pack's nodes are known to `<pack>.guidance.catalogue` only")
    return importlib.import_module(pack + ".nodes").definitions()


def slug(title):
    """A title as a file name: "Perturbed-Attention Guidance" is perturbed_attention_guidance, "CFG++" is cfgpp."""
    return re.sub(r"[^a-z0-9]+", "_", title.lower().replace("++", "pp")).strip("_")


def workflow_of(title):
    """The example workflow of a node, relative to the checkout."""
    return f"{WORKFLOWS}/{slug(title)}.json"


def help_of(node_id):
    return f"{HELP}/{node_id}.md"


def load_effects(path=EFFECTS):
    """{node id: {generator: {metric: {value, low, high, claimed, reached}}}}; empty before the first measurement."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return data.get("methods", data)


def measured():
    """Effects, readings and restorations together, as load_effects has them."""
    found = {node_id: {generator: dict(metrics) for generator, metrics in generators.items()} for node_id, generators in load_effects().items()}
    for node_id, generators in [pair for path in (READINGS, RESTORED) for pair in load_effects(path).items()]:
        for generator, metrics in generators.items():
            found.setdefault(node_id, {}).setdefault(generator, {}).update(metrics)
    return found


def _effects(found):
    return {generator: {metric: {k: figures.get(k) for k in FIGURES} for metric, figures in metrics.items() if isinstance(figures, dict)}
            for generator, metrics in found.items() if isinstance(metrics, dict)}


def _existing(path):
    return path if (ROOT / path).is_file() else None


def record(cls, definitions, tests, effects):
    """One method as plain data. Paths and test ids are relative to the checkout; a path is None where the file does not exist."""
    own = [cls.node_id, *(d.node_id for d in definitions.values() if d.part_of == cls.node_id)]
    found = catalogue_tests.of_method(tests, cls.node_id, cls.__module__.rsplit(".", 1)[-1])
    return {
        "id": cls.node_id,
        "title": cls.title,
        "paper": list(cls.paper) if isinstance(cls.paper, (tuple, list)) else cls.paper,
        "family": cls.family,
        "nodes": own,
        "evaluations": cls.evaluations,
        "identities": found["unit"],
        "host_tests": found["host"],
        "workflow": _existing(workflow_of(cls.title)),
        "workflow_api": _existing(workflow_of(cls.title).replace("/", "/api/")),
        "help": [p for p in map(help_of, own) if (ROOT / p).is_file()],
        "effects": _effects(effects.get(cls.node_id, {})),
    }


def records():
    """The record of every method, sorted by family and title."""
    definitions, tests, effects = nodes(), catalogue_tests.scan(ROOT / "tests"), measured()
    return sorted((record(c, definitions, tests, effects) for c in methods().values()), key=lambda r: (r["family"], r["title"]))


def main(argv=None):
    import argparse

    parser = argparse.ArgumentParser(prog="python -m guidance.catalogue", description="The methods of the pack.")
    parser.add_argument("--json", action="store_true", help="all records as JSON (without it: one line per method)")
    args = parser.parse_args(argv)
    found = records()
    if args.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        for r in found:
            print(f"{r['family']:<13} {r['title']:<34} {len(r['identities']):>3} identities {len(r['host_tests']):>3} host tests"
                  f"  {'workflow' if r['workflow'] else '-':<9} {'effects' if r['effects'] else '-'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
