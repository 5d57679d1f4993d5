"""Every example workflow runs on the real host, in both formats, on both bundled generators where they exist."""

from __future__ import annotations

import copy
import json

import pytest

from lodestar.demo import runner_convert
from lodestar.demo.runner_errors import ExecutionFailed
from lodestar.guidance.catalogue import ROOT, WORKFLOWS, methods, slug
from lodestar.scripts._examples_reading import NEEDS_WEIGHTS

# what leads by a loss or restores is the same tensors on every host and model: of these families a few examples are asked of the older hosts and of the DiT
SAME, ASKED = ("loss", "inverse", "particles", "distillation"), ("universal_guidance", "training_free_guidance", "null_space_sampler", "diffusion_posterior_sampling", "particle_steering")
_SAME = {slug(m.title) for m in methods().values() if m.family in SAME} - set(ASKED)
FILES = sorted((ROOT / WORKFLOWS / "api").glob("*.json"))
ALIKE = {p.stem for p in FILES if p.stem in _SAME or p.stem.endswith(("_operator", "_loss"))}
HERE = ALIKE | {p.stem for p in FILES if p.stem.startswith("train_")}      # not asked of the older hosts
API = [pytest.param(p, marks=pytest.mark.newest if p.stem in HERE else (), id=p.stem) for p in FILES]
RUNS = [pytest.param(p, g, marks=pytest.mark.newest if g == "dit" or p.stem in HERE else (), id=f"{p.stem}-{g}") for p in FILES for g in ("unet", "dit") if g == "unet" or p.stem not in ALIKE]
QUICK = 3
REFUSED_BY_PYPI = {"model_pair_guidance": "newer ComfyUI", "temporal_attention_temperature": "2025 or newer"} | {name: "December 2024" for name in (      # what the host from PyPI cannot do, and says so
    "corrfill", "feature_correspondence_guidance", "glyph_adaptive_attention", "depth_guided_attention_injection", "attend_and_excite", "boxdiff",
    "layout_guidance", "scribble_guidance", "ctrl_x", "mutual_self_attention", "reference_attention", "stylealigned", "upsample_guidance",
    "diffusion_posterior_sampling", "training_free_guidance", "unicon", "train_restoration_prior", "readout_guidance", "readout_guidance_with_drags", "train_readout_head", "spectrum_regulated_super_resolution",
    "multi_scale_restoration")}
REFUSED_BY_UNET = {"easycontrol": "need a network of the Flux type"}      # where the node says so
SIZES = {"lodestar/side_by_side_canvas": (256, 128)}      # pictures that are larger than the latent that the example begins with
# a weaker model made by a node for U-Nets; skip connections; cross-attention
ONLY_UNET = ("model_pair_guidance", "freeu", "pladis", "decoupled_prompt", "adapter_attention_shaping", "directed_diffusion", "negative_away_steer_attention",
             "structured_diffusion_guidance", "masked_subject_attention", "unicon", "temporal_attention_temperature", "degradation_guided_lora", "pixel_aware_attention", "block_wise_semantics", "readout_guidance",
             "readout_guidance_with_drags",
             "multi_scale_restoration", "guided_decode")


def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


def quick(graph, generator="unet"):
    """The graph with few steps, so that the test is short."""
    graph = copy.deepcopy(graph)
    for node in graph.values():
        inputs = node["inputs"]
        if isinstance(inputs.get("steps"), int):      # of a sampler; Directed Diffusion has a share of the steps
            inputs["steps"] = QUICK
        for name in ("samples", "iterations", "particles", "candidates"):      # of readings, of what searches and draws
            if isinstance(inputs.get(name), int):
                inputs[name] = min(inputs[name], QUICK)
        if inputs.get("pick") == "best":      # so few iterations need not find a better one
            inputs["pick"] = "last"
        if node["class_type"] == "LodestarLoadDemoModel" and inputs["model"] not in ("video", "degrading"):
            inputs["model"] = generator
    return graph


def has_flow(server):
    return server.kind != "pypi"


def without_backward(graph):
    """The graph with gradients that need no backward pass through the network, which the host from PyPI cannot give."""
    for node in graph.values():
        if "route" in node["inputs"]:
            node["inputs"]["route"] = "none"
    return graph


@pytest.mark.method("*")
@pytest.mark.parametrize("path, generator", RUNS)
def test_runs(server, path, generator):
    if generator == "dit" and not has_flow(server):
        pytest.skip("this host has no network for the flow model")
    if generator == "dit" and path.stem in ONLY_UNET:
        pytest.skip("its example is for U-Nets")
    if path.stem in NEEDS_WEIGHTS:
        pytest.skip("its example needs a model that does not come with the pack")
    graph = quick(load(path), generator)
    if generator == "unet" and path.stem in REFUSED_BY_UNET:
        with pytest.raises(ExecutionFailed, match=REFUSED_BY_UNET[path.stem]):
            server.run(graph)
        return
    if server.kind == "pypi":
        graph = without_backward(graph)
        if path.stem in REFUSED_BY_PYPI:
            with pytest.raises(ExecutionFailed, match=REFUSED_BY_PYPI[path.stem]):
                server.run(graph)
            return
    outputs = server.run(graph)
    saves = [i for i, n in graph.items() if n["class_type"] == "SaveImage"]
    assert saves or "text" in next(iter(outputs.values()))
    size = next(((n["inputs"]["width"], n["inputs"]["height"]) for n in graph.values() if n["class_type"] == "EmptyLatentImage"), (128, 128))
    pictures = {graph[i]["inputs"]["filename_prefix"]: server.image(outputs, i).convert("RGB") for i in saves}
    for name, picture in pictures.items():
        if not name.endswith(("_plot", "_regions", "_measured")):
            assert picture.size == SIZES.get(name, size)
        low, high = picture.convert("L").getextrema()
        assert high > low or generator == "dit", f"{name} is of one colour"      # the DiT's pictures may still be black after so few steps
    for name, picture in pictures.items():
        if f"{name}_without" in pictures:
            assert picture.tobytes() != pictures[f"{name}_without"].tobytes(), "the node changes nothing"


@pytest.mark.parametrize("path", API, ids=lambda p: p.stem)
def test_page_format_says_the_same(server, path):
    ui = load(ROOT / WORKFLOWS / path.name)
    converted, wanted = runner_convert.to_api(ui, server.object_info()), load(path)
    for node in wanted.values():
        if server.kind == "pypi" and node["class_type"] == "CLIPVisionEncode":      # its node crops without asking
            node["inputs"].pop("crop")
    assert converted == wanted


def test_nothing_to_complain_about_after_all_of_them(server):
    assert server.complaints() == []
