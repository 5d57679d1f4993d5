"""Edits that change the network for all prompts, on small random networks of the real ComfyUI."""
import os

import pytest
import torch

pytest.importorskip("torch")

import lodestar.tests.architectures as zoo      # noqa: E402
from lodestar.guidance.method import NEGATIVE, POSITIVE, BadInput, Branch      # noqa: E402

IDS = {"entropy": "LodestarAttentionEntropyScaling", "pladis": "LodestarPLADIS", "freeu": "LodestarFreeU", "draft": "LodestarDraftAttention"}
KINDS = {"entropy": ("unet", "flux"), "pladis": ("unet",), "freeu": ("unet",), "draft": ("unet", "flux")}
CASES = [pytest.param(n, k, marks=pytest.mark.method(IDS[n])) for n in IDS for k in KINDS[n]]


@pytest.fixture(scope="module")
def lab(host):
    """Networks, prompts and methods; inside inference mode, as the host's executor runs nodes."""
    import lodestar.tests.tiny as tiny
    from lodestar.guidance.attention.draft import DraftAttention
    from lodestar.guidance.attention.entropy import AttentionEntropyScaling
    from lodestar.guidance.attention.freeu import FreeU
    from lodestar.guidance.attention.pladis import PLADIS
    from lodestar.guidance.host.attach import attach
    from lodestar.guidance.host.features import wrappers
    from lodestar.guidance.perturbation.pag import PerturbedAttentionGuidance

    class Lab:
        pass

    lab = Lab()
    lab.tiny, lab.attach, lab.modern, lab.host = tiny, attach, wrappers(), host
    with torch.inference_mode():
        lab.models = {"unet": tiny.unet()}
        if lab.modern:
            lab.models["flux"] = tiny.flux()
        lab.positive, lab.negative, lab.other = tiny.prompt(1), tiny.prompt(2), tiny.prompt(3)
    lab.methods = {
        "entropy": lambda **k: AttentionEntropyScaling(**{"train_width": 16, **k}),
        "pladis": lambda **k: PLADIS(**k),
        "freeu": lambda **k: FreeU(**k),
        "draft": lambda **k: DraftAttention(**{"kept": 0.3, "pool_height": 2, "pool_width": 2, "start_percent": 0.0, "least_tokens": 0, "layers": "all", **k}),
        "pag": lambda **k: PerturbedAttentionGuidance(**{"scale": 2.0, **k}),
    }
    lab.off = {"entropy": {"strength": 0.0}, "pladis": {"amount": 0.0}, "freeu": {"b1": 1.0, "b2": 1.0, "s1": 1.0, "s2": 1.0}, "draft": {"kept": 1.0}}

    def run(patcher, positive=None, negative=None, **k):
        with torch.inference_mode():
            return tiny.sample(patcher, positive or lab.positive, negative or lab.negative, **{"steps": 2, **k})

    def on(kind, *names, **k):
        model = lab.models[kind]
        for name in names:
            model = attach(model, lab.methods[name](**k))
        return model

    lab.run, lab.on = run, on
    lab.base = {kind: run(m, batch=3) for kind, m in lab.models.items()}
    return lab


def usable(lab, kind):
    if kind not in lab.models:
        pytest.skip("this host has no Flux")


def close(a, b, scale, share=2e-5):
    assert (a - b).abs().max() <= share * scale.abs().max()


@pytest.mark.parametrize("name,kind", CASES)
def test_zero_strength_is_bit_equal(lab, name, kind):
    usable(lab, kind)
    assert torch.equal(lab.run(lab.on(kind, name, **lab.off[name]), batch=3), lab.base[kind])


@pytest.mark.parametrize("name,kind", CASES)
def test_acts_and_batch_equals_singles_and_second_run_equals_first(lab, name, kind):
    usable(lab, kind)
    model = lab.on(kind, name)
    first = lab.run(model, batch=3)
    assert torch.isfinite(first).all() and (first - lab.base[kind]).abs().max() > 1e-3
    assert torch.equal(lab.run(model, batch=3), first)
    for i in (0, 2):
        close(lab.run(model, seed=i), first[i:i + 1], first, 1e-4)
    assert torch.equal(lab.run(lab.models[kind], batch=3), lab.base[kind])


@pytest.mark.parametrize("name,kind", CASES)
def test_all_prompts_see_the_same_network(lab, name, kind):
    """Equal prompts: CFG has nothing to extrapolate, whatever its scale."""
    usable(lab, kind)
    model = lab.on(kind, name)
    plain = lab.run(model, negative=lab.positive, cfg=1.0)
    close(lab.run(model, negative=lab.positive, cfg=5.0), plain, plain, 1e-4)


@pytest.mark.parametrize("name,kind", CASES)
def test_a_window_that_is_never_reached_is_bit_equal(lab, name, kind):
    usable(lab, kind)
    assert torch.equal(lab.run(lab.on(kind, name, start_percent=0.0, end_percent=0.0), batch=3), lab.base[kind])
    half = lab.run(lab.on(kind, name, start_percent=0.5))
    assert (half - lab.base[kind][:1]).abs().max() > 1e-4 and (half - lab.run(lab.on(kind, name))).abs().max() > 1e-4


@pytest.mark.parametrize("kind", ("unet", "flux"))
def test_all_together_with_a_branch_equal_singles(lab, kind):
    usable(lab, kind)
    model = lab.on(kind, "pag", *(n for n in IDS if kind in KINDS[n]))
    out = lab.run(model, batch=3)
    assert torch.isfinite(out).all() and (out - lab.run(lab.on(kind, "pag"), batch=3)).abs().max() > 1e-3
    for i in (0, 2):
        close(lab.run(model, seed=i), out[i:i + 1], out, 1e-4)


@pytest.mark.parametrize("name,kind", CASES)
def test_areas_and_masks(lab, name, kind):
    usable(lab, kind)
    mask = torch.zeros(1, 64, 64)
    mask[:, :, :32] = 1
    positive = [[lab.positive[0][0], {**lab.positive[0][1], "mask": mask, "set_area_to_bounds": False, "mask_strength": 1.0}],
                [lab.other[0][0], {**lab.other[0][1], "area": (16, 8, 0, 8), "strength": 1.0}]]
    model = lab.on(kind, name)
    out = lab.run(model, positive=positive, batch=3, size=16, steps=2)
    assert (out - lab.run(lab.models[kind], positive=positive, batch=3, size=16, steps=2)).abs().max() > 1e-4
    for i in (0, 2):
        close(lab.run(model, positive=positive, seed=i, size=16, steps=2), out[i:i + 1], out, 1e-4)


@pytest.mark.parametrize("name,kind", CASES)
def test_an_interrupted_run_leaves_nothing(lab, name, kind):
    usable(lab, kind)
    import comfy.sample
    model = lab.on(kind, name)
    before = lab.run(model)

    class Stop(Exception):
        pass

    def stop(step, *rest):
        if step == 1:
            raise Stop

    with torch.inference_mode(), pytest.raises(Stop):
        comfy.sample.sample(model, torch.randn(1, 4, 8, 8), 4, 4.0, "euler", "normal", lab.positive, lab.negative, torch.zeros(1, 4, 8, 8), callback=stop, disable_pbar=True, seed=0)
    assert torch.equal(lab.run(model), before)
    assert torch.equal(lab.run(lab.models[kind], batch=3), lab.base[kind])


def test_half_precision(lab):
    for dtype in (torch.bfloat16, torch.float16):
        with torch.inference_mode():
            model = lab.tiny.unet(dtype=dtype)
        for name in IDS:
            model = lab.attach(model, lab.methods[name]())
        assert torch.isfinite(lab.run(model)).all()


def call(node, **inputs):
    """Runs a node class of either schema and returns its first output."""
    if hasattr(node, "define_schema"):
        out = node.execute(**inputs)
        return out.args[0] if hasattr(out, "args") else out[0]
    return getattr(node(), node.FUNCTION)(**inputs)[0]


@pytest.mark.method("LodestarFreeU")
@pytest.mark.parametrize("name,version", (("FreeU", "1"), ("FreeU_V2", "2")))
def test_freeu_equals_the_hosts_own(lab, name, version):
    values = {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2}
    with torch.inference_mode():
        model = lab.models["unet"].clone()
        model.model.model_config.unet_config["model_channels"] = 32
        theirs = call(lab.host.nodes()[name], model=model, **values)
    mine = lab.on("unet", "freeu", version=version, **values)
    for size in (8, 12):
        close(lab.run(mine, batch=2, size=size), lab.run(theirs, batch=2, size=size), lab.base["unet"], 1e-4)
    both = lab.attach(theirs, lab.methods["freeu"](version=version, **values))      # chained: ours after theirs
    assert (lab.run(both) - lab.run(mine)).abs().max() > 1e-3


@pytest.mark.method("LodestarAttentionEntropyScaling")
@pytest.mark.parametrize("kind", ("unet", "flux"))
def test_entropy_at_the_training_size_is_bit_equal(lab, kind):
    usable(lab, kind)
    assert torch.equal(lab.run(lab.on(kind, "entropy", train_width=64), batch=3), lab.base[kind])
    assert (lab.run(lab.on(kind, "entropy", train_width=64), size=12) - lab.run(lab.models[kind], size=12)).abs().max() > 1e-4
    with pytest.raises(BadInput, match="train_width = 0"):
        lab.on(kind, "entropy", train_width=0)


@pytest.mark.method("LodestarAttentionEntropyScaling")
@pytest.mark.parametrize("kind", ("unet", "flux"))
def test_entropy_by_the_scale_of_the_hosts_attention_is_that_of_multiplied_queries(lab, kind, monkeypatch):
    from lodestar.guidance.host import attention_hooks, scales
    usable(lab, kind)
    taken = []
    monkeypatch.setattr(attention_hooks, "takes_scale", lambda f, q: taken.append(scales.takes_scale(f, q)) or taken[-1])
    own = lab.run(lab.on(kind, "entropy"), batch=2)
    assert taken and len(set(taken)) == 1      # a host hands the scale on, or it does not
    assert taken[0] or os.environ.get("LODESTAR_HOST_PLACE", "newest") != "newest"
    monkeypatch.setattr(attention_hooks, "takes_scale", lambda f, q: False)
    close(own, lab.run(lab.on(kind, "entropy"), batch=2), lab.base[kind])


@pytest.mark.method("LodestarAttentionEntropyScaling")
def test_what_is_only_a_factor_is_worked_out_once_for_a_run(lab, monkeypatch):
    """Later steps are led straight to the host's attention with the first one's factor; where the node ends, and in another run, they are not."""
    from lodestar.guidance.attention import entropy
    from lodestar.guidance.host import attention_hooks
    usable(lab, "flux")
    asked, applied = [], entropy.EntropyScale.apply
    monkeypatch.setattr(entropy.EntropyScale, "apply", lambda self, site, *rest: asked.append(site.layer) or applied(self, site, *rest))

    def runs():
        asked.clear()
        return lab.run(lab.on("flux", "entropy"), batch=2), lab.run(lab.on("flux", "entropy", end_percent=0.5), batch=2), len(asked)
    *kept, few = runs()
    if few > len(set(asked)) * 2:
        assert os.environ.get("LODESTAR_HOST_PLACE", "newest") != "newest"       # older hosts drop the scale: nothing is kept
    monkeypatch.setattr(attention_hooks, "_keep", lambda *a: None)
    *anew, many = runs()
    assert many > len(set(asked)) * 2
    assert all(torch.equal(a, b) for a, b in zip(kept, anew))
    assert (kept[0] - kept[1]).abs().max() > 1e-4


@pytest.mark.method("LodestarPLADIS")
def test_pladis_equals_a_replacement_written_out(lab):
    """The same mix as plain attention replacements of the host."""
    from lodestar.guidance.attention.pladis import entmax15
    with torch.inference_mode():
        theirs = lab.models["unet"].clone()

    def replacement(q, k, v, extra):
        heads = extra["n_heads"]
        q, k, v = (t.view(t.shape[0], -1, heads, t.shape[-1] // heads).transpose(1, 2) for t in (q, k, v))
        z = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        return ((-z.softmax(-1) + 2 * entmax15(z)) @ v).transpose(1, 2).flatten(2)
    from lodestar.guidance.host.geometry import of_model
    for layer in of_model(lab.models["unet"]).layers:
        if layer.stage != "middle":
            theirs.set_model_attn2_replace(replacement, *layer.key[:2])
    close(lab.run(lab.on("unet", "pladis"), batch=2), lab.run(theirs, batch=2), lab.base["unet"], 1e-4)


@pytest.mark.method("LodestarPLADIS", "LodestarFreeU")
def test_where_there_is_no_meaning_the_node_says_so(lab):
    usable(lab, "flux")
    with pytest.raises(BadInput, match="PLADIS: model = 'Flux'"):
        lab.on("flux", "pladis")
    with pytest.raises(BadInput, match="FreeU: model = 'Flux'"):
        lab.on("flux", "freeu")


@pytest.mark.method("LodestarDraftAttention")
@pytest.mark.parametrize("kind", ("unet", "flux"))
def test_draft_of_everything_is_the_networks_attention(lab, kind):
    """A share that keeps all regions but is not 1 runs the sparse path with everything in it."""
    usable(lab, kind)
    close(lab.run(lab.on(kind, "draft", kept=0.9999), batch=3), lab.base[kind], lab.base[kind], 1e-4)
    assert torch.equal(lab.run(lab.on(kind, "draft", least_tokens=10000), batch=3), lab.base[kind])


# On every family

@pytest.fixture
def make(host):
    from lodestar.guidance.host.features import wrappers
    if not wrappers():
        pytest.skip("this host has no attention override")

    def build(name, rows=1):
        with torch.inference_mode():
            try:
                return zoo.Lab(zoo.build(name), rows)
            except (ImportError, TypeError) as error:
                pytest.skip(f"this host's {name} is missing or another one: {error}")
    return build


def edits():
    from lodestar.guidance.attention.draft import DraftEdit
    from lodestar.guidance.attention.entropy import EntropyScale
    from lodestar.guidance.attention.pladis import SparseMix
    return {"entropy": lambda: EntropyScale("all", 5.0, 2.0), "draft": lambda: DraftEdit("all", 0.3, 2, 2, 0), "pladis": lambda: SparseMix("", 2.0)}


@pytest.mark.method("LodestarAttentionEntropyScaling", "LodestarDraftAttention", "LodestarPLADIS")
@pytest.mark.parametrize("edit", ("entropy", "draft", "pladis"))
@pytest.mark.parametrize("name", sorted(zoo.FAMILIES))
def test_every_family(make, name, edit):
    """They act on every row, and a row does not depend on what else is in the batch."""
    lab = make(name, rows=2)
    a, b = lab.inputs(1), lab.inputs(2)
    one = edits()[edit]()
    if edit == "pladis" and name in zoo.JOINT:
        with pytest.raises(ValueError, match="PLADIS changes cross attention"):
            lab.run([POSITIVE], [a], None, [one])
        return
    plain = lab.plain([a, b])
    out, _ = lab.run([POSITIVE, NEGATIVE], [a, b], None, [one])
    assert torch.isfinite(out).all()
    for rows in (slice(0, 2), slice(2, 4)):
        assert (out[rows] - plain[rows]).abs().max() > 3e-6 * plain.abs().max()      # small networks hardly look at their keys
    single, _ = lab.run([NEGATIVE], [(b[0][:1], b[1][:1])], None, [one])
    assert (single - out[2:3]).abs().max() <= 1e-4 * out.abs().max()
    branch, _ = lab.run([POSITIVE, Branch("negative", edits=(one,))], [a, b])       # as a branch's own edit: these rows only
    assert (branch[:2] - plain[:2]).abs().max() <= 1e-4 * out.abs().max() and (branch[2:] - out[2:]).abs().max() <= 1e-4 * out.abs().max()


@pytest.mark.method("LodestarTemporalAttentionTemperature")
@pytest.mark.parametrize("frames", (3, 16))
def test_temperature_acts_on_the_frames_of_a_video_unet(make, frames):
    """It equals the network with the temporal blocks' queries divided; inside the mask and at gain 0 nothing changes."""
    from lodestar.guidance.attention.temperature import Temperature, TemporalAttentionTemperature, temperatures
    make("flux")
    with torch.inference_mode():
        lab = zoo.Lab(zoo.svd(frames), rows=frames)
    a, b = lab.inputs(1), lab.inputs(2)
    plain = lab.plain([a, b])
    mask = torch.zeros(1, 4, 4)
    mask[0, 0, 0] = 1
    out, _ = lab.run([POSITIVE, NEGATIVE], [a, b], None, [Temperature("all", mask, 3.0)])
    assert torch.isfinite(out).all()
    for rows in (slice(0, frames), slice(frames, None)):
        assert (out[rows] - plain[rows]).abs().max() > 1e-4 * plain.abs().max()
    same, _ = lab.run([POSITIVE, NEGATIVE], [a, b], None, [Temperature("all", torch.ones(1, 4, 4), 3.0)])
    assert (same - plain).abs().max() <= 1e-5 * plain.abs().max()
    tau = temperatures(mask, 4, 4, 3.0).flatten()

    def divided(module, args, kwargs):
        return (args[0],), kwargs

    handles = []
    for block in (*lab.specimen.net.input_blocks, lab.specimen.net.middle_block, *lab.specimen.net.output_blocks):
        for module in block:
            for mix in getattr(module, "time_stack", []) if hasattr(module, "transformer_blocks") else []:
                handles.append(mix.attn1.to_q.register_forward_hook(lambda m, x, q: q / tau.repeat(q.shape[0] // 16)[:, None, None]))
    try:
        expected = lab.plain([a, b])
    finally:
        for handle in handles:
            handle.remove()
    assert handles and (out - expected).abs().max() <= 2e-5 * plain.abs().max()
    with pytest.raises(ValueError, match="Temperature changes temporal attention"):
        make("wan").run([POSITIVE], [make("wan").inputs(1)], None, [Temperature("all", mask, 3.0)])
    with pytest.raises(BadInput, match="mask"):
        TemporalAttentionTemperature(mask=torch.zeros(1, 2, 2)).validate()
