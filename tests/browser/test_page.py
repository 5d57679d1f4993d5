"""The nodes on the real page: every example loads, becomes the API graph that it should, runs, and shows what it found."""
from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from lodestar.scripts._examples_reading import NEEDS_WEIGHTS

sys.path.append(str(Path(__file__).parent))
import chromium  # noqa: E402

sys.path.pop()

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "example_workflows").glob("*.json"))


@pytest.fixture(scope="module")
def page(server):
    if not os.environ.get("LODESTAR_HOST_PAGE"):
        pytest.skip("the page of this host is not to be had")
    if chromium.installed() is None:
        pytest.skip("no Chromium on this machine")
    with chromium.Page(server.url) as p:
        p.until("!!(window.app && window.app.graph && window.LiteGraph && LiteGraph.registered_node_types['LodestarListLayers'])")
        p.until("(async () => { try { await app.graphToPrompt(); return true } catch (e) { return false } })()")
        settle(p)
        yield p


def settle(page, patience=30):
    """Waits until the page's start is over: at its end it opens a workflow of its own, over what was loaded before."""
    count = len(json.loads(EXAMPLES[0].read_text(encoding="utf-8"))["nodes"])
    for _ in range(patience):
        load(page, EXAMPLES[0])
        time.sleep(1.0)
        if page.run("app.graph._nodes.length") == count:
            return
    raise AssertionError(f"the page does not keep a graph of {count} nodes")


def load(page, path):
    page.run(f"(async () => {{ await app.loadGraphData({path.read_text(encoding='utf-8')}) }})()")


def test_all_nodes_are_on_the_page(page, server):
    wanted = {n for n in server.object_info() if n.startswith("Lodestar")}
    found = set(json.loads(page.run("JSON.stringify(Object.keys(LiteGraph.registered_node_types).filter(n => n.startsWith('Lodestar')))")))
    assert wanted and found == wanted


@pytest.mark.parametrize("path", [pytest.param(p, marks=pytest.mark.newest if p.stem.endswith(("_operator", "_loss")) else (), id=p.stem)
                                  for p in EXAMPLES if p.stem not in NEEDS_WEIGHTS])      # the page marks models that it lacks
def test_an_example_becomes_its_api_graph(page, path):
    """What the page would queue is the graph in api/, wires and values alike; every node is known to the page."""
    load(page, path)
    assert page.run("app.graph._nodes.every(n => !n.has_errors && n.type in LiteGraph.registered_node_types)")
    found = json.loads(page.run("(async () => JSON.stringify((await app.graphToPrompt()).output))()"))
    wanted = json.loads((path.parent / "api" / path.name).read_text(encoding="utf-8"))
    assert set(found) == set(wanted)
    for node_id, node in wanted.items():
        assert found[node_id]["class_type"] == node["class_type"]
        inputs = found[node_id]["inputs"]
        assert {k: inputs.get(k) for k in node["inputs"]} == node["inputs"], node["class_type"]


def test_list_layers_shows_them_on_its_node(page):
    load(page, next(p for p in EXAMPLES if p.stem == "list_layers"))
    page.run("(async () => { await app.queuePrompt(0, 1) })()")
    page.until("app.graph._nodes.some(n => n.lodestarText && n.lodestarText.textContent.includes('middle.0'))")


def test_the_page_has_nothing_against_the_pack(page):
    assert [line for line in page.said if "odestar" in line] == []
