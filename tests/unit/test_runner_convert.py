"""The page's format to the API's."""

from __future__ import annotations

import pytest
from lodestar.demo.runner_convert import to_api
from lodestar.demo.runner_errors import WorkflowError

INFO = {
    "Load": {"input": {"required": {"name": [["a", "b"], {}]}}, "display_name": "Load it"},
    "Sample": {"input": {"required": {"model": ["MODEL"], "seed": ["INT", {"default": 0}], "steps": ["INT", {"default": 20}],
                                      "latent": ["LATENT"], "denoise": ["FLOAT", {"default": 1.0}]},
                         "optional": {"mode": ["COMBO", {"options": ["x", "y"], "control_after_generate": True}], "strength": ["FLOAT", {"forceInput": True}]}},
               "input_order": {"required": ["model", "seed", "steps", "latent", "denoise"], "optional": ["mode", "strength"]}},
    "Patch": {"input": {"required": {"model": ["MODEL"]}}},
    "Save": {"input": {"required": {"images": ["LATENT"]}}},
}


def node(i, kind, inputs=(), outputs=(), values=None, mode=0, **more):
    return {"id": i, "type": kind, "mode": mode, "inputs": [{"name": n, "type": t, "link": link} for n, t, link in inputs],
            "outputs": [{"type": t} for t in outputs], **({} if values is None else {"widgets_values": values}), **more}


def ui(*middle, links=(), values=(5, "randomize", 30, 0.5, "y", "fixed"), extra_inputs=(), **more):
    return {"nodes": [node(1, "Load", (), ["MODEL"], ["b"]), *middle,
                      node(3, "Sample", [("model", "MODEL", 9), *extra_inputs], ["LATENT"], list(values), title="Sampler"),
                      node(4, "Save", [("images", "LATENT", 8)])],
            "links": [[8, 3, 0, 4, 0, "LATENT"], *links], **more}


DIRECT = ([9, 1, 0, 3, 0, "MODEL"],)


def test_widgets_in_order_and_controls_skipped():
    graph = to_api(ui(links=DIRECT), INFO)
    assert graph["3"]["inputs"] == {"model": ["1", 0], "seed": 5, "steps": 30, "denoise": 0.5, "mode": "y"}
    assert graph["1"] == {"class_type": "Load", "inputs": {"name": "b"}, "_meta": {"title": "Load it"}}
    assert graph["3"]["_meta"]["title"] == "Sampler"


def test_missing_values_take_defaults():
    assert to_api(ui(links=DIRECT, values=(5, "fixed", 30)), INFO)["3"]["inputs"]["denoise"] == 1.0


def test_values_by_name():
    graph = to_api(ui(links=DIRECT), INFO)
    named = ui(links=DIRECT)
    named["nodes"][1]["widgets_values"] = {"seed": 5, "steps": 30, "denoise": 0.5, "mode": "y", "preview": 1}
    assert to_api(named, INFO)["3"] == graph["3"]


def test_reroute_bypass_and_note():
    middle = [node(5, "Reroute", [("", "*", 10)], ["MODEL"]), node(6, "Patch", [("model", "MODEL", 11)], ["MODEL"], mode=4), node(7, "Note", values=["n"])]
    links = [[10, 1, 0, 5, 0, "MODEL"], [11, 5, 0, 6, 0, "MODEL"], [9, 6, 0, 3, 0, "MODEL"]]
    graph = to_api(ui(*middle, links=links), INFO)
    assert set(graph) == {"1", "3", "4"} and graph["3"]["inputs"]["model"] == ["1", 0]


def test_muted_source_is_dropped():
    graph = to_api(ui(node(6, "Patch", [("model", "MODEL", 10)], ["MODEL"], mode=2), links=[[10, 1, 0, 6, 0, "MODEL"], [9, 6, 0, 3, 0, "MODEL"]]), INFO)
    assert "model" not in graph["3"]["inputs"] and "6" not in graph


def test_primitive_feeds_a_widget():
    graph = to_api(ui(node(6, "PrimitiveNode", (), ["INT"], [77, "fixed"]), links=[*DIRECT, [12, 6, 0, 3, 1, "INT"]], extra_inputs=[("seed", "INT", 12)]), INFO)
    assert graph["3"]["inputs"]["seed"] == 77 and "6" not in graph


def test_linked_widget_keeps_its_place():
    graph = to_api(ui(node(6, "Patch", [("model", "MODEL", None)], ["INT"]), links=[*DIRECT, [12, 6, 0, 3, 1, "INT"]], extra_inputs=[("steps", "INT", 12)]), INFO)
    assert graph["3"]["inputs"]["steps"] == ["6", 0] and graph["3"]["inputs"]["denoise"] == 0.5


def test_links_as_objects():
    value = ui(links=DIRECT)
    value["links"] = [{"id": k[0], "origin_id": k[1], "origin_slot": k[2], "target_id": k[3], "target_slot": k[4], "type": k[5]} for k in value["links"]]
    assert to_api(value, INFO) == to_api(ui(links=DIRECT), INFO)


def test_subgraphs_are_refused():
    value = ui(node(6, "some-uuid"), links=DIRECT, definitions={"subgraphs": [{"id": "some-uuid", "name": "Upscale"}]})
    with pytest.raises(WorkflowError, match=r"subgraph \('Upscale'\).*Export \(API\)"):
        to_api(value, INFO)


def test_unknown_classes_are_left_for_the_check():
    assert to_api(ui(node(6, "Elsewhere", values=[1]), links=DIRECT), INFO)["6"]["class_type"] == "Elsewhere"


def test_empty():
    with pytest.raises(WorkflowError, match="no active node"):
        to_api({"nodes": [node(7, "Note")], "links": []}, INFO)
