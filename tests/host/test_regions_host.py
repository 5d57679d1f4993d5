"""Methods that take regions or words of the prompt, on a real ComfyUI with small random networks."""
import pytest
import torch

pytest.importorskip("torch")

IDS = {"regional": "LodestarRegionalPrompts", "dense": "LodestarDenseDiffusion"}
NAMES = tuple(IDS)
CASES = [pytest.param(n, k, marks=pytest.mark.method(IDS[n])) for n in NAMES for k in ("unet", "flux")]
TOKENS = 6


@pytest.fixture(scope="module")
def lab(host):
    """Networks, prompts and methods; inside inference mode, as the host's executor runs nodes."""
    import lodestar.tests.tiny as tiny
    from lodestar.guidance import engine
    from lodestar.guidance.attention.dense import DenseDiffusion
    from lodestar.guidance.attention.nag import NormalizedAttentionGuidance
    from lodestar.guidance.attention.regional import RegionalPrompts
    from lodestar.guidance.attention.regions import Region, Regions
    from lodestar.guidance.host.attach import attach
    from lodestar.guidance.host.features import wrappers
    from lodestar.guidance.perturbation.pag import PerturbedAttentionGuidance
    from lodestar.guidance.rules.apg import AdaptiveProjectedGuidance

    class Lab:
        pass

    lab = Lab()
    lab.tiny, lab.attach, lab.engine, lab.modern, lab.host = tiny, attach, engine, wrappers(), host
    with torch.inference_mode():
        lab.models = {"unet": tiny.unet()} | ({"flux": tiny.flux()} if lab.modern else {})
        lab.positive, lab.negative = tiny.prompt(1), tiny.prompt(2)
        lab.others = [tiny.prompt(s, tokens=n) for s, n in ((3, 6), (4, 6), (5, 4))]

    def regions(*boxes, whole=False):
        boxes = boxes or ((((0, 0, 1, 1),) if whole else ((0, 0, 0.5, 1), (0.5, 0.25, 0.4, 0.6))))
        items = [Region(boxes=(b,), tokens=(1 + 2 * i, 2 + 2 * i), words="w", conditioning=lab.others[i]) for i, b in enumerate(boxes)]
        return Regions(tuple(items), length=TOKENS)

    lab.regions = regions
    lab.methods = {"regional": lambda **k: RegionalPrompts(**{"regions": regions(), **k}),
                   "dense": lambda **k: DenseDiffusion(**{"regions": regions(), "end_percent": 1.0, **k})}
    lab.off = {"regional": {"base_ratio": 1.0}, "dense": {"cross_strength": 0.0, "self_strength": 0.0}}
    lab.others_present = {"pag": lambda: PerturbedAttentionGuidance(scale=2.0), "apg": lambda: AdaptiveProjectedGuidance(norm_threshold=5.0),
                          "nag": lambda: NormalizedAttentionGuidance(negative=lab.others[0], scale=3.0)}

    def run(patcher, positive=None, negative=None, **k):
        with torch.inference_mode():
            return tiny.sample(patcher, positive or lab.positive, negative or lab.negative, **k)

    lab.run = run
    lab.base = {kind: run(m, batch=3) for kind, m in lab.models.items()}
    return lab


def usable(lab, name, kind):
    if kind not in lab.models:
        pytest.skip("this host has no Flux")


def close(a, b, scale, share=2e-5):
    assert (a - b).abs().max() <= share * scale.abs().max()


@pytest.mark.parametrize("name,kind", CASES)
def test_neutral_is_bit_equal(lab, name, kind):
    usable(lab, name, kind)
    assert torch.equal(lab.run(lab.attach(lab.models[kind], lab.methods[name](**lab.off[name])), batch=3), lab.base[kind])


@pytest.mark.parametrize("name,kind", CASES)
def test_acts_and_batch_equals_singles_and_second_run_equals_first(lab, name, kind):
    usable(lab, name, kind)
    model = lab.attach(lab.models[kind], lab.methods[name]())
    first = lab.run(model, batch=3)
    assert torch.isfinite(first).all() and (first - lab.base[kind]).abs().max() > 1e-3
    assert torch.equal(lab.run(model, batch=3), first)
    for i in range(3):
        close(lab.run(model, batch=1, seed=i), first[i:i + 1], first, 1e-4)
    assert torch.equal(lab.run(lab.models[kind], batch=3), lab.base[kind])


@pytest.mark.parametrize("name,kind", CASES)
def test_costs_no_network_evaluation(lab, name, kind):
    usable(lab, name, kind)
    lab.run(lab.attach(lab.models[kind], lab.methods[name]()))
    assert lab.engine.REPORTS[-1].evaluations == 8


@pytest.mark.parametrize("name,kind", CASES)
def test_interrupted_run_leaves_nothing(lab, name, kind):
    usable(lab, name, kind)
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


@pytest.mark.parametrize("name,kind", CASES)
def test_with_other_methods_a_batch_equals_singles(lab, name, kind):
    usable(lab, name, kind)
    model = lab.models[kind]
    for other in ("pag", "apg") + (("nag",) if kind == "unet" else ()):
        model = lab.attach(model, lab.others_present[other]())
    alone = lab.run(model)
    model = lab.attach(model, lab.methods[name]())
    out = lab.run(model, batch=3)
    assert torch.isfinite(out).all() and (out[:1] - alone).abs().max() > 1e-3
    for i in range(3):
        close(lab.run(model, seed=i), out[i:i + 1], out, 1e-4)


@pytest.mark.parametrize("name,kind", CASES)
def test_odd_sizes_and_other_grids(lab, name, kind):
    usable(lab, name, kind)
    model = lab.attach(lab.models[kind], lab.methods[name]())
    for size in (6, 12):
        latent = torch.zeros(2, 4, size, 10)
        plain, out = lab.run(lab.models[kind], latent=latent, steps=2), lab.run(model, latent=latent, steps=2)
        assert torch.isfinite(out).all() and (out - plain).abs().max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_half_precision(lab, name):
    for dtype in (torch.bfloat16, torch.float16):
        with torch.inference_mode():
            model = lab.attach(lab.tiny.unet(dtype=dtype), lab.methods[name]())
        assert torch.isfinite(lab.run(model, steps=2)).all()


@pytest.mark.parametrize("name,kind", CASES)
def test_areas_and_masks(lab, name, kind):
    """Several positive prompts, one with an area: a batch equals singles, and the regions stay in place in the picture."""
    usable(lab, name, kind)
    if not lab.modern:
        pytest.skip("this host does not tell the area of a network call; test_an_area_is_refused_on_old_hosts")
    mask = torch.zeros(1, 64, 64)
    mask[:, :, :32] = 1
    positive = [[lab.positive[0][0], {**lab.positive[0][1], "mask": mask, "set_area_to_bounds": False, "mask_strength": 1.0}],
                [lab.positive[0][0], {**lab.positive[0][1], "area": (16, 8, 0, 8), "strength": 1.0}]]
    model = lab.attach(lab.models[kind], lab.methods[name]())
    plain, out = (lab.run(m, positive=positive, batch=3, size=16, steps=3) for m in (lab.models[kind], model))
    assert (out - plain).abs().max() > 1e-3
    for i in range(3):
        close(lab.run(model, positive=positive, seed=i, size=16, steps=3), out[i:i + 1], out, 1e-4)


def recorder(lab):
    """An edit that notes the window and the coverage of every call."""
    import dataclasses

    from lodestar.guidance.attention.edits import AttentionEdit
    from lodestar.guidance.method import Edit
    seen = []

    @dataclasses.dataclass(frozen=True)
    class Note(AttentionEdit):
        kinds = ("self", "joint")

        def apply(self, site, q, k, v, attend):
            seen.append((site, lab.regions((0.5, 0.0, 0.5, 1.0)).at(site)[0].view(site.height, site.width)))
            return attend(q, k, v)

    @dataclasses.dataclass(frozen=True)
    class Noting(Edit):
        title = "Noting"

        def edits(self, step):
            return (Note("all"),)
    return Noting(), seen


@pytest.mark.parametrize("kind", ("unet", "flux"))
def test_a_region_in_a_prompts_area(lab, kind):
    """The right half of the picture is the whole of an area there, and nothing of one on the left."""
    usable(lab, "regional", kind)
    if not lab.modern:
        pytest.skip("this host does not tell the area of a network call")
    note, seen = recorder(lab)
    model = lab.attach(lab.models[kind], note)
    for x, value in ((8, 1.0), (0, 0.0), (4, None)):
        positive = [[lab.positive[0][0], {**lab.positive[0][1], "area": (16, 8, 0, x), "strength": 1.0}]]
        seen.clear()
        lab.run(model, positive=positive, size=16, steps=1)
        assert seen
        for site, cover in seen:
            assert site.window == pytest.approx((x / 16, 0.0, 0.5, 1.0))
            expected = torch.full_like(cover, value) if value is not None else (torch.arange(site.width) >= site.width // 2).float().expand_as(cover)
            torch.testing.assert_close(cover, expected)


def test_an_area_is_refused_on_old_hosts(lab):
    if lab.modern:
        pytest.skip("this host tells the area")
    positive = [[lab.positive[0][0], {**lab.positive[0][1], "area": (16, 8, 0, 8), "strength": 1.0}]]
    with pytest.raises(ValueError, match="area.*newer ComfyUI"):
        lab.run(lab.attach(lab.models["unet"], lab.methods["regional"]()), positive=positive, size=16)


@pytest.mark.method("LodestarRegionalPrompts")
@pytest.mark.parametrize("kind", ("unet", "flux"))
def test_a_whole_region_is_its_prompt(lab, kind):
    """One region of everything, nothing of the base prompt: the region's prompt in place of the sampler's (same pooled text)."""
    usable(lab, "regional", kind)
    for tokens in (0, 2):
        from lodestar.guidance.attention.regions import Region, Regions
        found = Regions((Region(boxes=((0, 0, 1, 1),), conditioning=lab.others[tokens]),))
        swapped = [[lab.others[tokens][0][0], lab.positive[0][1]]]
        out = lab.run(lab.attach(lab.models[kind], lab.methods["regional"](regions=found, base_ratio=0.0)), batch=2)
        close(out, lab.run(lab.models[kind], positive=swapped, batch=2), out, 1e-4)
        same = Regions((Region(boxes=((0, 0, 1, 1),), conditioning=lab.positive),) * 2)
        close(lab.run(lab.attach(lab.models[kind], lab.methods["regional"](regions=same, base_ratio=0.4)), batch=3), lab.base[kind], out, 1e-4)


@pytest.mark.method("LodestarRegionalPrompts")
def test_a_conditioning_with_a_row_for_each_picture(lab):
    """Region prompts of a batch: every picture gets its own."""
    from lodestar.guidance.attention.regions import Region, Regions
    a, b = lab.others[:2]
    both = [[torch.cat((a[0][0], b[0][0])), {"pooled_output": torch.cat((a[0][1]["pooled_output"], b[0][1]["pooled_output"]))}]]

    def model(kind, cond):
        return lab.attach(lab.models[kind], lab.methods["regional"](regions=Regions((Region(boxes=((0, 0, 0.6, 1),), conditioning=cond),))))
    for kind in lab.models:
        out = lab.run(model(kind, both), batch=2)
        close(out[:1], lab.run(model(kind, a)), out, 1e-4)
        close(out[1:], lab.run(model(kind, b), seed=1), out, 1e-4)


@pytest.mark.method("LodestarRegionalPrompts")
@pytest.mark.parametrize("kind", ("unet", "flux"))
def test_separation(lab, kind):
    usable(lab, "regional", kind)
    plain = lab.run(lab.attach(lab.models[kind], lab.methods["regional"]()))
    out = lab.run(lab.attach(lab.models[kind], lab.methods["regional"](separate="all", separate_end=1.0)))
    assert torch.isfinite(out).all() and (out - plain).abs().max() > 1e-3


@pytest.mark.method("LodestarRegionalPrompts")
def test_two_texts_in_joint_attention_are_refused(lab):
    usable(lab, "regional", "flux")
    model = lab.attach(lab.attach(lab.models["flux"], lab.methods["regional"]()), lab.others_present["nag"]())
    with pytest.raises(ValueError, match="Two attention edits with texts of their own"):
        lab.run(model)
