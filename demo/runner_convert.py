"""From the format that ComfyUI's page saves (nodes, links, widget values by position) to the one its API takes.

The page's format names no widgets, so their order is taken from the server's node classes. What cannot be converted
faithfully is refused, with the way out: saving from the page with Export (API)."""

from __future__ import annotations

from .runner_errors import WorkflowError
from .runner_workflow import input_specs

_MUTED, _BYPASSED = 2, 4
_PAGE_ONLY = {"Note", "MarkdownNote"}
_WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
_CONTROLS = {"fixed", "increment", "decrement", "randomize", "increment-wrap"}
_OUT = "Open the workflow in ComfyUI and save it with Export (API), then run that file."


def _refuse(text: str) -> WorkflowError:
    return WorkflowError(f"This workflow cannot be converted from the page's format: {text}. {_OUT}")


def is_widget(spec: list) -> bool:
    """Whether the page shows this input as a widget."""
    kind, options = spec[0], spec[1] if len(spec) > 1 and isinstance(spec[1], dict) else {}
    return (isinstance(kind, list) or kind in _WIDGETS) and not options.get("forceInput")


def _has_control(name: str, spec: list) -> bool:
    options = spec[1] if len(spec) > 1 and isinstance(spec[1], dict) else {}
    return bool(options.get("control_after_generate")) or (spec[0] == "INT" and name in ("seed", "noise_seed"))


class _Graph:
    def __init__(self, ui: dict, info: dict):
        self.info = info
        self.nodes = {node["id"]: node for node in ui["nodes"]}
        self.links = {}
        for link in ui.get("links") or []:
            if isinstance(link, dict):
                self.links[link["id"]] = (link["origin_id"], link["origin_slot"], link.get("type"))
            else:
                self.links[link[0]] = (link[1], link[2], link[5] if len(link) > 5 else None)

    def source(self, link_id, depth: int = 0):
        """What a link delivers: [node id, slot], ("value", v) of a primitive, or None."""
        if link_id is None or link_id not in self.links or depth > 200:
            return None
        origin, slot, kind = self.links[link_id]
        node = self.nodes.get(origin)
        if node is None or node.get("mode") == _MUTED:
            return None
        if node["type"] == "PrimitiveNode":
            values = node.get("widgets_values") or []
            return ("value", values[0]) if values else None
        if node["type"] == "Reroute":
            inputs = node.get("inputs") or []
            return self.source(inputs[0].get("link"), depth + 1) if inputs else None
        if node.get("mode") == _BYPASSED:
            return self._through(node, slot, kind, depth)
        return [str(origin), int(slot)]

    def _through(self, node: dict, slot: int, kind, depth: int):
        """A bypassed node hands on its first input of the type asked for, the one in the same place if it fits."""
        inputs, outputs = node.get("inputs") or [], node.get("outputs") or []
        kind = outputs[slot]["type"] if slot < len(outputs) else kind
        order = ([inputs[slot]] if slot < len(inputs) else []) + inputs
        for entry in order:
            if entry.get("type") == kind and entry.get("link") is not None:
                return self.source(entry["link"], depth + 1)
        return None

    def convert(self, node: dict) -> dict:
        kind = node["type"]
        specs = input_specs(self.info[kind])
        links = {e["name"]: e.get("link") for e in node.get("inputs") or [] if e.get("link") is not None}
        inputs = self._widgets(node, specs)
        for name, link in links.items():
            source = self.source(link)
            if source is None:
                if not (name in specs and is_widget(specs[name])):
                    inputs.pop(name, None)
            elif isinstance(source, tuple):
                inputs[name] = source[1]
            else:
                inputs[name] = source
        result = {"class_type": kind, "inputs": inputs}
        result["_meta"] = {"title": node.get("title") or self.info[kind].get("display_name") or kind}
        return result

    def _widgets(self, node: dict, specs: dict) -> dict:
        values = node.get("widgets_values")
        if isinstance(values, dict):  # some packs save names
            return {n: values[n] for n, s in specs.items() if is_widget(s) and n in values}
        values = list(values or [])
        names = [n for n, s in specs.items() if is_widget(s)]
        saved = [e["widget"]["name"] for e in node.get("inputs") or [] if isinstance(e.get("widget"), dict) and "name" in e["widget"]]
        strange = [n for n in saved if n not in specs]
        odd = [n for n, s in specs.items() if isinstance(s[0], str) and s[0].startswith("COMFY_") and s[0].endswith("_V3") and n in saved]
        if odd or any("." in n for n in strange):
            raise _refuse(f"node {node['id']} ({node['type']}) has inputs that change with a choice ({', '.join(odd or strange)})")
        extra = [n for n in saved if n in specs and n not in names]  # widgets of types we do not know, saved as such
        if extra:
            names = [n for n in specs if n in names or n in extra]
        inputs, at = {}, 0
        for name in names:
            if at >= len(values):
                if len(specs[name]) > 1 and isinstance(specs[name][1], dict) and "default" in specs[name][1]:
                    inputs[name] = specs[name][1]["default"]
                continue
            inputs[name] = values[at]
            at += 1
            if _has_control(name, specs[name]) and at < len(values) and values[at] in _CONTROLS:
                at += 1
        return {n: v for n, v in inputs.items() if v is not None}


def to_api(ui: dict, info: dict) -> dict:
    """The workflow in API format. Node classes unknown to the server are kept, to be named by the check that follows."""
    subgraphs = {g.get("id"): g.get("name") for g in (ui.get("definitions") or {}).get("subgraphs") or []}
    graph = _Graph(ui, info)
    result = {}
    for node in ui["nodes"]:
        kind, mode = node["type"], node.get("mode", 0)
        if kind in _PAGE_ONLY or kind in ("PrimitiveNode", "Reroute") or mode in (_MUTED, _BYPASSED):
            continue
        if kind in subgraphs:
            raise _refuse(f"node {node['id']} is a subgraph ('{subgraphs[kind]}')")
        if kind not in info:
            result[str(node["id"])] = {"class_type": kind, "inputs": {}}
        else:
            result[str(node["id"])] = graph.convert(node)
    if not result:
        raise WorkflowError("The workflow has no active node.")
    return result
