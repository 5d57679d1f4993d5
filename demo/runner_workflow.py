"""Workflows as data: reading a file, setting inputs, and putting the server's objections into words."""

from __future__ import annotations

import difflib
import json
from pathlib import Path

from .runner_errors import Failure, WorkflowError


def load(path: str) -> dict:
    """The JSON object in this file (API or UI format)."""
    file = Path(path).expanduser()
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError as e:
        raise Failure(f"There is no file {file}.") from e
    except (OSError, UnicodeDecodeError) as e:
        why = getattr(e, "strerror", None) or "it is not text"
        raise Failure(f"{file} cannot be read: {why}. A workflow is a JSON file saved by ComfyUI.") from e
    try:
        value = json.loads(text)
    except ValueError as e:
        raise Failure(f"{file} is not JSON: {e}. A workflow is a JSON file saved by ComfyUI (in its menu: Export (API)).") from e
    if isinstance(value, dict) and isinstance(value.get("prompt"), dict) and "nodes" not in value:
        value = value["prompt"]  # a saved request
    if not is_ui(value) and not is_api(value):
        raise Failure(f"{file} is JSON, but no workflow: expected nodes as {{\"id\": {{\"class_type\": ..., \"inputs\": ...}}}}, "
                      "or a graph saved from ComfyUI's page.")
    return value


def is_ui(value) -> bool:
    return isinstance(value, dict) and isinstance(value.get("nodes"), list)


def is_api(value) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(n, dict) and isinstance(n.get("class_type"), str) for n in value.values())


def title_of(node: dict) -> str:
    return str((node.get("_meta") or {}).get("title") or "")


def describe(node_id: str, workflow: dict, kind: str = "") -> str:
    """A node as people know it: its class, its title if it has another one, its id."""
    node = workflow.get(node_id) or {}
    kind = node.get("class_type") or kind or "node"
    title = title_of(node)
    return f"{kind} '{title}' ({node_id})" if title and title != kind else f"{kind} ({node_id})"


def find(workflow: dict, name: str) -> str | None:
    """The id of the node meant by an id, a title, or a class name if there is only one; None if there is none."""
    if name in workflow:
        return name
    for of in (title_of, lambda n: n["class_type"]):
        found = [i for i, n in workflow.items() if of(n) == name]
        if len(found) > 1:
            raise WorkflowError(f"'{name}' names {len(found)} nodes of the workflow: {', '.join(describe(i, workflow) for i in found)}. Use the id.")
        if found:
            return found[0]
    return None


def parse_value(text: str, before=None):
    """A value from the command line: JSON where it is JSON, else text; text stays text where text was before."""
    if isinstance(before, str):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return {"True": True, "False": False}.get(text, text)


def apply_set(workflow: dict, settings: list[str], info: dict | None = None, upload=None) -> None:
    """Apply NODE.INPUT=VALUE settings in place. `info` (the server's node classes) allows inputs the file leaves out."""
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or "." not in key:
            raise WorkflowError(f"--set {setting}: expected NODE.INPUT=VALUE, for example --set KSampler.seed=7.")
        parts = key.split(".")
        node_id = None
        for cut in range(len(parts) - 1, 0, -1):  # titles and inputs may both contain dots
            name, field = ".".join(parts[:cut]), ".".join(parts[cut:])
            node_id = find(workflow, name)
            if node_id is not None:
                break
        if node_id is None:
            known = ", ".join(describe(i, workflow) for i in workflow)
            raise WorkflowError(f"--set {setting}: the workflow has no node '{key.rsplit('.', 1)[0]}'. Its nodes: {known}.")
        node = workflow[node_id]
        inputs = node.setdefault("inputs", {})
        spec = None if info is None else input_specs(info.get(node["class_type"], {}))
        if field not in inputs and spec is not None and field not in spec and field.split(".")[0] not in spec:
            close = difflib.get_close_matches(field, [*inputs, *spec], 1)
            hint = f" Did you mean '{close[0]}'?" if close else f" It has: {', '.join(spec) or 'none'}."
            raise WorkflowError(f"--set {setting}: {describe(node_id, workflow)} has no input '{field}'.{hint}")
        before = inputs.get(field)
        value = parse_value(text, before if not isinstance(before, list) else ("" if _is_text(spec, field) else None))
        if upload is not None and isinstance(value, str) and _takes_upload(spec, field) and Path(value).is_file():
            value = upload(Path(value))
        inputs[field] = value


def input_specs(node_class: dict) -> dict:
    """{input name: [type, options]} of a class in /object_info, in its order."""
    inputs = node_class.get("input") or {}
    order = node_class.get("input_order") or {}
    specs = {}
    for group in ("required", "optional"):
        have = inputs.get(group) or {}
        for name in [*(n for n in order.get(group, []) if n in have), *(n for n in have if n not in order.get(group, []))]:
            spec = have[name]
            specs[name] = list(spec) if isinstance(spec, (list, tuple)) and spec else [spec, {}]
    return specs


def _options(spec: dict | None, field: str) -> dict:
    entry = (spec or {}).get(field) or []
    return entry[1] if len(entry) > 1 and isinstance(entry[1], dict) else {}


def _is_text(spec: dict | None, field: str) -> bool:
    return bool(spec) and bool(spec.get(field)) and spec[field][0] == "STRING"


def _takes_upload(spec: dict | None, field: str) -> bool:
    return bool(_options(spec, field).get("image_upload"))


def check_classes(workflow: dict, info: dict) -> None:
    """Every node class must exist on the server; say so for all that do not, with the nearest names."""
    unknown: dict[str, list[str]] = {}
    for node_id, node in workflow.items():
        if node["class_type"] not in info:
            unknown.setdefault(node["class_type"], []).append(node_id)
    if not unknown:
        return
    rows = []
    for kind, ids in unknown.items():
        close = difflib.get_close_matches(kind, list(info), 2, 0.7)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        rows.append(f"  {kind} (node {', '.join(ids)}){hint}")
    raise WorkflowError("The server does not know these nodes of the workflow:\n" + "\n".join(rows) + "\nOur own host has ComfyUI's nodes and this pack's only. "
                        "To use other packs, run the workflow on your ComfyUI: --server HOST:PORT")


def render_validation(refusal: dict, workflow: dict) -> str:
    """The server's objections, one line each."""
    error = refusal.get("error")
    rows = []
    for node_id, entry in (refusal.get("node_errors") or {}).items():
        if not isinstance(entry, dict):
            continue
        for objection in entry.get("errors", []):
            rows.append(f"  {describe(str(node_id), workflow, entry.get('class_type', ''))}: {_objection(objection)}")
    if rows:
        return "The server refuses the workflow:\n" + "\n".join(dict.fromkeys(rows))
    if isinstance(error, dict):
        details = str(error.get("details") or "").strip()
        return f"The server refuses the workflow: {error.get('message', 'no reason given')}" + (f" ({details})" if details else "")
    return f"The server refuses the workflow: {error or 'no reason given'}"


def _objection(objection: dict) -> str:
    message, details = str(objection.get("message", "")), str(objection.get("details", ""))
    extra = objection.get("extra_info") or {}
    name, value = extra.get("input_name"), extra.get("received_value")
    if isinstance(value, list):
        value = None  # a link
    if objection.get("type") == "value_not_in_list" and name:
        config = extra.get("input_config")
        first = config[0] if isinstance(config, (list, tuple)) and config else None
        allowed = first if isinstance(first, list) else (config[1].get("options") if isinstance(config, (list, tuple)) and len(config) > 1 and isinstance(config[1], dict) else None)
        text = f"{name} = {value!r} is not one of its values"
        if allowed:
            close = difflib.get_close_matches(str(value), [str(a) for a in allowed], 1)
            shown = ", ".join(map(str, allowed[:12])) + (", ..." if len(allowed) > 12 else "")
            return text + f": {shown}" + (f" (did you mean {close[0]}?)" if close else "")
        return f"{text} ({details})"
    if name and value is not None:
        return f"{name} = {value!r}: {message}" + (f" ({details})" if details and details != name else "")
    return f"{message} ({details})" if details else message
