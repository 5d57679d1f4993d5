"""Workflow files, --set, and the server's objections in words."""

from __future__ import annotations

import json

import pytest
from lodestar.demo import runner_workflow as w
from lodestar.demo.runner_errors import Failure, WorkflowError

GRAPH = {
    "3": {"class_type": "KSampler", "inputs": {"seed": 1, "cfg": 7.0, "model": ["4", 0]}, "_meta": {"title": "Main v1.5"}},
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a.safetensors"}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat"}, "_meta": {"title": "positive"}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": ""}, "_meta": {"title": "negative"}},
}


def graph():
    return json.loads(json.dumps(GRAPH))


@pytest.mark.parametrize("setting, node, field, value", [
    ("3.seed=5", "3", "seed", 5),
    ("KSampler.cfg=4.5", "3", "cfg", 4.5),
    ("Main v1.5.cfg=2", "3", "cfg", 2),
    ("positive.text=a red = blue", "6", "text", "a red = blue"),
    ("positive.text=5", "6", "text", "5"),
    ("3.model=[\"9\", 0]", "3", "model", ["9", 0]),
    ("3.denoise=0.5", "3", "denoise", 0.5),
])
def test_set(setting, node, field, value):
    g = graph()
    w.apply_set(g, [setting])
    assert g[node]["inputs"][field] == value


@pytest.mark.parametrize("setting, match", [
    ("seed=5", "NODE.INPUT=VALUE"), ("3.seed", "NODE.INPUT=VALUE"), ("Nope.seed=1", "no node 'Nope'"),
    ("CLIPTextEncode.text=x", "names 2 nodes"),
])
def test_set_refuses(setting, match):
    with pytest.raises(WorkflowError, match=match):
        w.apply_set(graph(), [setting])


def test_set_unknown_input_is_named_with_the_nearest():
    info = {"KSampler": {"input": {"required": {"seed": ["INT", {}], "denoise": ["FLOAT", {}]}}}}
    with pytest.raises(WorkflowError, match="no input 'denoize'. Did you mean 'denoise'"):
        w.apply_set(graph(), ["3.denoize=1"], info)


def test_set_uploads_a_local_picture(tmp_path):
    g = {"1": {"class_type": "LoadImage", "inputs": {"image": "x.png"}}}
    info = {"LoadImage": {"input": {"required": {"image": [["x.png"], {"image_upload": True}]}}}}
    file = tmp_path / "mine.png"
    file.write_bytes(b"")
    w.apply_set(g, [f"1.image={file}"], info, lambda p: p.name)
    assert g["1"]["inputs"]["image"] == "mine.png"


def test_load(tmp_path):
    file = tmp_path / "w.json"
    file.write_text(json.dumps(GRAPH), encoding="utf-8")
    assert w.load(str(file)) == GRAPH
    file.write_text(json.dumps({"prompt": GRAPH, "client_id": "x"}), encoding="utf-8")
    assert w.load(str(file)) == GRAPH


@pytest.mark.parametrize("content, match", [
    (None, "There is no file"), (b"{broken", "not JSON"), (b"[1]", "no workflow"), (b"{}", "no workflow"), (b"\xff\xfe\x00\x01\xff", "not text|cannot be read"),
])
def test_load_refuses(tmp_path, content, match):
    file = tmp_path / "w.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(Failure, match=match):
        w.load(str(file))


def test_unknown_classes_are_all_named():
    with pytest.raises(WorkflowError) as e:
        w.check_classes(graph(), {"KSamplr": {}, "CLIPTextEncode": {}})
    text = str(e.value)
    assert "KSampler (node 3); did you mean KSamplr?" in text and "CheckpointLoaderSimple (node 4)" in text and "CLIPTextEncode (" not in text


def test_validation_is_rendered():
    refusal = {
        "error": {"type": "prompt_outputs_failed_validation", "message": "Prompt outputs failed validation", "details": ""},
        "node_errors": {"3": {"class_type": "KSampler", "errors": [
            {"type": "value_not_in_list", "message": "Value not in list", "details": "sampler_name: 'eulr' not in [...]",
             "extra_info": {"input_name": "sampler_name", "received_value": "eulr", "input_config": [["euler", "heun"], {}]}},
            {"type": "value_bigger_than_max", "message": "Value 900 bigger than max of 100", "details": "cfg",
             "extra_info": {"input_name": "cfg", "received_value": 900}},
            {"type": "required_input_missing", "message": "Required input is missing", "details": "latent_image", "extra_info": {"input_name": "latent_image"}},
        ]}},
    }
    text = w.render_validation(refusal, graph())
    assert "KSampler 'Main v1.5' (3): sampler_name = 'eulr' is not one of its values: euler, heun (did you mean euler?)" in text
    assert "cfg = 900: Value 900 bigger than max of 100" in text
    assert "Required input is missing (latent_image)" in text


@pytest.mark.parametrize("refusal", [{}, {"error": "text"}, {"error": {"message": "m", "details": []}, "node_errors": []}, {"error": None, "node_errors": {"3": 1}}])
def test_strange_refusals_still_give_a_sentence(refusal):
    assert w.render_validation(refusal, graph()).startswith("The server refuses the workflow")
