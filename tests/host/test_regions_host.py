"""Methods that take regions or words of the prompt, on a real ComfyUI with small random networks."""
import pytest
import torch
from lodestar.guidance.frozen import frozen

pytest.importorskip("torch")

IDS = {"regional": "LodestarRegionalPrompts", "dense": "LodestarDenseDiffusion", "directed": "LodestarDirectedDiffusion",
       "nasa": "LodestarNegativeAwaySteerAttention", "structured": "LodestarStructuredDiffusionGuidance"}
CROSS_ONLY = ("directed", "nasa", "structured")
NAMES = tuple(IDS)
CASES = [pytest.param(n, k, marks=pytest.mark.method(IDS[n])) for n in NAMES for k in ("unet", "flux")]
TOKENS = 6


@pytest.fixture(scope="module")
def lab(host):
    """Networks, prompts and methods; inside inference mode, as the host's executor runs nodes."""
    import lodestar.tests.tiny as tiny
    from lodestar.guidance import engine
    from lodestar.guidance.attention.dense import DenseDiffusion
    from lodestar.guidance.attention.directed import DirectedDiffusion
    from lodestar.guidance.attention.nag import NormalizedAttentionGuidance
    from lodestar.guidance.attention.nasa import NegativeAwaySteerAttention
    from lodestar.guidance.attention.regional import RegionalPrompts
    from lodestar.guidance.attention.regions import Region, Regions
    from lodestar.guidance.attention.structured import StructuredDiffusionGuidance
    from lodestar.guidance.host.attach import attach
    from lodestar.guidance.host.features import wrappers
    from lodestar.guidance.method import Prompt
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
        return Regions(tuple(items), length=TOKENS, spans=((1, 5),))

    lab.regions = regions
    lab.methods = {"regional": lambda **k: RegionalPrompts(**{"regions": regions(), **k}),
                   "dense": lambda **k: DenseDiffusion(**{"regions": regions(), "end_percent": 1.0, **k}),
                   "directed": lambda **k: DirectedDiffusion(**{"regions": regions(), "steps": 0.5, **k}),
                   "structured": lambda **k: StructuredDiffusionGuidance(**{"text": "x", "mode": "keys", "texts": tuple(Prompt(c) for c in lab.others[:2]), **k}),
                   "nasa": lambda **k: NegativeAwaySteerAttention(**{"negative": lab.others[0], **k})}
    lab.off = {"structured": {"texts": ()}, "nasa": {"scale": 0.0}, "directed": {"steps": 0.0}, "regional": {"base_ratio": 1.0}, "dense": {"cross_strength": 0.0, "self_strength": 0.0}}
    lab.others_present = {"pag": lambda: PerturbedAttentionGuidance(scale=2.0), "apg": lambda: AdaptiveProjectedGuidance(norm_threshold=5.0),
                          "nag": lambda: NormalizedAttentionGuidance(negative=lab.others[0], scale=3.0)}

    def run(patcher, positive=None, negative=None, **k):
        with torch.inference_mode():
            return tiny.sample(patcher, positive or lab.positive, negative or lab.negative, **{"steps": 2, **k})

    lab.run = run
    lab.base = {kind: run(m, batch=3) for kind, m in lab.models.items()}
    return lab


def usable(lab, name, kind):
    if kind not in lab.models:
        pytest.skip("this host has no Flux")
    if kind == "flux" and name in CROSS_ONLY:
        pytest.skip("not on joint attention; test_joint_attention_is_refused_by_name")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.method(IDS[n])) for n in CROSS_ONLY])
def test_joint_attention_is_refused_by_name(lab, name):
    if "flux" not in lab.models:
        pytest.skip("this host has no Flux")
    assert torch.equal(lab.run(lab.attach(lab.models["flux"], lab.methods[name](**lab.off[name])), batch=3), lab.base["flux"])
    with pytest.raises(ValueError, match="cross attention; the selected layers of Flux have joint"):
        lab.run(lab.attach(lab.models["flux"], lab.methods[name]()))


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
    for i in (0, 2):
        close(lab.run(model, batch=1, seed=i), first[i:i + 1], first, 1e-4)
    assert torch.equal(lab.run(lab.models[kind], batch=3), lab.base[kind])


@pytest.mark.parametrize("name,kind", CASES)
def test_costs_no_network_evaluation(lab, name, kind):
    usable(lab, name, kind)
    lab.run(lab.attach(lab.models[kind], lab.methods[name]()))
    assert lab.engine.REPORTS[-1].evaluations == 4


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
    for i in (0, 2):
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
    plain, out = (lab.run(m, positive=positive, batch=3, size=16, steps=2) for m in (lab.models[kind], model))
    assert (out - plain).abs().max() > 1e-3
    for i in (0, 2):
        close(lab.run(model, positive=positive, seed=i, size=16, steps=2), out[i:i + 1], out, 1e-4)


def recorder(lab):
    """An edit that notes the window and the coverage of every call."""
    import dataclasses

    from lodestar.guidance.attention.edits import AttentionEdit
    from lodestar.guidance.method import Edit
    seen = []

    @frozen
    class Note(AttentionEdit):
        kinds = ("self", "joint")

        def apply(self, site, q, k, v, attend):
            seen.append((site, lab.regions((0.5, 0.0, 0.5, 1.0)).at(site)[0].view(site.height, site.width)))
            return attend(q, k, v)

    @frozen
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
    with pytest.raises(ValueError, match="two attention edits with texts of their own"):
        lab.run(model)


@pytest.mark.method("LodestarStructuredDiffusionGuidance")
@pytest.mark.parametrize("mode,count", (("values", 1), ("keys", 3)))
def test_structured_prompts_equal_to_the_prompt_change_nothing(lab, mode, count):
    from lodestar.guidance.method import Prompt
    long = lab.tiny.prompt(9, tokens=12)      # the host repeats the positive to this length
    model = lab.attach(lab.models["unet"], lab.methods["structured"](mode=mode, texts=tuple(Prompt(lab.positive) for _ in range(count))))
    close(lab.run(model, batch=3), lab.base["unet"], lab.base["unet"], 1e-4)
    plain = lab.run(lab.models["unet"], negative=long)
    close(lab.run(model, negative=long), plain, plain, 1e-4)


@pytest.mark.method("LodestarRegionalPrompts")
def test_the_region_nodes_on_the_bundled_models(lab):
    """Region to sampler with the real tokenizer: words are found, a word that is not there is named, the wrong conditioning is told."""
    from lodestar.demo.loader import load_demo_model
    from lodestar.nodes import definitions
    nodes = definitions()

    def call(name, **given):
        return nodes[name].call(given)[0]
    with torch.inference_mode():
        for kind in ("unet",) + (("dit",) if lab.modern else ()):
            model, clip, _ = load_demo_model(kind)
            first = call("LodestarRegion", x=0.0, y=0.0, width=0.5, height=1.0, words="red circle", prompt="a red circle", weight=1.0)[0]
            regions = call("LodestarRegionsFromJSON", text='[{"box": [0.5, 0, 0.5, 1], "words": "square", "prompt": "a blue square"}]', regions=first)[0]
            text = "a red circle and a blue square"
            positive, found = call("LodestarRegionPrompt", clip=clip, text=text, regions=regions)
            assert [r.tokens for r in found] == [(2, 3), (7,)] and found.length == 24 and found.spans == ((1, 8),)
            assert positive[0][1]["lodestar_prompt"] == found.mark
            phrased, _ = call("LodestarRegionPrompt", clip=clip, text=text, regions=regions, phrase_by_phrase=True)
            changed = (phrased[0][0] != positive[0][0]).any(-1)[0]
            assert changed[[2, 3]].all() and changed[7] and not changed[[0, 1, 4, 5, 6]].any()
            negative = call("LodestarRegionPrompt", clip=clip, text=" ", regions=call("LodestarRegion", x=0.0, y=0.0, width=1.0, height=1.0, words="", prompt="", weight=1.0)[0])[0]
            dense, = call("LodestarDenseDiffusion", model=model, regions=found, cross_strength=1.0, self_strength=0.3, start_percent=0.0, end_percent=1.0)
            plain, out = (lab.tiny.sample(m, positive, negative, steps=2, size=16, channels=16, batch=2) for m in (model, dense))
            assert torch.isfinite(out).all() and (out - plain).abs().max() > 1e-3
            with pytest.raises(ValueError, match="words of region 1 = 'purple'.*does not contain"):
                call("LodestarRegionPrompt", clip=clip, text=text, regions=call("LodestarRegion", x=0.0, y=0.0, width=1.0, height=1.0, words="purple", prompt="", weight=1.0)[0])
            structured, own = call("LodestarStructuredDiffusionGuidance", model=model, clip=clip, text=text, phrases="", mode="values", start_percent=0.0, end_percent=1.0)
            bound = lab.tiny.sample(structured, own, negative, steps=2, size=16, channels=16, batch=2)
            assert torch.isfinite(bound).all() and (bound - plain).abs().max() > 1e-4
            if kind == "dit":
                with pytest.raises(ValueError, match="mode = 'keys'.*Choose values"):
                    call("LodestarStructuredDiffusionGuidance", model=model, clip=clip, text=text, phrases="", mode="keys", start_percent=0.0, end_percent=1.0)


@pytest.mark.parametrize("kind", ("unet", "flux"))
def test_words_keep_to_their_prompt(lab, kind):
    """Of several positive prompts the one that carries the regions' mark is edited, and it alone."""
    if kind not in lab.models or not lab.modern:
        pytest.skip("this host does not tell prompts apart")
    from lodestar.guidance.attention.regions import Regions
    found = lab.regions().replace(lab.regions().items, mark="here")
    one, other = lab.positive[0], lab.others[0][0]

    def both(*marked):
        return [[c[0], {**c[1], **({"lodestar_prompt": "here"} if i in marked else {"lodestar_prompt": "elsewhere"})}] for i, c in enumerate((one, other))]
    model = lab.attach(lab.models[kind], lab.methods["dense"](regions=found))
    assert isinstance(found, Regions)
    outs = [lab.run(model, positive=both(*marked)) for marked in ((0,), (1,), (0, 1))]
    plain = lab.run(lab.models[kind], positive=both())
    assert all((a - b).abs().max() > 1e-4 for a in outs for b in (plain,)) and (outs[0] - outs[1]).abs().max() > 1e-4 and (outs[0] - outs[2]).abs().max() > 1e-4


# Prompt-to-Prompt: pairs of pictures

@pytest.fixture(scope="module")
def pairs(lab):
    """run(kind, method or None, pictures) with source and target prompts side by side, and the method with a mapping that swaps two words."""
    from lodestar.guidance.attention.prompt_to_prompt import Pair, PromptToPrompt
    a, b = lab.positive[0], lab.others[0][0]
    both = [[torch.cat((a[0], b[0])), {"pooled_output": torch.cat((a[1]["pooled_output"], b[1]["pooled_output"]))}]]
    mapping, share, factor = torch.eye(TOKENS), torch.ones(TOKENS), torch.ones(TOKENS)
    mapping[:, [1, 2]], share[4], factor[3] = mapping[:, [2, 1]], 0.0, 1.5

    def method(**k):
        blend = k.pop("blended", None)
        return PromptToPrompt(**{"pair": Pair(mapping, share, factor, blend), "detail": 1, **k})

    def run(kind, given=None, pictures=2, prompts=None, **k):
        model = lab.models[kind] if given is None else lab.attach(lab.models[kind], given)
        noise = torch.cat([torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(pictures)]).repeat_interleave(2, 0)
        return lab.run(model, positive=prompts or both, noise=noise, latent=torch.zeros(2 * pictures, 4, 8, 8), **k)
    return run, method


P2P = pytest.mark.method("LodestarPromptToPrompt")


@P2P
@pytest.mark.parametrize("kind", ("unet", "flux"))
def test_pairs(lab, pairs, kind):
    """The source is as without the node, the target takes its attention; pairs do not feel each other; nothing is left behind."""
    usable(lab, "pairs", kind)
    run, method = pairs
    plain, out = run(kind), run(kind, method())
    close(out[0::2], plain[0::2], plain, 1e-4)
    assert torch.isfinite(out).all() and (out[1::2] - plain[1::2]).abs().max() > 1e-3
    assert torch.equal(run(kind, method()), out)
    close(run(kind, method(), pictures=1), out[:2], out, 1e-4)
    assert torch.equal(run(kind, method(cross_steps=0.0, self_steps=0.0)), plain)
    for name in ("cross_steps", "self_steps"):      # each kind of map by itself
        assert (run(kind, method(**{name: 0.0}))[1::2] - out[1::2]).abs().max() > 1e-4, name
    assert torch.equal(lab.run(lab.models[kind], batch=3), lab.base[kind])


@P2P
@pytest.mark.parametrize("kind", ("unet", "flux"))
def test_equal_prompts_give_equal_pictures(lab, pairs, kind):
    usable(lab, "pairs", kind)
    from lodestar.guidance.attention.prompt_to_prompt import Pair
    run, method = pairs
    same = [[torch.cat((lab.positive[0][0],) * 2), {"pooled_output": torch.cat((lab.positive[0][1]["pooled_output"],) * 2)}]]
    plain = Pair(torch.eye(TOKENS), torch.ones(TOKENS), torch.ones(TOKENS))
    out = run(kind, method(pair=plain), prompts=same)
    close(out[0::2], out[1::2], out, 1e-4)
    close(out, run(kind, prompts=same), out, 1e-4)


@P2P
@pytest.mark.parametrize("kind", ("unet", "flux"))
def test_outside_the_blend_is_the_source(lab, pairs, kind):
    """Nothing is above the threshold of 1: the source's picture; everything is above 0: no blending."""
    usable(lab, "pairs", kind)
    run, method = pairs
    nothing = run(kind, method(blended=((1,), (2,)), blend_threshold=1.0))
    close(nothing[1::2], nothing[0::2], nothing, 1e-4)
    all_of_it, free = run(kind, method(blended=((1,), (2,)), blend_threshold=0.0)), run(kind, method())
    close(all_of_it, free, free, 1e-4)
    some = run(kind, method(blended=((1,), (2,)), blend_threshold=0.9, blend_start=0.0))
    assert torch.isfinite(some).all()


@P2P
def test_pairs_beside_other_methods_and_half_precision(lab, pairs):
    run, method = pairs
    for kind in lab.models:
        model = lab.attach(lab.attach(lab.models[kind], lab.others_present["pag"]()), lab.others_present["apg"]())
        free, out = (lab.run(m, positive=_both(lab), noise=_pair_noise(), latent=torch.zeros(4, 4, 8, 8)) for m in (model, lab.attach(model, method(blended=((1,), (2,))))))
        close(out[0::2], free[0::2], free, 1e-4)
        assert torch.isfinite(out).all() and (out[1::2] - free[1::2]).abs().max() > 1e-3
    for dtype in (torch.bfloat16, torch.float16):
        with torch.inference_mode():
            model = lab.attach(lab.tiny.unet(dtype=dtype), method())
        assert torch.isfinite(lab.run(model, positive=_both(lab), noise=_pair_noise(), latent=torch.zeros(4, 4, 8, 8), steps=2)).all()


def _both(lab):
    a, b = lab.positive[0], lab.others[0][0]
    return [[torch.cat((a[0], b[0])), {"pooled_output": torch.cat((a[1]["pooled_output"], b[1]["pooled_output"]))}]]


def _pair_noise():
    return torch.cat([torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(2)]).repeat_interleave(2, 0)


@P2P
def test_an_odd_batch_is_told(lab, pairs):
    with pytest.raises(ValueError, match="batch has 3 pictures.*pairs"):
        lab.run(lab.attach(lab.models["unet"], pairs[1]()), batch=3)


@P2P
def test_the_node_makes_pairs_with_equal_noise(lab):
    import comfy.sample
    from lodestar.demo.loader import load_demo_model
    from lodestar.nodes import definitions
    node = definitions()["LodestarPromptToPrompt"]
    defaults = {i.name: i.default for i in node.inputs if i.widget}
    with torch.inference_mode():
        model, clip, _ = load_demo_model("unet")
        given = {**defaults, "source": "a red circle and a blue square", "target": "a green circle and a blue square", "mode": "replace", "detail": 2}
        guided, positive, latent = node.call({"model": model, "clip": clip, "latent": {"samples": torch.zeros(2, 16, 16, 16)}, **given})[0]
        assert latent["samples"].shape[0] == 4 and latent["batch_index"] == [0, 0, 1, 1] and positive[0][0].shape[0] == 2
        noise = comfy.sample.prepare_noise(latent["samples"], 5, latent["batch_index"])
        assert torch.equal(noise[0::2], noise[1::2]) and not torch.equal(noise[0], noise[2])
        negative = [[positive[0][0][:1] * 0, {"pooled_output": positive[0][1]["pooled_output"][:1] * 0}]]
        out = lab.tiny.sample(guided, positive, negative, noise=noise, latent=latent["samples"], steps=3)
        assert torch.isfinite(out).all() and (out[0::2] - out[1::2]).abs().max() > 1e-3
        with pytest.raises(ValueError, match="Choose refine"):
            node.call({"model": model, "clip": clip, "latent": {"samples": torch.zeros(1, 16, 16, 16)}, **given, "target": "a red circle and a small blue square"})
