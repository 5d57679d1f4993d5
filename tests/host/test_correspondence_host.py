"""CorrFill, Feature-Correspondence Guidance, attention shaping of adapters and Cocktail on small random networks of a real ComfyUI."""
import pytest
import torch

pytest.importorskip("torch")

IDS = {"corrfill": "LodestarCorrFill", "features": "LodestarFeatureCorrespondenceGuidance"}
IDS |= {"second": "LodestarDecoupledPrompt", "shaping": "LodestarAdapterAttentionShaping", "weighting": "LodestarSpatialPromptWeighting"}
CROSS = ("second", "shaping")      # methods for networks with cross-attention
CASES = [pytest.param(n, k, marks=pytest.mark.method(i)) for n, i in IDS.items() for k in (("unet",) if n in CROSS else ("unet", "flux"))]


@pytest.fixture(scope="module")
def lab(host):
    """Networks, prompts, latents, and each method with values that act."""
    import lodestar.tests.tiny as tiny
    from lodestar.guidance import engine
    from lodestar.guidance.attention import warps
    from lodestar.guidance.attention.adapter_shaping import AdapterAttentionShaping
    from lodestar.guidance.attention.decoupled_prompt import DecoupledPrompt
    from lodestar.guidance.attention.corrfill import CorrFill
    from lodestar.guidance.attention.feature_correspondence import FeatureCorrespondenceGuidance
    from lodestar.guidance.attention.regions import Region, Regions
    from lodestar.guidance.attention.spatial_weighting import SpatialPromptWeighting
    from lodestar.guidance.host.attach import attach
    from lodestar.guidance.host.features import wrappers

    class Lab:
        pass

    lab = Lab()
    lab.tiny, lab.attach, lab.engine, lab.modern = tiny, attach, engine, wrappers()
    with torch.inference_mode():
        lab.models = {"unet": tiny.unet()} | ({"flux": tiny.flux()} if lab.modern else {})
        lab.positive, lab.negative, lab.other = tiny.prompt(1), tiny.prompt(2), tiny.prompt(3)
    g = torch.Generator().manual_seed(9)
    lab.latent = {"samples": torch.randn(1, 4, 8, 8, generator=g)}
    lab.three = {"samples": torch.randn(3, 4, 8, 8, generator=g)}
    lab.warp = warps.view_warp(torch.ones(1, 8, 8), forward=0.2, right=0.1)
    lab.regions = Regions((Region(boxes=((0, 0, 0.5, 1),), words="w", tokens=(1, 2)), Region(boxes=((0.5, 0.25, 0.4, 0.6),), words="w", tokens=(3,), weight=2.0)), length=6, spans=((1, 5),))
    lab.methods = {
        "corrfill": lambda **k: CorrFill(**{"reference": lab.latent, "boost": 3.0, "optimise": 10.0, "dominant": 0, "outlier": 2.0, **k}),
        "features": lambda **k: FeatureCorrespondenceGuidance(**{"warp": lab.warp, "reference": lab.latent, "scale": 0.2, "normalise": "unit rms", **k}),
        "second": lambda **k: DecoupledPrompt(**{"second": lab.other, **k}),
        "shaping": lambda **k: AdapterAttentionShaping(**{"decoder": "2", "encoder": "0.5", **k}),
        "weighting": lambda **k: SpatialPromptWeighting(**{"regions": lab.regions, **k}),
    }
    lab.off = {"corrfill": {"strength": 0.0}, "features": {"scale": 0.0}, "second": {"strength": 0.0}, "shaping": {"strength": 0.0}, "weighting": {"strength": 0.0}}
    adapter(lab, host)

    def run(patcher, positive=None, **k):
        with torch.inference_mode():
            return tiny.sample(patcher, positive or lab.positive, lab.negative, **{"steps": 3, **k})

    lab.run = run
    lab.base = {kind: run(m, batch=2) for kind, m in lab.models.items()}
    return lab


def adapter(lab, host):
    """The U-Net with an image adapter as other packs attach them: a replacement of cross-attention that adds attention to tokens of its own, to the positive rows alone."""
    import math
    g = torch.Generator().manual_seed(4)
    tokens = {width: (torch.randn(1, 4, width, generator=g), torch.randn(1, 4, width, generator=g)) for width in (32, 64)}

    def attach_adapter(model, shape=lambda a, stage: a):
        def replaced(q, k, v, extra):
            heads, width = extra["n_heads"], q.shape[-1]
            split = lambda t: t.expand(q.shape[0], -1, -1).view(q.shape[0], -1, heads, width // heads).transpose(1, 2)
            sdpa = torch.nn.functional.scaled_dot_product_attention
            out = sdpa(split(q), split(k), split(v))
            if extra["block"][0] != "middle" and shape is not None and getattr(shape, "written", False):
                a = (split(q) @ split(tokens[width][0]).transpose(-1, -2) / math.sqrt(width // heads)).softmax(-1)
                extra_out = shape(a, extra["block"][0]) @ split(tokens[width][1])
            else:
                extra_out = sdpa(split(q), split(tokens[width][0]), split(tokens[width][1]))
            size = q.shape[0] // len(extra["cond_or_uncond"])
            rows = torch.tensor([float(c == 0) for c in extra["cond_or_uncond"] for _ in range(size)]).view(-1, 1, 1, 1)
            return (out + 0.8 * rows * extra_out).transpose(1, 2).flatten(2)
        model = model.clone()
        for block in (("input", 1), ("input", 2), ("input", 3), ("input", 4), ("middle", 0), *(("output", i) for i in range(4))):
            model.set_model_attn2_replace(replaced, *block)
        return model
    lab.adapter = attach_adapter
    lab.plain = lambda name, kind: attach_adapter(lab.models[kind]) if name == "shaping" else lab.models[kind]


def usable(lab, name, kind):
    if kind not in lab.models:
        pytest.skip("this host has no Flux")
    if not lab.modern and name in ("corrfill", "features"):
        pytest.skip("this host evaluates no reference beside the prompts; test_old_hosts_say_so checks that it says so")


def close(a, b, share=1e-4):
    assert (a - b).abs().max() <= share * b.abs().max()


@pytest.mark.parametrize("name,kind", CASES)
def test_acts_by_entry_and_leaves_nothing(lab, name, kind):
    """Off: bit-equal. On: finite, another picture, the same again (also after an interrupted run), a batch equals its entries alone."""
    usable(lab, name, kind)
    import comfy.sample
    plain = lab.plain(name, kind)
    base = lab.run(plain, batch=2) if name == "shaping" else lab.base[kind]
    assert torch.equal(lab.run(lab.attach(plain, lab.methods[name](**lab.off[name])), batch=2), base)
    model = lab.attach(plain, lab.methods[name]())
    first = lab.run(model, batch=2)
    assert torch.isfinite(first).all() and (first - base).abs().max() > 1e-3

    class Stop(Exception):
        pass

    def stop(step, *rest):
        raise Stop
    with torch.inference_mode(), pytest.raises(Stop):
        comfy.sample.sample(model, torch.randn(1, 4, 8, 8), 3, 4.0, "euler", "normal", lab.positive, lab.negative, torch.zeros(1, 4, 8, 8), callback=stop, disable_pbar=True, seed=0)
    assert torch.equal(lab.run(model, batch=2), first)
    for i in range(2):
        close(lab.run(model, seed=i), first[i:i + 1])
    assert torch.equal(lab.run(plain, batch=2), base)


@pytest.mark.parametrize("name,kind", [c for c in CASES if c.values[1] == "unet"])
def test_among_other_methods_and_masks(lab, name, kind):
    usable(lab, name, kind)
    from lodestar.guidance.attention.nag import NormalizedAttentionGuidance
    from lodestar.guidance.perturbation.pag import PerturbedAttentionGuidance
    mask = torch.zeros(1, 64, 64)
    mask[:, :, :32] = 1
    masked = [[lab.positive[0][0], {**lab.positive[0][1], "mask": mask, "set_area_to_bounds": False, "mask_strength": 1.0}]]
    model = lab.plain(name, kind)
    for method in (PerturbedAttentionGuidance(scale=1.0), NormalizedAttentionGuidance(negative=lab.other, scale=3.0), lab.methods[name]()):
        model = lab.attach(model, method)
    out = lab.run(model, positive=masked, batch=2, steps=2)
    assert torch.isfinite(out).all()
    close(lab.run(model, positive=masked, seed=1, steps=2), out[1:], 1e-3)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.method(i)) for n, i in IDS.items()])
def test_half_precision(lab, name):
    usable(lab, name, "unet")
    for dtype in (torch.bfloat16, torch.float16):
        with torch.inference_mode():
            model = lab.attach(lab.tiny.unet(dtype=dtype), lab.methods[name]())
            model = lab.attach(model, lab.methods["second"]()) if name == "shaping" else model
        assert torch.isfinite(lab.run(model, steps=2)).all()


# CorrFill

@pytest.mark.method("LodestarCorrFill")
@pytest.mark.parametrize("kind", ("unet", "flux"))
def test_corrfill_without_steering_is_reference_attention(lab, kind):
    usable(lab, "corrfill", kind)
    from lodestar.guidance.attention.reference_attention import ReferenceAttention
    same = lab.attach(lab.models[kind], ReferenceAttention(reference=lab.latent, fidelity=0.0, strength=1.5))
    plain = lab.attach(lab.models[kind], lab.methods["corrfill"](boost=0.0, hide=False, optimise=0.0, negative_rows="same", strength=1.5))
    assert torch.equal(lab.run(plain, batch=2), lab.run(same, batch=2))


@pytest.mark.method("LodestarCorrFill")
def test_corrfill_inside_a_hole_with_a_reference_for_each_entry(lab):
    """Masked sampling: what is known stays, the hole changes; reference i serves entry i; two runs' votes do not meet."""
    usable(lab, "corrfill", "unet")
    hole = torch.zeros(1, 1, 8, 8)
    hole[..., 2:6, 2:6] = 1
    known = lab.three["samples"][:2]
    model = lab.attach(lab.models["unet"], lab.methods["corrfill"](reference={"samples": lab.three["samples"][1:]}))
    out = lab.run(model, latent=known, denoise_mask=hole)
    assert torch.allclose(out[..., :2, :], known[..., :2, :], atol=1e-5)
    assert (out - lab.run(lab.models["unet"], latent=known, denoise_mask=hole))[..., 2:6, 2:6].abs().max() > 1e-3
    own = lab.attach(lab.models["unet"], lab.methods["corrfill"](reference={"samples": lab.three["samples"][2:]}))
    close(lab.run(own, latent=known[1:], denoise_mask=hole, seed=1), out[1:])


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.method(IDS[n])) for n in ("corrfill", "features")])
def test_old_hosts_say_so(lab, name):
    if lab.modern:
        pytest.skip("for hosts without wrappers")
    with pytest.raises(ValueError, match="December 2024"):
        lab.run(lab.attach(lab.models["unet"], lab.methods[name]()))


# Feature-Correspondence Guidance

@pytest.mark.method("LodestarFeatureCorrespondenceGuidance")
@pytest.mark.parametrize("kind", ("unet", "flux"))
def test_the_features_of_the_same_picture_steer_nowhere(lab, kind):
    """No movement, and a reference that is the sampled state itself: L = 0, which is its least."""
    usable(lab, "features", kind)
    from lodestar.guidance.attention import warps
    zero = {"samples": torch.zeros(1, 4, 8, 8)}      # an empty latent under the run's noise is the first state itself
    still = lab.methods["features"](warp=warps.view_warp(torch.ones(1, 8, 8)), reference=zero, normalise="none", scale=1.0)
    close(lab.run(lab.attach(lab.models[kind], still), steps=1, batch=2), lab.run(lab.models[kind], steps=1, batch=2))
    assert lab.engine.REPORTS[-1].by_kind["reference"] == 1


@pytest.mark.method("LodestarFeatureCorrespondenceGuidance")
def test_one_reference_serves_its_keys_and_its_features(lab):
    """Mutual Self-Attention with the same reference has the same rows."""
    usable(lab, "features", "unet")
    from lodestar.guidance.attention.mutual import MutualSelfAttention
    model = lab.attach(lab.models["unet"], MutualSelfAttention(reference=lab.latent, start_percent=0.0, negative_rows="same"))
    assert torch.isfinite(lab.run(lab.attach(model, lab.methods["features"]()))).all()
    assert lab.engine.REPORTS[-1].by_kind["reference"] == 3


# Adapters

@pytest.mark.method("LodestarAdapterAttentionShaping")
def test_a_foreign_adapter_is_shaped_as_one_that_shapes_itself(lab):
    """In front of the adapter and behind it; the middle and the prompt's attention stay. Without an adapter, and on joint attention, an error says so."""
    def own(a, stage):
        return ((0.5 if stage == "input" else 2.0) * a ** 1.3).clamp(max=10)
    own.written = True
    wanted = lab.run(lab.adapter(lab.models["unet"], own), batch=2)
    shaping = lab.methods["shaping"]()
    close(lab.run(lab.attach(lab.adapter(lab.models["unet"]), shaping), batch=2), wanted)
    close(lab.run(lab.adapter(lab.attach(lab.models["unet"], shaping)), batch=2), wanted)
    with pytest.raises(ValueError, match="no adapter"):
        lab.run(lab.attach(lab.models["unet"], shaping))
    if "flux" in lab.models:
        with pytest.raises(ValueError, match="those of U-Nets"):
            lab.attach(lab.models["flux"], shaping)


@pytest.mark.method("LodestarDecoupledPrompt")
def test_a_decoupled_prompt_says_where_it_has_no_meaning_and_is_shaped(lab):
    second = lab.methods["second"]()
    plain = lab.run(lab.attach(lab.models["unet"], second), batch=2)
    shaped = lab.run(lab.attach(lab.attach(lab.models["unet"], lab.methods["shaping"]()), second), batch=2)
    assert (shaped - plain).abs().max() > 1e-3
    if "flux" in lab.models:
        with pytest.raises(ValueError, match="one attention"):
            lab.attach(lab.models["flux"], second)


# ControlNorm

@pytest.mark.method("LodestarControlNorm")
def test_control_norm_takes_the_place_of_the_addition(lab):
    """Strength 0 is no control; without weights it is the addition; trained projections do what a network with residuals of twice the channels does; a batch equals its entries."""
    import comfy.controlnet
    from lodestar.guidance.attention.control_norm import ControlNorm, parse
    places = {"middle": ((64, 4),), "output": ((64, 4), (32, 4), (32, 8), (32, 8))}      # (channels, side) of the skip connection of each output block
    g = torch.Generator().manual_seed(6)
    state, residuals = {}, {}
    for place, sizes in places.items():
        for i, (c, n) in enumerate(sizes):
            state[f"{place}.{i}.weight"] = torch.randn(2 * c, c, generator=g) / c ** 0.5
            residuals[place, i] = torch.randn(1, c, n, n, generator=g) * 0.5
    weights = parse(state)

    class Control(comfy.controlnet.ControlBase):
        wide = False

        def get_control(self, x, t, cond, batched_number, *rest):
            def one(place, i):
                r = residuals[place, i]
                r = torch.einsum("oc,nchw->nohw", weights.projections[place, i][0], r) if self.wide else r
                return (r * x.abs().mean((1, 2, 3), keepdim=True).clamp(max=1)).to(x)
            return {"middle": [one("middle", 0)], "output": [one("output", i) for i in reversed(range(4))], "input": []}

        def copy(self):
            return self

        def get_models(self):
            return []

        def pre_run(self, *args):
            pass

        def cleanup(self):
            pass

    def run(method=None, wide=False, **k):
        control = Control()
        control.wide = wide
        positive = [[lab.positive[0][0], {**lab.positive[0][1], "control": control, "control_apply_to_uncond": True}]]
        return lab.run(lab.models["unet"] if method is None else lab.attach(lab.models["unet"], method), positive=positive, **k)
    plain = run(batch=2)
    assert (plain - lab.base["unet"]).abs().max() > 1e-3
    assert torch.equal(run(ControlNorm(), batch=2), plain)
    assert torch.equal(run(ControlNorm(strength=0.0, weights=weights), batch=2), lab.base["unet"])
    trained = run(ControlNorm(weights=weights), batch=2)
    assert torch.isfinite(trained).all() and (trained - plain).abs().max() > 1e-3
    close(run(ControlNorm(), wide=True, batch=2), trained, 1e-3)
    close(run(ControlNorm(weights=weights), seed=1), trained[1:], 1e-3)
    assert torch.equal(run(batch=2), plain)
    with pytest.raises(ValueError, match="middle.0 for 2 channels"):
        run(ControlNorm(weights=parse({"middle.0.weight": torch.zeros(4, 2)})))
    if "flux" in lab.models:
        with pytest.raises(ValueError, match="U-Net"):
            lab.attach(lab.models["flux"], ControlNorm())


@pytest.mark.method("LodestarControlNorm")
def test_control_norm_files(tmp_path, monkeypatch):
    from lodestar.guidance.host import weight_files
    from lodestar.nodes.control import NODES
    from safetensors.torch import save_file
    folders = weight_files._folders()
    monkeypatch.setattr(folders, "get_filename_list", lambda folder: ["norm.safetensors"] if folder == "controlnet" else [])
    monkeypatch.setattr(folders, "get_full_path", lambda folder, name: str(tmp_path / name) if name == "norm.safetensors" else None)
    save_file({"middle.0.weight": torch.zeros(4, 2)}, str(tmp_path / "norm.safetensors"))
    assert NODES[0].run("norm.safetensors")[0].projections["middle", 0][0].shape == (4, 2)
    with pytest.raises(ValueError, match="Load ControlNorm: file = 'absent.safetensors'.*models/controlnet"):
        NODES[0].run("absent.safetensors")
