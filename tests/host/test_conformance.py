"""Every node that looks into the network, on a tiny network of each of the host's classes: it acts, or says why it cannot; as docs/conformance.json has it."""
import json
import os
import re
from pathlib import Path

import pytest

pytest.importorskip("torch")

EVERYWHERE = ("unet", "flux")      # on hosts before the newest
PARTS = 3      # a run of all tests asks every network for one node in so many, every node on one network in so many; named by itself (./scripts/test tests/host/test_conformance.py) this file asks all of all
ROOT = Path(__file__).resolve().parent.parent.parent
REMEDY = "If that is meant, run `python scripts/make_conformance.py HOST` with the newest host and commit docs/conformance.json and docs/conformance.md."


def asked(name):
    """The nodes that a network is asked for in this run. Every node's example runs on the U-Net, and on the newest host on a network of the Flux type; older ones are asked for all nodes on it here."""
    from lodestar.tests.zoo import matrix
    number = specimens().index(name)
    whole = os.environ.get("LODESTAR_CONFORMANCE") != "part" or (name == "flux" and os.environ.get("LODESTAR_HOST_PLACE", "newest") != "newest")
    return [n for i, n in enumerate(matrix.node_ids()) if whole or (i + number) % PARTS == 0]


def test_a_run_in_part_leaves_no_network_and_no_node_out(monkeypatch):
    from lodestar.tests.zoo import matrix
    monkeypatch.setenv("LODESTAR_CONFORMANCE", "part")
    monkeypatch.setenv("LODESTAR_HOST_PLACE", "oldest")
    assert asked("flux") == matrix.node_ids() != asked("unet")
    monkeypatch.setenv("LODESTAR_HOST_PLACE", "newest")
    parts = {name: asked(name) for name in specimens()}
    assert all(parts.values())
    for node_id in matrix.node_ids():
        assert sum(node_id in nodes for nodes in parts.values()) >= len(parts) // PARTS
    monkeypatch.delenv("LODESTAR_CONFORMANCE")
    assert all(asked(name) == matrix.node_ids() for name in parts)


def specimens():
    import lodestar.tests.zoo.specimens as zoo
    return list(zoo.ALL)


@pytest.fixture(scope="module")
def known(host):
    """The definitions of the nodes, the committed matrix, and whether this host is the newest."""
    from lodestar.guidance.host.features import wrappers
    from lodestar.tests.zoo import matrix
    if not wrappers():
        pytest.skip("this host's engine is the reduced one; the tests of the single methods cover it")
    return matrix.definitions(), json.loads((ROOT / "docs" / "conformance.json").read_text(encoding="utf-8")), matrix.newest(host.path)


def test_every_node_has_its_arguments():
    """A new node that looks into the network needs a line in tests/zoo/nodes.py."""
    from lodestar.tests.zoo import matrix, nodes
    ids = matrix.node_ids()
    assert [i for i in ids if i not in nodes.GIVEN] == [], "give these nodes their arguments in tests/zoo/nodes.py (GIVEN)"
    assert [i for i in nodes.GIVEN if i not in ids] == []


def test_the_page_lists_every_network_and_node(known):
    from lodestar.tests.zoo import matrix
    data = known[1]
    assert list(data["networks"]) == list(matrix.ALL), REMEDY
    assert list(data["nodes"]) == matrix.node_ids(), REMEDY


def test_every_network_of_the_host_is_here_or_left_out_by_name(known, host):
    """A class that the host's list of models names and that nothing here builds needs a specimen, or its reason in LEFT_OUT."""
    from lodestar.tests.zoo.specimens import LEFT_OUT
    if not known[2]:
        pytest.skip("the newest host has them all")
    text = (host.path / "comfy" / "model_base.py").read_text(encoding="utf-8")
    named = {path.rsplit(".", 1)[-1] for path in re.findall(r"unet_model=([\w.]+)[,)]", text)} - {"unet_model"}
    assert named - {facts["class"] for facts in known[1]["networks"].values()} == set(LEFT_OUT)


@pytest.mark.method("*")
@pytest.mark.parametrize("name", specimens())
def test_nodes_act_or_say_why_not(known, name):
    from lodestar.tests.zoo import matrix
    definitions, data, newest = known
    if not newest and name not in EVERYWHERE:
        pytest.skip("the newest host covers this network")
    network = matrix.Network(name, definitions)
    wrong = []
    for node_id in asked(name):
        found = network.outcome(node_id, again=name in EVERYWHERE)
        expected = data["nodes"].get(node_id, {}).get(name, {"outcome": "no entry"})
        seen = {k: found[k] for k in expected if k in found} if newest else {"outcome": found["outcome"]}
        if found["outcome"] == "fails" or any(seen.get(k) != v for k, v in (expected if newest else {"outcome": expected["outcome"]}).items()):
            wrong.append(f"{node_id}: {found['outcome']}: {found.get('reason') or found.get('touched')}\n    committed: {expected['outcome']}: {expected.get('reason') or expected.get('touched')}")
    assert not wrong, f"on {name} ({type(network.specimen.net).__name__}):\n" + "\n".join(wrong) + "\n" + REMEDY
