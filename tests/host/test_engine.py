"""The engine on a real ComfyUI, with small random networks: what every method promises, and what it must leave alone."""
import itertools

import pytest
import torch
from lodestar.guidance.frozen import frozen

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def lab(host):
    """Networks, prompts and methods; inside inference mode, as the host's executor runs nodes."""
    import lodestar.tests.tiny as tiny
    from lodestar.guidance import engine
    from lodestar.guidance.attention.nag import NormalizedAttentionGuidance
    from lodestar.guidance.host.attach import attach
    from lodestar.guidance.host.features import wrappers
    from lodestar.guidance.loss.target import TargetImage
    from lodestar.guidance.loss.universal import UniversalGuidance
    from lodestar.guidance.perturbation.pag import PerturbedAttentionGuidance
    from lodestar.guidance.rules.adaptive import AdaptiveGuidance
    from lodestar.guidance.rules.apg import AdaptiveProjectedGuidance
    from lodestar.guidance.rules.interval import GuidanceInterval
    from lodestar.guidance.rules.model_pair import ModelPairGuidance
    from lodestar.guidance.rules.multi_conditional import MultiConditionalCFG

    class Lab:
        pass

    lab = Lab()
    lab.tiny, lab.attach, lab.engine, lab.modern, lab.host = tiny, attach, engine, wrappers(), host
    with torch.inference_mode():
        lab.models = {"unet": tiny.unet()}
        lab.weak = {"unet": tiny.unet(5)}
        if lab.modern:
            lab.models["flux"], lab.weak["flux"] = tiny.flux(), tiny.flux(5)
        lab.positive, lab.negative, lab.other = tiny.prompt(1), tiny.prompt(2), tiny.prompt(3)
        lab.left = (torch.arange(16) < 8).float().expand(1, 16, 16)
    route = "network" if lab.modern else "none"
    lab.methods = {
        "pag": lambda kind, **k: PerturbedAttentionGuidance(**{"scale": 2.0, **k}),
        "nag": lambda kind, **k: NormalizedAttentionGuidance(**{"negative": lab.other, "scale": 3.0, **k}),
        "apg": lambda kind, **k: AdaptiveProjectedGuidance(**{"norm_threshold": 5.0, **k}),
        "interval": lambda kind, **k: GuidanceInterval(**{"start_percent": 0.3, "end_percent": 0.7, **k}),
        "ag": lambda kind, **k: AdaptiveGuidance(**{"threshold": 0.5, "start_percent": 0.0, **k}),
        "pair": lambda kind, **k: ModelPairGuidance(**{"weak_model": lab.weak[kind], "scale": 0.5, **k}),
        "several": lambda kind, **k: MultiConditionalCFG(**{"condition": lab.other, "scale": 2.0, "mask": lab.left, **k}),
        "universal": lambda kind, **k: UniversalGuidance(**{"loss": TargetImage(target=torch.ones(1, 4, 8, 8)), "scale": 0.5, "route": route, **k}),
    }
    lab.off = {"pag": {"scale": 0.0}, "nag": {"scale": 0.0}, "apg": {"eta": 1.0, "norm_threshold": 0.0, "momentum": 0.0},
               "interval": {"start_percent": 0.0, "end_percent": 1.0}, "ag": {"threshold": 1.01}, "pair": {"scale": 0.0}, "several": {"scale": 0.0}, "universal": {"scale": 0.0}}

    def run(patcher, positive=None, negative=None, **k):
        with torch.inference_mode():
            return tiny.sample(patcher, positive or lab.positive, negative or lab.negative, **k)

    lab.run = run
    lab.base = {kind: run(m, batch=3) for kind, m in lab.models.items()}
    return lab


NAMES = ("pag", "nag", "apg", "interval", "ag", "pair", "several", "universal")
IDS = {"pag": "LodestarPerturbedAttentionGuidance", "nag": "LodestarNormalizedAttentionGuidance", "apg": "LodestarAdaptiveProjectedGuidance",
       "interval": "LodestarGuidanceInterval", "ag": "LodestarAdaptiveGuidance", "pair": "LodestarModelPairGuidance", "several": "LodestarMultiConditionalCFG",
       "universal": "LodestarUniversalGuidance"}
CASES = [pytest.param(n, k, marks=pytest.mark.method(IDS[n])) for n in NAMES for k in ("unet", "flux")]


def usable(lab, name, kind):
    if kind not in lab.models:
        pytest.skip("this host has no Flux")
    if name == "pair" and not lab.modern:
        pytest.skip("this host cannot load two models for one run; test_refusals checks that it says so")


def close(a, b, scale, share=2e-5):
    assert (a - b).abs().max() <= share * scale.abs().max()


@pytest.mark.parametrize("name,kind", CASES)
def test_zero_strength_is_bit_equal(lab, name, kind):
    usable(lab, name, kind)
    off = lab.attach(lab.models[kind], lab.methods[name](kind, **lab.off[name]))
    assert torch.equal(lab.run(off, batch=3), lab.base[kind])


@pytest.mark.parametrize("name,kind", CASES)
def test_acts_and_batch_equals_singles_and_second_run_equals_first(lab, name, kind):
    usable(lab, name, kind)
    model = lab.attach(lab.models[kind], lab.methods[name](kind))
    first = lab.run(model, batch=3)
    assert torch.isfinite(first).all() and (first - lab.base[kind]).abs().max() > 1e-3
    assert torch.equal(lab.run(model, batch=3), first)
    for i in (0, 2):
        close(lab.run(model, batch=1, seed=i), first[i:i + 1], first, 1e-4)
    assert torch.equal(lab.run(lab.models[kind], batch=3), lab.base[kind])


@pytest.mark.parametrize("name,kind", [c for c in CASES if c.values[0] in ("apg", "interval", "ag", "nag")])
def test_equal_prompts_give_the_conditional_prediction(lab, name, kind):
    usable(lab, name, kind)
    extra = {"momentum": 0.0} if name == "apg" else {"negative": lab.positive} if name == "nag" else {}
    model = lab.attach(lab.models[kind], lab.methods[name](kind, **extra))
    plain = lab.run(lab.models[kind], negative=lab.positive, cfg=1.0)
    close(lab.run(model, negative=lab.positive, cfg=4.0 if name != "nag" else 1.0), plain, plain, 1e-4)


@pytest.mark.parametrize("name,kind", CASES)
def test_interrupted_run_leaves_nothing(lab, name, kind):
    usable(lab, name, kind)
    import comfy.sample
    model = lab.attach(lab.models[kind], lab.methods[name](kind))
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


@pytest.mark.parametrize("kind", ("unet", "flux"))
def test_order_of_additive_nodes_does_not_matter(lab, kind):
    usable(lab, "pag", kind)
    names = [n for n in ("pag", "pair", "interval", "nag") if lab.modern or n != "pair"]
    outs = []
    for order in list(itertools.permutations(names))[::5]:
        model = lab.models[kind]
        for n in order:
            model = lab.attach(model, lab.methods[n](kind))
        outs.append(lab.run(model))
    for out in outs[1:]:
        assert torch.equal(out, outs[0])


@pytest.mark.parametrize("kind", ("unet", "flux"))
def test_all_methods_together_equal_singles(lab, kind):
    usable(lab, "pag", kind)
    model = lab.models[kind]
    for n in NAMES:
        if lab.modern or n != "pair":
            model = lab.attach(model, lab.methods[n](kind, **({"threshold": 0.999} if n == "ag" else {})))
    out = lab.run(model, batch=3)
    assert torch.isfinite(out).all()
    for i in (0, 2):
        close(lab.run(model, seed=i), out[i:i + 1], out, 1e-4)


def test_two_rules_conflict_by_name(lab):
    model = lab.attach(lab.models["unet"], lab.methods["apg"]("unet"))
    with pytest.raises(lab.engine.RuleConflict, match="Adaptive Projected Guidance"):
        lab.attach(model, lab.methods["apg"]("unet"))


def test_wrong_layer_lists_the_layers(lab):
    with pytest.raises(ValueError, match=r"Perturbed-Attention Guidance.*double\.9(.|\n)*input\.1"):
        lab.attach(lab.models["unet"], lab.methods["pag"]("unet", layers="double.9"))


def report(lab):
    return lab.engine.REPORTS[-1]


@pytest.mark.parametrize("kind", ("unet", "flux"))
@pytest.mark.method("LodestarGuidanceInterval")
def test_a_closed_gate_saves_evaluations(lab, kind):
    usable(lab, "interval", kind)
    lab.run(lab.attach(lab.models[kind], lab.methods["interval"](kind, start_percent=0.0, end_percent=0.5)), steps=6)
    counted = report(lab)
    assert counted.by_kind["positive"] == 6 and 0 < counted.by_kind["negative"] < 6
    assert counted.evaluations == counted.by_kind["positive"] + counted.by_kind["negative"]


@pytest.mark.parametrize("kind", ("unet", "flux"))
@pytest.mark.method("LodestarPerturbedAttentionGuidance")
def test_branches_are_shared_and_batched(lab, kind):
    usable(lab, "pag", kind)
    model = lab.attach(lab.attach(lab.models[kind], lab.methods["pag"](kind)), lab.methods["pag"](kind, scale=1.0))
    lab.run(model)
    counted = report(lab)
    assert counted.evaluations == 12 and counted.by_kind["branch"] == 4     # two nodes, one branch
    if lab.modern:
        assert counted.network_calls == 4
    both, single = lab.run(model), lab.run(lab.attach(lab.models[kind], lab.methods["pag"](kind, scale=3.0)))
    close(both, single, single, 1e-4)


@pytest.mark.method("LodestarPerturbedAttentionGuidance")
def test_pag_equals_the_hosts_own(lab):
    node = lab.host.nodes().get("PerturbedAttentionGuidance")
    if node is None:
        pytest.skip("this host has no PAG node")
    theirs = _call(node, model=lab.models["unet"], scale=2.0)
    mine = lab.attach(lab.models["unet"], lab.methods["pag"]("unet", scale=2.0, layers="middle"))
    close(lab.run(mine, batch=2), lab.run(theirs, batch=2), lab.base["unet"])
    everywhere = lab.attach(theirs, lab.methods["pag"]("unet", scale=2.0, layers="middle"))
    twice = lab.attach(lab.models["unet"], lab.methods["pag"]("unet", scale=4.0, layers="middle"))
    close(lab.run(everywhere), lab.run(twice), lab.base["unet"], 1e-4)

@pytest.mark.method(IDS["nag"])
def test_nag_equals_the_hosts_own(lab):
    """On joint attention. On U-Nets the host's node combines the self-attention of two rows whose pictures have parted; the paper's is the cross-attention of one."""
    node = lab.host.nodes().get("NAGuidance")
    if node is None or "flux" not in lab.models:
        pytest.skip("this host has no NAG, or no Flux")
    negative = [[lab.negative[0][0], lab.positive[0][1]]]      # one pooled text: the host gives the second row its own, we give it the positive's
    theirs = node.execute(model=lab.models["flux"], nag_scale=5.0, nag_alpha=0.5, nag_tau=1.5).args[0]
    ours = lab.attach(lab.models["flux"], lab.methods["nag"]("flux", negative=negative, scale=4.0, alpha=0.5, tau=1.5))
    out, plain = lab.run(ours, negative=negative, cfg=1.0), lab.run(lab.models["flux"], negative=negative, cfg=1.0)
    close(out, lab.run(theirs, negative=negative, cfg=1.0), plain, 1e-4)
    assert (out - plain).abs().max() > 1e-2 * plain.abs().max()


@pytest.mark.method("LodestarAdaptiveProjectedGuidance")
@pytest.mark.parametrize("settings", ({"eta": 1.0, "norm_threshold": 0.5}, {"eta": 0.3, "norm_threshold": 2.0}, {"eta": 0.0, "norm_threshold": 1.0, "momentum": -0.5}))
def test_apg_equals_the_hosts_own(lab, settings):
    """The host's node gives c + w g, the paper c + (w - 1) g: its cfg 3 is our cfg 4."""
    node = lab.host.nodes().get("APG")
    if node is None:
        pytest.skip("this host has no APG node")
    settings = {"momentum": 0.0, **settings}
    theirs = _call(node, model=lab.models["unet"], **settings)
    mine = lab.attach(lab.models["unet"], lab.methods["apg"]("unet", **settings))
    close(lab.run(mine, batch=2, cfg=4.0), lab.run(theirs, batch=2, cfg=3.0), lab.base["unet"], 1e-4)


def _call(node, **inputs):
    """Runs a node class of either schema and returns its first output."""
    if hasattr(node, "define_schema"):
        return node.execute(**inputs).args[0] if hasattr(node.execute(**inputs), "args") else node.execute(**inputs)[0]
    return getattr(node(), node.FUNCTION)(**inputs)[0]


@pytest.mark.parametrize("before", (True, False))
@pytest.mark.parametrize("name", ("pag", "interval", "apg"))
def test_easycache_keeps_the_guidance(lab, name, before):
    """A step cache files what it skips under a conditioning's uuid: branches with their own keep their size (a shared one: 7 % or nothing)."""
    node = lab.host.nodes().get("EasyCache")
    if node is None:
        pytest.skip("this host has no EasyCache")

    probe, sizes = _probe()

    def run(cache):
        model = lab.models["unet"]
        for step in ((cache, ours) if before else (ours, cache)):
            model = step(model)
        sizes.clear()
        lab.run(model, steps=12)
        return list(sizes)

    def ours(model):
        return lab.attach(lab.attach(model, lab.methods[name]("unet")), probe)

    def cached(model):
        return _call(node, model=model, reuse_threshold=0.3, start_percent=0.1, end_percent=0.98, verbose=False)

    lab.run(lab.attach(cached(lab.models["unet"]), probe), steps=12)
    if any(value == 0 for row in sizes for value in row.values()):
        pytest.skip("this host's EasyCache gives every row the same cached difference: on skipped steps its own CFG is off already")
    free, kept = run(lambda m: m.clone()), run(cached)
    assert len(free) == len(kept) == 12
    for a, b in zip(free, kept):
        assert set(a) == set(b)
        for key in a:
            assert 0.4 < b[key] / a[key] < 2.5, (key, free, kept)


def _probe():
    """A method that changes nothing and notes the size of every difference between the conditional and another prediction."""
    import dataclasses

    from lodestar.guidance.method import POSITIVE, Finish
    sizes = []

    @frozen
    class Probe(Finish):
        title = "probe"

        def finish(self, step, denoised, predictions, state):
            cond = predictions[POSITIVE]
            sizes.append({repr(b.prompt) + repr(len(b.edits)): float((cond - p).norm()) for b, p in predictions.items() if b != POSITIVE})
            return denoised
    return Probe(), sizes


@pytest.mark.parametrize("sampler", ("heun", "dpmpp_2m", "dpmpp_sde", "dpm_adaptive", "lcm", "uni_pc", "euler_ancestral", "ddim"))
def test_samplers(lab, sampler):
    model = lab.models["unet"]
    for n in ("pag", "apg", "nag", "ag"):
        model = lab.attach(model, lab.methods[n]("unet"))
    out = lab.run(model, sampler=sampler, steps=4)
    assert torch.isfinite(out).all()


@pytest.mark.newest
def test_every_sampler_of_the_host_runs(lab):
    import comfy.samplers
    model = lab.attach(lab.attach(lab.models["unet"], lab.methods["pag"]("unet")), lab.methods["apg"]("unet"))
    failed = []
    for name in comfy.samplers.KSampler.SAMPLERS:
        try:
            if not torch.isfinite(lab.run(model, sampler=name, steps=2)).all() and torch.isfinite(lab.run(lab.models["unet"], sampler=name, steps=2)).all():
                failed.append(name)
        except Exception as error:
            try:
                lab.run(lab.models["unet"], sampler=name, steps=2)
            except Exception:
                continue        # the host's own fault
            failed.append(f"{name}: {error!r}")
    assert not failed


@pytest.mark.parametrize("kind", ("unet", "flux"))
def test_areas_masks_and_strengths(lab, kind):
    usable(lab, "pag", kind)
    mask = torch.zeros(1, 64, 64)
    mask[:, :, :32] = 1
    positive = [[lab.positive[0][0], {**lab.positive[0][1], "mask": mask, "set_area_to_bounds": False, "mask_strength": 1.0}],
                [lab.other[0][0], {**lab.other[0][1], "area": (16, 8, 0, 8), "strength": 1.0}]]
    model = lab.models[kind]
    for n in ("pag", "apg", "interval"):
        model = lab.attach(model, lab.methods[n](kind))
    out = lab.run(model, positive=positive, batch=3, size=16, steps=2)
    for i in (0, 2):
        close(lab.run(model, positive=positive, seed=i, size=16, steps=2), out[i:i + 1], out, 1e-4)


def test_masked_sampling_keeps_the_known_region(lab):
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    model = lab.attach(lab.attach(lab.models["unet"], lab.methods["pag"]("unet")), lab.methods["universal"]("unet"))
    out = lab.run(model, latent=latent, denoise_mask=mask)
    close(out[..., 4:], latent[..., 4:], latent, 1e-5)
    assert (out[..., :4] - latent[..., :4]).abs().max() > 0.1


@pytest.mark.method("LodestarUniversalGuidance")
@pytest.mark.parametrize("kind", ("unet", "flux"))
def test_gradient_routes(lab, kind):
    """Recomputed blocks give the same numbers as the plain backward; both lower the loss; no graph is left."""
    if not lab.modern:
        with pytest.raises(ValueError, match="route"):
            lab.run(lab.attach(lab.models["unet"], lab.methods["universal"]("unet", route="network")))
        return
    outs = {r: lab.run(lab.attach(lab.models[kind], lab.methods["universal"](kind, route=r))) for r in ("network", "checkpoint", "none")}
    close(outs["network"], outs["checkpoint"], outs["network"], 1e-4)
    plain = lab.base[kind][:1]
    for out in outs.values():
        assert not out.requires_grad
        assert (out - 1).square().mean() < (plain - 1).square().mean()
    assert not any("forward" in vars(m) for m in lab.models[kind].model.diffusion_model.modules())


def test_half_precision(lab):
    for dtype in (torch.bfloat16, torch.float16):
        with torch.inference_mode():
            patcher = lab.tiny.unet(dtype=dtype)
            model = patcher
            for n in ("pag", "apg", "nag", "universal"):
                model = lab.attach(model, lab.methods[n]("unet"))
        assert torch.isfinite(lab.run(model)).all()


@pytest.mark.parametrize("kind", ("unet", "flux"))
def test_a_controlnet_reaches_every_branch(lab, kind):
    usable(lab, "pag", kind)
    import comfy.controlnet

    class Control(comfy.controlnet.ControlBase):
        """Adds a constant where a ControlNet would."""

        def get_control(self, x, t, cond, batched_number, *rest):
            self.seen = getattr(self, "seen", []) + [batched_number]
            if kind == "flux":
                return {"input": [torch.linspace(-1, 1, 32).expand(x.shape[0], 16, 32)], "output": []}
            return {"middle": [torch.linspace(-1, 1, 64)[:, None, None].expand(x.shape[0], 64, 4, 4)], "output": [], "input": []}

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
    model = lab.models[kind]
    for n in ("pag", "nag", "apg"):
        model = lab.attach(model, lab.methods[n](kind))
    out = lab.run(model, positive=positive, batch=2)
    assert torch.isfinite(out).all() and control.seen
    assert (out - lab.run(model, batch=2)).abs().max() > 1e-3
    close(lab.run(model, positive=positive, seed=1), out[1:], out, 1e-4)


def test_guiders(lab):
    if not lab.modern:
        pytest.skip("guider nodes of this host have no hooks; KSampler is tested")
    import comfy.samplers
    nodes = lab.host.nodes()
    model = lab.attach(lab.attach(lab.models["unet"], lab.methods["pag"]("unet")), lab.methods["nag"]("unet"))
    noise, latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 4, 8, 8)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 4)
    inputs = {"BasicGuider": dict(model=model, conditioning=lab.positive), "CFGGuider": dict(model=model, positive=lab.positive, negative=lab.negative, cfg=3.0),
              "DualCFGGuider": dict(model=model, cond1=lab.positive, cond2=lab.other, negative=lab.negative, cfg_conds=3.0, cfg_cond2_negative=2.0, style="regular"),
              "PerpNegGuider": dict(model=model, positive=lab.positive, negative=lab.negative, empty_conditioning=lab.other, cfg=3.0, neg_scale=1.0)}
    for name, given in inputs.items():
        node = nodes[name]
        names = set(node.INPUT_TYPES()["required"]) if hasattr(node, "INPUT_TYPES") else set(given)
        with torch.inference_mode():
            guided = _call(node, **{k: v for k, v in given.items() if k in names or not names})
            plain = _call(node, **{**{k: v for k, v in given.items() if k in names}, "model": lab.models["unet"]})
            a = guided.sample(noise, latent, comfy.samplers.ksampler("euler"), sigmas, disable_pbar=True, seed=0)
            b = plain.sample(noise, latent, comfy.samplers.ksampler("euler"), sigmas, disable_pbar=True, seed=0)
        assert torch.isfinite(a).all() and (a - b).abs().max() > 1e-3, name


def test_earlier_hooks_of_others_are_called(lab):
    """A CFG function, a post-CFG function and an attention replacement that were there before ours all keep acting."""
    seen = {"cfg": 0, "post": 0, "attention": 0}
    model = lab.models["unet"].clone()

    def cfg(args):
        seen["cfg"] += 1
        return args["uncond"] + (args["cond"] - args["uncond"]) * args["cond_scale"]

    def post(args):
        seen["post"] += 1
        return args["denoised"] * 1.001

    def attention(q, k, v, extra):
        seen["attention"] += 1
        return v * 0.5

    model.set_model_sampler_cfg_function(cfg)
    model.set_model_sampler_post_cfg_function(post)
    model.set_model_attn1_replace(attention, "output", 0)
    ours = model
    for n in ("pag", "apg"):
        ours = lab.attach(ours, lab.methods[n]("unet", **({"layers": "output.0"} if n == "pag" else {})))
    out = lab.run(ours)
    assert torch.isfinite(out).all() and all(count >= 4 for count in seen.values()), seen


@pytest.mark.method("LodestarModelPairGuidance")
@pytest.mark.parametrize("kind", ("unet", "flux"))
def test_a_weak_model_that_is_a_patched_clone(lab, kind):
    """Two MODELs on one network with other weight patches: the weak one gets a network of its own, and both stay right."""
    usable(lab, "pair", kind)
    model = lab.models[kind]
    name = next(k for k in model.model_state_dict() if k.endswith("weight") and ("middle_block.0.in_layers.2" in k or "double_blocks.0.img_mlp.0" in k))
    change = 0.5 * torch.randn(model.model_state_dict()[name].shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        weak = model.clone()
        weak.add_patches({name: (change,)}, 1.0)
    alone = lab.run(weak)
    assert (alone - lab.base[kind][:1]).abs().max() > 1e-3
    only_weak = lab.run(lab.attach(model, lab.methods["pair"](kind, weak_model=weak, scale=-1.0)), cfg=1.0)
    close(only_weak, lab.run(weak, cfg=1.0), alone, 1e-4)
    assert torch.equal(lab.run(model, batch=3), lab.base[kind])
    close(lab.run(weak), alone, alone, 1e-6)


def test_refusals(lab):
    if lab.modern:
        with pytest.raises(ValueError, match="target"):
            from lodestar.guidance.loss.target import TargetImage
            lab.run(lab.attach(lab.models["unet"], lab.methods["universal"]("unet", loss=TargetImage(target=torch.ones(1, 4, 3, 3)))))
        return
    with pytest.raises(ValueError, match="second MODEL"):
        lab.run(lab.attach(lab.models["unet"], lab.methods["pair"]("unet")))


@pytest.mark.newest
@pytest.mark.parametrize("kind", ("unet", "flux"))
def test_compiled_models(lab, kind):
    """The host's own compile wrapper, before our nodes (U-Net) and after them (Flux): the same picture as without it."""
    usable(lab, "pag", kind)
    helpers = pytest.importorskip("comfy_api.torch_helpers")
    names = ("pag", "nag") if kind == "unet" else ("pag",)      # tracing takes seconds a block

    def guided(model):
        for n in names:
            model = lab.attach(model, lab.methods[n](kind))
        return model

    def compiled(model):
        model = model.clone()
        helpers.set_torch_compile_wrapper(model=model, backend="eager")
        return model
    free = lab.run(guided(lab.models[kind]), steps=2)
    model = guided(compiled(lab.models[kind])) if kind == "unet" else compiled(guided(lab.models[kind]))
    close(lab.run(model, steps=2), free, free, 1e-3)
    assert torch.equal(lab.run(lab.models[kind], batch=3), lab.base[kind])
