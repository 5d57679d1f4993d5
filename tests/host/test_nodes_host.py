"""The nodes on a real host: all there, with the inputs of their definitions, and with errors that reach the user unchanged."""

from __future__ import annotations

import pytest

from lodestar.demo.runner_errors import ExecutionFailed, WorkflowError
from lodestar.demo.runner_workflow import input_specs
from lodestar.nodes import definitions
from lodestar.scripts import _graph

DEFINITIONS = definitions()


def test_all_are_registered(server):
    ours = {name for name in server.object_info() if name.startswith("Lodestar")}
    assert ours == set(DEFINITIONS)


@pytest.mark.method("*")
def test_as_defined(server):
    info = server.object_info()
    for name, d in DEFINITIONS.items():
        entry = info[name]
        assert (entry["display_name"], entry["category"], entry["output_node"]) == (d.title, d.category, d.output_node)
        assert entry["description"] == d.description
        assert list(entry["output"]) == [o.type for o in d.outputs] and list(entry["output_name"]) == [o.name for o in d.outputs]
        specs = input_specs(entry)
        assert list(specs) == [i.name for i in d.ordered()], name
        assert set((entry["input"].get("optional") or {})) == {i.name for i in d.inputs if i.optional}
        for i in d.inputs:
            kind, options = specs[i.name][0], specs[i.name][1] if len(specs[i.name]) > 1 else {}
            if i.type == "COMBO":
                assert (list(kind) if isinstance(kind, list) else options["options"]) == i.options
            else:
                assert kind == i.type
            assert options["tooltip"] == i.tooltip
            if i.widget:
                assert options["default"] == i.default
            for key in ("min", "max", "step"):
                if getattr(i, key) is not None:
                    assert options[key] == getattr(i, key), (name, i.name)


def test_core_nodes_are_as_the_examples_take_them(server):
    info = server.object_info()
    for name, (_, inputs, outputs) in _graph.CORE.items():
        if server.kind == "pypi":      # its node crops without asking
            inputs = [i for i in inputs if (name, i[0]) != ("CLIPVisionEncode", "crop")]
        specs = input_specs({**info[name], "input": {"required": info[name]["input"]["required"]}})
        assert list(specs) == [i[0] for i in inputs], name
        assert [("COMBO" if isinstance(s[0], list) else s[0]) for s in specs.values()] == [i[1] for i in inputs], name
        assert list(info[name]["output"])[: len(outputs)] == [o[0] for o in outputs], name


def _graph_with(kind, **inputs):
    d = DEFINITIONS[kind]
    defaults = {i.name: i.default for i in d.inputs if i.widget}
    return {"1": {"class_type": "LodestarLoadDemoModel", "inputs": {"model": "unet"}},
            "2": {"class_type": kind, "inputs": {"model": ["1", 0], **defaults, **inputs}},
            "3": {"class_type": "LodestarListLayers", "inputs": {"model": ["2", 0]}}}


def test_errors_reach_the_user_unchanged(server):
    with pytest.raises(ExecutionFailed, match="sigma_high = 1.0 is not possible. It must be above sigma_low"):
        server.run(_graph_with("LodestarGuidanceInterval", sigma_low=2.0, sigma_high=1.0))
    with pytest.raises(ExecutionFailed, match="(?s)double.3.*selects no layer.*middle.0"):
        server.run(_graph_with("LodestarPerturbedAttentionGuidance", layers="double.3"))


def test_values_outside_their_range_are_refused(server):
    with pytest.raises(WorkflowError, match="start_percent"):
        server.run(_graph_with("LodestarGuidanceInterval", start_percent=2.0))


def test_optional_widgets_may_be_left_out(server):
    graph = _graph_with("LodestarPerturbedAttentionGuidance")
    del graph["2"]["inputs"]["adaptive"]
    assert server.run(graph)["3"]


def test_layers_are_listed(server):
    outputs = server.run(_graph_with("LodestarGuidanceInterval"))
    text = outputs["3"]["text"]
    assert "middle.0" in (text if isinstance(text, str) else text[0])


def test_help_pages_are_served(server):
    if server.kind == "pypi":
        pytest.skip("this host's page shows no help pages")
    listed = server.client.get("/extensions")
    assert any(str(path).endswith("lodestar_text.js") for path in listed)
    base = next(str(path) for path in listed if str(path).endswith("lodestar_text.js")).rsplit("/js/", 1)[0]
    for name in DEFINITIONS:
        assert DEFINITIONS[name].title in server.client.request(f"{base}/docs/{name}.md").decode()
