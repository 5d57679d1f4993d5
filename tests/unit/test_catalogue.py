"""The catalogue: complete, truthful, and readable without a host."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from lodestar.guidance import catalogue, catalogue_tests

RECORDS = catalogue.records()
IDS = {t.id for t in catalogue_tests.scan(catalogue.ROOT / "tests")}


@pytest.mark.parametrize("r", RECORDS, ids=lambda r: r["id"])
def test_every_path_and_test_exists(r):
    for path in (r["workflow"], r["workflow_api"], *r["help"]):
        assert path and (catalogue.ROOT / path).is_file()
    assert len(r["help"]) == len(r["nodes"]) and set(r["nodes"]) <= set(catalogue.nodes())
    assert set(r["identities"]) | set(r["host_tests"]) <= IDS
    assert r["host_tests"], "no host test"
    assert r["paper"] and r["evaluations"] and r["family"]


@pytest.mark.parametrize("r", RECORDS, ids=lambda r: r["id"])
def test_identities_are_tested(r):
    assert r["identities"], f"no test in tests/unit is marked with {r['id']}"


def test_effects_have_their_figures():
    for r in RECORDS:
        for metrics in r["effects"].values():
            for figures in metrics.values():
                assert set(figures) == set(catalogue.FIGURES)


def test_effects_are_read_leniently(tmp_path):
    assert catalogue.load_effects(tmp_path / "none.json") == {}
    figures = {"value": 1.0, "low": 0.5, "high": 1.5, "claimed": "lower", "reached": True}
    (tmp_path / "e.json").write_text(json.dumps({"methods": {"A": {"unet": {"fd": {**figures, "n": 4}}}}}))
    read = catalogue.load_effects(tmp_path / "e.json")
    assert catalogue._effects(read["A"]) == {"unet": {"fd": figures}}


def test_command_prints_json(capsys, monkeypatch):
    done = subprocess.run([sys.executable, "-m", "guidance.catalogue", "--help"], cwd=catalogue.ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "--json" in done.stdout, done.stderr
    monkeypatch.setattr(catalogue, "records", lambda: RECORDS)      # made once for this file: they take seconds
    assert catalogue.main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(RECORDS))


def test_tests_are_found_by_name_and_by_mark(tmp_path):
    for folder, name, text in (
            ("unit", "test_apg", "def test_a():\n    pass\n\ndef helper():\n    pass\n"),
            ("unit", "test_more", "import pytest\nA, B = 'X', 'Y'\npytestmark = pytest.mark.slow\n\n@pytest.mark.method(A)\ndef test_b():\n    pass\n"
                                  "\n@pytest.mark.method('*')\nclass TestC:\n    def test_d(self):\n        pass\n\ndef test_e():\n    pass\n"),
            ("host", "test_apg_host", "import pytest\n\n@pytest.mark.method('Y')\ndef test_f():\n    pass\n\ndef test_g():\n    pass\n"),
            ("host", "test_all", "import pytest\npytestmark = [pytest.mark.slow, pytest.mark.method('X', 'Y')]\n\nasync def test_h():\n    pass\n")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / f"{name}.py").write_text(text)
    tests = catalogue_tests.scan(tmp_path)
    assert catalogue_tests.of_method(tests, "X", "apg") == {
        "unit": ["tests/unit/test_apg.py::test_a", "tests/unit/test_more.py::test_b", "tests/unit/test_more.py::TestC::test_d"],
        "host": ["tests/host/test_all.py::test_h", "tests/host/test_apg_host.py::test_g"]}
    assert catalogue_tests.of_method(tests, "Y", "other") == {
        "unit": ["tests/unit/test_more.py::TestC::test_d"], "host": ["tests/host/test_all.py::test_h", "tests/host/test_apg_host.py::test_f"]}


def test_file_names():
    assert catalogue.workflow_of("CFG++ Sampler") == "example_workflows/cfgpp_sampler.json"
    assert catalogue.slug("Perturbed-Attention Guidance") == "perturbed_attention_guidance"


def test_readings_are_effects_too(tmp_path, monkeypatch):
    for name, metrics in (("effects", {"A": {"unet": {"ssim": {"value": 1}}}}), ("readings", {"A": {"unet": {"share": {"value": 2}}}, "B": {"dit": {"iou": {"value": 3}}}}),
                          ("restored", {"C": {"unet": {"PSNR": {"value": 4}}}})):
        (tmp_path / f"{name}.json").write_text(json.dumps({"methods": metrics}))
    own = catalogue.load_effects
    for name in ("READINGS", "RESTORED"):
        monkeypatch.setattr(catalogue, name, tmp_path / f"{name.lower()}.json")
    monkeypatch.setattr(catalogue, "load_effects", lambda path=tmp_path / "effects.json": own(path))
    assert catalogue.measured() == {"A": {"unet": {"ssim": {"value": 1}, "share": {"value": 2}}}, "B": {"dit": {"iou": {"value": 3}}}, "C": {"unet": {"PSNR": {"value": 4}}}}
