"""The perturbation family on a real ComfyUI, with small random networks."""
import pytest
import torch

pytest.importorskip("torch")

from lodestar.guidance.perturbation.pag import PerturbedAttentionGuidance      # noqa: E402
from lodestar.guidance.perturbation.s2 import StochasticSelfGuidance      # noqa: E402
from lodestar.guidance.perturbation.sag import BlurGuidance, SelfAttentionGuidance      # noqa: E402
from lodestar.guidance.perturbation.seg import SmoothedEnergyGuidance      # noqa: E402
from lodestar.guidance.perturbation.slg import SkipLayerGuidance      # noqa: E402
from lodestar.guidance.perturbation.stg import SpatiotemporalSkipGuidance      # noqa: E402
from lodestar.guidance.perturbation.swg import SlidingWindowGuidance      # noqa: E402
from lodestar.guidance.perturbation.tpg import TokenPerturbationGuidance      # noqa: E402
from lodestar.guidance.perturbation.upsample import UpsampleGuidance      # noqa: E402

# name: (class, settings that act, settings that switch it off, kinds of network)
BOTH = ("unet", "flux")
ALWAYS = {"start_percent": 0.0, "end_percent": 1.0}
METHODS = {
    "seg": (SmoothedEnergyGuidance, {"scale": 2.0}, {"scale": 0.0}, BOTH),
    "seg blur": (SmoothedEnergyGuidance, {"scale": 2.0, "blur_sigma": 0.7, "rescale": 0.5}, {"blur_sigma": 0.0}, BOTH),
    "slg": (SkipLayerGuidance, {"scale": 2.0, **ALWAYS}, {"scale": 0.0}, BOTH),
    "slg negative": (SkipLayerGuidance, {"mode": "negative only", **ALWAYS}, {"layers": "none"}, BOTH),
    "stg": (SpatiotemporalSkipGuidance, {"scale": 2.0, "rescale": 0.7}, {"scale": 0.0}, BOTH),
    "stg attention": (SpatiotemporalSkipGuidance, {"scale": 2.0, "mode": "attention"}, {"scale": 0.0}, BOTH),
    "tpg": (TokenPerturbationGuidance, {"scale": 2.0}, {"fraction": 0.0}, BOTH),
    "s2": (StochasticSelfGuidance, {"scale": 1.0, "masks": 2, **ALWAYS}, {"drop": 0.0}, BOTH),
    "sag": (SelfAttentionGuidance, {"scale": 1.0, "threshold": 0.99}, {"scale": 0.0}, BOTH),      # attention of small random networks is nearly flat
    "swg": (SlidingWindowGuidance, {"scale": 1.0}, {"crop": 1.0}, BOTH),
    "blur": (BlurGuidance, {"scale": 1.0}, {"blur_sigma": 0.0}, BOTH),
    "upsample": (UpsampleGuidance, {"end_percent": 1.0}, {"factor": 1}, BOTH),
}
CASES = [pytest.param(n, k, marks=pytest.mark.method(cls.node_id)) for n, (cls, _, _, kinds) in METHODS.items() for k in kinds]
SIZE = 16      # latents of 16 x 16: the middle block of the U-Net has 8 x 8 tokens
MODERN = ("upsample",)      # refused by name on hosts without wrappers


@pytest.fixture(scope="module")
def lab(host):
    """Networks and prompts; inside inference mode, as the host's executor runs nodes."""
    import lodestar.tests.tiny as tiny
    from lodestar.guidance import engine
    from lodestar.guidance.host.attach import attach
    from lodestar.guidance.host.features import wrappers

    class Lab:
        pass

    lab = Lab()
    lab.tiny, lab.attach, lab.engine, lab.modern, lab.host = tiny, attach, engine, wrappers(), host
    with torch.inference_mode():
        lab.models = {"unet": tiny.unet()}
        if lab.modern:
            lab.models["flux"] = tiny.flux()
        lab.positive, lab.negative, lab.other = tiny.prompt(1), tiny.prompt(2), tiny.prompt(3)

    def run(patcher, positive=None, negative=None, **k):
        with torch.inference_mode():
            return tiny.sample(patcher, positive or lab.positive, negative or lab.negative, **{"size": SIZE, "steps": 2, **k})

    def guided(kind, *names, model=None, **more):
        model = model or lab.models[kind]
        for name in names:
            cls, settings, _, _ = METHODS[name]
            model = attach(model, cls(**{**settings, **more}))
        return model

    kept = {}

    def first(kind, name):
        """A batch of three with one method, sampled once."""
        if (kind, name) not in kept:
            kept[kind, name] = run(guided(kind, name), batch=3)
        return kept[kind, name]

    lab.run, lab.guided, lab.first = run, guided, first
    lab.base = {kind: run(m, batch=3) for kind, m in lab.models.items()}
    return lab


def usable(lab, kind, name=""):
    if kind not in lab.models:
        pytest.skip("this host has no Flux")
    if name in MODERN and not lab.modern:
        pytest.skip("this host refuses it; test_refusals checks that it says so")


def close(a, b, scale=None, share=1e-4):
    assert (a - b).abs().max() <= share * (b if scale is None else scale).abs().max()


def report(lab):
    return lab.engine.REPORTS[-1]


def call(node, **inputs):
    """Runs a node class of either schema and returns its first output."""
    if hasattr(node, "define_schema"):
        out = node.execute(**inputs)
        return out.args[0] if hasattr(out, "args") else out[0]
    return getattr(node(), node.FUNCTION)(**inputs)[0]


def hosts_node(lab, name):
    node = lab.host.nodes().get(name)
    if node is None:
        pytest.skip(f"this host has no {name}")
    return node


@pytest.mark.parametrize("name,kind", CASES)
def test_switched_off_is_bit_equal(lab, name, kind):
    usable(lab, kind, name)
    cls, settings, off, _ = METHODS[name]
    model = lab.attach(lab.models[kind], cls(**{**settings, **off}))
    assert torch.equal(lab.run(model, batch=3), lab.base[kind])
    never = lab.guided(kind, name, start_percent=1.0, end_percent=1.0)
    close(lab.run(never, batch=3), lab.base[kind], share=1e-6)


@pytest.mark.parametrize("name,kind", CASES)
def test_acts_and_batch_equals_singles_and_second_run_equals_first(lab, name, kind):
    usable(lab, kind, name)
    model = lab.guided(kind, name)
    first = lab.first(kind, name)
    assert torch.isfinite(first).all() and (first - lab.base[kind]).abs().max() > 1e-4 * first.abs().max()
    assert torch.equal(lab.run(model, batch=3), first)
    for i in (0, 2):
        close(lab.run(model, seed=i), first[i:i + 1], first)
    assert torch.equal(lab.run(lab.models[kind], batch=3), lab.base[kind])


@pytest.mark.newest
@pytest.mark.parametrize("name,kind", CASES)
def test_without_cfg(lab, name, kind):
    usable(lab, kind, name)
    plain, out = lab.run(lab.models[kind], cfg=1.0), lab.run(lab.guided(kind, name), cfg=1.0)
    if name == "slg negative":
        assert torch.equal(out, plain)      # there is no negative prediction
        return
    assert torch.isfinite(out).all() and (out - plain).abs().max() > 1e-5 * plain.abs().max()


@pytest.mark.newest
@pytest.mark.parametrize("name,kind", CASES)
def test_interrupted_run_leaves_nothing(lab, name, kind):
    usable(lab, kind, name)
    import comfy.sample
    model = lab.guided(kind, name)
    before = lab.first(kind, name)

    class Stop(Exception):
        pass

    def stop(step, *rest):
        if step == 1:
            raise Stop

    with torch.inference_mode(), pytest.raises(Stop):
        comfy.sample.sample(model, torch.randn(1, 4, SIZE, SIZE), 4, 4.0, "euler", "normal", lab.positive, lab.negative, torch.zeros(1, 4, SIZE, SIZE), callback=stop,
                            disable_pbar=True, seed=0)
    assert torch.equal(lab.run(model, batch=3), before)
    assert torch.equal(lab.run(lab.models[kind], batch=3), lab.base[kind])
    assert not any("forward" in vars(m) for m in lab.models[kind].model.diffusion_model.modules())


@pytest.mark.newest
@pytest.mark.parametrize("name,kind", CASES)
def test_beside_other_methods(lab, name, kind):
    """Additive: with another term in either order, the same; the push of both is the sum of the pushes at the first step."""
    usable(lab, kind, name)
    other = PerturbedAttentionGuidance(scale=2.0)
    a = lab.attach(lab.guided(kind, name), other)
    b = lab.guided(kind, name, model=lab.attach(lab.models[kind], other))
    assert torch.equal(lab.run(a), lab.run(b))
    one = {"steps": 1, "scheduler": "normal"}
    base = lab.run(lab.models[kind], **one)
    pushes = [lab.run(m, **one) - base for m in (a, lab.guided(kind, name), lab.attach(lab.models[kind], other))]
    close(pushes[0], pushes[1] + pushes[2], base)


@pytest.mark.parametrize("name,kind", CASES)
def test_areas_and_masks(lab, name, kind):
    usable(lab, kind, name)
    mask = torch.zeros(1, 8 * SIZE, 8 * SIZE)
    mask[:, :, :4 * SIZE] = 1
    positive = [[lab.positive[0][0], {**lab.positive[0][1], "mask": mask, "set_area_to_bounds": False, "mask_strength": 1.0}],
                [lab.other[0][0], {**lab.other[0][1], "area": (SIZE, SIZE // 2, 0, SIZE // 2), "strength": 1.0}]]
    model = lab.guided(kind, name)
    out = lab.run(model, positive=positive, batch=2)
    assert torch.isfinite(out).all() and (out - lab.run(lab.models[kind], positive=positive, batch=2)).abs().max() > 1e-5 * out.abs().max()
    for i in range(2):
        close(lab.run(model, positive=positive, seed=i), out[i:i + 1], out)


@pytest.mark.parametrize("name,kind", CASES)
def test_a_controlnet_reaches_the_branch(lab, name, kind):
    usable(lab, kind, name)
    import comfy.controlnet

    class Control(comfy.controlnet.ControlBase):
        """Adds a constant where a ControlNet would."""

        def get_control(self, x, t, cond, batched_number, *rest):
            if kind == "flux":
                return {"input": [torch.linspace(-1, 1, 32).expand(x.shape[0], x.shape[-2] * x.shape[-1] // 4, 32)], "output": []}
            h, w = x.shape[-2] // 2, x.shape[-1] // 2
            return {"middle": [torch.linspace(-1, 1, 64)[:, None, None].expand(x.shape[0], 64, h, w)], "output": [], "input": []}

        def copy(self):
            return self

        def get_models(self):
            return []

        def pre_run(self, *args):
            pass

        def cleanup(self):
            pass

    control = Control() if lab.modern else Control(torch.device("cpu"))
    positive = [[lab.positive[0][0], {**lab.positive[0][1], "control": control, "control_apply_to_uncond": True}]]
    model = lab.guided(kind, name)
    out = lab.run(model, positive=positive, batch=2)
    assert torch.isfinite(out).all() and (out - lab.run(model, batch=2)).abs().max() > 1e-3
    close(lab.run(model, positive=positive, seed=1), out[1:], out)


@pytest.mark.newest
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_half_precision(lab, dtype):
    with torch.inference_mode():
        patcher = lab.tiny.unet(dtype=dtype)
    for name in METHODS:
        if name in MODERN and not lab.modern:
            continue
        assert torch.isfinite(lab.run(lab.guided("unet", name, model=patcher), steps=1)).all(), name


@pytest.mark.parametrize("kind", BOTH)
def test_all_together_with_samplers(lab, kind):
    usable(lab, kind)
    model = lab.guided(kind, *(n for n in METHODS if lab.modern or n not in MODERN))
    for sampler in ("heun", "euler_ancestral"):
        assert torch.isfinite(lab.run(model, sampler=sampler)).all()
    out = lab.run(model, batch=3)
    for i in (0, 2):
        close(lab.run(model, seed=i), out[i:i + 1], out, 2e-4)


@pytest.mark.newest
def test_compiled_models(lab):
    """The host's own compile wrapper: the same picture as without it, and nothing of ours stays in the compiled network."""
    kind = "flux"
    usable(lab, kind)
    helpers = pytest.importorskip("comfy_api.torch_helpers")
    names, short = ("slg",), {"steps": 1, "size": 8}      # tracing takes seconds a block; edits of attention are compiled in test_engine
    free, plain = lab.run(lab.guided(kind, *names), **short), lab.run(lab.models[kind], **short)
    compiled = lab.models[kind].clone()
    helpers.set_torch_compile_wrapper(model=compiled, backend="eager")
    close(lab.run(lab.guided(kind, *names, model=compiled), **short), free, free, 1e-3)
    assert not any("forward" in m.__dict__ for m in lab.models[kind].model.diffusion_model.modules())
    close(lab.run(compiled, **short), plain, share=1e-4)
    assert (free - plain).abs().max() > 1e-3 * plain.abs().max()


@pytest.mark.newest
@pytest.mark.parametrize("name,kind", CASES)
def test_shares_its_branch_and_its_network_call(lab, name, kind):
    usable(lab, kind, name)
    model = lab.guided(kind, name, name)
    lab.run(model)
    twice = report(lab)
    lab.run(lab.guided(kind, name))
    once = report(lab)
    assert twice.evaluations == once.evaluations and twice.network_calls == once.network_calls


@pytest.mark.newest
@pytest.mark.parametrize("name,kind", CASES)
def test_one_prompt_per_network_call(lab, name, kind, monkeypatch):
    """Short of memory the host evaluates the prompts one after the other."""
    usable(lab, kind, name)
    monkeypatch.setattr(type(lab.models[kind].model), "memory_required", lambda *a, **k: 1e20)
    close(lab.run(lab.guided(kind, name), batch=3), lab.first(kind, name))


@pytest.mark.newest
@pytest.mark.parametrize("name", ("seg", "slg", "tpg", "sag", "swg", "upsample"))
def test_beside_a_step_cache(lab, name):
    """Steps that the host's cache skips keep the guidance: the run goes through, and acts."""
    node = hosts_node(lab, "EasyCache")
    cached = call(node, model=lab.guided("unet", name), reuse_threshold=0.3, start_percent=0.1, end_percent=0.98, verbose=False)
    plain = call(node, model=lab.models["unet"], reuse_threshold=0.3, start_percent=0.1, end_percent=0.98, verbose=False)
    ran = []
    handle = lab.models["unet"].model.diffusion_model.input_blocks[0].register_forward_pre_hook(lambda *a: ran.append(1))
    try:
        out = lab.run(cached, steps=12)
    finally:
        handle.remove()
    assert len(ran) < report(lab).network_calls
    assert torch.isfinite(out).all() and (out - lab.run(plain, steps=12)).abs().max() > 1e-4 * out.abs().max()


@pytest.mark.parametrize("name", list(METHODS))
def test_a_wrong_layer_lists_the_layers(lab, name):
    cls, settings, _, _ = METHODS[name]
    if "layers" not in {f for f in cls.__dataclass_fields__}:
        pytest.skip("has no layers")
    with pytest.raises(ValueError, match=rf"{cls.title}.*double\.9(.|\n)*input\.1"):
        lab.attach(lab.models["unet"], cls(**{**settings, "layers": "double.9"}))


# The host's own nodes, and references written out

@pytest.mark.method("LodestarSkipLayerGuidance")
@pytest.mark.parametrize("rescale", (0.0, 0.6))
def test_slg_equals_the_hosts_own(lab, rescale):
    """Its rescale looks at the whole batch, so one picture is compared."""
    usable(lab, "flux")
    node = hosts_node(lab, "SkipLayerGuidanceDiT")
    theirs = call(node, model=lab.models["flux"], double_layers="1", single_layers="0", scale=2.0, start_percent=0.1, end_percent=0.8, rescaling_scale=rescale)
    mine = lab.attach(lab.models["flux"], SkipLayerGuidance(scale=2.0, layers="double.1, single.0", start_percent=0.1, end_percent=0.8, rescale=rescale))
    out = lab.run(mine, steps=5)
    close(out, lab.run(theirs, steps=5), share=2e-5)
    assert (out - lab.run(lab.models["flux"], steps=5)).abs().max() > 1e-3 * out.abs().max()
    if rescale == 0:
        close(lab.run(mine, steps=5, batch=2), lab.run(theirs, steps=5, batch=2), share=2e-5)


@pytest.mark.method("LodestarSkipLayerGuidance")
def test_slg_of_the_negative_equals_the_hosts_own_and_costs_nothing(lab):
    usable(lab, "flux")
    node = hosts_node(lab, "SkipLayerGuidanceDiTSimple")
    theirs = call(node, model=lab.models["flux"], double_layers="0", single_layers="1", start_percent=0.0, end_percent=0.7)
    mine = lab.attach(lab.models["flux"], SkipLayerGuidance(layers="double.0, single.1", start_percent=0.0, end_percent=0.7, mode="negative only"))
    out = lab.run(mine, steps=5, batch=2)
    counted = report(lab)
    close(out, lab.run(theirs, steps=5, batch=2), share=2e-5)
    assert counted.evaluations == 10 and counted.network_calls == 5
    assert (out - lab.run(lab.models["flux"], steps=5, batch=2)).abs().max() > 1e-3 * out.abs().max()


@pytest.mark.method("LodestarSpatiotemporalSkipGuidance")
@pytest.mark.parametrize("kind", BOTH)
def test_stg_shares_the_branches_of_slg_and_pag(lab, kind):
    usable(lab, kind)
    layers = "middle" if kind == "unet" else "double.1"
    model = lab.models[kind]
    for method in (SkipLayerGuidance(scale=1.0, layers=layers, **ALWAYS), SpatiotemporalSkipGuidance(scale=1.0, layers=layers),
                   PerturbedAttentionGuidance(scale=1.0, layers=layers), SpatiotemporalSkipGuidance(scale=1.0, layers=layers, mode="attention")):
        model = lab.attach(model, method)
    both = lab.run(model)
    assert report(lab).by_kind["branch"] == 2 * 2
    model = lab.attach(lab.attach(lab.models[kind], SkipLayerGuidance(scale=2.0, layers=layers, **ALWAYS)), PerturbedAttentionGuidance(scale=2.0, layers=layers))
    close(both, lab.run(model))


@pytest.mark.method("LodestarSpatiotemporalSkipGuidance")
@pytest.mark.parametrize("settings,words", (({"axis": "temporal"}, "over the frames"), ({"axis": "spatial"}, "over the frames"),
                                            ({"axis": "temporal", "mode": "attention"}, "Choose joint")))
@pytest.mark.parametrize("kind", BOTH)
def test_half_of_a_picture_is_refused(lab, kind, settings, words):
    usable(lab, kind)
    with pytest.raises(ValueError, match=words):
        lab.run(lab.attach(lab.models[kind], SpatiotemporalSkipGuidance(**settings)))


@pytest.mark.method("LodestarStochasticSelfGuidance")
def test_s2_leaves_out_other_blocks_at_every_step(lab):
    drawn = []
    from lodestar.guidance.perturbation import s2
    pick = s2.DropBlocks.pick

    def noted(self, layers, step):
        found = pick(self, layers, step)
        drawn.append((step.index, tuple(found)))
        return found
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(s2.DropBlocks, "pick", noted)
        lab.run(lab.attach(lab.models["unet"], StochasticSelfGuidance(drop=0.3, **ALWAYS)), steps=6)
    assert len(dict(drawn)) == 6 and len({blocks for _, blocks in drawn}) > 2
    assert all(str(x) != "input.1" for _, blocks in drawn for x in blocks)
    outs = [lab.run(lab.attach(lab.models["unet"], StochasticSelfGuidance(seed=i, **ALWAYS))) for i in (0, 1)]
    assert (outs[0] - outs[1]).abs().max() > 1e-4 * outs[0].abs().max()


@pytest.mark.method("LodestarSelfAttentionGuidance")
@pytest.mark.parametrize("sigma", (1.0, 2.0))
def test_sag_equals_the_hosts_own(lab, sigma):
    node = hosts_node(lab, "SelfAttentionGuidance")
    theirs = call(node, model=lab.models["unet"], scale=0.8, blur_sigma=sigma)
    mine = lab.attach(lab.models["unet"], SelfAttentionGuidance(scale=0.8, blur_sigma=sigma))
    out = lab.run(mine, batch=2, steps=4)
    close(out, lab.run(theirs, batch=2, steps=4), share=2e-5)
    assert (out - lab.run(lab.models["unet"], batch=2, steps=4)).abs().max() > 1e-3 * out.abs().max()


@pytest.mark.method("LodestarSelfAttentionGuidance")
@pytest.mark.parametrize("kind", BOTH)
def test_sag_reads_each_prompt_on_its_area(lab, kind):
    """Halves with prompts of their own are read on their halves, whatever their order."""
    usable(lab, kind)
    if not lab.modern:
        pytest.skip("this host does not tell which rows belong to which area")
    from lodestar.guidance.perturbation.sag import AttentionMass
    seen, gather = [], AttentionMass.gather

    def noted(self, parts, shape):
        seen.append({None if a is None else tuple(a) for a, _, _ in parts})
        return gather(self, parts, shape)
    halves = lambda *prompts: [[p[0][0], {**p[0][1], "area": (SIZE, SIZE // 2, 0, i * SIZE // 2), "strength": 1.0}] for i, p in enumerate(prompts)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AttentionMass, "gather", noted)
        negative = halves(lab.negative, lab.other)
        out = lab.run(lab.guided(kind, "sag"), negative=negative)
        swapped = lab.run(lab.guided(kind, "sag"), negative=negative[::-1])
    assert seen[0] == {(SIZE, SIZE // 2, 0, 0), (SIZE, SIZE // 2, 0, SIZE // 2)}
    close(out, swapped)


@pytest.mark.method("LodestarSelfAttentionGuidance")
@pytest.mark.method("LodestarBlurGuidance")
def test_sag_and_blur_guidance_share_what_they_have_in_common(lab):
    model = lab.attach(lab.attach(lab.models["unet"], BlurGuidance(scale=0.5)), SelfAttentionGuidance(scale=0.5, mask="all"))
    out = lab.run(model)
    assert report(lab).by_kind["branch"] == 2
    close(out, lab.run(lab.attach(lab.models["unet"], BlurGuidance(scale=1.0))))
    model = lab.attach(lab.attach(lab.models["unet"], SelfAttentionGuidance(scale=0.5)), SelfAttentionGuidance(scale=0.5, mask="not attended"))
    close(lab.run(model, steps=1) - lab.run(lab.models["unet"], steps=1), sum(
        lab.run(lab.attach(lab.models["unet"], SelfAttentionGuidance(scale=0.5, mask=m)), steps=1) - lab.run(lab.models["unet"], steps=1) for m in ("attended", "not attended")), out)


@pytest.mark.newest
@pytest.mark.method("LodestarSlidingWindowGuidance")
@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("masked", (True, False))
def test_swg_equals_the_papers_procedure(lab, kind, masked):
    """Crop by crop with the host's own functions: predict, paste, average, push where two overlap."""
    usable(lab, kind)
    import comfy.samplers

    def post(args):
        x, total, count = args["input"], torch.zeros_like(args["input"]), torch.zeros_like(args["input"])
        for y in (0, 6):
            for left in (0, 6):
                part = (..., slice(y, y + 10), slice(left, left + 10))
                total[part] += comfy.samplers.calc_cond_batch(args["model"], [args["cond"]], x[part].contiguous(), args["sigma"], args["model_options"])[0]
                count[part] += 1
        mask = (count > 1).to(x) if masked else 1.0
        return args["denoised"] + 0.8 * mask * (args["cond_denoised"] - total / count)
    theirs = lab.models[kind].clone()
    theirs.set_model_sampler_post_cfg_function(post)
    mine = lab.attach(lab.models[kind], SlidingWindowGuidance(scale=0.8, masked=masked))
    out = lab.run(mine, batch=2, steps=3)
    close(out, lab.run(theirs, batch=2, steps=3), share=2e-5)
    assert (out - lab.run(lab.models[kind], batch=2, steps=3)).abs().max() > 1e-3 * out.abs().max()
    lab.run(mine)
    counted = report(lab)
    if lab.modern:
        assert counted.network_calls == 2 * 2 and counted.by_kind["branch"] == 2 * 4      # the crops of a step in one call


@pytest.mark.method("LodestarSlidingWindowGuidance")
def test_windows_of_areas_masks_and_controlnets(lab):
    """Each window gets its part of an area's mask, of a ControlNet's hint; what an area does not reach is left out."""
    from lodestar.guidance.host import windows
    x = torch.zeros(1, 4, 16, 16)
    parts = [(10, 10, 0, 0), (10, 10, 0, 6), (10, 10, 6, 0), (10, 10, 6, 6)]
    plain = windows.crops({"model_conds": {}}, parts, x, None)
    assert [c["area"] for _, c in plain] == parts and all(bool((c["mask"] == 1).all()) for _, c in plain)
    area = windows.crops({"model_conds": {}, "area": (16, 4, 0, 12), "strength": 0.5}, parts, x, None)
    assert [(n, c["area"]) for n, c in area] == [(1, (10, 4, 0, 12)), (3, (10, 4, 6, 12))] and area[0][1]["strength"] == 0.5
    assert area[0][1]["mask"][0, 0, 10:].tolist() == [1] * 6            # its border towards the rest fades as the host's: too narrow here
    wide = windows.crops({"model_conds": {}, "area": (16, 8, 0, 8)}, parts, x, None)[0][1]["mask"]
    assert wide[0, 0, 8:].tolist() == [0.5, 1.0] + [1.0] * 6
    with pytest.raises(ValueError, match="GLIGEN"):
        windows.crops({"gligen": ()}, parts, x, None)

    if lab.modern:
        import comfy.samplers
        video = torch.arange(2 * 256.0).view(1, 1, 2, 16, 16).expand(1, 4, 2, 16, 16)
        cut = windows.crops({"model_conds": {}, "uuid": None}, parts, video, None)[3][1]
        found = comfy.samplers.get_area_and_mult(cut, video, torch.ones(1))
        assert torch.equal(found.input_x, video[..., 6:, 6:]) and bool((found.mult == 1).all())

    import comfy.controlnet

    class Control(comfy.controlnet.ControlBase):
        seen, ready = [], 0

        def get_control(self, x_noisy, *rest):
            Control.seen.append((tuple(x_noisy.shape[-2:]), float(self.cond_hint_original[0, 0, 0, 0]), tuple(self.cond_hint_original.shape[-2:]),
                                 self.previous_controlnet is not None and tuple(self.previous_controlnet.cond_hint_original.shape[-2:])))
            return {"middle": [None], "output": [], "input": []}

        def copy(self):
            c = Control() if lab.modern else Control(torch.device("cpu"))
            self.copy_to(c)
            return c

        def pre_run(self, *args):
            Control.ready += 1

        def get_models(self):
            return []

    make = lambda: Control() if lab.modern else Control(torch.device("cpu"))
    control, earlier = make(), make()
    hint = torch.arange(128.0)[:, None] * 1000 + torch.arange(128.0)
    control.cond_hint_original, earlier.cond_hint_original = hint[None, None], torch.zeros(1, 1, 64, 64)
    control.previous_controlnet = earlier
    positive = [[lab.positive[0][0], {**lab.positive[0][1], "control": control, "control_apply_to_uncond": True}]]
    lab.run(lab.guided("unet", "swg"), positive=positive, steps=1)
    assert set(Control.seen) == {((16, 16), 0.0, (128, 128), (64, 64))} | {((10, 10), y * 1000.0 + left, (80, 80), (40, 40)) for y in (0, 48) for left in (0, 48)}
    assert Control.ready >= 5


@pytest.mark.method("LodestarUpsampleGuidance")
@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("cfg", (1.0, 4.0))
def test_upsample_equals_the_papers_procedure(lab, kind, cfg):
    """With the host's own functions: the small picture at its own noise level, its prediction with CFG, the correction enlarged."""
    usable(lab, kind, "upsample")
    import comfy.samplers

    def post(args):
        x, sigma, model = args["input"], args["sigma"], args["model"]
        flow = kind == "flux"
        s = sigma.view(-1, 1, 1, 1)
        low = torch.nn.functional.avg_pool2d(x, 2) / ((1 - s) + s / 2 if flow else 1.0)
        level = sigma / (2 * (1 - sigma) + sigma) if flow else sigma / 2
        c, *u = comfy.samplers.calc_cond_batch(model, [args["cond"], args["uncond"]] if cfg != 1 else [args["cond"]], low, level, args["model_options"])
        small = u[0] + cfg * (c - u[0]) if u else c
        up = torch.nn.functional.interpolate(small - torch.nn.functional.avg_pool2d(args["denoised"], 2), scale_factor=2, mode="nearest")
        return args["denoised"] + 0.9 * up
    theirs = lab.models[kind].clone()
    theirs.set_model_sampler_post_cfg_function(post)
    mine = lab.attach(lab.models[kind], UpsampleGuidance(scale=0.9, end_percent=1.0))
    out = lab.run(mine, batch=2, steps=3, cfg=cfg)
    close(out, lab.run(theirs, batch=2, steps=3, cfg=cfg), share=2e-5)
    assert (out - lab.run(lab.models[kind], batch=2, steps=3, cfg=cfg)).abs().max() > 1e-3 * out.abs().max()


@pytest.mark.method("LodestarUpsampleGuidance")
def test_upsample_of_areas_masks_and_odd_sizes(lab):
    """The prompt is made for the small size: its area and its mask are at half the size there."""
    usable(lab, "unet", "upsample")
    from lodestar.guidance.host.calls import Session
    seen, resized = [], Session.resized

    def noted(self, prompt, x, full):
        found = resized(self, prompt, x, full)
        seen.append((tuple(x.shape[-2:]), [(tuple(e["area"]) if "area" in e else None, tuple(e["mask"].shape) if "mask" in e else None) for e in found]))
        return found
    mask = torch.zeros(1, 8 * SIZE, 8 * SIZE)
    mask[:, :, :4 * SIZE] = 1
    positive = [[lab.positive[0][0], {**lab.positive[0][1], "mask": mask, "set_area_to_bounds": False, "mask_strength": 1.0}],
                [lab.other[0][0], {**lab.other[0][1], "area": (SIZE, SIZE // 2, 0, SIZE // 2), "strength": 1.0}]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "resized", noted)
        lab.run(lab.guided("unet", "upsample"), positive=positive, steps=1)
    half = SIZE // 2
    size, entries = seen[0]
    assert size == (half, half) and (None, (1, half, half)) in entries and ((half, half // 2, 0, half // 2), None) in entries
    assert torch.isfinite(lab.run(lab.guided("unet", "upsample"), size=13)).all()
    with pytest.raises(ValueError, match="Choose a smaller factor"):
        lab.run(lab.attach(lab.models["unet"], UpsampleGuidance(factor=8)), size=7)


def test_refusals(lab):
    if lab.modern:
        pytest.skip("this host can do all of them")
    with pytest.raises(ValueError, match="Upsample Guidance needs a newer ComfyUI"):
        lab.run(lab.attach(lab.models["unet"], UpsampleGuidance()))
