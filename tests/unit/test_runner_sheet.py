"""The comparison sheet: graphs of the columns, and the picture."""

from __future__ import annotations

import pytest
from lodestar.demo import runner_sheet as sheet
from lodestar.demo.runner_workflow import is_api

Image = pytest.importorskip("PIL.Image")


def test_columns_share_everything_but_the_guidance():
    graphs = [sheet.workflow(c) for c in sheet.COLUMNS]
    for graph in graphs:
        assert is_api(graph)
        for node in graph.values():
            for value in node["inputs"].values():
                if isinstance(value, list):
                    assert value[0] in graph
        samplers = [n["inputs"] for i, n in graph.items() if i.startswith("sampler-")]
        assert [s["seed"] for s in samplers] == [sheet.SEED + i for i in range(len(sheet.PROMPTS))]
    plain, cfg = graphs[0], graphs[1]
    assert "guidance" not in plain and plain["sampler-0"]["inputs"]["cfg"] == 1.0 < cfg["sampler-0"]["inputs"]["cfg"]
    assert sum("guidance" in g for g in graphs) == 3
    assert all(g["sampler-0"]["inputs"]["model"] == ["guidance", 0] for g in graphs if "guidance" in g)
    assert graphs[-1]["guidance"]["inputs"]["negative"] == ["negative", 0]


def test_defaults_are_filled_in():
    graph = {"1": {"class_type": "A", "inputs": {"x": 1}}}
    info = {"A": {"input": {"required": {"x": ["INT", {"default": 5}], "y": ["INT", {"default": 6}], "m": ["MODEL"]}, "optional": {"z": ["INT", {"default": 7}]}}}}
    assert sheet.complete(graph, info)["1"]["inputs"] == {"x": 1, "y": 6}


def test_picture():
    red, blue = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")
    made = sheet.compose([("CFG\nw = 4", [red, blue]), ("APG", [blue, red])], ["a red square that is described at some length", "two"], "Title")
    assert made.width > 2 * 192 and made.height > 2 * 192
    colours = {c for _, c in made.getcolors(1 << 20)}
    assert {(255, 0, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)} <= colours
