"""Methods that look at another picture's features, on small random networks of a real ComfyUI."""
import pytest
import torch

pytest.importorskip("torch")

IDS = {"style": "LodestarStyleAligned", "reference": "LodestarReferenceAttention", "mutual": "LodestarMutualSelfAttention",
       "ctrlx": "LodestarCtrlX"}
NAMES = tuple(IDS)
KINDS = ("unet", "flux")
CASES = [pytest.param(n, k, marks=pytest.mark.method(IDS[n])) for n in NAMES for k in KINDS]


@pytest.fixture(scope="module")
def lab(host):
    """Networks, prompts, a reference, and each method with values that act."""
    import lodestar.tests.tiny as tiny
    from lodestar.guidance import engine
    from lodestar.guidance.attention.ctrl_x import CtrlX
    from lodestar.guidance.attention.mutual import MutualSelfAttention
    from lodestar.guidance.attention.reference_attention import ReferenceAttention
    from lodestar.guidance.attention.style_aligned import StyleAligned
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
    g = torch.Generator().manual_seed(9)
    lab.latent = {"samples": torch.randn(1, 4, 8, 8, generator=g)}
    lab.other_latent = {"samples": torch.randn(1, 4, 8, 8, generator=g)}
    lab.three = {"samples": torch.randn(3, 4, 8, 8, generator=g)}
    lab.methods = {
        "style": lambda **k: StyleAligned(**{"reference": lab.latent, "strength": 1.5, **k}),
        "reference": lambda **k: ReferenceAttention(**{"reference": lab.latent, "strength": 1.5, "fidelity": 0.5, **k}),
        "mutual": lambda **k: MutualSelfAttention(**{"reference": lab.latent, "start_percent": 0.0, "alpha": 0.7, **k}),
        "ctrlx": lambda reference=lab.latent, **k: CtrlX(**{"structure": reference, "appearance": lab.other_latent, "recurrence": 0, "structure_end": 1.0, "appearance_end": 1.0, **k}),
    }
    lab.off = {"style": {"strength": 0.0}, "reference": {"strength": 0.0}, "mutual": {"alpha": 0.0}, "ctrlx": {"structure_end": 0.0, "appearance_end": 0.0}}

    def run(patcher, positive=None, negative=None, **k):
        with torch.inference_mode():
            return tiny.sample(patcher, positive or lab.positive, negative or lab.negative, **k)

    lab.run = run
    lab.base = {kind: run(m, batch=3) for kind, m in lab.models.items()}
    return lab


ROWS = {"style": 2, "reference": 1, "mutual": 2, "ctrlx": 2}      # rows of references beside those of the prompts
AREAS = ("style", "reference")                        # methods that need no equal grids


def usable(lab, kind):
    if kind not in lab.models:
        pytest.skip("this host has no Flux")
    if not lab.modern:
        pytest.skip("this host evaluates no reference beside the prompts; test_old_hosts_say_so checks that it says so")


def close(a, b, share=2e-5):
    assert (a - b).abs().max() <= share * b.abs().max()


def report(lab):
    return lab.engine.REPORTS[-1]


@pytest.mark.parametrize("name,kind", CASES)
def test_zero_strength_is_bit_equal(lab, name, kind):
    usable(lab, kind)
    assert torch.equal(lab.run(lab.attach(lab.models[kind], lab.methods[name](**lab.off[name])), batch=3), lab.base[kind])


@pytest.mark.parametrize("name,kind", CASES)
def test_acts_and_batch_equals_singles_and_second_run_equals_first(lab, name, kind):
    usable(lab, kind)
    model = lab.attach(lab.models[kind], lab.methods[name]())
    first = lab.run(model, batch=3)
    assert torch.isfinite(first).all() and (first - lab.base[kind]).abs().max() > 1e-3
    assert torch.equal(lab.run(model, batch=3), first)
    for i in (0, 2):
        close(lab.run(model, seed=i), first[i:i + 1], 1e-4)
    assert torch.equal(lab.run(lab.models[kind], batch=3), lab.base[kind])


@pytest.mark.parametrize("name,kind", CASES)
def test_entries_have_references_of_their_own(lab, name, kind):
    usable(lab, kind)
    out = lab.run(lab.attach(lab.models[kind], lab.methods[name](reference=lab.three)), batch=3)
    for i in (0, 2):
        own = {"samples": lab.three["samples"][i:i + 1]}
        close(lab.run(lab.attach(lab.models[kind], lab.methods[name](reference=own)), seed=i), out[i:i + 1], 1e-4)
    with pytest.raises(ValueError, match="3 pictures.*batch has 2"):
        lab.run(lab.attach(lab.models[kind], lab.methods[name](reference=lab.three)), batch=2)


@pytest.mark.parametrize("name,kind", CASES)
def test_the_same_however_the_host_splits_its_batch(lab, monkeypatch, name, kind):
    """One network call, as many as there are prompts, or references that fit into no batch with the others."""
    usable(lab, kind)
    import comfy.samplers
    model = lab.attach(lab.models[kind], lab.methods[name]())
    whole = lab.run(model, batch=2)
    counted = report(lab)
    extra = 4 * ROWS[name]
    assert counted.network_calls == 4 and counted.by_kind["reference"] == extra and counted.by_kind["positive"] == counted.by_kind["negative"] == 4
    with monkeypatch.context() as patch:
        patch.setattr(model.model, "memory_required", lambda shape, *a, **k: 0 if shape[0] <= 2 else 1e30)
        close(lab.run(model, batch=2), whole, 1e-4)
        assert report(lab).network_calls == 8 + extra and report(lab).by_kind["reference"] == extra
    together = comfy.samplers.can_concat_cond

    def never_with_references(a, b):
        return together(a, b) and (a.uuid in refs) == (b.uuid in refs)
    from lodestar.guidance.host import references
    refs, entry_of = set(), references.entry_of
    from lodestar.guidance.host import calls
    original = calls.Call.conds_of

    def conds_of(self, branch):
        out = original(self, branch)
        if branch.source is not None:
            refs.update(e["uuid"] for e in out)
        return out
    with monkeypatch.context() as patch:
        patch.setattr(comfy.samplers, "can_concat_cond", never_with_references)
        patch.setattr(calls.Call, "conds_of", conds_of)
        close(lab.run(model, batch=2), whole, 1e-4)
        assert refs and report(lab).by_kind["reference"] == extra + ROWS[name]      # those of the first step come once for nothing


@pytest.mark.newest
@pytest.mark.parametrize("name,kind", CASES)
def test_interrupted_run_leaves_nothing(lab, name, kind):
    usable(lab, kind)
    import comfy.sample
    model = lab.attach(lab.models[kind], lab.methods[name]())
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


@pytest.mark.parametrize("name,kind", [c for c in CASES if c.values[0] != "ctrlx"])
def test_a_trajectory_stands_in_for_the_latent(lab, name, kind):
    """Following an inversion of the latent looks at the same picture on another way."""
    usable(lab, kind)
    from lodestar.guidance.host.inversion import invert
    from lodestar.guidance.inversion.ddim import DDIMInversion
    with torch.inference_mode():
        _, noise, sigmas = invert(DDIMInversion(steps=4, refine=0), lab.models[kind], lab.positive, None, lab.three)
    way = noise.trajectory
    assert way.states.shape == (5, 3, 4, 8, 8) and torch.equal(way.states[-1], noise.state)
    assert torch.allclose(way.sigmas.float(), sigmas.flip(0))
    model = lab.attach(lab.models[kind], lab.methods[name](reference=None, trajectory=way))
    out = lab.run(model, batch=3)
    assert torch.isfinite(out).all() and (out - lab.base[kind]).abs().max() > 1e-3
    with pytest.raises(ValueError, match="3 pictures"):
        lab.run(model, batch=2)


@pytest.mark.parametrize("name,kind", CASES)
def test_among_other_methods_areas_and_masks(lab, name, kind):
    usable(lab, kind)
    from lodestar.guidance.attention.nag import NormalizedAttentionGuidance
    from lodestar.guidance.perturbation.pag import PerturbedAttentionGuidance
    mask = torch.zeros(1, 64, 64)
    mask[:, :, :32] = 1
    masked = [[lab.positive[0][0], {**lab.positive[0][1], "mask": mask, "set_area_to_bounds": False, "mask_strength": 1.0}]]
    area = [[lab.other[0][0], {**lab.other[0][1], "area": (8, 4, 0, 4), "strength": 1.0}]]
    model = lab.models[kind]
    for method in (PerturbedAttentionGuidance(scale=1.0), NormalizedAttentionGuidance(negative=lab.other, scale=3.0), lab.methods[name]()):
        model = lab.attach(model, method)
    for positive in (None, masked, masked + (area if name in AREAS else [])):
        out = lab.run(model, positive=positive, batch=2, steps=3)
        assert torch.isfinite(out).all()
        for i in range(2):
            close(lab.run(model, positive=positive, seed=i, steps=3), out[i:i + 1], 1e-4)


@pytest.mark.parametrize("name,kind", CASES)
def test_a_controlnet_stays_with_the_picture(lab, name, kind):
    """The target's ControlNet does not reach the reference's rows, so that they need a network call of their own."""
    usable(lab, kind)
    import comfy.controlnet
    seen = []

    class Control(comfy.controlnet.ControlBase):
        def get_control(self, x, t, cond, batched_number, *rest):
            seen.append(batched_number)
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

    positive = [[lab.positive[0][0], {**lab.positive[0][1], "control": Control(), "control_apply_to_uncond": True}]]
    model = lab.attach(lab.models[kind], lab.methods[name]())
    out = lab.run(model, positive=positive, batch=2)
    assert seen and all(n == 2 for n in seen)
    close(lab.run(model, positive=positive, seed=1), out[1:], 1e-4)


@pytest.mark.newest
@pytest.mark.parametrize("name,kind", [pytest.param(n, "unet", marks=pytest.mark.method(IDS[n])) for n in NAMES])
def test_half_precision(lab, name, kind):
    usable(lab, kind)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.inference_mode():
            model = lab.attach(lab.tiny.unet(dtype=dtype), lab.methods[name]())
        assert torch.isfinite(lab.run(model)).all()


@pytest.mark.parametrize("name", NAMES)
def test_wrong_references_are_named(lab, name):
    usable(lab, "unet")
    with pytest.raises(ValueError, match=r"latent.*\[4, 8, 6\].*\[4, 8, 8\]"):
        lab.run(lab.attach(lab.models["unet"], lab.methods[name](reference={"samples": torch.zeros(1, 4, 8, 6)})))


@pytest.mark.parametrize("name", NAMES)
def test_old_hosts_say_so(lab, name):
    if lab.modern:
        pytest.skip("for hosts without wrappers")
    with pytest.raises(ValueError, match="December 2024"):
        lab.run(lab.attach(lab.models["unet"], lab.methods[name]()))


@pytest.mark.parametrize("name,kind", [c for c in CASES if c.values[0] in ("style", "mutual")])
def test_within_a_batch(lab, name, kind):
    """Without a reference the first picture is what the others look at: it stays, they follow it; a single picture is bit-equal to the model."""
    if kind not in lab.models:
        pytest.skip("this host has no Flux")
    model = lab.attach(lab.models[kind], lab.methods[name](reference=None))
    out = lab.run(model, batch=3)
    close(out[:1], lab.base[kind][:1], 1e-4)
    assert (out[1:] - lab.base[kind][1:]).abs().max() > 1e-3
    assert torch.equal(lab.run(model), lab.run(lab.models[kind]))
    two = lab.run(model, noise=torch.cat([torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(i)) for i in (0, 2)]), batch=2)
    close(two, out[[0, 2]], 1e-4)


@pytest.mark.newest
@pytest.mark.method("LodestarMutualSelfAttention")
@pytest.mark.parametrize("kind", KINDS)
def test_masks_part_object_and_background(lab, kind):
    usable(lab, kind)
    mask = torch.zeros(1, 64, 64)
    mask[:, :24, :40] = 1
    method = lambda **k: lab.attach(lab.models[kind], lab.methods["mutual"](alpha=1.0, **k))
    plain, whole = lab.run(method(), batch=2), lab.run(method(source_mask=torch.ones(1, 8, 8)), batch=2)
    close(whole, plain, 1e-4)
    parted = lab.run(method(source_mask=mask, target_mask=mask.flip(2)), batch=2)
    assert torch.isfinite(parted).all() and (parted - plain).abs().max() > 1e-3
    close(lab.run(method(source_mask=mask, target_mask=mask.flip(2)), seed=1), parted[1:], 1e-4)


@pytest.mark.method("LodestarMutualSelfAttention")
def test_unequal_grids_are_named(lab):
    usable(lab, "unet")
    area = [[lab.other[0][0], {**lab.other[0][1], "area": (8, 4, 0, 4), "strength": 1.0}]]
    with pytest.raises(ValueError, match="Mutual Self-Attention.*tokens"):
        lab.run(lab.attach(lab.models["unet"], lab.methods["mutual"]()), positive=[*lab.positive, *area])


@pytest.mark.method("LodestarCtrlX")
@pytest.mark.parametrize("kind", KINDS)
def test_ctrl_x_parts_and_repetitions(lab, kind):
    """Structure alone, appearance alone and both are three things; repeated steps cost the prompts' evaluations and run without references."""
    usable(lab, kind)
    make = lambda **k: lab.attach(lab.models[kind], lab.methods["ctrlx"](**k))
    outs = [lab.run(make(**k), batch=2) for k in ({}, {"appearance": None}, {"reference": None})]
    for i in (0, 2):
        for j in range(i):
            assert (outs[i] - outs[j]).abs().max() > 1e-3
    model = make(recurrence=2, recurrence_start=0.0, recurrence_end=1.0)
    out = lab.run(model, batch=2)
    counted = report(lab)
    assert torch.isfinite(out).all() and (out - outs[0]).abs().max() > 1e-3
    assert counted.by_kind["reference"] == 8 and counted.by_kind["positive"] == 4 + 2 * 3       # the last step is not repeated
    close(lab.run(model, seed=1), out[1:], 1e-4)
    assert torch.equal(lab.run(model, batch=2), out)


@pytest.mark.method("LodestarCtrlX")
def test_ctrl_x_leaves_the_network_as_it_was(lab):
    usable(lab, "unet")
    network = lab.models["unet"].model.diffusion_model
    lab.run(lab.attach(lab.models["unet"], lab.methods["ctrlx"]()))
    assert not any("forward" in vars(m) for m in network.modules())


@pytest.mark.method("LodestarCtrlX")
def test_features_of_the_structure_itself_change_nothing(lab):
    """The structure branch of a picture that is its own structure: same latent, same noise, same prompt."""
    usable(lab, "unet")
    from lodestar.guidance.attention.ctrl_x import AppearanceFeatures, StructureAttention, StructureFeatures
    from lodestar.guidance.attention.sources import Held, Source
    from lodestar.guidance.method import Branch, Edit
    zero = {"samples": torch.zeros(1, 4, 8, 8)}      # an empty latent under the run's noise is the first state itself
    same = Branch(source=Source(Held(zero)))

    class Itself(Edit):
        title = "itself"

        def edits(self, step):
            return (StructureFeatures("output.0", structure=same), StructureAttention("all", structure=same)) if step.index == 0 else ()

    class Appearance(Edit):
        title = "appearance"

        def edits(self, step):
            return (AppearanceFeatures("all", appearance=same),)
    out = lab.run(lab.attach(lab.models["unet"], Itself()), steps=1, batch=2)
    close(out, lab.run(lab.models["unet"], steps=1, batch=2), 1e-4)
    assert (lab.run(lab.attach(lab.models["unet"], Appearance()), steps=1, batch=2) - out).abs().max() > 1e-3
