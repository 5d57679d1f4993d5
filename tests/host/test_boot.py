"""The real host boots with the pack in it, knows its nodes, runs workflows, and has nothing to complain about."""

from __future__ import annotations

import asyncio

import pytest
from lodestar.demo import runner_convert, runner_workflow
from lodestar.demo.runner_errors import ExecutionFailed, WorkflowError
from lodestar.demo.runner_server import ROOT

has_pack = pytest.mark.skipif(not (ROOT / "__init__.py").is_file(), reason="the pack has no __init__.py yet")

PICTURE = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 32, "height": 16, "batch_size": 1, "color": 0xFF8000}},
    "2": {"class_type": "ImageScale", "inputs": {"image": ["1", 0], "upscale_method": "nearest-exact", "width": 64, "height": 48, "crop": "disabled"}},
    "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "boot"}},
}


def test_answers(server):
    assert server.client.get("/system_stats")["system"]


def test_core_nodes_known(server):
    info = server.object_info()
    assert {"KSampler", "CLIPTextEncode", "VAEDecode", "SaveImage"} <= set(info)


def test_runs_a_workflow(server):
    picture = server.image(server.run(PICTURE), "3")
    assert picture.size == (64, 48)
    assert picture.convert("RGB").getpixel((5, 5)) == (255, 128, 0)


def test_runs_it_again_from_cache(server):
    first, second = server.run(PICTURE), server.run(PICTURE)
    assert server.image(first, "3").tobytes() == server.image(second, "3").tobytes()


def test_unknown_node_is_named(server):
    graph = {**PICTURE, "2": {"class_type": "ImageScal", "inputs": {}}}
    with pytest.raises(WorkflowError, match="ImageScal.*did you mean ImageScale"):
        runner_workflow.check_classes(graph, server.object_info())
    with pytest.raises(WorkflowError, match="ImageScal"):
        server.run(graph)


def test_wrong_value_is_named(server):
    graph = {**PICTURE, "2": {"class_type": "ImageScale", "inputs": {**PICTURE["2"]["inputs"], "upscale_method": "nearst-exact", "width": -5}}}
    with pytest.raises(WorkflowError, match="ImageScale") as e:
        server.run(graph)
    assert "nearst-exact" in str(e.value)


def test_failing_node_is_named(server):
    graph = {
        "a": {"class_type": "LoadImage", "inputs": {"image": "broken.png"}},
        "b": {"class_type": "SaveImage", "inputs": {"images": ["a", 0], "filename_prefix": "boot"}},
    }
    (server.process.base / "input" / "broken.png").write_bytes(b"this is no picture")
    with pytest.raises(ExecutionFailed, match="LoadImage") as e:
        server.run(graph)
    assert e.value.node_id == "a" and e.value.traceback


def test_page_format_is_converted(server):
    """The graph of PICTURE as the page saves it, with a reroute, a note, and a bypassed node on the way."""
    ui = {
        "nodes": [
            {"id": 1, "type": "EmptyImage", "mode": 0, "inputs": [], "outputs": [{"type": "IMAGE"}], "widgets_values": [32, 16, 1, 0xFF8000]},
            {"id": 5, "type": "Reroute", "mode": 0, "inputs": [{"name": "", "type": "*", "link": 1}], "outputs": [{"type": "IMAGE"}]},
            {"id": 6, "type": "ImageInvert", "mode": 4, "inputs": [{"name": "image", "type": "IMAGE", "link": 2}], "outputs": [{"type": "IMAGE"}]},
            {"id": 2, "type": "ImageScale", "mode": 0, "inputs": [{"name": "image", "type": "IMAGE", "link": 3}], "outputs": [{"type": "IMAGE"}],
             "widgets_values": ["nearest-exact", 64, 48, "disabled"]},
            {"id": 3, "type": "SaveImage", "mode": 0, "inputs": [{"name": "images", "type": "IMAGE", "link": 4}], "widgets_values": ["boot"]},
            {"id": 9, "type": "Note", "mode": 0, "widgets_values": ["hello"]},
        ],
        "links": [[1, 1, 0, 5, 0, "IMAGE"], [2, 5, 0, 6, 0, "IMAGE"], [3, 6, 0, 2, 0, "IMAGE"], [4, 2, 0, 3, 0, "IMAGE"]],
    }
    graph = runner_convert.to_api(ui, server.object_info())
    assert {i: n["inputs"] for i, n in graph.items()} == {i: n["inputs"] for i, n in PICTURE.items()}
    assert server.image(server.run(graph), "3").size == (64, 48)


def test_in_process_and_server_agree_on_nodes(host, server):
    """The `host` fixture loads the same core nodes as the server (extras that need more than a CPU apart)."""
    assert {"KSampler", "EmptyImage", "SaveImage"} <= set(host.nodes())
    assert {name for name in server.object_info() if name.startswith("KSampler")} <= set(host.nodes())


@has_pack
def test_pack_nodes_are_registered(server):
    ours = [name for name in server.object_info() if name.startswith("Lodestar")]
    assert ours, "the server lists no node of the pack"
    for name in ours:
        entry = server.object_info()[name]
        assert entry["category"].lower().startswith("lodestar"), f"{name} is in the menu under {entry['category']!r}"
        assert entry["output"] or entry["output_node"], f"{name} gives nothing"


@has_pack
def test_pack_registers_the_same_in_process(pack, server):
    ours = {name for name in server.object_info() if name.startswith("Lodestar")}
    if hasattr(pack, "comfy_entrypoint"):
        async def listed():
            return [node.define_schema().node_id for node in await (await pack.comfy_entrypoint()).get_node_list()]

        names = asyncio.run(listed())
        assert not hasattr(pack, "NODE_CLASS_MAPPINGS"), "the loader ignores the entry point where a mapping is there"
    else:
        names = list(pack.NODE_CLASS_MAPPINGS)
    assert len(names) == len(set(names)) and set(names) == ours


@has_pack
def test_nothing_to_complain_about(server):
    assert server.complaints() == []
