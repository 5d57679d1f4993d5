"""Which tests belong to which method, read from the test files without importing them."""
from __future__ import annotations

import ast
import re
from pathlib import Path

from .frozen import frozen

EVERY = "*"


@frozen
class Test:
    """A test function: its id as pytest has it (without parameters), its folder ("unit", "host"), its file's stem, the node ids it is marked with."""

    id: str
    folder: str
    stem: str
    marks: frozenset

    __test__ = False


def _constants(body):
    """The names that a module's assignments bind: {name: expression}."""
    found = {}
    for node in body:
        if not isinstance(node, ast.Assign):
            continue
        for target in node.targets:
            if isinstance(target, ast.Name):
                found[target.id] = node.value
            elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                found |= {t.id: v for t, v in zip(target.elts, node.value.elts) if isinstance(t, ast.Name)}
    return found


def _strings(node, names):
    """The strings in an argument: a literal, a constant of the module, a tuple or list of such."""
    if isinstance(node, ast.Constant):
        return {node.value} if isinstance(node.value, str) else set()
    if isinstance(node, ast.Name) and node.id in names:
        return _strings(names[node.id], {k: v for k, v in names.items() if k != node.id})
    if isinstance(node, (ast.List, ast.Tuple)):
        return set().union(*(_strings(e, names) for e in node.elts))
    return _strings(node.value, names) if isinstance(node, ast.Starred) else set()


def _marks(expressions, names):
    """The arguments of `pytest.mark.method(...)` among decorators, or in a pytestmark."""
    found = set()
    for e in expressions:
        if isinstance(e, ast.Name) and e.id in names:
            e = names[e.id]
        if isinstance(e, (ast.List, ast.Tuple)):
            found |= _marks(e.elts, names)
        elif isinstance(e, ast.Call) and isinstance(e.func, ast.Attribute) and e.func.attr == "method" and ast.unparse(e.func.value).endswith("pytest.mark"):
            found |= set().union(*(_strings(a, names) for a in e.args))
    return found


def _functions(body, marks, names, prefix=""):
    own = _constants(body)
    if "pytestmark" in own:
        marks = marks | _marks([own["pytestmark"]], names)
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test"):
            yield prefix + node.name, marks | _marks(node.decorator_list, names)
        elif isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            yield from _functions(node.body, marks | _marks(node.decorator_list, names), names, f"{prefix}{node.name}::")


def scan(folder):
    """Every Test below tests/unit, tests/host and tests/browser."""
    folder, found = Path(folder), []
    for kind in ("unit", "host", "browser"):
        for path in sorted((folder / kind).rglob("test_*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
            base = f"tests/{path.relative_to(folder).as_posix()}"
            found += [Test(f"{base}::{name}", kind, path.stem, frozenset(marks)) for name, marks in _functions(tree.body, set(), _constants(tree.body))]
    return found


def of_method(tests, node_id, module):
    """{"unit": ids, "host": ids} of a method: marked with its node id or with "*", or in a file called after its module (test_pag.py, test_pag_host.py)."""
    name = re.compile(rf"test_(host_)?{re.escape(module)}(_host|_identities)?")
    mine = [t for t in tests if t.marks & {node_id, EVERY} or (not t.marks and name.fullmatch(t.stem))]
    return {"unit": [t.id for t in mine if t.folder == "unit"], "host": [t.id for t in mine if t.folder != "unit"]}
