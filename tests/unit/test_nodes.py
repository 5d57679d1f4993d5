"""From one definition to V1 and V3 classes, without a host."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
import types

import pytest
from lodestar import nodes
from lodestar.guidance import catalogue
from lodestar.guidance.frozen import frozen
from lodestar.guidance.method import BadInput, Term, param, socket
from lodestar.nodes import _define
from lodestar.nodes._define import Input, NodeDef, Output, Shown
from lodestar.scripts import make_docs, make_workflows

DEFINITIONS = nodes.definitions()
PERMANENT = {      # published node ids: workflows of users name them
    "LodestarAdaptiveGuidance", "LodestarAdaptiveProjectedGuidance", "LodestarCFGPlusPlusSampler", "LodestarDDIMInversion", "LodestarGuidanceInspector",
    "LodestarGuidanceInterval", "LodestarInspectorPlot", "LodestarListLayers", "LodestarLoadDemoModel", "LodestarModelPairGuidance",
    "LodestarNormalizedAttentionGuidance", "LodestarPerturbedAttentionGuidance", "LodestarTargetImageLoss", "LodestarUniversalGuidance",
    "LodestarRegion", "LodestarRegionFromMask", "LodestarRegionsFromJSON", "LodestarRegionPrompt", "LodestarShowRegions", "LodestarRegionalPrompts", "LodestarDenseDiffusion", "LodestarDirectedDiffusion", "LodestarPromptToPrompt", "LodestarStructuredDiffusionGuidance", "LodestarSceneGraphLayout", "LodestarNegativeAwaySteerAttention",
}


@frozen
class Example(Term):
    """Adds something.

    More about it.
    """

    node_id, title, family, paper, aliases = "LodestarExample", "Example", "tests", "none", ("ex",)
    other: object = socket("CONDITIONING", "A prompt.")
    perhaps: object = socket("MASK", "A mask.", optional=True)
    scale: float = param(1.0, "Strength.", 0.0, 10.0, 0.5)
    count: int = param(3, "Count.", 1, 5, 1)
    on: bool = param(True, "Switch.")
    layers: str = param("middle", "Layers.")
    mode: str = param("a", "Mode.", choices=("a", "b"))
    fine: float = param(0.5, "Fine.", 0.0, 1.0, advanced=True)
    hidden: object = None


def test_permanent_ids_are_there():
    assert PERMANENT <= set(DEFINITIONS)


@pytest.mark.parametrize("d", DEFINITIONS.values(), ids=lambda d: d.node_id)
def test_definitions_are_complete(d):
    assert re.fullmatch(r"Lodestar[A-Za-z0-9]+", d.node_id) and d.title and d.category.startswith("Lodestar/") and len(d.category) > 9
    assert d.description.endswith(".") and (d.method is not None or d.help)
    assert d.outputs or d.output_node
    assert len({i.name for i in d.inputs}) == len(d.inputs)
    for i in d.inputs:
        assert i.tooltip.endswith("."), i.name
        if i.widget:
            assert i.default is not None, i.name
        if i.type == "COMBO":
            assert i.default in i.options
        if i.type in ("INT", "FLOAT"):
            assert i.min is not None and i.max is not None and i.min <= i.default <= i.max, i.name
    assert all(o.tooltip for o in d.outputs)


def test_node_of_a_method():
    d = _define.node_of(Example)
    assert (d.node_id, d.title, d.category, d.description, d.aliases) == ("LodestarExample", "Example", "Lodestar/Tests", "Adds something.", ("ex",))
    assert [(i.name, i.type) for i in d.inputs] == [("model", "MODEL"), ("other", "CONDITIONING"), ("perhaps", "MASK"), ("scale", "FLOAT"), ("count", "INT"),
                                                    ("on", "BOOLEAN"), ("layers", "STRING"), ("mode", "COMBO"), ("fine", "FLOAT")]
    assert [i.name for i in d.ordered()][-2:] == ["perhaps", "fine"] and [o.type for o in d.outputs] == ["MODEL"]


def test_v1_class():
    made = _define.v1_class(_define.node_of(Example))
    types_ = made.INPUT_TYPES()
    assert types_["required"]["scale"] == ("FLOAT", {"tooltip": "Strength.", "default": 1.0, "min": 0.0, "max": 10.0, "step": 0.5})
    assert types_["required"]["mode"][0] == ["a", "b"] and types_["required"]["other"] == ("CONDITIONING", {"tooltip": "A prompt."})
    assert set(types_["optional"]) == {"perhaps", "fine"}
    assert made.RETURN_TYPES == ("MODEL",) and made.CATEGORY == "Lodestar/Tests" and made.FUNCTION == "execute" and made.OUTPUT_NODE is False


def _node(run, inputs=(Input("x", "INT", "X.", 1, 0, 9, 1), Input("y", "INT", "Y.", 5, 0, 9, 1, optional=True))):
    return NodeDef("LodestarTry", "Try", "Lodestar/Tests", "Tries.", tuple(inputs), (Output("INT", "z"),), run)


def test_what_is_left_out_has_its_default():
    assert _define.v1_class(_node(lambda x, y: (10 * x + y,)))().execute(x=2) == (25,)
    assert _define.v1_class(_node(lambda x, y: (10 * x + y,)))().execute(x=2, y=0) == (20,)


def test_text_is_shown():
    assert _define.v1_class(_node(lambda x, y: Shown((x,), "seen")))().execute(x=2) == {"ui": {"text": ("seen",)}, "result": (2,)}


def test_errors_pass_unchanged():
    def run(x, y):
        raise BadInput("Try", "x", x, "It must be odd.")

    with pytest.raises(BadInput, match="^Try: x = 2 is not possible. It must be odd.$"):
        _define.v1_class(_node(run))().execute(x=2)


class _OldIO:
    """comfy_api.latest.io of an old host: its classes know neither `advanced` nor `search_aliases`."""

    class Schema:
        def __init__(self, node_id, display_name=None, category="", inputs=None, outputs=None, description="", is_output_node=False):
            self.__dict__.update(locals())

    class ComfyNode:
        @classmethod
        def GET_SCHEMA(cls):
            return cls.define_schema()

    class NodeOutput:
        def __init__(self, *args, ui=None):
            self.args, self.ui = args, ui

    @staticmethod
    def _kind(name, extra):
        def make(id, display_name=None, optional=False, tooltip=None, **more):
            assert set(more) <= extra, more
            return types.SimpleNamespace(id=id, kind=name, optional=optional, tooltip=tooltip, **more)

        def plain(id, display_name=None, optional=False, tooltip=None):
            return make(id, display_name, optional, tooltip)

        def number(id, display_name=None, optional=False, tooltip=None, default=None, min=None, max=None, step=None):
            return make(id, display_name, optional, tooltip, default=default, min=min, max=max, step=step)

        def widget(id, options=None, display_name=None, optional=False, tooltip=None, default=None):
            return make(id, display_name, optional, tooltip, default=default, options=options)

        def output(id=None, display_name=None, tooltip=None):
            return types.SimpleNamespace(kind=name, display_name=display_name)

        kinds = {"INT": number, "FLOAT": number, "COMBO": widget, "STRING": widget, "BOOLEAN": widget}
        return types.SimpleNamespace(Input=kinds.get(name, plain), Output=output)


_EXTRA = {"default", "min", "max", "step", "options"}
for _name, _attr in (("INT", "Int"), ("FLOAT", "Float"), ("STRING", "String"), ("BOOLEAN", "Boolean"), ("COMBO", "Combo")):
    setattr(_OldIO, _attr, _OldIO._kind(_name, _EXTRA))
_OldIO.Custom = staticmethod(lambda name: _OldIO._kind(name, _EXTRA))


def test_v3_class_on_a_host_that_knows_less():
    made = _define.v3_class(_define.node_of(Example), _OldIO)
    schema = made.GET_SCHEMA()
    assert schema.node_id == "LodestarExample" and schema.category == "Lodestar/Tests"
    assert {i.id: i.kind for i in schema.inputs}["other"] == "CONDITIONING"
    fine = next(i for i in schema.inputs if i.id == "fine")
    assert fine.optional and fine.default == 0.5 and fine.max == 1.0
    assert next(i for i in schema.inputs if i.id == "mode").options == ["a", "b"]


def test_v3_and_v1_run_the_same():
    d = _node(lambda x, y: Shown((x + y,), "seen"))
    out = _define.v3_class(d, _OldIO).execute(x=1)
    assert out.args == (6,) and out.ui == {"text": ("seen",)}
    assert _define.v1_class(d)().execute(x=1)["result"] == (6,)


def test_a_faulty_node_does_not_take_the_pack_with_it(monkeypatch, caplog):
    real = _define.node_of

    def broken(cls):
        if cls.node_id == "LodestarGuidanceInterval":
            raise KeyError("broken")
        return real(cls)

    monkeypatch.setattr(_define, "node_of", broken)
    with caplog.at_level(logging.ERROR):
        left = nodes.definitions()
    assert set(DEFINITIONS) - set(left) == {"LodestarGuidanceInterval"}
    assert "LodestarGuidanceInterval is left out" in caplog.text


def test_the_pack_exports_one_kind_of_node(pack):
    assert hasattr(pack, "NODE_CLASS_MAPPINGS") != hasattr(pack, "comfy_entrypoint")
    if hasattr(pack, "NODE_CLASS_MAPPINGS"):
        assert set(pack.NODE_CLASS_MAPPINGS) == set(DEFINITIONS) == set(pack.NODE_DISPLAY_NAME_MAPPINGS)
    assert (catalogue.ROOT / pack.WEB_DIRECTORY / "docs").is_dir()


def test_import_is_quiet_quick_and_without_comfy(tmp_path):
    code = """
import os, sys, time, warnings
warnings.filterwarnings("ignore", "This process .* is multi-threaded")      # it has not begun to compute
sys.path.append("scripts")
import _alias
sys.path.pop()
_alias.install()
import torch, PIL.Image, PIL.ImageDraw, PIL.ImageFont
for _ in range(12):      # a busy machine is no reason to fail
    child = os.fork() if hasattr(os, "fork") else 0      # torch is imported once
    if child:
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 7:
            break
        time.sleep(0.3)
        continue
    begin, cpu = time.perf_counter(), time.process_time()
    from lodestar import nodes
    nodes.v1_classes()
    took = min(time.perf_counter() - begin, time.process_time() - cpu)
    print(took, flush=True)
    assert not [m for m in sys.modules if m.split(".")[0] in ("comfy", "comfy_api", "comfy_extras")]
    os._exit(0 if took < 0.3 else 7)      # without torch's own goodbye
"""
    # a copy, so that its modules are compiled once, as in an installation: the first start of a new version may take longer
    for name in ("guidance", "nodes", "demo", "scripts"):
        shutil.copytree(catalogue.ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    shutil.copy(catalogue.ROOT / "__init__.py", tmp_path)
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert (done.returncode == 0 or not hasattr(os, "fork")) and done.stderr == "", done.stderr
    best = min(float(line) for line in done.stdout.splitlines())
    assert best < 0.3, f"importing the pack takes {best:.2f} s"


def test_generated_pages_are_up_to_date():
    wrong = make_docs.stale(make_docs.files(), make_docs.FOLDERS, make_docs.PATTERN)
    assert not wrong, f"run scripts/make_docs.py: {', '.join(wrong)}"


def test_generated_workflows_are_up_to_date():
    wrong = make_workflows.stale(make_workflows.files(), make_workflows.FOLDERS, make_workflows.PATTERN)
    assert not wrong, f"run scripts/make_workflows.py: {', '.join(wrong)}"


@pytest.mark.parametrize("path", sorted((catalogue.ROOT / "example_workflows").glob("*.json")), ids=lambda p: p.stem)
def test_page_workflows_are_consistent(path):
    import json

    ui = json.loads(path.read_text(encoding="utf-8"))
    by_id = {n["id"]: n for n in ui["nodes"]}
    assert len(by_id) == len(ui["nodes"]) and ui["last_node_id"] == max(by_id) and ui["last_link_id"] == len(ui["links"])
    for link, origin, out, target, slot, kind in ui["links"]:
        assert link in by_id[origin]["outputs"][out]["links"] and by_id[origin]["outputs"][out]["type"] == kind
        assert by_id[target]["inputs"][slot]["link"] == link and by_id[target]["inputs"][slot]["type"] == kind
        assert by_id[origin]["pos"][0] < by_id[target]["pos"][0], "not laid out from left to right"
    boxes = [(*n["pos"], n["pos"][0] + n["size"][0], n["pos"][1] + n["size"][1]) for n in ui["nodes"]]
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], "nodes lie on top of each other"


def test_every_example_has_its_picture():
    """The template browser shows NAME.jpg beside NAME.json."""
    from PIL import Image

    folder = catalogue.ROOT / "example_workflows"
    found = {p.stem: p for p in folder.glob("*.jpg")}
    assert set(found) == {p.stem for p in folder.glob("*.json")}, "run scripts/make_thumbnails.py"
    for path in found.values():
        with Image.open(path) as image:
            assert image.format == "JPEG" and image.height == 256
            low, high = image.convert("L").getextrema()
            assert high - low > 50, f"{path.name} shows nothing"


def test_every_node_is_in_an_example():
    import json

    used = {n["class_type"] for p in (catalogue.ROOT / "example_workflows" / "api").glob("*.json") for n in json.loads(p.read_text(encoding="utf-8")).values()}
    assert set(DEFINITIONS) <= used


def test_markdown_keeps_formulas_and_escapes_the_rest():
    text = make_docs.markdown("First <line>\nand a_b.\n\n    x = y < z\n\nz = a * b\n\nWith `code_x <y>` and *star*. Limits: none.")
    assert text == "First \\<line> and a\\_b.\n\n```text\nx = y < z\n```\n\n```text\nz = a * b\n```\n\nWith `code_x <y>` and \\*star\\*.\n\n**Limits:** none."
