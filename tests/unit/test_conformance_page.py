"""docs/conformance.md says what docs/conformance.json says."""
import pytest

pytest.importorskip("torch")


def test_the_page_is_that_of_the_data():
    from lodestar.scripts import make_conformance
    assert make_conformance.PAGE.read_text(encoding="utf-8") == make_conformance.current(), "run `python scripts/make_conformance.py --page`"


def test_the_page_shows_every_outcome():
    from lodestar.scripts.make_conformance import page
    networks = {"a": {"class": "NetA", "module": "a", "family": "flux", "layers": 5}, "b": {"class": "NetB", "module": "b", "family": "unknown", "layers": 0}}
    nodes = {"One": {"a": {"outcome": "acts", "evaluations": 1, "selectors": "middle", "touched": "joint 1/5"}, "b": {"outcome": "refuses", "reason": "First: NetB cannot"}},
             "Two": {"a": {"outcome": "refuses", "reason": "NetA cannot"}, "b": {"outcome": "fails", "reason": "it has no effect"}}}
    text = page({"networks": networks, "nodes": nodes}, {"One": "First", "Two": "Second"}, {"C": "too large"})
    assert "| a (NetA) | + | a |" in text and "| b (NetB) | a | b |" in text      # the same reason has one letter
    assert "- **a** This network cannot" in text and "- **b** FAILS: It has no effect" in text
    assert "| First | 1 | `middle`: flux joint 1/5 |" in text and "| Second | - | none: acts on predictions |" in text
    assert "- C: too large." in text and "1 of 4 pairs act" in text
