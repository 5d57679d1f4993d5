"""Writes web/docs/*.md (the help pages shown inside ComfyUI) and the tables of README.md, from the definitions of the nodes. Needs no host.

    python scripts/make_docs.py [--check]
"""

from __future__ import annotations

import sys

if not __package__:
    import _alias

    _alias.install()
    from lodestar.scripts.make_docs import main as _main

    raise SystemExit(_main())

import inspect
import json
import re

from ..guidance.catalogue import HELP, READINGS, RESTORED, ROOT, help_of, load_effects, measured, nodes, records, workflow_of
from .make_workflows import stale, write

README, METHODS = "README.md", "docs/methods.md"
FORMULA = re.compile(r"[\w'+|()^-]+ (=|<-) ")
TOPIC = re.compile(r"(?:^|(?<=[.)] ))(Defaults?|Limits|Cost|Flow models|Papers?): ")


def markdown(text):
    """A docstring as Markdown: indented blocks and formulas as code, other paragraphs with what could be taken for markup escaped."""
    blocks = []
    for block in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        lines = block.splitlines()
        if all(line.startswith("    ") for line in lines) or FORMULA.match(lines[0]):
            blocks.append("```text\n" + inspect.cleandoc(block) + "\n```")
        else:
            parts = re.split(r"(`[^`]*`)", " ".join(line.strip() for line in lines))
            prose = "".join(p if p.startswith("`") else re.sub(r"([<*_|])", r"\\\1", p) for p in parts)
            blocks += [p.strip() for p in TOPIC.sub(r"\n\n**\1:** ", prose).split("\n\n") if p.strip()]
    return "\n\n".join(blocks)


def cell(text):
    return str(text).replace("|", "\\|").replace("\n", " ")


def table(head, rows):
    return "\n".join(["| " + " | ".join(head) + " |", "|" + " --- |" * len(head), *("| " + " | ".join(map(cell, r)) + " |" for r in rows)])


def _range(i):
    if i.type == "COMBO" and callable(i.choices):
        return "a file"
    if i.type == "COMBO":
        return ", ".join(f"`{c}`" for c in i.choices)
    if i.type in ("INT", "FLOAT") and i.min is not None and i.max is not None:
        return f"{i.min:g} to {i.max:g}"
    return i.type


def _inputs(d):
    rows = []
    for i in d.ordered():
        notes = ", ".join(n for n, on in (("optional", i.optional and not i.widget), ("advanced", i.advanced)) if on)
        default = f"`{i.default}`" if i.widget and i.default != "" else ""
        rows.append((f"**{i.label or i.name}**" + (f" ({notes})" if notes else ""), default, _range(i), i.tooltip))
    return table(("Input", "Default", "Type or range", ""), rows)


def _number(v):
    return "-" if v is None else f"{v:.3g}" if isinstance(v, (int, float)) else str(v)


def effect_rows(node_id, effects):
    """(generator, metric, base's value, value with its interval, claimed direction, what came of the claim) of one method, the claimed metrics first."""
    for generator, metrics in effects.get(node_id, {}).items():
        for metric, f in sorted(metrics.items(), key=lambda item: item[1]["claimed"] is None):
            interval = f" [{_number(f['low'])}, {_number(f['high'])}]" if f["low"] is not None else ""
            reached = f.get("verdict") or ("-" if f["reached"] is None else "reached" if f["reached"] else "not reached")
            base = f.get("base", {}).get("value")
            yield generator, metric, "-" if base is None else _number(base), _number(f["value"]) + interval, f["claimed"] or "-", reached if f["claimed"] else "-"


def page(d, record, titles, effects=None):
    """The help page of one node; `record` is the catalogue's record of its method, or None; `effects` what was measured, by node id."""
    parts = [f"# {d.title}"]
    if d.method is not None:
        parts.append(markdown(d.method.__doc__))
    else:
        parts += [d.description, markdown(d.help)] if d.help else [d.description]
    parts += ["## Inputs", _inputs(d)]
    if d.outputs:
        parts += ["## Outputs", table(("Output", "Type", ""), [(f"**{o.name}**", o.type, o.tooltip) for o in d.outputs])]
    if d.part_of:
        parts.append(f"Goes together with the node **{titles[d.part_of]}**.")
    if record is not None and d.method is not None:
        parts += ["## Cost", f"Network evaluations beyond plain CFG, per step where the method acts: {record['evaluations']}."]
        rows = list(effect_rows(d.node_id, effects or {}))
        if rows:
            parts += ["## Measured effect", "On the bundled models, with 95% intervals; how it was measured: `docs/effects`.",
                      table(("Model", "Metric", "Without", "With", "Claimed", "Outcome"), rows)]
        papers = record["paper"] if isinstance(record["paper"], list) else [record["paper"]]
        parts += ["## Papers" if len(papers) > 1 else "## Paper", "\n".join(f"- {p}" for p in papers)]
    shown = titles.get(d.part_of, d.title)
    parts += ["## Example", f"`{workflow_of(shown)}`: in ComfyUI under Workflow, Browse Templates, Lodestar."]
    if d.aliases:
        parts.append("Also found as: " + ", ".join(d.aliases) + ".")
    return "\n\n".join(parts) + "\n"


def node_table(definitions):
    groups = {}
    for d in definitions.values():
        groups.setdefault(d.category.partition("/")[2], []).append(d)
    rows = [(family, f"[{d.title}]({help_of(d.node_id)})", d.description) for family in sorted(groups) for d in sorted(groups[family], key=lambda d: d.title)]
    return table(("Family", "Node", "What it does"), rows)


def method_table(found):
    rows = [(r["title"], "<br>".join(r["paper"]) if isinstance(r["paper"], list) else r["paper"], r["evaluations"],
             f"[graph]({r['workflow']})" if r["workflow"] else "-")
            for r in found]
    return table(("Method", "Paper", "Evaluations beyond CFG", "Example"), rows)


def _column(generator):
    """(the column of a generator's figures, what is written before them): the video model is a U-Net."""
    return ("unet", "video: ") if generator == "video" else (generator, "")


def effect_table(found, effects):
    """What became of the papers' claims: a row for each method, its claimed metrics by model."""
    rows = []
    pages = dict.fromkeys(load_effects(READINGS), "readings") | dict.fromkeys(load_effects(RESTORED), "restoration")
    for r in found:
        claims = [(*_column(g), f"{metric} {base} -> {value.partition(' ')[0]}: {came}") for g, metric, base, value, claimed, came in effect_rows(r["id"], effects) if claimed != "-"]
        if claims:
            rows.append((f"[{r['title']}](docs/effects/{'restoration.md' if pages.get(r['id']) == 'restoration' else pages.get(r['id'], 'effects') + '.md#' + r['id'].removeprefix('Lodestar').lower()})",
                         *("<br>".join(mark + text for g, mark, text in claims if g == model) or "-" for model in ("unet", "dit"))))
    if not rows:
        return "Not measured yet: `./scripts/bench effects` writes `docs/effects`."
    return table(("Method", "U-Net", "DiT"), rows)


INSIDE = ("perturbation", "attention", "control", "regions", "reading")      # the families that act inside the network, or read from it
SHOWN = ("unet", "flux", "wan")      # one network of each kind: cross attention, joint attention, video


def _named(tests):
    """What the identities of a method say, by the names of their tests."""
    names = {t.rpartition("::")[2].partition("[")[0].removeprefix("test_").replace("_", " ") for t in tests}
    return "; ".join(sorted(names)) or "-"


def _layers(found, network):
    """The layers that a node touches by default on one network of docs/conformance.json."""
    one = found.get(network)
    if one is None:
        return "-"
    if one["outcome"] != "acts":
        return "refused"
    touched = one.get("touched")
    return f"{one.get('selectors') or 'all'}: {touched}" if touched else "the prediction"


def _outcomes(rows):
    return "<br>".join(f"{metric} {base} -> {value}: {came}" for metric, base, value, claimed, came in rows if claimed != "-") or "-"


def methods_page(found, effects, conformance):
    """docs/methods.md: what acts inside the network, in one table."""
    rows = []
    for r in found:
        if r["family"] not in INSIDE:
            continue
        layers = conformance.get("nodes", {}).get(r["id"], {})
        figures = list(effect_rows(r["id"], effects))
        rows.append((r["family"], f"[{r['title']}](../{help_of(r['id'])})", *(_layers(layers, n) for n in SHOWN), r["evaluations"], _named(r["identities"]),
                     *(_outcomes([(_column(m[0])[1] + m[1], *m[2:]) for m in figures if _column(m[0])[0] == g]) for g in ("unet", "dit"))))
    head = ("Family", "Node", "Layers on U-Nets", "on joint DiTs (Flux)", "on cross-attention DiTs (Wan)", "Evaluations beyond CFG", "Identities that are tested", "Effect, U-Net", "Effect, DiT")
    return ("# What acts inside the network\n\nWritten by `scripts/make_docs.py`. Layers: the selector that holds by default, and how many layers of a tiny network of the kind it really "
            "changes; every network of the host is in [conformance.md](conformance.md), the names of layers in [layers.md](layers.md). Effects: without and with the node on the two bundled "
            "models, 95% intervals, and what came of each claim; all figures and how they were measured are in [effects](effects/effects.md), costs in [costs](effects/costs.md).\n\n"
            + table(head, rows) + "\n")


def replaced(text, name, body):
    """`text` with what stands between the markers of `name` replaced."""
    begin, end = f"<!-- {name}: made by scripts/make_docs.py -->", f"<!-- end of {name} -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"{README} needs the lines {begin!r} and {end!r}, once each")
    head, _, rest = text.partition(begin)
    return head + begin + "\n" + body + "\n" + end + rest.partition(end)[2]


def files():
    """{path relative to the checkout: text} of everything generated."""
    definitions, found = nodes(), records()
    by_id, titles = {r["id"]: r for r in found}, {i: d.title for i, d in definitions.items()}
    effects = measured()
    result = {help_of(i): page(d, by_id.get(i), titles, effects) for i, d in definitions.items()}
    readme = (ROOT / README).read_text(encoding="utf-8")
    for name, body in (("nodes", node_table(definitions)), ("methods", method_table(found)), ("effects", effect_table(found, effects))):
        readme = replaced(readme, name, body)
    conformance = ROOT / "docs" / "conformance.json"
    conformance = json.loads(conformance.read_text(encoding="utf-8")) if conformance.is_file() else {}
    return result | {README: readme, METHODS: methods_page(found, effects, conformance)}


FOLDERS, PATTERN = (HELP,), "*.md"


def main(arguments=None):
    arguments = sys.argv[1:] if arguments is None else arguments
    found = files()
    wrong = stale(found, FOLDERS, PATTERN)
    if "--check" in arguments:
        print("\n".join(wrong) or "up to date")
        return 1 if wrong else 0
    write(found, FOLDERS, PATTERN)
    print(f"{len(found)} files, {len(wrong)} changed")
    return 0
